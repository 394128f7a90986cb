"""The lock installs what pyproject.toml pins, by hash, and names no machine."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    named = PROJECT["dependencies"] + [text for extra in extras for text in extra]
    return [r for r in map(Requirement, named) if r.name != "dankai"]


def locked_entries() -> dict[str, tuple[str, int]]:
    """Canonical name -> (version, number of hashes)."""
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    heads = [re.match(r"([\w.-]+)==([\w.]+)", entry) for entry in entries]
    assert all(heads), "an entry of the lock is not pinned with =="
    return {
        canonicalize_name(head[1]): (head[2], entry.count("--hash=sha256:"))
        for head, entry in zip(heads, entries, strict=True)
        if head
    }


@pytest.mark.parametrize("requirement", pinned_requirements(), ids=str)
def test_every_requirement_is_pinned_and_locked_at_that_version(requirement: Requirement) -> None:
    (pin,) = requirement.specifier
    assert pin.operator == "=="
    if requirement.name != "torch":
        assert locked_entries()[canonicalize_name(requirement.name)][0] == pin.version


def test_every_locked_package_has_a_hash() -> None:
    assert [name for name, (_, num_hashes) in locked_entries().items() if not num_hashes] == []


def test_the_lock_leaves_torch_and_its_cuda_packages_to_the_first_step() -> None:
    assert [name for name in locked_entries() if re.match(r"torch$|triton|nvidia-|cuda-", name)] == []


def test_the_lock_holds_what_torch_needs_everywhere() -> None:
    needs = {"filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy"}
    assert needs | {"typing-extensions"} <= locked_entries().keys()


def test_the_lock_names_no_index_and_no_host() -> None:
    assert re.findall(r"https?://|file:|--(?:extra-)?index-url|--find-links|--trusted-host", LOCK) == []


def test_the_build_backend_is_the_locked_one() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'requires = ["setuptools=={locked_entries()["setuptools"][0]}"]' in text


def test_the_torch_installed_is_the_one_pinned() -> None:
    (pin,) = next(r for r in pinned_requirements() if r.name == "torch").specifier
    assert version("torch").split("+")[0] == pin.version

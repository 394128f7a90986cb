"""What may not be in the repository, and what must be."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOME_FOLDERS = "home|root|work|Users|opt|mnt"
MACHINE_PATH = re.compile(rf"(?<![\w.:/$~)}}-])/(?:{HOME_FOLDERS})/[A-Za-z.]")
INDEX_HOST = re.compile(
    r"(?:files\.pythonhosted|pypi|download\.pytorch|anaconda|test\.pypi)\.org|--(?:extra-)?index-url"
)
ALLOWED_TO_NAME_THEM = {"tests/repository/test_tracked_files.py", "tests/repository/test_lock.py"}
CONTAINER_FILES = re.compile(
    r"^infra/.*(?:Dockerfile|\.ya?ml|\.conf)$"
)  # paths inside an image are no machine's


def tracked_files() -> list[str]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def lines_matching(pattern: re.Pattern[str], names: list[str]) -> list[str]:
    found = []
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8", errors="ignore")
        found += [
            f"{name}:{number}: {line}"
            for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)
        ]
    return found


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    names = [n for n in tracked_files() if n not in ALLOWED_TO_NAME_THEM and not CONTAINER_FILES.match(n)]
    assert lines_matching(MACHINE_PATH, names) == []


def test_no_tracked_file_names_a_package_index() -> None:
    names = [n for n in tracked_files() if n not in ALLOWED_TO_NAME_THEM | {"Makefile"}]
    assert lines_matching(INDEX_HOST, names) == []


@pytest.mark.parametrize("line", ["open('/home/me/x')", 'path: "/work/data"', "cd /root/x"])
def test_the_search_for_machine_paths_finds_them(line: str) -> None:
    assert MACHINE_PATH.search(line)


def test_no_data_and_no_pickle_is_committed() -> None:
    suffixes = (".parquet", ".csv", ".pkl", ".pickle", ".pt", ".ckpt", ".safetensors", ".onnx", ".db")
    assert [name for name in tracked_files() if name.endswith(suffixes)] == []


def test_no_tracked_file_is_larger_than_half_a_megabyte() -> None:
    assert [name for name in tracked_files() if (ROOT / name).stat().st_size > 512 * 1024] == []


def test_source_files_stay_readable_in_one_sitting() -> None:
    rooms = ("flows/", "pipelines/", "sparse_model/", "validation/")
    kernels = "sparse_model/attention/triton_"  # a kernel is read whole or not at all
    sources = [
        n for n in tracked_files() if n.startswith(rooms) and n.endswith(".py") and not n.startswith(kernels)
    ]
    assert sources
    assert [n for n in sources if len((ROOT / n).read_text().splitlines()) >= 400] == []


def test_continuous_integration_runs_check_and_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    commands = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
    assert os.access(script, os.X_OK)


def test_pre_commit_reaches_no_network() -> None:
    repositories = re.findall(r"repo: (\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert repositories == ["local"]

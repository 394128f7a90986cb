"""A bundle is whole, signed and unaltered, or it is refused; a killed build leaves none."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import KEY, built_bundle

from pipelines.edge.bundle import Bundle, verify_bundle
from pipelines.edge.runtime import EdgeModel
from pipelines.edge.verification import FILES, MANIFEST, SIGNATURE, BundleError
from pipelines.signing import sign
from validation.errors import InputError

PUBLIC = KEY.public_key()
EVERY_FILE = sorted({*FILES, MANIFEST, SIGNATURE})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built_bundle(tmp_path_factory.mktemp("edge"))


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def test_a_built_bundle_is_accepted_and_says_what_it_was_made_from(bundle: Bundle) -> None:
    manifest = verify_bundle(Path(bundle.folder), PUBLIC)
    assert manifest["made_from"]["checkpoint"] == bundle.checkpoint
    assert manifest["made_from"]["verdict"] == "2" * 64
    assert manifest["contract"]["numeric"][:2] == ["load", "wind"]
    assert bundle.parity.passed
    assert bundle.size_bytes == sum(file.stat().st_size for file in Path(bundle.folder).iterdir())


def test_building_again_gives_the_same_bundle(bundle: Bundle) -> None:
    parent = Path(bundle.folder).parents[1]
    assert built_bundle(parent) == bundle
    assert len(_bundles(parent)) == 1


def test_building_again_replaces_a_damaged_bundle(tmp_path: Path) -> None:
    first = built_bundle(tmp_path)
    (Path(first.folder) / "model.onnx").write_bytes(b"")
    assert built_bundle(tmp_path) == first
    verify_bundle(Path(first.folder), PUBLIC)
    assert len(_bundles(tmp_path)) == 1


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_in_any_file_is_refused(copy: Path, name: str, place: float) -> None:
    content = bytearray((copy / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (copy / name).write_bytes(content)
    _refused(copy)


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(b"A" * (2 << 20)),
        lambda path: (
            path.rename(path.parents[1] / "elsewhere"),
            path.symlink_to(path.parents[1] / "elsewhere"),
        ),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "truncated", "empty", "longer", "oversized", "link", "pipe", "folder"],
)
def test_a_missing_or_misshapen_file_is_refused(
    copy: Path, name: str, harm: Callable[[Path], object]
) -> None:
    harm(copy / name)
    _refused(copy)


def test_another_key_is_refused(bundle: Bundle) -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    with pytest.raises(InputError, match="trusted key"):
        verify_bundle(Path(bundle.folder), stranger)


def test_a_signature_made_for_something_else_is_refused(copy: Path) -> None:
    (copy / SIGNATURE).write_text(sign(KEY, "release log", (copy / MANIFEST).read_bytes()))
    _refused(copy)


def test_a_file_that_was_not_signed_is_refused(copy: Path) -> None:
    (copy / "extra.so").write_bytes(b"code")
    _refused(copy)


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/hostname", "sub/preprocessing.json", "manifest.json"]
)
def test_a_signed_manifest_that_points_elsewhere_is_refused(copy: Path, name: str) -> None:
    _resign(
        copy, lambda manifest: manifest["files"].update({name: manifest["files"].pop("preprocessing.json")})
    )
    _refused(copy)


@pytest.mark.parametrize("size", [1 << 31, -1, "9", None])
def test_a_signed_manifest_with_a_senseless_size_is_refused(copy: Path, size: object) -> None:
    _resign(copy, lambda manifest: manifest["files"]["model.onnx"].update(size_bytes=size))
    _refused(copy)


def test_another_format_is_refused(copy: Path) -> None:
    _resign(copy, lambda manifest: manifest.update(format=99))
    _refused(copy)


def test_a_signed_bundle_that_answers_its_golden_input_wrongly_is_refused(copy: Path) -> None:
    _resign(copy, lambda manifest: manifest.update(density=1.0, golden_tolerance=1e-9))
    with pytest.raises(BundleError, match="golden input"):
        EdgeModel.load(copy, PUBLIC)


@pytest.mark.parametrize("wait", [0.0, 0.05, 0.15])
def test_a_killed_build_leaves_no_half_bundle_and_the_next_one_cleans_up(tmp_path: Path, wait: float) -> None:
    case = Path(__file__).with_name("edge_cases.py")
    process = subprocess.Popen([sys.executable, str(case), str(tmp_path)], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("bundles/.building-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for folder in _bundles(tmp_path):
        verify_bundle(folder, PUBLIC)
    verify_bundle(Path(built_bundle(tmp_path).folder), PUBLIC)
    assert len(_bundles(tmp_path)) == 1
    assert not list(tmp_path.glob("bundles/.building-*"))


def test_a_checkpoint_that_answers_with_nan_makes_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NaN"):
        built_bundle(tmp_path, head_bias=float("nan"))
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [".lock"]


def _bundles(parent: Path) -> list[Path]:
    return [path for path in (parent / "bundles").iterdir() if not path.name.startswith(".")]


def _resign(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SIGNATURE).write_text(sign(KEY, "edge bundle", content))


def _refused(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        verify_bundle(folder, PUBLIC)
    assert "\n" not in str(caught.value)
    with pytest.raises(BundleError):
        EdgeModel.load(folder, PUBLIC)

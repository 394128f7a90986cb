"""What a device lets in, what it refuses in one line, and that it always has a whole bundle to run."""

import itertools
import json
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import KEY, built_bundle
from test_agent import plant_rows, write

from pipelines.edge import updates
from pipelines.edge.agent import Agent, answers_of
from pipelines.edge.archive import pack
from pipelines.edge.intake import read_lines
from pipelines.edge.metrics import Limits
from pipelines.edge.offers import Offer, follow, make_offer, publish, read_offer
from pipelines.edge.running import Keeper, Source
from pipelines.edge.runtime import EdgeModel
from pipelines.edge.stores import FolderStore, StoreError
from pipelines.edge.updates import bundle_folder, go_back, install, installed, self_test
from pipelines.edge.verification import MANIFEST, SIGNATURE, BundleError
from pipelines.signing import sign
from tests.faults import archives
from tests.faults import edge_faults as faults
from tests.faults.edge_faults import quick
from tests.faults.power import PowerCut
from validation.errors import InputError

PUBLIC = KEY.public_key()
Made = dict[int, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three bundles by release number."""
    parent = tmp_path_factory.mktemp("made")
    folders = [Path(built_bundle(parent, head_bias=bias).folder) for bias in (0.0, 0.5, 1.0)]
    return {json.loads((folder / MANIFEST).read_bytes())["release"]: folder for folder in folders}


@pytest.fixture
def device(made: Made, tmp_path: Path) -> Path:
    """A device that runs release 2."""
    install(tmp_path / "device", made[2], PUBLIC, measure=quick)
    return tmp_path / "device"


def refused(device: Path, source: Path, words: str, **options: Any) -> None:
    """One line says why; the device runs what it ran, and nothing is left of the other."""
    before = installed(device)
    with pytest.raises((BundleError, InputError), match=words) as caught:
        install(device, source, PUBLIC, **{"measure": quick, **options})
    assert "\n" not in str(caught.value)
    assert installed(device) == before
    assert [path.name for path in (device / "bundles").iterdir()] == [before.current]
    EdgeModel.load(bundle_folder(device, before.current), PUBLIC)


def test_release_numbers_go_up_and_the_last_two_are_kept(made: Made, tmp_path: Path) -> None:
    assert sorted(made) == [1, 2, 3]
    for release in (1, 2, 3):
        state = install(tmp_path, made[release], PUBLIC, measure=quick)
    assert (state.current[:2], state.previous[:2], state.highest) == ("3-", "2-", 3)
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == [state.previous, state.current]


def test_the_self_test_runs_on_this_device_in_processes_of_its_own(made: Made) -> None:
    measured = self_test(made[1], PUBLIC)
    assert len(measured) == updates.PROCESSES
    assert all(each["peak_memory_bytes"] > 20e6 for each in measured)


def test_an_older_release_needs_the_flag(device: Path, made: Made) -> None:
    refused(device, made[1], "older than release 2, which ran here; pass --allow-rollback")
    state = install(device, made[1], PUBLIC, allow_rollback=True, measure=quick)
    assert (state.current[:2], state.highest) == ("1-", 2)


def test_what_was_taken_back_does_not_come_again(device: Path, made: Made) -> None:
    install(device, made[3], PUBLIC, measure=quick)
    state = go_back(device, "9 of 100 windows without an answer")
    assert state.current.startswith("2-")
    refused(device, made[3], "refused here before: 9 of 100")
    with pytest.raises(InputError, match="no earlier bundle to go back to"):
        go_back(device, "again")


def test_too_slow_or_too_large_for_this_device(device: Path, made: Made) -> None:
    refused(device, made[3], "answers took over 1e-06 ms", limits=Limits(latency_p99_ms=1e-6))
    refused(device, made[3], "bytes of memory on this device", limits=Limits(peak_memory_bytes=1e6))


def test_a_bundle_for_another_machine(device: Path, made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made[3], tmp_path / "copy")
    resign(copy, lambda manifest: manifest.update(machines=["riscv64"]))
    refused(device, copy, "made for riscv64, this device is")


def test_a_disk_that_is_too_small(device: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "free_bytes", lambda _: 1000)
    refused(device, made[3], "too little room")


def test_a_self_test_that_dies_is_told_by_its_last_word(device: Path, made: Made, tmp_path: Path) -> None:
    wrong = shutil.copytree(made[3], tmp_path / "wrong")
    resign(wrong, lambda manifest: manifest.update(golden_tolerance=-1.0))
    refused(device, wrong, "off on this machine", measure=self_test)


# what an archive may be -----------------------------------------------------------------------------


def resign(folder: Path, change: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    change(manifest)
    content = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(content)
    (folder / SIGNATURE).write_text(sign(KEY, "edge bundle", content))


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, content: dict[str, bytes], **more: Any) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(more.get(name, name), data)


def with_entry(name: str, data: bytes = b"x") -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        content = entries(path)
        content.pop("preprocessing.json")
        packed(path, {**content, name: data})

    return harm


def with_link(path: Path) -> None:
    content, link = entries(path), zipfile.ZipInfo("model.onnx")
    link.external_attr = 0o120777 << 16
    packed(path, {**content, "model.onnx": b"/etc/hostname"}, **{"model.onnx": link})


def claiming_to_be_small(path: Path) -> None:
    """A bomb whose headers say 10 bytes."""
    packed(path, {**entries(path), "model.onnx": bytes(80 << 20)})
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", 80 << 20)
    while (place := content.find(size)) >= 0:
        content[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(content)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "not a whole bundle archive"),
    "cut to nothing": (lambda path: path.write_bytes(b""), "not a whole bundle archive"),
    "bit flipped": (
        lambda path: path.write_bytes(
            path.read_bytes().replace(b"", b"", 0)[:500] + b"\0" + path.read_bytes()[501:]
        ),
        "damaged|not a whole|cannot be unpacked|not the file",
    ),
    "path traversal": (with_entry("../../installed.json"), "not part of a bundle"),
    "absolute path": (with_entry("/etc/cron.d/x"), "not part of a bundle"),
    "backslashes": (with_entry("..\\model.onnx"), "not part of a bundle"),
    "link": (with_link, "not a plain file"),
    "folder": (with_entry("model.onnx/"), "not a plain file|not part"),
    "too many entries": (
        lambda path: packed(path, {**entries(path), "a": b"", "b": b""}),
        "entries, a bundle at most",
    ),
    "bomb": (lambda path: packed(path, {**entries(path), "model.onnx": bytes(80 << 20)}), "unpacks to more"),
    "bomb that lies": (claiming_to_be_small, "damaged|not the file|unpacks to more"),
    "altered": (
        lambda path: packed(path, {**entries(path), "preprocessing.json": b"{}"}),
        "not the file that was signed",
    ),
    "missing": (
        lambda path: packed(path, {k: v for k, v in entries(path).items() if k != SIGNATURE}),
        "No such file",
    ),
}


@pytest.mark.parametrize("name", HARMS)
def test_an_archive_that_is_not_a_bundle_is_refused(
    name: str, made: Made, device: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "bundle.zip"
    pack(made[3], archive)
    harm, words = HARMS[name]
    harm(archive)
    refused(device, archive, words)
    assert not (tmp_path / "installed.json").exists()


def test_one_archive_of_each_kind_of_harm_is_refused(made: Made, tmp_path: Path) -> None:
    """All of them: `python -m tests.benchmarks.edge_faults`."""
    pair = archives.make_pair(made[1], made[2])
    device, archive = tmp_path / "device", tmp_path / "bundle.zip"
    archives.start(device, pair, archive)
    for name, make in archives.KINDS.items():
        if "bomb" not in name:  # above
            one = itertools.islice(make(pair), 1)
            assert archives.tried(device, pair, one, archive) == (1, 0), name


def test_a_folder_that_holds_a_link_or_more_than_a_bundle(device: Path, made: Made, tmp_path: Path) -> None:
    linked = shutil.copytree(made[3], tmp_path / "linked")
    (linked / "model.onnx").unlink()
    (linked / "model.onnx").symlink_to(made[3] / "model.onnx")
    refused(device, linked, "a bundle holds plain files")
    more = shutil.copytree(made[3], tmp_path / "more")
    (more / "extra.so").write_bytes(b"code")
    refused(device, more, "not part of a bundle")


@pytest.mark.parametrize("release", [None, 0, "7", 1.5])
def test_a_bundle_without_a_release_number(release: object, made: Made, device: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made[3], tmp_path / "copy")
    resign(copy, lambda manifest: manifest.update(release=release))
    refused(device, copy, "no release number")


# power cuts -------------------------------------------------------------------------------------------


def test_a_power_cut_at_any_sync_of_an_update_leaves_the_old_or_the_new(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    install(place / "device", made[1], PUBLIC, measure=quick)
    with PowerCut(place).recording() as disk:
        install(place / "device", made[2], PUBLIC, measure=quick)
    found = [
        faults.check_update(image.write(tmp_path / "found") / "device", made[2]) for image in disk.images[::2]
    ]
    assert found == sorted(found)  # first the old, from some sync on the new
    assert {"1", "2"} == set(found)


# offers -------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "store").mkdir()
    return FolderStore(tmp_path / "store")


def offered(store: FolderStore, made: Made, release: int, sequence: int, *devices: str) -> Offer:
    package, last = publish(store, made[release], PUBLIC), publish(store, made[1], PUBLIC)
    return make_offer(store, Offer(sequence, package, devices or None, last, Limits(0.02, 500.0)), KEY)


def test_a_device_follows_an_offer_that_is_meant_for_it(
    made: Made, store: FolderStore, tmp_path: Path
) -> None:
    offer = offered(store, made, 2, 1, "line-3")
    assert read_offer(store, PUBLIC) == offer
    state = follow(tmp_path / "a", "line-3", store, PUBLIC, quick)
    assert (state.current[:2], state.sequence, state.bounds()) == ("2-", 1, Limits(0.02, 500.0))
    assert follow(tmp_path / "b", "line-4", store, PUBLIC, quick).current.startswith("1-")
    offered(store, made, 1, 2)
    assert follow(tmp_path / "a", "line-3", store, PUBLIC, quick).current.startswith("1-")


def test_an_offer_that_is_old_or_not_signed_changes_nothing(
    made: Made, store: FolderStore, tmp_path: Path
) -> None:
    offered(store, made, 1, 1)
    old = {name: (tmp_path / "store" / name).read_bytes() for name in ("offer.json", "offer.sig")}
    offered(store, made, 2, 2)
    state = follow(tmp_path / "a", "line-3", store, PUBLIC, quick)
    for name, content in old.items():
        (tmp_path / "store" / name).write_bytes(content)
    with pytest.raises(StoreError, match="older than 2, seen before"):
        follow(tmp_path / "a", "line-3", store, PUBLIC, quick)
    (tmp_path / "store" / "offer.json").write_bytes(old["offer.json"].replace(b"1", b"3"))
    with pytest.raises(StoreError, match="not signed by the trusted key"):
        follow(tmp_path / "a", "line-3", store, PUBLIC, quick)
    assert installed(tmp_path / "a") == state


def test_a_download_that_breaks_off_is_tried_again_and_one_that_is_wrong_is_not(
    made: Made, store: FolderStore, tmp_path: Path
) -> None:
    offer = offered(store, made, 2, 1)
    archive = tmp_path / "store" / offer.package.archive
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-7])
    with pytest.raises(StoreError, match="fetched again next time"):
        follow(tmp_path / "a", "line-3", store, PUBLIC, quick)
    archive.write_bytes(whole + b"\0" * 100)
    with pytest.raises(StoreError, match="larger than"):
        follow(tmp_path / "a", "line-3", store, PUBLIC, quick)
    archive.write_bytes(whole)
    assert follow(tmp_path / "a", "line-3", store, PUBLIC, quick).current == offer.package.bundle
    offered(store, made, 3, 2)
    slow: Any = lambda *_: [{"latency_ms": [9e9] * 60, "peak_memory_bytes": 1}]  # noqa: E731
    with pytest.raises(BundleError, match="took over"):
        follow(tmp_path / "a", "line-3", store, PUBLIC, slow)
    state = follow(tmp_path / "a", "line-3", store, PUBLIC, quick)  # it stays with what it has
    assert (state.current, state.sequence) == (offer.package.bundle, 2)


# at work ------------------------------------------------------------------------------------------------


def kept(device: Path, made: Made, *releases: int) -> Keeper:
    for release in releases:
        install(device, made[release], PUBLIC, measure=quick)
    return Keeper(device, Source("rows.jsonl", None, PUBLIC))


def test_a_bundle_that_ends_the_process_three_times_is_taken_back(made: Made, tmp_path: Path) -> None:
    import os

    keeper = kept(tmp_path, made, 1, 2)

    class Deadly(EdgeModel):
        def score(self, window: Any, density: float | None = None) -> Any:
            os._exit(11)

    for _ in range(3):
        assert keeper.load().name.startswith("2-")
        child = os.fork()
        if child == 0:
            keeper.score(Deadly({}, {}, None, None, b""), None, 0.5)  # type: ignore[arg-type]
        os.waitpid(child, 0)
    assert keeper.load().name.startswith("1-")
    assert "ended the process 3 times" in next(iter(installed(tmp_path).refused.values()))


def test_starts_that_end_well_or_score_nothing_count_for_nothing(made: Made, tmp_path: Path) -> None:
    keeper = kept(tmp_path, made, 1, 2)
    for _ in range(5):
        loaded = keeper.load()
        assert loaded.name.startswith("2-")
        keeper.score(loaded.model, loaded.model.golden, 0.5)


def test_an_installed_bundle_that_was_damaged_on_the_disk_gives_way(made: Made, tmp_path: Path) -> None:
    keeper = kept(tmp_path, made, 1, 2)
    graph = bundle_folder(tmp_path, installed(tmp_path).current) / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    assert keeper.load().name.startswith("1-")


def test_live_windows_without_answers_take_the_bundle_back_and_the_stream_goes_on(
    made: Made, tmp_path: Path
) -> None:
    keeper, source = kept(tmp_path / "device", made, 1, 2), tmp_path / "rows.jsonl"
    write(source, plant_rows(40 + 8 * 400))

    def score(model: EdgeModel, inputs: Any, density: float) -> Any:
        good = model.score(inputs, density)
        return good if installed(tmp_path / "device").current.startswith("1-") else good * float("nan")

    agent = Agent(tmp_path / "device", keeper.load(), source, score=score)
    for _ in agent.take(read_lines(str(source), {}, follow=False)):
        keeper.look(agent)
    agent.close()
    state, found = installed(tmp_path / "device"), list(answers_of(tmp_path / "device"))
    assert state.current.startswith("1-")
    assert "100 of 100 windows without an answer" in next(iter(state.refused.values()))
    assert len(found) == 8 * 400
    assert 8 * 300 <= sum("error" in each for each in found) < 8 * 400

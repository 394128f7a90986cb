"""Every fault at every place, counted: power cuts, kill -9, full disks, clocks, bundles that must not run.

    PYTHONPATH=. python -m tests.benchmarks.edge_faults [OUT.json]
    PYTHONPATH=. python -m tests.benchmarks.edge_faults --table RESULTS.json

Longer than the tests may take; they try a part of it. Fails at the first device that does not go on as if
nothing had happened, or lets in what it must not. The second prints the table of results that are kept.
"""

import errno
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.clock import now
from pipelines.edge.runtime import EdgeModel
from pipelines.edge.updates import bundle_folder, install, installed
from pipelines.files import replace_file
from pipelines.fingerprint import environment
from tests.faults import archives
from tests.faults import edge_faults as faults
from tests.faults.archives import Pair
from tests.faults.edge_faults import PUBLIC, Case, check, make_case, quick, scored, small_steps, told
from tests.faults.power import PowerCut

Counts = dict[str, int]
"""`tried`, which all held; of archives also how many of them were `whole` all the same."""
Row = dict[str, Counts]


def main() -> None:
    results: Row = {}
    with tempfile.TemporaryDirectory() as folder, small_steps():
        place = Path(folder)
        case = make_case(place / "case")
        other = Path(faults.built_bundle(place / "case", head_bias=0.5).folder)
        for name, fault in FAULTS.items():
            results[name] = _timed(name, lambda fault=fault: {"tried": fault(case, other, place / "tried")})
            shutil.rmtree(place / "tried", ignore_errors=True)
        pair = archives.make_pair(case.bundle, other)
        for name, make in archives.KINDS.items():
            results[name] = _timed(name, lambda make=make: _archives(pair, make, place / "tried"))
    print(table(results))
    if len(sys.argv) > 1:
        content = {"date": now(), "environment": environment().model_dump(), "faults": results}
        replace_file(Path(sys.argv[1]), json.dumps(content, indent=1).encode() + b"\n")


def _timed(name: str, work: Callable[[], Counts]) -> Counts:
    began = time.monotonic()
    counts = work()
    print(f"{name}: {counts} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return counts


def table(results: Row) -> str:
    """Markdown. What did not hold would have ended the run."""
    lines = [
        f"| {name} | {counts['tried']:,} | {counts['tried']:,}"
        + (f" ({counts['whole']:,} whole all the same)" if counts.get("whole") else "")
        + " |"
        for name, counts in results.items()
    ]
    return "\n".join(["| fault | tried | held |", "|---|---|---|", *lines])


def _archives(pair: Pair, make: Callable[[Pair], Iterator[bytes]], place: Path) -> Counts:
    device, archive = place / "device", place / "bundle.zip"
    place.mkdir(exist_ok=True)
    archives.start(device, pair, archive)
    refused, whole = archives.tried(device, pair, make(pair), archive)
    EdgeModel.load(bundle_folder(device, installed(device).current), PUBLIC)
    return {"tried": refused + whole, "refused": refused, "whole": whole}


def power_in_a_run(case: Case, _: Path, place: Path) -> int:
    images = faults.images_of_a_run(case, place / "disk")
    for image in images:
        check(case, image.write(place / "found") / "state")
    return len(images)


def journal_at_every_byte(case: Case, _: Path, place: Path) -> int:
    segment, size = faults.cuts(case, place / "state")
    content = segment.read_bytes()
    for length in range(0, size, 64):
        shutil.rmtree(place / "found", ignore_errors=True)
        found = shutil.copytree(segment.parents[1], place / "found")
        (found / "answers" / segment.name).write_bytes(content[:length])
        check(case, found)
    return len(range(0, size, 64))


def kill_in_a_run(case: Case, _: Path, place: Path) -> int:
    state = place / "state"

    def go_on(_: int) -> None:
        check(case, state)
        shutil.rmtree(state)

    return faults.kills(lambda: scored(case, state), go_on)


def kill_again_and_again(case: Case, _: Path, place: Path) -> int:
    """The same device is killed at the n-th write of every start, until a start gets through."""
    count = 0
    for step in (17, 23, 41, 97):
        state = place / str(step)
        while faults.killed_at(step, lambda state=state: scored(case, state)) != 0:
            count += 1
        check(case, state)
    return count


def power_in_an_update(case: Case, other: Path, place: Path) -> int:
    install(place / "disk" / "device", case.bundle, PUBLIC, measure=quick)
    with PowerCut(place / "disk").recording() as disk:
        install(place / "disk" / "device", other, PUBLIC, measure=quick)
    for image in disk.images:
        faults.check_update(image.write(place / "found") / "device", other)
    return len(disk.images)


def kill_in_an_update(case: Case, other: Path, place: Path) -> int:
    device = place / "device"

    def prepare() -> None:
        shutil.rmtree(device, ignore_errors=True)
        install(device, case.bundle, PUBLIC, measure=quick)

    def go_on(_: int) -> None:
        faults.check_update(device, other)
        prepare()

    prepare()
    return faults.kills(lambda: install(device, other, PUBLIC, measure=told), go_on)


def kill_in_a_sync(case: Case, _: Path, place: Path) -> int:
    whole = place / "whole"
    scored(case, whole)
    expected = faults.synced(case, shutil.copytree(whole, place / "undisturbed"), place / "expected")
    state, store, count = place / "state", place / "store", 0
    shutil.copytree(whole, state)

    def go_on(_: int) -> None:
        nonlocal count
        count += 1
        assert faults.synced(case, state, store) == expected
        shutil.rmtree(state)
        shutil.rmtree(store)
        shutil.copytree(whole, state)

    faults.kills(lambda: faults.synced(case, state, store), go_on)
    return count


def full_disk(case: Case, _: Path, place: Path) -> int:
    count = 0
    for kilobytes in range(8, 400, 4):
        with faults.small_disk(place / "disk", kilobytes << 10) as enlarge:
            state = place / "disk" / "state"
            try:
                scored(case, state)
            except OSError as error:
                count += error.errno == errno.ENOSPC
            enlarge()
            check(case, state)
    return count


def file_too_large(case: Case, _: Path, place: Path) -> int:
    count = 0
    for size in range(200, 12_000, 200):
        state = place / str(size)
        try:
            with faults.files_of_at_most(size):
                scored(case, state)
        except OSError:
            count += 1
        check(case, state)
    return count


def leaping_clock(case: Case, _: Path, place: Path) -> int:
    with faults.jumping_clock():
        check(case, place / "run")
        faults.synced(case, place / "run", place / "store")
    return 1


FAULTS: dict[str, Callable[[Case, Path, Path], int]] = {
    "power cut at every sync, rename and removal of a run": power_in_a_run,
    "journal cut at every 64th byte": journal_at_every_byte,
    "kill -9 at every write of a run": kill_in_a_run,
    "kill -9 at the n-th write of every start": kill_again_and_again,
    "power cut at every sync, rename and removal of an update": power_in_an_update,
    "kill -9 at every write of an update": kill_in_an_update,
    "kill -9 at every write of a sync": kill_in_a_sync,
    "disk full, at sizes from 8 to 400 KiB": full_disk,
    "file that may not grow, at sizes from 0.2 to 12 kB": file_too_large,
    "wall clock that leaps by years at every look": leaping_clock,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        print(table(json.loads(Path(sys.argv[2]).read_bytes())["faults"]))
    else:
        main()

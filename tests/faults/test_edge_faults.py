"""Power cuts, kills, full disks and clocks: the answers are those of a run that nothing disturbed, each once.

A small part of what `python -m tests.benchmarks.edge_faults` tries.
"""

import errno
import os
import shutil
from pathlib import Path

import pytest

from pipelines.edge.agent import answers_of
from tests.faults import edge_faults as faults
from tests.faults.edge_faults import Case, check, make_case, options, scored, small_steps


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("case"))


def test_a_power_cut_at_any_sync_of_a_run_changes_no_answer(case: Case, tmp_path: Path) -> None:
    with small_steps():
        images = faults.images_of_a_run(case, tmp_path / "disk")
        assert len(images) > 60
        for image in images[::9]:
            check(case, image.write(tmp_path / "found") / "state")


def test_a_journal_cut_at_any_byte_is_gone_on_with(case: Case, tmp_path: Path) -> None:
    with small_steps():
        segment, size = faults.cuts(case, tmp_path / "state")
        content, state = segment.read_bytes(), segment.parents[1]
        for length in range(0, size, size // 12):
            shutil.rmtree(tmp_path / "found", ignore_errors=True)
            found = shutil.copytree(state, tmp_path / "found")
            (found / "answers" / segment.name).write_bytes(content[:length])
            check(case, found)


def test_kill_9_at_a_write_changes_no_answer(case: Case, tmp_path: Path) -> None:
    with small_steps():
        state = tmp_path / "state"

        def go_on(_: int) -> None:
            check(case, state)
            assert not list(state.rglob("*.tmp"))
            shutil.rmtree(state)

        assert faults.kills(lambda: scored(case, state), go_on, every=23) >= 5


@pytest.mark.parametrize("kilobytes", [24, 48])
def test_a_full_disk_loses_nothing(case: Case, tmp_path: Path, kilobytes: int) -> None:
    with small_steps(), faults.small_disk(tmp_path / "disk", kilobytes << 10) as enlarge:
        state = tmp_path / "disk" / "state"
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            scored(case, state)
        enlarge()
        check(case, state)


def test_a_file_that_may_not_grow_loses_nothing(case: Case, tmp_path: Path) -> None:
    with small_steps():
        with faults.files_of_at_most(5000), pytest.raises(OSError, match="large"):
            scored(case, tmp_path / "state")
        check(case, tmp_path / "state")


def test_a_clock_that_leaps_changes_neither_answers_nor_what_is_sent(case: Case, tmp_path: Path) -> None:
    with small_steps():
        check(case, tmp_path / "still")
        sent = faults.synced(case, tmp_path / "still", tmp_path / "store")
        with faults.jumping_clock():
            check(case, tmp_path / "leaping")
            again = faults.synced(case, tmp_path / "leaping", tmp_path / "other")
    assert sent.keys() == again.keys()
    assert len(sent) > 3


def test_answers_are_read_while_they_are_written(case: Case, tmp_path: Path) -> None:
    with small_steps():
        scored(case, tmp_path / "state")
    last = max((tmp_path / "state" / "answers").glob("*.jsonl"))
    last.write_bytes(last.read_bytes() + b'{"n":999,"answ')
    assert list(answers_of(tmp_path / "state")) == case.expected
    assert options().segment_bytes < 1 << 20

"""What the daily look takes, and in which order."""

import os
from pathlib import Path

import pytest

from flows.monitor import arrivals
from validation.errors import InputError


def test_batches_are_taken_in_order_of_arrival_and_half_written_ones_are_left_alone(tmp_path: Path) -> None:
    for age, name in enumerate(("b.csv", "a.csv", ".c.csv.tmp", "folder")):
        (tmp_path / name).mkdir() if name == "folder" else (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    assert [path.name for path in arrivals(tmp_path)] == ["b.csv", "a.csv", "folder"]


def test_where_nothing_ever_came_that_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no batch has arrived; is what delivers them running"):
            arrivals(folder)

"""The benchmark of many rows goes through to its end, on a few."""

from pathlib import Path

import pytest

from pipelines.benchmarks import data


def test_every_phase_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MACHINES", 1)
    monkeypatch.setattr(data, "NUM_BATCHES", 2)
    source, work = tmp_path / "source", tmp_path / "work"
    source.mkdir()
    work.mkdir()
    data.generate(source, 10_000)
    measured = data.through_the_pipeline(source, work)
    assert [row["phase"] for row in measured] == [
        "snapshot",
        "validation",
        "preprocessing",
        "windows",
        "batches",
    ]
    assert all(row["seconds"] > 0 and row["peak_gib"] > 0 for row in measured)
    assert {scan(source) for scan in data.SCANS.values()} == {10_000}

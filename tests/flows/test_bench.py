"""`dankai bench` without what it needs: it says so in one line and writes nothing."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from flows.commands.bench import bench
from validation.errors import InputError

BENCHMARKS = ["attention", "model", "parallel"]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, so nothing is refused")


@without_gpu
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_machine_without_a_gpu_is_told_so_in_one_line_and_nothing_is_written(
    name: str, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    ended = CliRunner().invoke(bench, [name, "--out", str(out)])
    assert isinstance(ended.exception, InputError)  # flows.cli turns it into one line and exit status 2
    assert f"bench {name}: needs one CUDA GPU" in str(ended.exception)
    assert "\n" not in str(ended.exception)
    assert not out.exists()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "file").write_text("kept")
    ended = CliRunner().invoke(bench, [name, "--out", str(tmp_path / "file" / "results")])
    assert isinstance(ended.exception, InputError)
    assert str(ended.exception).startswith("--out: ")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_what_it_needs(name: str) -> None:
    assert "CUDA GPU" in CliRunner().invoke(bench, [name, "--help"]).output

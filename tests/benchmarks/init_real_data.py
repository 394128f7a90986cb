"""`dankai init` on each file below DANKAI_DATA: a rollout that begins, or one clear line.

    PYTHONPATH=. python tests/benchmarks/init_real_data.py

Every file is asked about as it is, then with the answers below. What is written goes the way of a rollout:
snapshot, validation by Great Expectations, windows, the first steps of a dense training at full length.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.candidates import model_config
from pipelines.data.contract import contract_of
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import take_snapshot
from pipelines.data.spec import load_spec
from pipelines.data.stream import chunks
from pipelines.data.windows import Windows, training_chunks
from pipelines.training import train
from validation.data import validate_parts
from validation.policy import load_policy

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DANKAI_DATA") or ROOT / "../shared/data").resolve()
ANSWERS = {
    "nab_real.parquet": ["--sort", "--target", "window_label"],
    "schonlau.parquet": ["--step", "1s"],
    "server_machines": ["--step", "1min"],
    **{f"machine-{name}.parquet": ["--step", "1min"] for name in ("1-6", "1-7", "2-1", "2-2", "2-7")},
}
FIRST_STEPS = {"num_steps": 3, "steps_per_epoch": 3, "validation_windows": 2, "curriculum": ((1.0, 1.0),)}


def init(table: Path, out: Path, options: list[str]) -> tuple[int, str]:
    """Exit status, and the line that it ended with."""
    command = [str(Path(sys.executable).with_name("dankai")), "init", str(table), "--out", str(out), *options]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return ended.returncode, (ended.stderr or ended.stdout).strip().splitlines()[-1]


def begin(dataset: Path, folder: Path) -> str:
    """The beginning of a rollout of this dataset file, in words."""
    spec = load_spec(dataset)
    snapshot = take_snapshot(spec, folder)
    parts = (rows.to_pandas() for rows in chunks(snapshot.uri))
    share = load_policy(ROOT / "infra" / "rollout.yaml").data.max_quarantined_share
    places = (folder / "docs", folder / "aside")
    report = validate_parts(parts, contract_of(spec), *places, max_quarantined_share=share)
    windows = Windows(snapshot, spec, fit_preprocessing(training_chunks(snapshot, spec), spec))
    plan = spec.training.model_copy(update=FIRST_STEPS)
    config = model_config(windows, spec)
    checkpoint, curve = train(windows, config, plan, "dense", 0, folder / "model", lambda *_: None)
    losses = ", ".join(f"{loss:.3f}" for _, loss in curve["train_loss"])
    return (
        f"{snapshot.num_rows:,} rows, {snapshot.num_entities} series, data {report.outcome}; {spec.task}, "
        f"lookback {spec.lookback}, {checkpoint.num_steps} steps with losses {losses}"
    )


def main() -> None:
    tables = [path for path in sorted(DATA.rglob("*")) if path.is_file() and path.name != "SOURCE.md"]
    for table in (*tables, DATA / "server_machines"):
        started = time.monotonic()
        with TemporaryDirectory() as folder:
            out = Path(folder) / "made.yaml"
            status, line = init(table, out, [])
            print(f"{table.relative_to(DATA)}: status {status}: {line}", flush=True)
            if status and (answers := ANSWERS.get(table.name)):
                status, line = init(table, out, answers)
                print(f"  with {' '.join(answers)}: status {status}", flush=True)
            if not status:
                print(f"  {begin(out, Path(folder))} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

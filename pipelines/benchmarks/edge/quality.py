"""`dankai bench edge --quality`: what arrives on a device of a model trained on real data, at each precision.

`python -m pipelines.benchmarks.edge.quality FOLDER [DATASET …]`. For every dataset one sparse model is
trained as its file says, and built into a bundle at each precision. Parity is what the bundle's build
measured; the task metric is that of the test part, its loss a share of the checkpoint's own metric on the
same windows, above zero when worse, with the policy's interval.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.benchmarks.attention import table
from pipelines.benchmarks.real_data import DATASETS, DENSITY, lost_share, windows_of
from pipelines.checkpoint import Checkpoint
from pipelines.data.windows import WindowBatch, Windows
from pipelines.edge.bundle import build_bundle
from pipelines.edge.parity import inputs_of, parity_inputs
from pipelines.edge.precision import Precision
from pipelines.edge.runtime import EdgeModel
from pipelines.evaluation import TASK_METRICS, resampling
from pipelines.files import replace_file
from pipelines.fingerprint import ROOT, environment
from pipelines.judging import window_scores
from pipelines.scoring import collect_scores, load_scored, score_model
from validation.policy import load_policy
from validation.statistics import METRICS, Scored

CASES: tuple[tuple[Precision, str], ...] = (
    ("fp32", "onnxruntime"),
    ("fp32", "compiled"),
    ("int16", "compiled"),
)
Row = dict[str, Any]


def main(folder: Path, datasets: Sequence[str] = DATASETS, say: Callable[[str], None] = print) -> Row:
    """Train, build and score every dataset, print a table, and write edge_quality.json into `folder`."""
    rows: list[Row] = []
    with TemporaryDirectory() as work:
        for dataset in datasets:
            rows += _of_dataset(dataset, Path(work))
            say(table([_brief(row) for row in rows if row["dataset"] == dataset]))
            result = {"environment": environment().model_dump(), "density": DENSITY, "rows": rows}
            replace_file(folder / "edge_quality.json", json.dumps(result, indent=1).encode() + b"\n")
    return {"rows": rows}


def _of_dataset(dataset: str, work: Path) -> list[Row]:
    from pipelines.candidates import model_config
    from pipelines.training import train

    windows = windows_of(dataset, work)
    config, plan = model_config(windows, windows.spec), windows.spec.training
    checkpoint, _ = train(windows, config, plan, "sparse", 0, work / dataset, _silent)
    kept = score_model(checkpoint, windows, "test", DENSITY, "checkpoint", work / dataset, _silent)
    theirs = load_scored(kept)
    return [_case(windows, checkpoint, theirs, *case, work / dataset) for case in CASES]


def _case(
    windows: Windows, checkpoint: Checkpoint, theirs: Scored, precision: Precision, engine: str, work: Path
) -> Row:
    key = Ed25519PrivateKey.generate()
    made_of = (
        checkpoint,
        windows.spec,
        windows.preprocessing,
        parity_inputs(windows),
        DENSITY,
        "",
        key,
        work,
    )
    bundle = build_bundle(*made_of, precision=precision)
    model = EdgeModel.load(Path(bundle.folder), key.public_key(), threads=2, engine=engine)

    def answer(batch: WindowBatch) -> np.ndarray:
        return np.stack([window_scores(model, window, windows.lookback) for window in inputs_of(batch)])

    about = (f"{precision}-{engine}", bundle.checkpoint, work, _silent, DENSITY)
    ours = load_scored(collect_scores(windows, "test", answer, *about))
    metric = METRICS[TASK_METRICS[windows.spec.task][0]]
    how = resampling(load_policy(ROOT / "infra" / "rollout.yaml"), windows.spec, ours.num_windows)
    return {
        "dataset": windows.spec.name,
        "precision": precision,
        "engine": engine,
        "parity": bundle.parity.model_dump(mode="json") | {"passed": bundle.parity.passed},
        "metric": metric.name,
        "value": metric(ours),
        "of_checkpoint": metric(theirs),
        "loses": lost_share(metric, ours, theirs, how),
    }


def _silent(*_: object) -> None: ...


def _brief(row: Row) -> Row:
    parity, lost = row["parity"], row["loses"]
    return {
        **{name: row[name] for name in ("dataset", "precision", "engine", "metric")},
        "value": f"{row['value']:.4f}",
        "loses": f"{lost['value']:+.3%} [{lost['low']:+.3%}, {lost['high']:+.3%}]",
        "off": f"{parity['same_blocks_error']:.1e}",
        "allowed": f"{parity['tolerance']:.1e}",
        "with ties": f"{parity['max_abs_error']:.1e}",
        "then allowed": f"{parity['answer_tolerance']:.1e}",
        "parity": "holds" if parity["passed"] else "does not hold",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or DATASETS)

"""The runtime answers as the checkpoint does, alone, and encodes rows as the training did."""

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import KEY, PREPROCESSING, SPEC, built_bundle, random_model

from pipelines.edge.bundle import Bundle
from pipelines.edge.measurement import measure
from pipelines.edge.rows import Inputs, encode_rows
from pipelines.edge.runtime import EdgeModel
from pipelines.signing import public_pem
from sparse_model.config import Budget

PUBLIC = KEY.public_key()
ALLOWED = {"numpy", "onnxruntime", "cryptography", "_cffi_backend", "_openssl", "pipelines"}

ALONE = """
import json, sys
from pathlib import Path

class Block:
    names = {"torch", "pydantic", "prefect", "mlflow", "onnx", "validation", "sparse_model", "flows"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} must not be needed on a device")

sys.meta_path.insert(0, Block())
before = set(sys.modules)
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pipelines.edge.runtime import EdgeModel
model = EdgeModel.load(Path(sys.argv[1]), load_pem_public_key(Path(sys.argv[2]).read_bytes()))
scores = model.score(model.golden)
print(json.dumps({"scores": scores.tolist(), "modules": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built_bundle(tmp_path_factory.mktemp("edge"))


@pytest.fixture(scope="module")
def edge_model(bundle: Bundle) -> EdgeModel:
    return EdgeModel.load(Path(bundle.folder), PUBLIC)


def test_runtime_needs_nothing_but_its_own_libraries(
    bundle: Bundle, tmp_path: Path, edge_model: EdgeModel
) -> None:
    (tmp_path / "key.pem").write_bytes(public_pem(PUBLIC))
    done = subprocess.run(
        [sys.executable, "-c", ALONE, bundle.folder, str(tmp_path / "key.pem")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    np.testing.assert_allclose(answer["scores"], edge_model.score(edge_model.golden), atol=1e-6)
    roots = {name.split(".")[0] for name in answer["modules"]}
    assert roots - set(sys.stdlib_module_names) <= ALLOWED
    ours = {name for name in answer["modules"] if name.startswith("pipelines")}
    names = (
        "",
        *(
            f".edge{name}"
            for name in ("", ".compiled", ".rows", ".runtime", ".stream", ".verification", ".weights")
        ),
    )
    assert ours == {f"pipelines{name}" for name in names}


def test_scores_are_the_checkpoints_probabilities_of_the_horizon(edge_model: EdgeModel) -> None:
    inputs = [torch.from_numpy(array)[None] for array in edge_model.golden]
    for density in (None, 0.25, 1.0):
        with torch.inference_mode():
            model = random_model()
            torch.nn.init.zeros_(model.head.bias)
            expected = model(*inputs, Budget(density or 0.5)).sigmoid()[0, -8:]
        scores = edge_model.score(edge_model.golden, density)
        assert scores.shape == (8, 1)
        np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


def test_rows_are_encoded_as_windows_are(edge_model: EdgeModel) -> None:
    import polars as pl

    from pipelines.data.snapshot import Snapshot
    from pipelines.data.windows import Windows

    rows = _rows(120)
    rows[60]["late"] = 2  # no outcome, and unknown to both
    table = pl.DataFrame(rows).with_columns(
        entity=pl.lit("plant"), time=pl.col("time").cast(pl.Datetime("us"))
    )
    windows = Windows(Snapshot.model_construct(), SPEC, PREPROCESSING, table)
    batch = windows.batch(np.array([90]))
    expected = Inputs(batch.numeric[0], batch.known[0], batch.categorical[0])
    contract = edge_model.manifest["contract"]
    for given in (rows[50:98], _as_json(rows[50:98])):
        encoded = encode_rows(given, edge_model.preprocessing, contract)
        for ours, theirs in zip(encoded, expected, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert edge_model.score(rows[50:98]).shape == (8, 1)


def test_what_lies_after_the_cutoff_does_not_change_the_scores(edge_model: EdgeModel) -> None:
    rows = _rows(48)
    future = [{**row, "load": 40.0, "late": 1} for row in rows[40:]]
    np.testing.assert_array_equal(edge_model.score(rows), edge_model.score([*rows[:40], *future]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"load": "much"}, "row 3: load: 'much' is not a number"),
        ({"load": [1.0]}, "row 3: load"),
        ({"time": "yesterday"}, "row 3: time: give an ISO instant"),
        ({"time": None}, "row 3: time"),
        ({"site": ["north"]}, "row 3: site"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(edge_model: EdgeModel, change: dict, words: str) -> None:
    rows = _rows(48)
    rows[3] = {**rows[3], **change}
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        edge_model.score(rows)


def test_too_few_rows_and_misshapen_arrays_are_named(edge_model: EdgeModel) -> None:
    with pytest.raises(ValueError, match="horizon of 8"):
        edge_model.score(_rows(8))
    golden = edge_model.golden
    with pytest.raises(ValueError, match="numeric: expected float32"):
        edge_model.score(golden._replace(numeric=golden.numeric.astype(np.float64)))
    with pytest.raises(ValueError, match="categorical: expected int64"):
        edge_model.score(golden._replace(categorical=golden.categorical[:-1]))
    with pytest.raises(ValueError, match="categorical: codes of site"):
        edge_model.score(golden._replace(categorical=golden.categorical + 3))
    with pytest.raises(ValueError, match="density"):
        edge_model.score(golden, 0.0)


def test_measurement_is_of_a_process_of_its_own(bundle: Bundle) -> None:
    timings = measure(Path(bundle.folder), PUBLIC, repeats=5)
    assert len(timings.latency_ms) == 5
    assert 0 < timings.latency_p50_ms <= timings.latency_p99_ms
    # An interpreter with numpy and onnxruntime; torch alone would more than double it.
    assert 20e6 < timings.peak_memory_bytes < 200e6


def _rows(number: int) -> list[dict]:
    random = np.random.default_rng(0)
    start = datetime(2024, 2, 28, 22)
    rows = [
        {
            "time": start + timedelta(minutes=17 * row),
            "load": float(random.normal(2, 4)),
            "wind": float(random.normal()),
            "site": str(random.choice(["north", "south", "west"])),
            "late": int(random.random() < 0.3),
        }
        for row in range(number)
    ]
    rows[number // 2] |= {"load": None, "site": None}
    rows[number // 2 + 1] |= {"load": 1e9, "wind": float("inf")}
    return rows


def _as_json(rows: list[dict]) -> list[dict]:
    return [{**row, "time": row["time"].isoformat()} for row in rows]

"""`dankai bench edge`: time and memory of sparse reading on this processor, against the fastest dense one.

Every case runs in a fresh process, one after another, sparse and dense of one length next to each other. Up
to 16,384 steps every dense path is run, and the compiled encoder with all blocks; beyond, the dense one
that was fastest at the length before. Of several compiled encoders that run here the fastest is measured at
every density, the others at 1/8.
Selection of the blocks is part of every sparse time. Peak memory is that of the whole process.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipelines.benchmarks.attention import table
from pipelines.benchmarks.edge.sides import DENSE
from pipelines.clock import now
from pipelines.edge.compiled import running_here
from pipelines.files import replace_file
from pipelines.fingerprint import ROOT, environment

LENGTHS = (1024, 4096, 16_384, 32_768, 65_536)
DENSITIES = (0.0625, 0.125, 0.25)
_ALL_DENSE_UP_TO = 16_384
Row = dict[str, Any]


def main(
    folder: Path, lengths: Sequence[int] = LENGTHS, threads: int = 2, say: Callable[[str], None] = print
) -> Row:
    """Measure every length, print a line per case and the table, and write edge.json into `folder`.

    Rows of other lengths that were measured there on the same machine and versions stay.
    """
    from dataclasses import asdict

    from pipelines.benchmarks.edge.models import CONFIG, write

    here = environment().model_dump()
    conditions = {"threads": threads, "model": asdict(CONFIG), "product_gflops": peak_gflops(threads)}
    rows, result = _kept(folder / "edge.json", here, lengths), {}
    with TemporaryDirectory() as place:
        write(Path(place))
        for steps in lengths:
            measured: list[Row] = []
            for side, density in _cases(steps, rows):
                measured.append(_measured(Path(place), side, steps, density, threads))
                say(table([_brief(measured[-1])]).splitlines()[-1])
            rows = sorted(rows + [_compared(row, measured) for row in measured], key=lambda row: row["steps"])
            result = {"environment": here, "conditions": conditions, "rows": rows}
            replace_file(folder / "edge.json", json.dumps(result, indent=1).encode() + b"\n")
    say(table([_brief(row) for row in rows]))
    return result


def _kept(path: Path, here: Row, lengths: Sequence[int]) -> list[Row]:
    if not path.exists():
        return []
    before = json.loads(path.read_bytes())
    same = all(before["environment"][name] == here[name] for name in ("cpu", "num_cpus", "packages"))
    return [row for row in before["rows"] if same and row["steps"] not in lengths]


def peak_gflops(threads: int) -> float:
    """What a product of two large float32 matrices reaches here: best of five, in a fresh process."""
    code = (
        "import numpy as np, time; a = np.ones((2048, 2048), np.float32); a @ a; best = 9.9\n"
        "for _ in range(5): t = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - t)\n"
        "print(2 * 2048**3 / best / 1e9)"
    )
    return float(_run([sys.executable, "-c", code], threads).stdout)


def _cases(steps: int, rows: Sequence[Row]) -> list[tuple[str, float]]:
    before = [row for row in rows if row["side"] in DENSE and row["steps"] < steps]
    dense = list(DENSE)
    if steps > _ALL_DENSE_UP_TO and before:
        last = [row for row in before if row["steps"] == max(row["steps"] for row in before)]
        dense = [min(last, key=lambda row: row["median_ms"] or np.inf)["side"]]
    densities = DENSITIES if steps > _ALL_DENSE_UP_TO else (1.0, *DENSITIES)
    fastest, *others = running_here() or ["compiled"]
    sparse = [(fastest + kind, density) for kind in ("", "_int16") for density in densities]
    sparse += [(other + kind, 0.125) for other in others for kind in ("", "_int16")]
    return [*((side, 1.0) for side in dense), *sparse, ("graph", 0.125)]


def _measured(folder: Path, side: str, steps: int, density: float, threads: int) -> Row:
    repeats = max(1, min(30, 65_536 // steps))
    command = [sys.executable, "-m", "pipelines.benchmarks.edge.sides", str(folder), side, str(steps)]
    done = _run([*command, str(density), str(threads), str(repeats)], threads)
    row: Row = {"steps": steps, "side": side, "density": density, "repeats": repeats, "measured_at": now()}
    if done.returncode:
        return row | {
            "failure": (done.stderr.strip().splitlines() or ["no message"])[-1],
            "median_ms": np.inf,
        }
    facts = json.loads(done.stdout.splitlines()[-1])
    times = facts.pop("latency_ms")
    spread = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    return row | spread | facts


def _run(command: list[str], threads: int) -> subprocess.CompletedProcess[str]:
    import os

    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ, check=False)


def _compared(row: Row, rows: Sequence[Row]) -> Row:
    """How often the row fits into the fastest dense one of its length, in time and memory."""
    dense = [each for each in rows if each["side"] in DENSE]
    best = min(dense, key=lambda each: each["median_ms"])
    if "failure" in row or "failure" in best:
        return {**row, "median_ms": None} if "failure" in row else row
    memory = row["peak_memory_bytes"] / best["peak_memory_bytes"]
    times = best["median_ms"] / row["median_ms"]
    shared = {"times_faster": times, "memory_share": memory, "fastest_dense": best["side"]}
    shared["from_dense"] = float(np.abs(np.subtract(row["outputs"], best["outputs"])).max())
    return {name: value for name, value in row.items() if name != "outputs"} | shared


def _brief(row: Row) -> Row:
    names = ("steps", "side", "density", "median_ms", "min_ms", "max_ms", "times_faster", "memory_share")
    names += ("failure",)
    brief = {name: row[name] for name in names if row.get(name) is not None}
    return brief | {"peak_mib": round(row.get("peak_memory_bytes", 0) / 2**20)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(steps) for steps in sys.argv[2:]] or LENGTHS)

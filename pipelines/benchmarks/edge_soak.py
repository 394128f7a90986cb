"""Memory of the agent over a million rows: an hour of 278 rows a second, as fast as they go.

    python -m pipelines.benchmarks.edge_soak [ROWS] [OUT.json]

The agent runs in a process of its own, with nothing that a device lacks, and its resident memory is sampled
while it works. Its answers are bounded (32 MiB) like its audited rows (16 MiB): both bounds are reached.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.edge.agent import Agent, Loaded, Options
from pipelines.edge.intake import read_lines
from pipelines.edge.runtime import EdgeModel
from pipelines.process_memory import resident_bytes

ENTITIES = 4
_SAMPLES = 100
_OPTIONS = Options(audit_every=2, spool_bytes=16 << 20, keep_bytes=32 << 20, segment_bytes=4 << 20)


def main(num_rows: int, out: Path | None) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from pipelines.benchmarks.edge_plant import HORIZON, LOOKBACK, plant_bundle, rows
    from pipelines.clock import now
    from pipelines.files import replace_file
    from pipelines.fingerprint import git_commit
    from pipelines.signing import public_pem

    with tempfile.TemporaryDirectory() as place:
        folder, key = Path(place), Ed25519PrivateKey.generate()
        bundle = plant_bundle(folder, key).folder
        (folder / "key.pem").write_bytes(public_pem(key.public_key()))
        with (folder / "rows.jsonl").open("w") as file:
            file.writelines(f"{line}\n" for line in rows(num_rows, ENTITIES))
        command = [sys.executable, "-m", "pipelines.benchmarks.edge_soak", "--agent", place, bundle]
        done = subprocess.run([*command, str(num_rows)], stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(done.stdout)
    shape = {"lookback": LOOKBACK, "horizon": HORIZON, "entities": ENTITIES}
    conditions = {"date": now(), "commit": git_commit(), "platform": platform.platform()}
    conditions |= {"cores": os.cpu_count(), "threads": 1, "bundle": shape}
    print(said(measured))
    if out:
        replace_file(out, json.dumps({**conditions, **measured}, indent=1).encode() + b"\n")


def said(measured: dict[str, Any]) -> str:
    memory = [each / 2**20 for _, each in measured["memory"]]
    tenth = len(memory) // 10
    rows = f"{measured['lines']:,} rows in {measured['seconds']:.0f} s ({measured['rows_per_second']:,.0f}/s)"
    ends = f"{memory[tenth]:.1f} MiB after a tenth, {memory[-1]:.1f} at the end, {max(memory):.1f} at most"
    disk = f"on disk {measured['disk_bytes'] / 2**20:.0f} MiB at the end"
    return f"{rows}, {measured['scored']:,} scored; memory {ends}; {disk}"


def run_agent(folder: Path, bundle: Path, num_rows: int) -> dict[str, Any]:
    """Score everything; memory (lines, bytes) sampled a hundred times."""
    from pipelines.signing import load_public_key

    model = EdgeModel.load(bundle, load_public_key(folder / "key.pem"))
    source = folder / "rows.jsonl"
    agent = Agent(folder / "device", Loaded(bundle.name, model), source, _OPTIONS)
    memory, every, started = [], max(1, num_rows // _SAMPLES), time.perf_counter()
    for _ in agent.take(read_lines(str(source), agent.positions, follow=False)):
        if agent.counts.lines >= every * (len(memory) + 1):
            memory.append((agent.counts.lines, resident_bytes()))
    agent.close()
    seconds, counts = time.perf_counter() - started, agent.counts
    files = (path for path in (folder / "device").rglob("*") if path.is_file())
    return {
        "lines": counts.lines,
        "scored": counts.scored,
        "errors": counts.errors,
        "seconds": seconds,
        "rows_per_second": counts.lines / seconds,
        "memory": memory,
        "disk_bytes": sum(path.stat().st_size for path in files),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--agent"]:
        print(json.dumps(run_agent(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))))
    else:
        number = int(sys.argv[1]) if sys.argv[1:] else 1_000_000
        main(number, Path(sys.argv[2]) if sys.argv[2:] else None)

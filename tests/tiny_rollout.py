"""A dataset small enough for a whole rollout in seconds, a policy that lets it climb, and ways to run it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import yaml

from pipelines.candidates import model_config
from pipelines.checkpoint import Checkpoint
from pipelines.data.preprocessing import fit_preprocessing
from pipelines.data.snapshot import read_snapshot, take_snapshot
from pipelines.data.spec import DatasetSpec
from pipelines.data.windows import Windows, training_rows
from pipelines.training_plan import Mode
from validation.kpis import KINDS

ROOT = Path(__file__).parents[1]
TURNS = datetime(2024, 5, 1)  # from here on trips follow the load, not the plan: a new training is due


def pump_table() -> pl.DataFrame:
    """A hundred days of one pump, by the hour: plan and load known in advance, and trips that follow one."""
    times = pl.datetime_range(datetime(2024, 3, 15), datetime(2024, 6, 30, 23), "1h", eager=True)
    random = np.random.default_rng(0)
    plan, load = random.normal(size=(2, len(times)))
    trips = np.where((times < TURNS).to_numpy(), plan, load) + 0.3 * random.normal(size=len(times)) > 0.5
    site = random.choice(["north", "south"], size=len(times))
    columns = {"at": times, "plan": plan, "load": load, "site": site, "tripped": trips.astype(int)}
    return pl.DataFrame(columns)


def pump_spec(name: str = "pump") -> dict[str, Any]:
    """The dataset file of `pump_table`."""
    return {
        "name": name,
        "description": "trips of one pump",
        "task": "event",
        "source": {"kind": "csv", "path": "pump.csv"},
        "time": "at",
        "step": "1h",
        "numeric": ["plan", "load"],
        "categorical": ["site"],
        "known_future": ["plan", "load", "site"],
        "calendar": ["hour"],
        "target": ["tripped"],
        "slices": ["site"],
        "lookback": 64,
        "horizon": 16,
        "stride": 16,
        "split": {"validation": "2024-04-05", "test": "2024-04-15", "replay": "2024-05-01"},
        "ranges": {"load": [-50, 50]},
        "model": {
            "width": 16,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 2,
            "ffn_width": 32,
            "block_size": 8,
            "selector_heads": 1,
            "selector_dim": 8,
        },
        "training": {
            "num_steps": 12,
            "selector_steps": 6,
            "tuning_steps": 12,
            "tuning_rate": 1.0,
            "steps_per_epoch": 3,
            "warmup_steps": 2,
            "tokens_per_step": 1280,
            "curriculum": [[0.25, 0.5], [1.0, 0.5]],
            "densities": [0.25, 0.5],
            "target_density": 0.25,
            "num_probes": 8,
            "validation_windows": 8,
            "peak_learning_rate": 0.02,
        },
    }


def write_dataset(
    folder: Path, name: str = "pump", table: pl.DataFrame | None = None, **changes: Any
) -> Path:
    """Write table and dataset file into `folder`; a key changed to None is left out."""
    (pump_table() if table is None else table).write_csv(folder / "pump.csv")
    spec = {key: value for key, value in (pump_spec(name) | changes).items() if value is not None}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def write_policy(folder: Path, **pilot_bounds: float) -> Path:
    """The shipped policy with bounds that a tiny model keeps; `latency_p50_ratio=0` fails the pilot."""
    policy = json.loads(json.dumps(yaml.safe_load((ROOT / "infra" / "rollout.yaml").read_text())))
    policy |= {"num_resamples": 200, "min_windows": 20, "min_processes": 2}
    policy["drift"]["min_rows"] = 100
    for stage, rules in policy["stages"].items():
        for threshold in (*rules["quality"], *rules["serving"]):
            threshold |= {key: _lenient(threshold["kpi"], key, value) for key, value in threshold.items()}
            if stage == "pilot" and threshold["kpi"] in pilot_bounds:
                threshold["at_most"] = pilot_bounds[threshold["kpi"]]
    path = folder / f"policy-{len(pilot_bounds)}.yaml"
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    return path


def _lenient(kpi: str, key: str, value: Any) -> Any:
    if kpi == "largest_gap" and key == "margin":
        return 1.0
    most = min(KINDS[kpi].highest, 1e12) if kpi in KINDS else 1e12  # beyond it a bound is refused
    return {"at_most": most, "at_least": 0.0, "relative_margin": 0.99, "min_group": 1}.get(key, value)


def windows_of(spec: DatasetSpec, folder: Path) -> Windows:
    """The dataset's windows, its snapshot in `folder`."""
    snapshot = take_snapshot(spec, folder / "snapshots")
    table = read_snapshot(snapshot)
    return Windows(snapshot, spec, fit_preprocessing(training_rows(table, spec), spec), table)


def train_tiny(
    windows: Windows, mode: Mode, folder: Path, seed: int = 0, warm_start: Checkpoint | None = None
) -> tuple[Checkpoint, dict[str, list[tuple[int, float]]]]:
    """One training by the dataset's own plan: checkpoint and curve."""
    from pipelines.training import train

    spec = windows.spec
    config = model_config(windows, spec)
    return train(windows, config, spec.training, mode, seed, folder, lambda *_: None, warm_start)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit status, or minus the number of the signal that ended it."""
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Preloaded:
    """A process that imported everything once and forks a `dankai` per request: the same, seconds sooner."""

    door: Path
    """The socket of tests.preloaded."""

    def dankai(
        self,
        *arguments: object,
        home: Path,
        hook: str = "",
        interrupt: bool = False,
        lengths: tuple[int, ...] = (1,),
        fresh: bool = False,
        alone: bool = False,
        **environ: str,
    ) -> Ended:
        """Run `dankai ARGUMENTS` in a process of its own.

        `hook` names where that process gets a kill -9 (or, with `interrupt`, a Ctrl-C): "first before
        module:function" or "third after module:function". Cost is measured at `lengths`: the gated one unless
        more are asked for, and in forks too, unless `fresh` asks for processes of their own. All share one
        Prefect server, but for those that are `alone`: they start one of their own.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environ": {"DANKAI_HOME": str(home), **environ},
            "hook": hook,
            "lengths": lengths,
            "fresh": fresh,
            "signal": "SIGINT" if interrupt else "SIGKILL",
        }
        if alone:
            request["environ"] |= {"PREFECT_API_URL": "", "PREFECT_HOME": str(home / "prefect")}
        with _connected(f"{self.door}.alone" if alone else str(self.door)) as server:
            started = time.monotonic()
            server.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(server.makefile().readline())
        return Ended(**answer, seconds=time.monotonic() - started)


def _connected(place: str, seconds: float = 90) -> socket.socket:
    """To a server that may be about to open this Unix socket."""
    deadline = time.monotonic() + seconds
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(place)
            return client
        except OSError:
            client.close()
            assert time.monotonic() < deadline, f"{place} does not answer"
            time.sleep(0.1)


def dankai(*arguments: object, home: Path, timeout: float = 110, **environ: str) -> Ended:
    """Run the installed command itself."""
    started = time.monotonic()
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dankai")), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "DANKAI_HOME": str(home), **environ},
        timeout=timeout,
    )
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


@contextmanager
def serving(command: list[str], environ: Mapping[str, str], log: Path) -> Iterator[None]:
    """A server for the length of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=output, stderr=output)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


def wait_for_server(address: str, seconds: float = 90) -> None:
    """Until something listens at the host and port of `address`."""
    place = urlsplit(address)
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((str(place.hostname), place.port or 80), 1).close()
        except OSError:
            assert time.monotonic() < deadline, f"{address} does not answer"
            time.sleep(0.1)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]

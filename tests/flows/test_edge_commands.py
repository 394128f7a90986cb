"""The device's commands, with nothing installed but what a device has."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.signing import public_pem
from tests.pipelines.edge.edge_cases import KEY, built_bundle
from tests.pipelines.edge.test_agent import plant_rows, write

ROOT = Path(__file__).parents[2]
ON_A_DEVICE = """
import json, sys

class Block:
    names = {"torch", "pydantic", "prefect", "mlflow", "onnx", "polars", "pandas", "scipy", "yaml", "rich",
             "boto3", "sparse_model"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError(f"{name} must not be needed on a device")

sys.meta_path.insert(0, Block())
from flows.cli import _answer, dankai
for arguments in json.loads(sys.argv[1]):
    status = _answer(lambda **named: dankai(arguments, **named))
    print("--", status, flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, its key, rows."""
    folder = tmp_path_factory.mktemp("plant")
    Path(built_bundle(folder).folder).rename(folder / "bundle")
    (folder / "key.pem").write_bytes(public_pem(KEY.public_key()))
    write(folder / "rows.jsonl", [*plant_rows(60), b"nonsense\n", *plant_rows(60, first=60)])
    return folder


def on_a_device(place: Path, device: Path, *commands: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    environ = os.environ | {"DANKAI_EDGE_KEY": str(place / "key.pem"), "DANKAI_DEVICE": str(device)}
    listed = json.dumps([["edge", *command.split()] for command in commands])
    return subprocess.run(
        [sys.executable, "-c", ON_A_DEVICE, listed],
        env=environ,
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_a_device_installs_scores_tells_and_syncs_with_the_base_package_alone(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    done = on_a_device(
        place,
        tmp_path / "device",
        f"update {place / 'bundle'}",
        f"run --input {place / 'rows.jsonl'} --audit 1",
        "answers",
        "status",
        f"sync {tmp_path / 'store'} --name line-3",
        f"update {tmp_path / 'absent'}",
        f"run --input {place / 'absent.jsonl'}",
        f"run --input {place / 'rows.jsonl'} --latency-ms 5",
    )
    parts = done.stdout.decode().split("-- ")
    assert [part[0] for part in parts[1:]] == ["0", "0", "0", "0", "0", "2", "2", "2"], done.stderr
    run, told = (part.splitlines()[1:] for part in parts[1:3])
    assert run == told
    found = [json.loads(line) for line in run]
    assert sum("scores" in each for each in found) == 80
    assert [each["line"] for each in found if "error" in each] == [61]
    errors = done.stderr.decode().splitlines()
    assert "121 lines: 80 scored, 1 refused, 40 context, 0 wait for their window to be whole" in errors
    assert [line for line in errors if line.startswith("dankai: ")] == [
        f"dankai: {tmp_path / 'absent'}: no such folder; is it mounted?",
        f"dankai: {place / 'absent.jsonl'}: no such file or folder of rows",
        "dankai: bundle: holds no calibration table, so no budget can be chosen; leave targets out",
    ]
    assert (tmp_path / "store" / "devices" / "line-3" / "report.json").exists()


def test_standard_input_is_answered_once_though_the_agent_is_killed_and_the_producer_starts_over(
    place: Path, tmp_path: Path
) -> None:
    rows = (place / "rows.jsonl").read_bytes()
    environ = os.environ | {"DANKAI_EDGE_KEY": str(place / "key.pem"), "DANKAI_DEVICE": str(tmp_path)}
    program = "from flows.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "edge",
        "run",
        "--bundle",
        str(place / "bundle"),
        "--input",
        "-",
    ]
    agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, cwd=ROOT)
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(rows[: len(rows) // 2])
    agent.stdin.flush()
    assert agent.stdout.readline()  # answers come while the stream is open
    time.sleep(0.1)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    done = on_a_device(place, tmp_path, f"run --bundle {place / 'bundle'} --input -", "answers", stdin=rows)
    answers = done.stdout.decode().split("-- ")[1].splitlines()[1:]
    assert sorted(json.loads(line)["line"] for line in answers) == list(range(41, 122))
    other = on_a_device(place, tmp_path, f"run --bundle {place / 'bundle'} --input -", stdin=rows[::-1])
    assert b"is not the one that was taken before" in other.stderr

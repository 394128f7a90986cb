"""The search for leaked keys finds them in every form; files that others can reach are refused."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flows.cli import ui
from pipelines.signing import load_key, trusted_keys
from tests.key_traces import traces_of
from tests.operated import until
from validation.errors import InputError

KEY = Ed25519PrivateKey.generate()
RAW = KEY.private_bytes_raw()


class Started(Exception):
    """In place of the process that would have been started."""


@pytest.mark.parametrize(
    "leak",
    [
        RAW,
        RAW.hex().encode(),
        base64.b64encode(RAW),
        base64.b64encode(b"a" + RAW + b"b"),
        base64.b64encode(b"ab" + RAW),
        repr(RAW).encode(),
        KEY.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    ],
    ids=["raw", "hex", "base64", "base64 shifted by one", "base64 shifted by two", "repr", "PEM"],
)
def test_a_leak_in_any_form_is_found(leak: bytes, tmp_path: Path) -> None:
    (tmp_path / "clean").write_bytes(KEY.public_key().public_bytes_raw() * 3)
    (tmp_path / "leaky").write_bytes(b"before" + leak + b"after")
    assert traces_of(KEY, tmp_path.iterdir()) == [str(tmp_path / "leaky")]


def test_nobody_else_may_say_whom_this_installation_trusts(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    load_key(folder, {})
    assert len(trusted_keys(folder)) == 1
    [public] = folder.glob("*.pub")
    public.chmod(0o666)
    with pytest.raises(InputError, match=r"others can change whom this installation trusts .* chmod go-w"):
        trusted_keys(folder)
    public.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(InputError, match="others can change whom"):
        trusted_keys(folder)


def test_model_processes_are_started_without_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import psutil

    from pipelines.serving.backend import Nursery
    from pipelines.signing import VARIABLE

    monkeypatch.setenv(VARIABLE, base64.b64encode(RAW).decode())
    nursery = Nursery(tmp_path / "log", threads=1)
    try:
        process = psutil.Process(nursery._process.pid)
        environ = until(process.environ)  # the kernel shows none while the process becomes its program
    finally:
        nursery._process.kill()
        nursery.close()
    assert VARIABLE not in environ
    assert "PATH" in environ


def test_whatever_else_is_started_gets_neither_key_nor_database_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pipelines.cost
    import pipelines.edge.measurement
    from pipelines.serving_check import _in_fresh_process

    secrets = {
        "DANKAI_SIGNING_KEY": base64.b64encode(RAW).decode(),
        "DANKAI_DATABASE_URL": "postgresql://u:p@h/d",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    tell = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    environs: list[Any] = [json.loads(_in_fresh_process(tell).stdout)]

    def started(*arguments: Any, **options: Any) -> Any:
        environs.append(options.get("env") or os.environ)
        raise Started

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(subprocess, "run", started)
    monkeypatch.setattr(os, "execvpe", lambda path, command, environ: started(env=environ))
    monkeypatch.setattr(os, "execvp", started)
    monkeypatch.setenv("DANKAI_HOME", str(tmp_path))
    subject = pipelines.cost.Subject(name="model", folder=str(tmp_path))
    for start in (
        lambda: pipelines.cost._Probe(subject, 1, 1, "cpu"),
        lambda: pipelines.edge.measurement.measure(tmp_path, KEY.public_key(), 1),
        lambda: ui.callback(1),  # type: ignore[misc]
    ):
        with pytest.raises(Started):
            start()
    assert len(environs) == 4
    for environ in environs:
        assert not secrets.keys() & environ.keys()
        assert "PATH" in environ


def test_a_step_record_that_leads_out_of_the_home_is_not_followed(tmp_path: Path) -> None:
    from pipelines.steps import once
    from validation.record import Record

    class Result(Record):
        path: str

        def artifact_paths(self) -> tuple[str, ...]:
            return (self.path,)

    home = tmp_path / "home"
    (home / "datasets").mkdir(parents=True)
    (outside, inside) = (tmp_path / "outside.npz", home / "datasets" / "inside.npz")
    outside.write_text("planted")
    inside.write_text("ours")
    link = home / "datasets" / "link.npz"
    link.symlink_to(outside)
    for planted in (outside, home / "datasets" / ".." / ".." / "outside.npz", link):
        name = f"score {planted.name} {len(str(planted))}"
        once(home / "steps", name, {}, Result, lambda planted=planted: Result(path=str(planted)))
        again = once(home / "steps", name, {}, Result, lambda: Result(path=str(inside)))
        assert again.path == str(inside)
        assert once(home / "steps", name, {}, Result, lambda: Result(path="never")).path == str(inside)

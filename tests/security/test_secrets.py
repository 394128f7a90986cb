"""The search for leaked keys finds them in every form; files that others can reach are refused."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.signing import load_key, trusted_keys
from tests.key_traces import traces_of
from validation.errors import InputError

KEY = Ed25519PrivateKey.generate()
RAW = KEY.private_bytes_raw()


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
        environ = psutil.Process(nursery._process.pid).environ()
    finally:
        nursery._process.kill()
        nursery.close()
    assert VARIABLE not in environ
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

"""Signatures hold for one message and one purpose; the private key stays private."""

import base64
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from pipelines.signing import key_id, load_key, sign, trusted_keys, verify
from validation.errors import InputError

KEY = Ed25519PrivateKey.generate()


def pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@given(st.binary(), st.binary(), st.text())
def test_a_signature_holds_for_its_message_alone(message: bytes, other: bytes, purpose: str) -> None:
    signature = sign(KEY, "bundle", message)
    assert verify(KEY.public_key(), "bundle", message, signature)
    assert verify(KEY.public_key(), "bundle", other, signature) == (other == message)
    assert verify(KEY.public_key(), purpose, message, signature) == (purpose == "bundle")
    assert not verify(Ed25519PrivateKey.generate().public_key(), "bundle", message, signature)


@given(st.text() | st.binary().map(lambda noise: base64.b64encode(noise).decode()))
def test_garbage_is_no_signature_and_no_crash(signature: str) -> None:
    assert not verify(KEY.public_key(), "bundle", b"message", signature)


def test_the_key_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first = load_key(tmp_path / "keys", {})
    file = tmp_path / "keys" / "signing.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o022 == 0
    assert load_key(tmp_path / "keys", {}).private_bytes_raw() == first.private_bytes_raw()
    assert {path.suffix for path in file.parent.iterdir()} == {".key", ".pub"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o611])
def test_a_key_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    load_key(tmp_path, {})
    (tmp_path / "signing.key").chmod(mode)
    with pytest.raises(InputError, match="chmod 600"):
        load_key(tmp_path, {})


@pytest.mark.parametrize(
    "text",
    [pem(KEY), pem(KEY).replace("\n", "\\n"), base64.b64encode(KEY.private_bytes_raw()).decode()],
    ids=["PEM", "PEM on one line", "base64"],
)
def test_the_environment_gives_the_key_and_no_private_file_is_written(tmp_path: Path, text: str) -> None:
    key = load_key(tmp_path, {"DANKAI_SIGNING_KEY": text})
    assert key.private_bytes_raw() == KEY.private_bytes_raw()
    assert [path.name for path in tmp_path.iterdir()] == [f"{key_id(KEY.public_key())}.pub"]


@pytest.mark.parametrize(
    "text",
    ["secret-nonsense", "c2hvcnQ=", pem(ec.generate_private_key(ec.SECP256R1())), pem(KEY)[:60]],
    ids=["nonsense", "too short", "another kind", "cut"],
)
def test_an_unusable_key_is_refused_without_being_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="DANKAI_SIGNING_KEY: not an Ed25519 private key") as caught:
        load_key(tmp_path, {"DANKAI_SIGNING_KEY": text})
    assert text not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_an_old_key_signed_can_still_be_checked(tmp_path: Path) -> None:
    old = load_key(tmp_path, {})
    new = load_key(tmp_path, {"DANKAI_SIGNING_KEY": pem(KEY)})
    trusted = trusted_keys(tmp_path)
    assert set(trusted) == {key_id(old.public_key()), key_id(new.public_key())}
    assert verify(trusted[key_id(old.public_key())], "log", b"entry", sign(old, "log", b"entry"))


def test_a_public_key_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.pub").write_text("nothing")
    with pytest.raises(InputError, match=r"broken\.pub"):
        trusted_keys(tmp_path)


def test_the_key_is_in_no_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        key = load_key(tmp_path, {})
        sign(key, "bundle", b"message")
    secret = (tmp_path / "signing.key").read_text().splitlines()[1]
    assert secret not in caplog.text
    assert secret not in repr(key)


def test_processes_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.signing import *;"
        "print(key_id(load_key(Path(sys.argv[1]), {}).public_key()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert len(set(answers)) == 1
    assert answers[0].strip()

"""Where devices get bundles and leave reports: a folder, an HTTP server, an S3-compatible store.

Nothing that comes from a store is trusted: sizes are bounded while reading, and what is read is signed.
"""

import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from pipelines.files import replace_file
from validation.errors import InputError

TIMEOUT_SECONDS = 30
_CHUNK = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class StoreError(InputError):
    """The store does not answer, or not with what was asked for. One line; trying again may help."""


class Store(Protocol):
    """Objects by name; names have parts parted by slashes."""

    def open(self, name: str) -> BinaryIO | None:
        """The object to read, None where there is none. Raises StoreError where the store does not answer."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Whole or not at all. Raises StoreError."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Names that begin so, in order. Raises StoreError where the store cannot tell."""
        ...


def open_store(place: str) -> Store:
    """The store at a folder's path, http(s)://… or s3://bucket/prefix."""
    if place.startswith(("http://", "https://")):
        return HttpStore(place)
    if place.startswith("s3://"):
        return S3Store(place)
    if "://" in place:
        raise InputError(f"{place}: give a folder, http://…, https://… or s3://bucket/prefix")
    return FolderStore(Path(place))


def read(store: Store, name: str, most_bytes: int) -> bytes | None:
    """A small object whole, None where there is none. Raises StoreError where it is larger."""
    source = store.open(_checked(name))
    if source is None:
        return None
    with source:
        content = b"".join(_bounded(source, name, most_bytes))
    return content


def download(store: Store, name: str, to: Path, most_bytes: int) -> int:
    """Write an object to a new file; its size. Raises StoreError where it is absent or larger."""
    source = store.open(_checked(name))
    if source is None:
        raise StoreError(f"{name}: not in the store")
    with source, to.open("wb") as file:
        size = sum(file.write(chunk) for chunk in _bounded(source, name, most_bytes))
        file.flush()
        os.fsync(file.fileno())
    return size


def _bounded(source: BinaryIO, name: str, most_bytes: int) -> Iterator[bytes]:
    size = 0
    try:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > most_bytes:
                raise StoreError(f"{name}: larger than {most_bytes} bytes; refused")
            yield chunk
    except StoreError:
        raise
    except Exception as error:  # a connection that breaks: http.client and botocore raise their own kinds
        raise StoreError(
            f"{name}: broke off after {size} bytes ({type(error).__name__}); try again"
        ) from None


def _checked(name: str) -> str:
    """A name that leads nowhere else."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise StoreError(f"{name!r}: not a name that a store holds")
    return name


class FolderStore:
    """A folder: a share, a USB stick."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> BinaryIO | None:
        path = self._folder / name
        if not self._folder.is_dir():
            raise StoreError(f"{self._folder}: no such folder; is it mounted?")
        try:
            return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def put(self, name: str, content: bytes) -> None:
        try:
            replace_file(self._folder / _checked(name), content)
        except OSError as error:
            raise StoreError(
                f"{self._folder / name}: {error.strerror}; it is tried again next time"
            ) from None

    def names(self, prefix: str) -> list[str]:
        files = (path for path in self._folder.rglob("*") if path.is_file() and path.name[0] != ".")
        names = sorted(path.relative_to(self._folder).as_posix() for path in files)
        return [name for name in names if name.startswith(prefix)]


class HttpStore:
    """A server that answers GET, and PUT where something is to be left there.

    `DANKAI_STORE_TOKEN`, where set, goes along as a bearer token.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    def open(self, name: str) -> BinaryIO | None:
        return self._ask(urllib.request.Request(f"{self._address}/{name}"))

    def put(self, name: str, content: bytes) -> None:
        request = urllib.request.Request(f"{self._address}/{_checked(name)}", data=content, method="PUT")
        answer = self._ask(request)
        if answer is None:
            raise StoreError(f"{self._address}/{name}: takes no files (404)")
        answer.close()

    def names(self, prefix: str) -> list[str]:
        raise StoreError(f"{self._address}: a web server does not list its files; name the devices")

    def _ask(self, request: urllib.request.Request) -> BinaryIO | None:
        if token := os.environ.get("DANKAI_STORE_TOKEN"):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise StoreError(f"{request.full_url}: {error.code} {error.reason}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise StoreError(
                f"{request.full_url}: no answer ({reason}); it is tried again next time"
            ) from None


class S3Store:
    """A bucket; credentials and address as boto3 finds them (AWS_ENDPOINT_URL for a server of one's own)."""

    def __init__(self, place: str) -> None:
        """Raises InputError where boto3 is not installed."""
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError:
            raise InputError(f"{place}: needs boto3; pip install 'dankai[s3]'") from None
        parts = urlsplit(place)
        self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self._errors: Any = (BotoCoreError, ClientError)
        self._client: Any = boto3.client(
            "s3", config=Config(connect_timeout=10, read_timeout=TIMEOUT_SECONDS)
        )

    def open(self, name: str) -> BinaryIO | None:
        try:
            return self._client.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]
        except self._errors as error:
            if getattr(error, "response", {}).get("Error", {}).get("Code") == "NoSuchKey":
                return None
            raise self._refused(name, error) from None

    def put(self, name: str, content: bytes) -> None:
        try:
            self._client.put_object(Bucket=self._bucket, Key=self._key(_checked(name)), Body=content)
        except self._errors as error:
            raise self._refused(name, error) from None

    def names(self, prefix: str) -> list[str]:
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._key(prefix)
            )
            keys = sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))
        except self._errors as error:
            raise self._refused(prefix, error) from None
        return [key[len(self._prefix) + 1 :] if self._prefix else key for key in keys]

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _refused(self, name: str, error: Exception) -> StoreError:
        return StoreError(f"s3://{self._bucket}/{self._key(name)}: {str(error).splitlines()[0]}")


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds `folder`."""
    return shutil.disk_usage(folder).free

"""Archives that must not be installed, by kind: everything that may have happened to a bundle on its way.

Each kind makes archives of two bundles signed by the trusted key, of which the first runs on the device. A
harmed archive is refused in one line and changes nothing, or it unpacks to the very bundle that was signed:
not every byte of a zip file means something.
"""

import io
import itertools
import json
import shutil
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.edge.updates import bundle_folder, install, installed
from pipelines.edge.verification import FILES, MANIFEST, SIGNATURE, BundleError
from pipelines.signing import sign
from tests.faults.edge_faults import PUBLIC, told
from tests.pipelines.edge.edge_cases import KEY
from validation.errors import InputError

Members = Mapping[str, bytes]
MEMBERS = (*sorted(FILES), MANIFEST, SIGNATURE)
EVERY = 64
"""Of the bytes of a member's content, one in so many; of headers, names and tables, every one."""
BOMB_BYTES = 80 << 20
ELSEWHERE = (
    "../model.onnx",
    "../../installed.json",
    "a/../../model.onnx",
    "/etc/cron.d/x",
    "//model.onnx",
    "..\\model.onnx",
    "C:\\model.onnx",
    "./model.onnx",
    "bundles/model.onnx",
    "model.onnx/",
    "model.onnx\n",
    "MODEL.ONNX",
    "",
)


class Pair(NamedTuple):
    """Two signed bundles: their members, and the second as an archive."""

    running: Members
    other: Members
    archive: bytes


def make_pair(running: Path, other: Path) -> Pair:
    """As releases 5 and 7."""
    read = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (running, other))
    first, second = (
        resigned(members, KEY, release=number) for number, members in zip((5, 7), read, strict=True)
    )
    return Pair(first, second, packed(second))


def altered(pair: Pair) -> Iterator[bytes]:
    for place in _places(pair.archive):
        content = bytearray(pair.archive)
        content[place] ^= 0xFF
        yield bytes(content)


def cut(pair: Pair) -> Iterator[bytes]:
    return (pair.archive[:place] for place in _places(pair.archive))


def _places(archive: bytes) -> Iterator[int]:
    """Every byte but for members' contents, of which one in EVERY."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        inside = set[int]()
        for entry in opened.infolist():
            first = entry.header_offset + 30 + len(entry.filename)
            inside |= set(range(first, first + entry.compress_size))
    return (place for place in range(len(archive)) if place not in inside or place % EVERY == 0)


def truncated_members(pair: Pair) -> Iterator[bytes]:
    for name, content in pair.other.items():
        for length in (0, 1, len(content) // 2, len(content) - 1):
            yield packed({**pair.other, name: content[:length]})


def altered_members(pair: Pair) -> Iterator[bytes]:
    """Within archives that are whole: sixteen places of each member, one bit each."""
    for name, content in pair.other.items():
        for place in range(0, len(content), max(1, len(content) // 16)):
            harmed = bytearray(content)
            harmed[place] ^= 1
            yield packed({**pair.other, name: bytes(harmed)})


def longer_members(pair: Pair) -> Iterator[bytes]:
    for name, content in pair.other.items():
        for more in (b"\0", b"\n", content):
            if name != SIGNATURE or more == content:  # white space around a signature is none of it
                yield packed({**pair.other, name: content + more})


def some_members(pair: Pair) -> Iterator[bytes]:
    """Every set of members but all."""
    for number in range(len(MEMBERS)):
        for names in itertools.combinations(MEMBERS, number):
            yield packed({name: pair.other[name] for name in names})


def mixtures(pair: Pair) -> Iterator[bytes]:
    """Every way to take some members from one signed bundle and some from the other."""
    for choice in itertools.product((pair.running, pair.other), repeat=len(MEMBERS)):
        mixed = {name: members[name] for name, members in zip(MEMBERS, choice, strict=True)}
        if mixed not in (pair.running, pair.other):
            yield packed(mixed)


def twice(pair: Pair) -> Iterator[bytes]:
    for name, other in itertools.permutations(MEMBERS, 2):
        without = [(each, content) for each, content in pair.other.items() if each != other]
        yield zipped([*without, (name, pair.other[name])])


def bombs(pair: Pair) -> Iterator[bytes]:
    for name in MEMBERS:
        yield packed({**pair.other, name: bytes(BOMB_BYTES)})


def bombs_that_lie(pair: Pair) -> Iterator[bytes]:
    """Their headers say ten bytes."""
    for bomb in bombs(pair):
        yield bomb.replace(struct.pack("<I", BOMB_BYTES), struct.pack("<I", 10))


def names_that_lead_elsewhere(pair: Pair) -> Iterator[bytes]:
    for name, elsewhere in itertools.product(MEMBERS, ELSEWHERE):
        content = [(each, data) for each, data in pair.other.items() if each != name]
        yield zipped([*content, (elsewhere, pair.other[name])])


def special_files(pair: Pair) -> Iterator[bytes]:
    """A link, a folder, a device or a pipe in place of a member."""
    for name, kind in itertools.product(MEMBERS, (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO)):
        entry = zipfile.ZipInfo(name + "/" * (kind == stat.S_IFDIR))
        entry.external_attr = (kind | 0o777) << 16
        content = [(each, data) for each, data in pair.other.items() if each != name]
        yield zipped([*content, (entry, b"/etc/hostname")])


def other_machines(pair: Pair) -> Iterator[bytes]:
    for machines in ([], ["riscv64"], ["armv7l"], ["ppc64le", "s390x"]):
        yield packed(resigned(pair.other, KEY, machines=machines))


def other_formats(pair: Pair) -> Iterator[bytes]:
    for change in ({"format": 1}, {"format": 3}, {"files": {}}, {"release": 0}, {"release": None}):
        yield packed(resigned(pair.other, KEY, **change))


def older_releases(pair: Pair) -> Iterator[bytes]:
    """Signed, whole, and older than what runs on the device."""
    for members, release in itertools.product((pair.running, pair.other), (1, 2, 3, 4)):
        yield packed(resigned(members, KEY, release=release))


def other_keys(pair: Pair) -> Iterator[bytes]:
    for _ in range(8):
        yield packed(resigned(pair.other, Ed25519PrivateKey.generate()))


def no_archives(pair: Pair) -> Iterator[bytes]:
    yield from (b"", b"PK", bytes(1000), b"<html>404</html>", pair.other["model.onnx"], pair.other[MANIFEST])


KINDS: dict[str, Callable[[Pair], Iterator[bytes]]] = {
    f"archive with a byte altered: headers, names and tables everywhere, content every {EVERY}th": altered,
    "archive cut at each of these bytes": cut,
    "a member truncated, in a whole archive": truncated_members,
    "a member altered, in a whole archive": altered_members,
    "a member longer": longer_members,
    "members missing, every set of them": some_members,
    "members of two signed bundles mixed, in every way": mixtures,
    "a member twice": twice,
    "a zip bomb of 80 MiB in each member": bombs,
    "a zip bomb whose headers say ten bytes": bombs_that_lie,
    "a name that leads elsewhere": names_that_lead_elsewhere,
    "a link, folder, device or pipe as member": special_files,
    "made for another processor": other_machines,
    "of another format, or without a release number": other_formats,
    "replayed: an older release": older_releases,
    "signed by another key": other_keys,
    "no archive at all": no_archives,
}


def tried(device: Path, pair: Pair, archives: Iterator[bytes], archive: Path) -> tuple[int, int]:
    """How many archives were refused, and how many hold the signed bundle all the same."""
    refused = whole = 0
    before = installed(device)
    for content in archives:
        archive.write_bytes(content)
        if why := _refusal(device, archive):
            assert "\n" not in why
            assert installed(device) == before
            assert [path.name for path in (device / "bundles").iterdir()] == [before.current]
            refused += 1
            continue
        there = bundle_folder(device, installed(device).current)
        assert {path.name: path.read_bytes() for path in there.iterdir()} == pair.other
        whole += 1
        start(device, pair, archive)
    return refused, whole


def _refusal(device: Path, archive: Path) -> str:
    try:
        install(device, archive, PUBLIC, measure=told)
    except (BundleError, InputError) as error:
        return str(error)
    return ""


def start(device: Path, pair: Pair, archive: Path) -> None:
    """A fresh device that runs the first bundle."""
    shutil.rmtree(device, ignore_errors=True)
    archive.write_bytes(packed(pair.running))
    install(device, archive, PUBLIC, measure=told)


def resigned(members: Members, key: Ed25519PrivateKey, **changes: object) -> Members:
    content = json.dumps(json.loads(members[MANIFEST]) | changes).encode()
    return {**members, MANIFEST: content, SIGNATURE: sign(key, "edge bundle", content).encode()}


def packed(members: Members) -> bytes:
    return zipped(list(members.items()))


def zipped(entries: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """Names as they are, twice where they are given twice."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's, of names that are there twice
        for name, content in entries:
            entry = zipfile.ZipInfo(name) if isinstance(name, str) else name
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:  # unlike writestr it takes any name
                file.write(content)
    return buffer.getvalue()

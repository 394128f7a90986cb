"""The offer in a store: which bundle which devices should run. Signed, numbered, and read by every device.

offer.json, offer.sig the newest offer bundles/RELEASE-HASH.zip what it names devices/NAME/... what devices
left (pipelines.edge.sync)
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipelines.edge.archive import MAX_BYTES, pack
from pipelines.edge.metrics import Limits
from pipelines.edge.stores import Store, StoreError, download, read
from pipelines.edge.updates import Installed, Measure, install, installed, name_of, remember
from pipelines.edge.verification import BundleError, read_bundle
from pipelines.files import exclusive_lock, sha256_of
from pipelines.signing import sign, verify

OFFER, SIGNATURE = "offer.json", "offer.sig"
PURPOSE = "edge offer"
_MAX_OFFER_BYTES = 1 << 20


class Package(NamedTuple):
    """A bundle in a store."""

    bundle: str
    """RELEASE-HASH."""
    sha256: str
    """Of the archive."""
    size_bytes: int

    @property
    def archive(self) -> str:
        return f"bundles/{self.bundle}.zip"


class Offer(NamedTuple):
    """What devices should run. `devices` None means every device; the others stay with `fallback`."""

    sequence: int
    package: Package
    devices: tuple[str, ...] | None
    fallback: Package | None
    limits: Limits

    def wanted(self, device: str) -> Package | None:
        """What one device should run; None: what it runs already."""
        return self.package if self.devices is None or device in self.devices else self.fallback

    @property
    def settled(self) -> Package | None:
        """What is known to be good: offered to all, or what those go back to who are offered another."""
        return self.package if self.devices is None else self.fallback

    def content(self) -> bytes:
        plain = self._asdict() | {"limits": self.limits._asdict(), "package": self.package._asdict()}
        plain["fallback"] = self.fallback._asdict() if self.fallback else None
        return json.dumps(plain, indent=1, sort_keys=True).encode()


def publish(store: Store, folder: Path, key: Ed25519PublicKey) -> Package:
    """Put the bundle in `folder` into the store. Raises BundleError where `key` did not sign it."""
    manifest, _ = read_bundle(folder, key)
    name = name_of(manifest, folder)
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / "bundle.zip"
        pack(folder, archive)
        package = Package(name, sha256_of(archive), archive.stat().st_size)
        store.put(package.archive, archive.read_bytes())
    return package


def make_offer(store: Store, offer: Offer, key: Ed25519PrivateKey) -> Offer:
    """Let every device that asks see this offer from now on."""
    content = offer.content()
    # A device that reads between the two sees a signature that does not hold, and asks again later.
    store.put(OFFER, content)
    store.put(SIGNATURE, sign(key, PURPOSE, content).encode())
    return offer


def read_offer(store: Store, key: Ed25519PublicKey) -> Offer | None:
    """The newest offer, None where there is none. Raises StoreError where `key` did not sign it."""
    content, signature = (read(store, name, _MAX_OFFER_BYTES) for name in (OFFER, SIGNATURE))
    if content is None:
        return None
    if signature is None or not verify(key, PURPOSE, content, signature.decode(errors="replace").strip()):
        raise StoreError(f"{OFFER}: not signed by the trusted key; nothing is changed")
    try:
        plain = json.loads(content)
        devices = plain["devices"]
        return Offer(
            sequence=plain["sequence"],
            package=Package(**plain["package"]),
            devices=None if devices is None else tuple(devices),
            fallback=Package(**plain["fallback"]) if plain["fallback"] else None,
            limits=Limits(**plain["limits"]),
        )
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{OFFER}: of another version; update this installation") from None


def follow(
    device: Path, name: str, store: Store, key: Ed25519PublicKey, measure: Measure | None = None
) -> Installed:
    """Do as the newest offer says. An offer names releases to go back to, and may: it is signed and numbered.

    Raises StoreError, BundleError or InputError, one line: then the device runs what it ran.
    """
    now, offer = installed(device), read_offer(store, key)
    if offer is None or (offer.sequence == now.sequence and _is_done(now, offer.wanted(name))):
        return now
    if offer.sequence < now.sequence:
        raise StoreError(
            f"{OFFER}: number {offer.sequence} is older than {now.sequence}, seen before; refused"
        )
    wanted = offer.wanted(name)
    if wanted is not None and not _runs(now, wanted):
        with exclusive_lock(device / "fetch.lock"):
            _take_up(device, wanted, offer, store, key, measure)
    remember(device, offer.sequence, offer.limits)
    return installed(device)


def _is_done(now: Installed, wanted: Package | None) -> bool:
    return _runs(now, wanted) or (wanted is not None and wanted.bundle in now.refused)


def _runs(now: Installed, wanted: Package | None) -> bool:
    return wanted is None or wanted.bundle == now.current


def _take_up(
    device: Path, wanted: Package, offer: Offer, store: Store, key: Ed25519PublicKey, measure: Measure | None
) -> None:
    """Fetch and install; a bundle that came whole and is refused is not fetched for this offer again."""
    archive = device / "fetched.zip"  # one that a kill left is written over
    try:
        size = download(store, wanted.archive, archive, min(wanted.size_bytes, MAX_BYTES))
        if size != wanted.size_bytes or sha256_of(archive) != wanted.sha256:
            raise StoreError(f"{wanted.archive}: not what was offered; it is fetched again next time")
        got = install(device, archive, key, allow_rollback=True, limits=offer.limits, measure=measure)
        if got.current != wanted.bundle:
            raise BundleError(f"{wanted.archive}: holds {got.current}, another bundle than its name says")
    except BundleError as error:
        remember(device, offer.sequence, offer.limits, {wanted.bundle: str(error)})
        raise
    finally:
        archive.unlink(missing_ok=True)

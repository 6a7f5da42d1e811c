"""Keys: one per customer, wrapped by a key that never enters the database; erasing is deleting.

Personal data travels as AES-256-GCM ciphertext bound to the customer's reference. A person is found
by phone through a blind index (HMAC-SHA256 under its own key), never by reading numbers.
"""

from __future__ import annotations

import json
import os
import secrets
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from chassis.clock import monotonic
from chassis.faults import Misconfigured
from chassis.postgres import Database
from chassis.transport import Record

SCHEMA = "vault"
ERASED = "[erased]"
SealRecord: TypeAlias = Callable[[Record], bytes]
_CACHE_SIZE = 1_000
_CACHE_SECONDS = 60.0


class MasterKey(Protocol):
    """The key that wraps all others: a local file, or a key management service."""

    def wrap(self, key: bytes, bound_to: bytes) -> bytes:
        """Encrypt a customer's key, bound to the customer."""
        ...

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> bytes:
        """Decrypt what `wrap` gave; raises Misconfigured for another master key's work."""
        ...

    def blind(self, text: str) -> str:
        """Give a stable pseudonym of a text that cannot be turned back without this key."""
        ...


class FileKey:
    """A master key in a local file of mode 0600."""

    def __init__(self, material: bytes) -> None:
        self._wrap = AESGCM(_expand(material, b"hotline wrap"))
        self._index = _expand(material, b"hotline blind index")

    @classmethod
    def at(cls, path: Path, *, create: bool = False) -> FileKey:
        """Read the key file, or make it when `create`; raises Misconfigured when it is missing or open."""
        if create and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(b64encode(secrets.token_bytes(32)).decode())
        try:
            mode, text = path.stat().st_mode, path.read_text("ascii")
        except OSError as error:
            raise Misconfigured(
                f"master key {path}: {error.strerror}; run `hotline up` to make one"
            ) from None
        if mode & 0o077:
            raise Misconfigured(f"master key {path} is readable by others: run `chmod 600 {path}`")
        material = b64decode(text)
        if len(material) != 32:
            raise Misconfigured(f"master key {path} does not hold 32 bytes in base64")
        return cls(material)

    def wrap(self, key: bytes, bound_to: bytes) -> bytes:
        """Encrypt a customer's key, bound to the customer."""
        nonce = secrets.token_bytes(12)
        return nonce + self._wrap.encrypt(nonce, key, bound_to)

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> bytes:
        """Decrypt what `wrap` gave; raises Misconfigured for another master key's work."""
        try:
            return self._wrap.decrypt(wrapped[:12], wrapped[12:], bound_to)
        except InvalidTag:
            raise Misconfigured("the master key is not the one that wrapped this customer's key") from None

    def blind(self, text: str) -> str:
        """Give a stable pseudonym of a text that cannot be turned back without this key."""
        mac = hmac.HMAC(self._index, hashes.SHA256())
        mac.update(text.encode())
        return "c-" + urlsafe_b64encode(mac.finalize()[:15]).decode()


def _expand(material: bytes, purpose: bytes) -> bytes:
    return HKDFExpand(hashes.SHA256(), 32, purpose).derive(material)


class _CustomerKey:
    """One customer's key: a cipher, and a second key from which nonces follow."""

    __slots__ = ("_cipher", "_nonce_key")

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._nonce_key = _expand(key, b"hotline nonce")

    def seal(self, plain: bytes, bound_to: bytes) -> bytes:
        # The nonce follows from the text under a secret key, so the same fact read twice gives the
        # same bytes (a replayed recording is a duplicate, not another content under the same id),
        # and no nonce ever serves two texts.
        nonce = blake2b(plain, key=self._nonce_key, digest_size=12).digest()
        return nonce + self._cipher.encrypt(nonce, plain, bound_to)

    def open(self, data: bytes, bound_to: bytes) -> bytes:
        return self._cipher.decrypt(data[:12], data[12:], bound_to)


class Vault:
    """Seals and opens personal data with each customer's own key."""

    def __init__(self, database: Database, master: MasterKey, *, keys: int = _CACHE_SIZE) -> None:
        self._database, self._master, self._cached = database, master, keys
        self._keys: OrderedDict[str, tuple[float, _CustomerKey | None]] = OrderedDict()
        self._service = AESGCM(master_service_key(master))

    async def close(self) -> None:
        """Let go of the database."""
        await self._database.close()

    def customer_ref(self, phone: str) -> str:
        """Give the reference of the person behind a normalised phone number (blind index)."""
        return self._master.blind(phone)

    async def ready(self, refs: Sequence[str], *, create: bool = False) -> None:
        """Have the keys of these customers at hand, making them when `create`."""
        wanted, fresh = set(refs), monotonic() - _CACHE_SECONDS
        while missing := sorted(ref for ref in wanted if self._lacks(ref, fresh, create=create)):
            await self._fetch(missing, create=create)
        for ref in wanted:
            self._keys.move_to_end(ref)
        while len(self._keys) > max(self._cached, len(wanted)):
            self._keys.popitem(last=False)

    async def _fetch(self, refs: Sequence[str], *, create: bool) -> None:
        async with self._database.session() as tx:
            if create:
                await tx.execute(
                    "insert into customer_keys (customer_ref, wrapped)"
                    " select * from unnest($1::text[], $2::bytea[]) on conflict do nothing",
                    refs,
                    [self._master.wrap(AESGCM.generate_key(256), ref.encode()) for ref in refs],
                )
            rows = await tx.fetch(
                "select customer_ref, wrapped from customer_keys where customer_ref = any($1::text[])",
                refs,
            )
        found = {row["customer_ref"]: row["wrapped"] for row in rows}
        for ref in refs:
            wrapped = found.get(ref)
            key = _CustomerKey(self._master.unwrap(wrapped, ref.encode())) if wrapped else None
            self._keys[ref] = (monotonic(), key)

    def _lacks(self, ref: str, fresh: float, *, create: bool) -> bool:
        """Whether a key must be read: never seen, seen too long ago, or known to be absent and now wanted."""
        at, key = self._keys.get(ref, (0.0, None))
        return at < fresh or (create and key is None)

    def seal(self, ref: str, plain: str) -> str:
        """Encrypt a text for one customer; `ready` must have been awaited; raises KeyError when erased."""
        key = self._keys[ref][1]
        if key is None:
            raise KeyError(ref)
        return urlsafe_b64encode(key.seal(plain.encode(), ref.encode())).decode()

    def open(self, ref: str, sealed: str) -> str:
        """Decrypt a text of one customer; `[erased]` once the customer's key is gone."""
        _, key = self._keys[ref]
        if key is None:
            return ERASED
        try:
            return key.open(urlsafe_b64decode(sealed), ref.encode()).decode()
        except (InvalidTag, ValueError):
            return ERASED

    async def erase(self, ref: str) -> bool:
        """Delete a customer's key: everything sealed with it is unreadable from now on."""
        async with self._database.session() as tx:
            gone = await tx.execute("delete from customer_keys where customer_ref = $1", ref)
        self._keys[ref] = (monotonic(), None)
        return gone.endswith(" 1")

    def seal_record(self, record: Record) -> bytes:
        """Seal a record as it came, for the quarantine."""
        plain = json.dumps(
            {
                "key": _text(record.key),
                "value": _text(record.value),
                "headers": [[name, _text(value)] for name, value in record.headers],
            }
        ).encode()
        nonce = secrets.token_bytes(12)
        return nonce + self._service.encrypt(nonce, plain, b"quarantine")

    def open_record(self, sealed: bytes) -> dict[str, object]:
        """Read back a quarantined record: key, value and header values as base64 (None for absent)."""
        plain = self._service.decrypt(sealed[:12], sealed[12:], b"quarantine")
        opened: dict[str, object] = json.loads(plain)
        return opened


def master_service_key(master: MasterKey) -> bytes:
    """Derive the key for what belongs to no customer, from the master key."""
    return _expand(master.blind("hotline service key").encode(), b"hotline service")


def _text(value: bytes | None) -> str | None:
    return None if value is None else b64encode(value).decode()

"""Whether a delivery comes from who may send it: Standard Webhooks, and Twilio's own signature. Pure."""

import hmac
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from standardwebhooks import Webhook

TOLERANCE = timedelta(minutes=5)
"""How far the sender's clock may be from ours; as Standard Webhooks proposes."""

Reason = Literal["missing", "mismatch", "too_old", "too_new", "malformed"]
_SAYS: Mapping[Reason, str] = {
    "missing": "the delivery is not signed; let the sender sign it",
    "mismatch": "the signature does not fit; compare the secret, the address, and that the body is unchanged",
    "too_old": "the delivery was signed more than 5 minutes ago; compare the clocks, or sign it anew",
    "too_new": "the delivery was signed more than 5 minutes ahead; compare the clocks",
    "malformed": "the signature cannot be read; compare it with the sender's documentation",
}
_TIMESTAMP = re.compile(r"\d{1,11}", re.ASCII)
_ALGORITHMS: Mapping[str, str] = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}


class BadSignature(Exception):
    """A delivery that nobody vouches for: `reason` says in one word why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(_SAYS[reason])
        self.reason: Reason = reason


def verify_standard(
    headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes | str], now: datetime
) -> None:
    """Verify a delivery by Standard Webhooks 1.0 (HMAC-SHA256, `webhook-*` headers).

    `body` is as it came, not written anew; any of `secrets` may have signed it (`whsec_…`, base64, or
    the bytes themselves), so that they can be rotated; `now` is zone-aware. Raises BadSignature, and
    ValueError when there is no secret, or one that cannot be one.
    """
    signers = [_signer(secret) for secret in secrets]
    if not signers:
        raise ValueError("no webhook secret is configured; set one before deliveries are accepted")
    lower = {name.lower(): value for name, value in headers.items()}
    name, stamp, given = (lower.get(f"webhook-{part}") for part in ("id", "timestamp", "signature"))
    if not (name and stamp and given):
        raise BadSignature("missing")
    signatures = [part for part in given.split(" ") if part.startswith("v1,")]
    if not (name.isascii() and _TIMESTAMP.fullmatch(stamp) and signatures):
        raise BadSignature("malformed")
    try:
        text, signed_at = body.decode(), datetime.fromtimestamp(int(stamp), UTC)
    except (UnicodeDecodeError, ValueError, OverflowError, OSError):
        raise BadSignature("malformed") from None
    if not any(
        _same(signer.sign(name, signed_at, text), signature) for signer in signers for signature in signatures
    ):
        raise BadSignature("mismatch")
    # Only who holds the secret learns how our clock stands.
    if signed_at < now - TOLERANCE:
        raise BadSignature("too_old")
    if signed_at > now + TOLERANCE:
        raise BadSignature("too_new")


def _signer(secret: bytes | str) -> Webhook:
    try:
        return Webhook(secret)
    except Exception:
        raise ValueError("a webhook secret is empty, or no base64; take it from the sender anew") from None


def verify_twilio(
    url: str,
    content: Mapping[str, str] | Iterable[tuple[str, str]] | bytes,
    signature: str | None,
    token: str | Sequence[str],
    settings: str | None = None,
) -> None:
    """Verify a request by Twilio's X-Twilio-Signature.

    `url` is the address that Twilio called, with its query. `content` is a form's fields, empty ones
    too, as a mapping or as pairs; or the bytes of any other body, whose SHA-256 the signed address must
    then hold (`bodySHA256`). `token` is the account's, or its primary and secondary one. `settings` is
    X-Twilio-Webhooks-Signature-Settings. Twilio signs no time: what is replayed is told by its identity.

    base64(HMAC(token, url + name1 + value1 + …)), names sorted; SHA-1 unless the settings say SHA-256;
    with or without the port, for Twilio does both. Source: Twilio's documentation, "Webhooks security".
    Raises BadSignature.
    """
    if not signature:
        raise BadSignature("missing")
    algorithm = _algorithm(settings)
    addresses = _with_and_without_port(url)
    if isinstance(content, bytes):
        _verify_digest(url, content)
        fields = ""
    else:
        pairs = content.items() if isinstance(content, Mapping) else content
        fields = "".join(name + value for name, value in sorted(set(pairs)))
    tokens = (token,) if isinstance(token, str) else token
    for address in addresses:
        signed = (address + fields).encode(errors="surrogatepass")
        for key in filter(None, tokens):
            if _same(b64encode(hmac.digest(key.encode(), signed, algorithm)).decode(), signature):
                return
    raise BadSignature("mismatch")


def _verify_digest(url: str, body: bytes) -> None:
    given = parse_qs(urlsplit(url).query).get("bodySHA256")
    if not given:
        raise BadSignature("missing")
    if not _same(sha256(body).hexdigest(), given[0].lower()):
        raise BadSignature("mismatch")


def _algorithm(settings: str | None) -> str:
    named = dict(part.strip().split("=", 1) for part in (settings or "").split(",") if "=" in part)
    algorithm = _ALGORITHMS.get(named.get("algorithm", "HMAC_SHA1").upper())
    if algorithm is None:
        raise BadSignature("malformed")
    return algorithm


def _with_and_without_port(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise BadSignature("malformed") from None
    host = parts.netloc.removesuffix(f":{port}")
    default = 443 if parts.scheme == "https" else 80
    return [
        url.replace(f"//{parts.netloc}", f"//{netloc}", 1) for netloc in (host, f"{host}:{port or default}")
    ]


def _same(ours: str, theirs: str) -> bool:
    return hmac.compare_digest(ours.encode(), theirs.encode(errors="surrogatepass"))

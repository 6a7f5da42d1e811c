"""Telephony that calls us: webhooks of every kind come in, are believed or not, kept, and acknowledged."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fastapi import HTTPException
from prometheus_client import metrics
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from chassis.clock import monotonic, utc_now
from chassis.faults import Transient, is_transient
from schemas.envelope import BY_BODY
from services.intake.door import ledger
from services.intake.door.entry import Busy, Delivery, Kept, Numbered
from services.intake.door.house import House
from services.intake.door.sources import Pbx, Webhook
from services.intake.sources import cloudevents, connect, foreign, freeswitch, genesys, twilio
from services.intake.sources.canonical import BadPayload, Mapped, Reading
from services.intake.sources.signatures import BadSignature, verify_standard, verify_twilio

MAX_BODY = 1 << 20
BODY_WITHIN = 10.0
AGAIN = {"retry-after": "1"}
AUDITED_A_MINUTE = 60
"""Of senders who are not believed so many are kept per source, the others only counted."""


class _Kept(NamedTuple):
    """What is sealed when a body is refused."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    topic: str = ""
    partition: int = 0
    offset: int = 0
    timestamp: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of one request, as its sender reads it; positions count from 0."""

    kept: int = 0
    duplicates: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """202 kept; 200 nothing new; 409 an id used for other content; 400 nothing readable."""
        if self.kept or self.unknown:
            return 202
        if self.duplicates:
            return 200
        return 409 if self.conflicts else 400

    def as_json(self) -> dict[str, Any]:
        """The answer's body."""
        found = {
            "kept": self.kept,
            "duplicates": self.duplicates,
            "refused": self.refused,
            "conflicts": self.conflicts,
            "unknown": self.unknown,
        }
        if self.conflicts:
            found["next"] = "id_reuse: the id was used before for other content; give each event its own"
        return found


def routes(house: House, sources: Mapping[str, Webhook | Pbx]) -> list[BaseRoute]:
    """Build `POST /telephony/{source}` and its CloudEvents handshake."""
    hooks = {name: Hook(house, source) for name, source in sources.items() if isinstance(source, Webhook)}

    async def receive(request: Request) -> Response:
        hook = hooks.get(request.path_params["source"])
        if hook is None:
            return _no(404, "unknown_source", "this source is not in the sources file")
        began = monotonic()
        response = await hook.receive(request)
        house.metrics.latency.labels("telephony").observe(monotonic() - began)
        return response

    async def handshake(request: Request) -> Response:
        """Allow a CloudEvents sender to deliver here (HTTP webhook specification 1.0.1, section 4)."""
        origin = request.headers.get("webhook-request-origin")
        if request.path_params["source"] not in hooks or not origin:
            return _no(404, "no_handshake", "send WebHook-Request-Origin to a known source")
        allowed = {"allow": "POST, OPTIONS", "webhook-allowed-origin": origin, "webhook-allowed-rate": "*"}
        return Response(headers=allowed)

    path = "/telephony/{source}"
    return [Route(path, receive, methods=["POST"]), Route(path, handshake, methods=["OPTIONS"])]


async def keep_time(house: House, sources: Mapping[str, Webhook | Pbx]) -> None:
    """Tell what is missing from sources that leave nothing out, silent ones too; show it as it is stored.

    Raises Transient while nothing can be kept.
    """
    for source in sources.values():
        if isinstance(source, Webhook) and source.every_event:
            await _hear(house, Numbered(source.name))


async def _hear(
    house: House, numbered: Numbered, facts: Sequence[Mapped] = (), delivery: Delivery | None = None
) -> Kept:
    kept = await house.entry.facts(facts, delivery, None, numbered)
    house.metrics.missing.labels(numbered.source).set(house.entry.missing[numbered.source])
    return kept


class Hook:
    """One webhook."""

    def __init__(self, house: House, source: Webhook) -> None:
        self._house, self._source = house, source
        self._audited: deque[float] = deque(maxlen=AUDITED_A_MINUTE)

    async def receive(self, request: Request) -> Response:
        """Take one request; every answer below 300 means that what it names is on disk."""
        try:
            return await self._answer(request)
        except Busy as error:
            return self._count("busy", _no(429, "busy", str(error), AGAIN))
        except Exception as error:
            if not is_transient(error):
                raise
            # Only what we have worded ourselves: others name files, hosts, values.
            why = str(error) if isinstance(error, Transient) else f"not kept: {type(error).__name__}"
            return self._count("away", _no(503, "try_again", why, AGAIN))

    async def _answer(self, request: Request) -> Response:
        try:
            body = await _body(request)
            await self._believe(request, body)
            outcome = await self._take(request, body)
        except (BadSignature, HTTPException) as error:
            return self._count("unbelieved", await self._unbelieved(error))
        except (_TooMuch, BadPayload) as error:
            status, code = (error.status, error.code) if isinstance(error, _TooMuch) else (400, "unreadable")
            return self._count("refused", _no(status, code, str(error)))
        words = {200: "duplicate", 202: "kept", 400: "refused", 409: "conflict"}
        return self._count(words[outcome.status], JSONResponse(outcome.as_json(), outcome.status))

    async def _unbelieved(self, error: BadSignature | HTTPException) -> Response:
        """Say no, and keep for the audit that somebody tried; not what: who is not believed fills no disk."""
        if isinstance(error, HTTPException):
            status, code, why = error.status_code, "not_allowed", str(error.detail)
        else:
            status, code, why = 401, f"signature_{error.reason}", str(error)
        now = monotonic()
        if len(self._audited) < AUDITED_A_MINUTE or self._audited[0] < now - 60:
            self._audited.append(now)
            await self._refuse(code, why, None)
        return _no(status, code, why)

    def _count(self, word: str, response: Response) -> Response:
        self._house.metrics.received.labels(self._source.name, word).inc()
        return response

    async def _believe(self, request: Request, body: bytes) -> None:
        """Raise unless the sender may send: BadSignature, or HTTPException 401 or 403."""
        match self._source.auth:
            case "standard":
                verify_standard(request.headers, body, self._source.secrets(), utc_now())
            case "twilio":
                query = f"?{request.url.query}" if request.url.query else ""
                content = _pairs(body) if _is_form(request) else body
                verify_twilio(
                    f"{self._source.url}{query}",
                    content,
                    request.headers.get("x-twilio-signature"),
                    self._source.secrets(),
                    request.headers.get("x-twilio-webhooks-signature-settings"),
                )
            case "bearer":
                self._house.access.require(request, "telephony")

    async def _take(self, request: Request, body: bytes) -> Outcome:
        outcome = Outcome()
        readings = self._read(request, body)
        keeping, refused = [], defaultdict[str, list[str]](list)
        for place, reading in enumerate(readings):
            if isinstance(reading, BadPayload):
                outcome.refused.append({"at": place, "path": reading.path, "problem": reading.problem})
                refused["unreadable"].append(str(reading))
                if self._source.every_event and reading.place is not None:
                    # It came, whatever it says: its number is not missing.
                    await _hear(self._house, Numbered(self._source.name, reading.place))
            elif reading.unknown is not None:
                outcome.unknown.append(reading.unknown)
                self._house.metrics.unknown.labels(self._source.name).inc()
                if self._source.every_event:
                    # Most of all that a switch does is none of ours: it is counted, not kept.
                    await self._enter(reading)
                else:
                    refused["unknown_type"].append(reading.unknown)
            else:
                keeping.append((place, reading))
        kept = await asyncio.gather(*(self._keep(reading, body) for _, reading in keeping))
        for (place, reading), verdict in zip(keeping, kept, strict=True):
            if verdict == "kept":
                outcome.kept += 1
                self._count_facts(reading, self._house.metrics.facts)
            elif verdict == "duplicate":
                outcome.duplicates += 1
                self._count_facts(reading, self._house.metrics.repeated)
            else:
                outcome.conflicts.append({"at": place, "id": reading.delivery[:200]})
                refused["id_reuse"].append(f"[{place}] was used before for other content")
        # The body once for each reason, not for each of a thousand events in it.
        for reason, explanations in refused.items():
            await self._refuse(reason, "; ".join(explanations), body)
        return outcome

    def _read(self, request: Request, body: bytes) -> Sequence[Reading | BadPayload]:
        """Read what a body says; never raises for what is in it."""
        now = utc_now()
        if self._source.kind != "cloudevents":
            return [_said(partial(self._read_one, body, now))]
        heard_at = now if self._source.every_event else None
        return [
            event if isinstance(event, BadPayload) else _said(partial(cloudevents.facts, event, heard_at))
            for event in cloudevents.read_http(request.headers, body)
        ]

    def _read_one(self, body: bytes, now: datetime) -> Reading:
        name = self._source.name
        if self._source.kind == "twilio":
            return twilio.facts(dict(_pairs(body)), now, name)
        payload = foreign.read_json(body, "")
        match self._source.kind:
            case "connect":
                return connect.facts(payload, name)
            case "connect_records":
                return connect.facts_of_record(payload, name)
            case "genesys":
                return genesys.facts(payload, name)
        return freeswitch.facts(payload, name)

    async def _keep(self, reading: Reading, body: bytes) -> Kept:
        # An event of a batch, or one that was wrapped anew on the way, is told by what it says.
        said = b"\n".join(fact.body.to_bytes() + (fact.phone or "").encode() for fact in reading.facts)
        said = said or repr(reading.place).encode()  # a manifest is no fact
        content = said if self._source.kind == "cloudevents" else body
        delivery = Delivery.of(self._source.name, reading.delivery, content)
        return await self._enter(reading, delivery)

    async def _enter(self, reading: Reading, delivery: Delivery | None = None) -> Kept:
        """Keep a reading; where the source leaves nothing out, note also that its number has come."""
        if reading.place is None or not self._source.every_event:
            return await self._house.entry.facts(reading.facts, delivery)
        return await _hear(self._house, Numbered(self._source.name, reading.place), reading.facts, delivery)

    def _count_facts(self, reading: Reading, counter: metrics.Counter) -> None:
        for kind, count in Counter(BY_BODY[type(fact.body)].name for fact in reading.facts).items():
            counter.labels(self._source.name, kind).inc(count)

    async def _refuse(self, reason: str, explanation: str, body: bytes | None) -> None:
        sealed = self._house.vault.seal_record(_Kept(None, body, ())) if body is not None else None
        async with self._house.database.session() as tx:
            await ledger.refuse(tx, self._source.name, reason, explanation, sealed)


class _TooMuch(Exception):
    """A body that is too large, or too slow."""

    def __init__(self, status: int, code: str, why: str) -> None:
        super().__init__(why)
        self.status, self.code = status, code


async def _body(request: Request) -> bytes:
    """Read the body while it comes; raises _TooMuch beyond a mebibyte or ten seconds."""
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_WITHIN):
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BODY:
                    raise _TooMuch(
                        413, "too_large", f"the body has more than {MAX_BODY} bytes; send less at once"
                    )
                chunks.append(chunk)
    except TimeoutError:
        raise _TooMuch(
            408, "too_slow", f"the body did not come within {BODY_WITHIN:g} s; send it again"
        ) from None
    except ClientDisconnect:
        raise _TooMuch(400, "cut_off", "the sender hung up before the end of the body") from None
    return b"".join(chunks)


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")


def _pairs(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=400)
    except (UnicodeDecodeError, ValueError):
        raise BadPayload("body", "is not a form in UTF-8") from None


def _said(read: Callable[[], Reading]) -> Reading | BadPayload:
    try:
        return read()
    except BadPayload as bad:
        return bad


def _no(status: int, code: str, why: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": code, "why": why}, status, headers=headers)

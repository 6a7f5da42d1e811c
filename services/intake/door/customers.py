"""The customer record over HTTP: agents find, read and correct it; managers merge and hold.

A telephone number is never in a URL, an answer shows it masked, and every look is kept with its reason.
Erasing is not here: it reaches beyond this process (`hotline customer erase`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, StringConstraints

from chassis.clock import utc_now
from chassis.postgres import Tx
from schemas.envelope import NO_NUL, Code, Identifier
from services.intake.customers import store
from services.intake.customers.record import (
    LONGEST_REASON,
    Change,
    Contact,
    CustomerView,
    Record,
    Refused,
    changed,
    person_of,
    view,
)
from services.intake.desk import phones
from services.intake.door.access import Visitor
from services.intake.door.house import House
from services.intake.door.objections import desk_route

ROOM = "customers"
STATUS = {
    "unknown_customer": 404,
    "version_stale": 412,
    "version_missing": 428,
    "not_a_number": 422,
    "bad_cursor": 422,
}
"""The status of a refusal by its code; any other is 409: the customer's state does not allow it."""

Reason = Annotated[
    str,
    StringConstraints(min_length=1, max_length=LONGEST_REASON, pattern=NO_NUL, strip_whitespace=True),
]
Looking = Annotated[
    Code, Query(description="Why you look: the call or case number. It is kept, so name nobody.")
]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Find(_Asked):
    """Who is looked for, and why."""

    phone: Annotated[str, StringConstraints(min_length=1, max_length=60)]
    reason: Code


class Correction(Change):
    """What is corrected, and why."""

    reason: Reason


class Merge(_Asked):
    """The record that stands for both from now on, and how the manager knows that both are one customer."""

    into: Identifier
    reason: Reason


class Why(_Asked):
    """Why it is done; kept for ever, so name nobody."""

    reason: Reason


class HistoryView(BaseModel):
    """Contacts, newest first; `before` continues the list, None at its end."""

    customer_ref: str
    contacts: list[Contact]
    before: str | None


async def _visitor(request: Request) -> Visitor:
    visitor: Visitor = request.state.visitor
    return visitor


Asking = Annotated[Visitor, Depends(_visitor)]


async def refused(_: Request, error: Exception) -> Response:
    """Answer a refusal of the record as {error, why, next}."""
    assert isinstance(error, Refused)
    said = {"error": error.code, "why": error.why, "next": error.next_step}
    return JSONResponse(said, STATUS.get(error.code, 409))


def router(house: House) -> APIRouter:
    """Give the routes of the customer record; what they refuse is answered by `refused`."""
    routes = APIRouter(prefix="/customers", tags=["customers"])
    routes.include_router(_for_agents(house))
    routes.include_router(_for_managers(house))
    return routes


def _for_agents(house: House) -> APIRouter:
    routes = APIRouter(route_class=desk_route(house, ROOM, "agent"))

    @routes.post("/find", summary="Find a customer by telephone number")
    async def find(visitor: Asking, response: Response, asked: Find) -> CustomerView:
        phone = phones.normalise(asked.phone)
        if phone is None:
            raise Refused(
                "not_a_number",
                "phone: not a telephone number",
                "write it as dialled, or with + and the country",
            )
        ref = house.vault.customer_ref(phone.number)
        return await _look(house, visitor, response, ref, "found", asked.reason)

    @routes.get("/{ref}", summary="Read a customer record")
    async def read(visitor: Asking, response: Response, ref: Identifier, reason: Looking) -> CustomerView:
        return await _look(house, visitor, response, ref, "viewed", reason)

    @routes.patch("/{ref}", summary="Correct a customer record")
    async def correct(
        visitor: Asking,
        response: Response,
        ref: Identifier,
        correction: Correction,
        if_match: Annotated[str | None, Header(description='The version that you read: "3"')] = None,
    ) -> CustomerView:
        await _correct(house, visitor, ref, correction, _version(if_match))
        return await _shown(house, visitor, response, ref)

    @routes.get("/{ref}/history", summary="List a customer's calls and cases, newest first")
    async def history(
        visitor: Asking,
        ref: Identifier,
        reason: Looking,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(max_length=300, description="From the page before.")] = None,
    ) -> HistoryView:
        after = None if before is None else _cursor(before)
        async with house.database.transaction() as tx:
            record = await store.load(tx, ref)
            await store.note(tx, record.customer_ref, "viewed history", visitor.name, reason)
            refs = await store.references(tx, record.customer_ref)
            contacts = await store.history(tx, refs, limit + 1, after)
        page = contacts[:limit]
        more = _cursor_at(page[-1]) if len(contacts) > limit else None
        return HistoryView(customer_ref=record.customer_ref, contacts=page, before=more)

    return routes


def _for_managers(house: House) -> APIRouter:
    routes = APIRouter(route_class=desk_route(house, ROOM, "manager"))

    @routes.post("/{ref}/merge", summary="Join two records of one customer")
    async def merge(visitor: Asking, response: Response, ref: Identifier, asked: Merge) -> CustomerView:
        async with house.database.transaction() as tx:
            await store.merge(tx, ref, asked.into, visitor.name, asked.reason)
        return await _shown(house, visitor, response, ref)

    @routes.post("/{ref}/hold", summary="Forbid erasing a customer")
    async def hold(visitor: Asking, response: Response, ref: Identifier, asked: Why) -> CustomerView:
        async with house.database.transaction() as tx:
            await store.hold(tx, ref, visitor.name, asked.reason)
        return await _shown(house, visitor, response, ref)

    @routes.post("/{ref}/release", summary="Allow erasing a customer again")
    async def release(visitor: Asking, response: Response, ref: Identifier, asked: Why) -> CustomerView:
        async with house.database.transaction() as tx:
            await store.release(tx, ref, visitor.name, asked.reason)
        return await _shown(house, visitor, response, ref)

    return routes


def _version(if_match: str | None) -> int:
    text = (if_match or "").strip().removeprefix("W/").strip('"')
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise Refused("version_missing", "If-Match does not name a version", "send the ETag that you read")
    return int(text)


def _cursor_at(contact: Contact) -> str:
    """Name the place after a line, in letters that need no escaping in a URL's query as `+` does."""
    return f"{contact.at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}|{contact.id}"


def _cursor(before: str) -> tuple[datetime, str]:
    at, _, last = before.partition("|")
    try:
        moment = datetime.strptime(at, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        moment = None
    if moment is None or "\x00" in last:
        raise Refused("bad_cursor", "before: not from a page of this list", "begin without it")
    return moment, last


async def _look(
    house: House, visitor: Visitor, response: Response, ref: str, action: str, reason: str
) -> CustomerView:
    async with house.database.transaction() as tx:
        record = await store.load(tx, ref)
        await store.note(tx, record.customer_ref, action, visitor.name, reason)
    return await _shown(house, visitor, response, record.customer_ref)


async def _shown(house: House, visitor: Visitor, response: Response, ref: str) -> CustomerView:
    async with house.database.transaction() as tx:
        records = await store.family(tx, ref)
    await house.vault.ready([record.customer_ref for record in records if record.sealed])
    shown = view(records, house.vault.open)
    response.headers["etag"] = f'"{shown.version}"'
    if "manager" not in visitor.roles:
        # An agent who knows of a hold may tip off whom it is about.
        shown = shown.model_copy(update={"legal_hold": None})
    return shown


async def _correct(house: House, visitor: Visitor, ref: str, correction: Correction, version: int) -> None:
    async with house.database.transaction() as tx:
        record = await store.load(tx, ref, lock=True)
        if record.version != version:
            raise await _stale(tx, record, version)
        if record.erased_at is None:
            await house.vault.ready([record.customer_ref], create=True)
        person = person_of(record, house.vault.open)
        new, new_person, what = changed(record, person, correction, visitor.name, utc_now())
        if new_person != person:
            sealed = house.vault.seal(record.customer_ref, new_person.model_dump_json())
            new = replace(new, sealed=sealed)
        if what:
            await store.save(tx, new)
            await store.note(
                tx, record.customer_ref, "changed", visitor.name, f"{', '.join(what)}: {correction.reason}"
            )


async def _stale(tx: Tx, record: Record, version: int) -> Refused:
    by = await store.last_changed_by(tx, await store.references(tx, record.customer_ref))
    return Refused(
        "version_stale",
        f"you read version {version}; it is {record.version} since {record.updated_at.isoformat()},"
        f" last changed by {by or 'a call'}",
        "read the record again, then correct it",
    )

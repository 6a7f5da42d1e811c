"""Routes for the IVR and the wallboard: guidance, reasons, callbacks, queues."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from schemas.case import Language
from schemas.envelope import Code, Identifier, Moment
from services.intake.door.assistant import Asked, Assistant, UnknownCall
from services.intake.door.house import House
from services.intake.door.objections import Objection, desk_route, unusable
from services.intake.waiting.guidance import Guidance

CallId = Annotated[Identifier, Path()]
QueueName = Annotated[Code, Path()]


class Enquiry(BaseModel):
    """Which call asks, and what; `identified`: the caller has proved who it is."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    call_id: Identifier
    lang: Language | None = None
    question: str | None = Field(default=None, max_length=500)
    identified: bool = False


class Reason(BaseModel):
    """What the caller pressed or said."""

    model_config = ConfigDict(extra="forbid")
    said: str = Field(min_length=1, max_length=2000)
    language: Language | None = None


class Captured(BaseModel):
    """The topic that was understood."""

    topic: Code


class Wish(BaseModel):
    """To be called back: at the caller's own number and soon, unless it says otherwise."""

    model_config = ConfigDict(extra="forbid")
    queue: Code
    number: str | None = Field(default=None, max_length=40)
    due_at: Moment | None = None


class Promise(BaseModel):
    """When somebody calls back: as wished, in two days at most, and not before the queue opens."""

    promised: bool = True
    due_at: Moment


def router(house: House, assistant: Assistant) -> APIRouter:
    """Build the routes; for the IVR only."""
    routes = APIRouter(tags=["waiting"], route_class=desk_route(house, "waiting", "ivr"))

    @routes.get("/queues", summary="How every queue stands now")
    async def board() -> list[dict[str, Any]]:
        return await assistant.board()

    @routes.post("/queues/{queue}/guidance", summary="What to tell a waiting caller now")
    async def enquire(queue: QueueName, asked: Enquiry) -> Guidance:
        about = Asked(queue, asked.call_id, asked.lang, asked.question, identified=asked.identified)
        return await _guided(assistant, about)

    @routes.get(
        "/queues/{queue}/guidance",
        summary="The same, for a voice platform that can only GET",
        description="A caller's own words do not belong into an address, which proxies log: POST them.",
    )
    async def guidance(
        queue: QueueName,
        call_id: Annotated[Identifier, Query()],
        lang: Language | None = None,
        question: Annotated[str | None, Query(max_length=500)] = None,
        identified: Annotated[bool, Query(description="the caller has proved who he is")] = False,  # noqa: FBT002 - a query parameter
    ) -> Guidance:
        return await _guided(assistant, Asked(queue, call_id, lang, question, identified=identified))

    @routes.post(
        "/calls/{call_id:path}/reason", summary="Why the caller calls, by digit or in words", status_code=202
    )
    async def reason(call_id: CallId, said: Reason) -> Captured:
        try:
            return Captured(topic=await assistant.capture(call_id, said.said, said.language))
        except UnknownCall:
            raise _unknown(call_id) from None

    @routes.post("/calls/{call_id:path}/callback", summary="Call back, keeping the place", status_code=202)
    async def callback(call_id: CallId, wish: Wish) -> Promise:
        try:
            due = await assistant.call_back(call_id, wish.queue, wish.number, wish.due_at)
        except UnknownCall:
            raise _unknown(call_id) from None
        except ValueError as error:
            raise unusable(("body", "number"), str(error)) from None
        return Promise(due_at=due)

    return routes


async def _guided(assistant: Assistant, asked: Asked) -> Guidance:
    try:
        return await assistant.guidance(asked)
    except UnknownCall:
        raise _unknown(asked.call_id) from None


def _unknown(call_id: str) -> Objection:
    return Objection("unknown_call", f"no event of call {call_id} has arrived; is the telephony feed behind?")

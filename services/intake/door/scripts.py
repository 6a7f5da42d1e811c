"""The FastAGI scripts: the same as the routes for the IVR, asked by Asterisk's dialplan."""

import asyncio
from collections.abc import Mapping
from typing import cast

from chassis.clock import monotonic, utc_now
from schemas.case import Language
from services.intake.door.assistant import Asked, Assistant, UnknownCall
from services.intake.waiting.agi import AgiRequest, Handler, NotKnown, variables
from services.intake.waiting.hours import callback_words

PATIENCE = 1.0
"""Seconds that the dialplan's question may be ahead of the manager's event of the same call."""
AGAIN = 0.1


def scripts(assistant: Assistant) -> dict[str, Handler]:
    """Name the scripts: `guidance`, `answer` (words), `reason` (digit or words), `callback`."""

    async def guidance(request: AgiRequest) -> Mapping[str, str]:
        return variables(await assistant.guidance(_asked(request, None)))

    async def answer(request: AgiRequest) -> Mapping[str, str]:
        told = await assistant.guidance(_asked(request, _said(request)))
        return {
            "HOTLINE_PROMPTS": "1",
            "HOTLINE_PROMPT_1": told.text("answer", "nothing_found"),
            "HOTLINE_FOUND": "1" if told.answers else "0",
        }

    async def reason(request: AgiRequest) -> Mapping[str, str]:
        topic = await assistant.capture(_call(request), _said(request), _language(request))
        return {"HOTLINE_TOPIC": topic}

    async def callback(request: AgiRequest) -> Mapping[str, str]:
        number = request.arguments[0] if request.arguments else None
        queue = request.parameters.get("queue", "")
        due = await assistant.call_back(_call(request), queue, number or None)
        words = callback_words(_language(request) or "zh", due, utc_now())
        return {"HOTLINE_PROMPTS": "1", "HOTLINE_PROMPT_1": words}

    found = {"guidance": guidance, "answer": answer, "reason": reason, "callback": callback}
    return {name: _patient(script) for name, script in found.items()}


def _patient(script: Handler) -> Handler:
    """Ask again while nothing of the call has arrived; raises NotKnown when nothing comes."""

    async def answer(request: AgiRequest) -> Mapping[str, str]:
        until = monotonic() + PATIENCE
        while True:
            try:
                return await script(request)
            except UnknownCall:
                if monotonic() >= until:
                    raise NotKnown from None
            await asyncio.sleep(AGAIN)

    return answer


def _asked(request: AgiRequest, question: str | None) -> Asked:
    identified = request.parameters.get("identified") == "1"
    queue = request.parameters.get("queue", "")
    return Asked(queue, _call(request), _language(request), question, identified=identified)


def _call(request: AgiRequest) -> str:
    """Name the call as the manager feed of its PBX does: behind the `system` of the sources file."""
    call = request.parameters.get("call") or request.headers.get("uniqueid", "")
    system = request.parameters.get("system")
    return f"{system}-{call}" if system else call


def _said(request: AgiRequest) -> str:
    return request.arguments[0] if request.arguments else ""


def _language(request: AgiRequest) -> Language | None:
    named = (request.parameters.get("lang") or request.headers.get("language", ""))[:2].lower()
    return cast(Language, named) if named in ("zh", "en") else None

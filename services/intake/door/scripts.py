"""The FastAGI scripts: the same as the routes for the IVR, asked by Asterisk's dialplan."""

from collections.abc import Mapping
from typing import cast

from schemas.case import Language
from services.intake.door.assistant import Asked, Assistant
from services.intake.waiting.agi import AgiRequest, Handler, variables


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
        await assistant.call_back(_call(request), request.parameters.get("queue", ""), number or None)
        zh = _language(request) != "en"
        text = (
            "好的，我们会给您回电，您的排队位置已保留。"
            if zh
            else "Thank you. We call you back; you keep your place."
        )
        return {"HOTLINE_PROMPTS": "1", "HOTLINE_PROMPT_1": text}

    return {"guidance": guidance, "answer": answer, "reason": reason, "callback": callback}


def _asked(request: AgiRequest, question: str | None) -> Asked:
    identified = request.parameters.get("identified") == "1"
    queue = request.parameters.get("queue", "")
    return Asked(queue, _call(request), _language(request), question, identified=identified)


def _call(request: AgiRequest) -> str:
    return request.parameters.get("call") or request.headers.get("uniqueid", "")


def _said(request: AgiRequest) -> str:
    return request.arguments[0] if request.arguments else ""


def _language(request: AgiRequest) -> Language | None:
    named = (request.parameters.get("lang") or request.headers.get("language", ""))[:2].lower()
    return cast(Language, named) if named in ("zh", "en") else None

"""How the desk says no: one shape for every refusal, what failed, why, and the next step."""

import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as AnyHTTPException

from chassis.clock import monotonic
from chassis.faults import Transient, is_transient
from services.intake.door.access import Role
from services.intake.door.drafts import Verdict
from services.intake.door.house import House

LARGEST_BODY = 64 * 1024

# ---------------------------------------------------------------- saying no


class _No(NamedTuple):
    """How one refusal is answered: with which status, what the agent does next (`zh`: for the screen)."""

    status: int
    next: str
    zh: str


_NOES = {
    "unknown_call": _No(
        404,
        "ask again in a moment; if it stays so, check the id that the telephone system shows",
        "尚未收到该通话的任何事件，请稍后重试；仍无结果请核对通话编号",
    ),
    "unknown_command": _No(
        404, "send the request again with its Idempotency-Key", "没有这个命令，请用原来的幂等键重新提交"
    ),
    "unknown_case": _No(
        404,
        "check the number; a case that was recorded this moment is known in a second",
        "没有这个工单，请核对编号；刚登记的工单请稍后重试",
    ),
    "no_draft": _No(404, "write the first version without If-Match", "该通话尚无草稿"),
    "case_closed": _No(409, "record a new case", "该工单已关闭，请登记新工单"),
    "already_recorded": _No(409, "open that case; nothing is left to do", "该通话已登记，请直接打开该工单"),
    "contact_closed": _No(409, "record the matter with the customer's next call", "该通话已关闭，不能再登记"),
    "no_callback": _No(409, "look at the list of callbacks", "该通话没有回拨请求，请查看回拨列表"),
    "callback_over": _No(409, "nothing is left to do", "该回拨已结束，无需再处理"),
    "no_longer_kept": _No(410, "look at the call", "该请求早已处理完毕，请查看通话"),
    "erased": _No(410, "write the draft anew, over this version", "客户信息已删除，草稿无法打开，请重新填写"),
    "stale_draft": _No(
        412,
        "read the draft again, join both texts, save over its version",
        "草稿已有变动，请刷新后合并再保存",
    ),
    "too_large": _No(413, "shorten the summary or the answers", "内容过长，请精简后再提交"),
    "idempotency_mismatch": _No(422, "send a new request with a new key", "该幂等键已用于另一请求，请换新键"),
    "just_erased": _No(503, "send the same again in a minute", "客户信息刚被删除，请一分钟后重试"),
}
_NOT_HANDLED = _No(409, "tell the hotline's operators the command's id", "未能处理，请把命令编号告知运维人员")


class Objection(HTTPException):
    """What is asked cannot be done: a code for machines, why and what next for people."""

    def __init__(self, error: str, why: str, status: int | None = None, **more: Any) -> None:
        no = _NOES.get(error, _NOT_HANDLED)
        body = {"error": error, "why": why, "next": no.next, "zh": no.zh, **more}
        super().__init__(status or no.status, body)


def unusable(path: tuple[str, str], problem: str) -> RequestValidationError:
    """Refuse one field, as if its form had."""
    return RequestValidationError([{"loc": path, "msg": problem, "type": "value_error"}])


def refused_by_stage(verdict: Verdict, case: tuple[UUID, str | None] | None) -> Objection:
    """Hand on what the stage said; who records twice is told which case there is."""
    refusal = verdict.refusal
    assert refusal is not None
    more = {"command_id": str(verdict.command_id), "current_state": refusal.current_state}
    why = refusal.explanation
    if refusal.code == "already_recorded" and case is not None:
        case_id, case_no = case
        more |= {"case_id": str(case_id), "case_no": case_no or ""}
        why = f"call {verdict.call_id} has case {case_no or case_id}"
    return Objection(refusal.code, why, 409, **more)


_OTHER_NOES = {
    401: ("unauthenticated", "send a token that the hotline knows", "未提供有效令牌"),
    403: ("forbidden", "ask the manager for the role", "没有此项权限，请联系主管"),
    404: ("not_found", "look at GET /openapi.json", "没有这个地址"),
    405: ("method_not_allowed", "look at GET /openapi.json", "该地址不支持此操作"),
}
_BAD_REQUEST = ("bad_request", "correct the request", "请求有误，请更正后重试")


def said_no(no: AnyHTTPException) -> Response:
    """Give every refusal the same shape, also those of `Access` and of FastAPI."""
    body: Any = no.detail
    if not isinstance(body, dict):
        error, next_step, zh = _OTHER_NOES.get(no.status_code, _BAD_REQUEST)
        body = {"error": error, "why": str(body), "next": next_step, "zh": zh}
    return JSONResponse(body, no.status_code, headers=dict(no.headers or {}))


Received: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


def _bounded(receive: Received) -> Received:
    size = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > LARGEST_BODY:
            raise Objection("too_large", f"the body is larger than {LARGEST_BODY} bytes")
        return message

    return bounded


_PLAIN = re.compile(r"\[?[a-z][a-z0-9_-]{0,39}\]?")


def _without_content(wrong: RequestValidationError) -> RequestValidationError:
    """A path names fields; where somebody made up a field, its name may be anything, a number too."""

    def plain(part: int | str) -> int | str:
        return part if isinstance(part, int) or _PLAIN.fullmatch(part) else "?"

    return RequestValidationError(
        [{**fault, "loc": tuple(map(plain, fault["loc"]))} for fault in wrong.errors()]
    )


def desk_route(house: House, room: str = "desk", role: Role | None = None) -> type[APIRoute]:
    """Make the desk's kind of route: bounded, timed under the room's name, and with one way to say no.

    Who lacks the `role` is refused before the body is read; who has it is `request.state.visitor`.
    """

    class DeskRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handled(request: Request) -> Response:
                started = monotonic()
                try:
                    if role is not None:
                        request.state.visitor = house.access.require(request, role)
                    return await handle(Request(request.scope, _bounded(request.receive)))
                except AnyHTTPException as no:
                    return said_no(no)
                except RequestValidationError as wrong:
                    raise _without_content(wrong) from None
                except Exception as error:
                    if isinstance(error, Transient) or not is_transient(error):
                        raise
                    raise Transient(f"the database is away: {type(error).__name__}") from error
                finally:
                    house.metrics.latency.labels(room).observe(monotonic() - started)

            return handled

    return DeskRoute

"""What Asterisk asks while a caller waits: a FastAGI server that answers with channel variables.

Asterisk connects for each `AGI(agi://…)` of the dialplan, says who calls in `agi_…: value` lines up to an
empty one, and carries out commands; `HANGUP` may stand between its replies. `dialplan` gives the other end.
Which scripts there are, and what they know, is given from outside: a script is a function.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from errno import EADDRINUSE
from typing import Self
from urllib.parse import parse_qsl

from chassis.log import get_logger
from services.intake.waiting.guidance import Guidance

PORT = 4573
SESSION_WITHIN = 10.0
"""Seconds a session may take; the caller hears music meanwhile, and then goes on without an answer."""
SESSIONS_AT_MOST = 100
RESULT = "HOTLINE_RESULT"
"""Set last: `ok` when all the other variables are set, `failed` when they are not to be trusted."""

_LONGEST_COMMAND = 2047  # bytes with the line end; Asterisk until mid-2025 cuts a longer one in two
_LONGEST_LINE = 4096
_MOST_LINES = 64
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,60}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
_DIALPLAN_SPECIAL = re.compile(r'[\\",()\[\]]')
_LINE_SPECIAL = re.compile(r'[\\"]')

_DIALPLAN = """
[hotline-waiting] ; Gosub(hotline-waiting,tell,1) before Queue() and whenever a key leaves it
exten => tell,1,Set(HOTLINE_RESULT=)
 same => n,AGI({door}/guidance?{call}&queue=${QUEUE})
 same => n,GotoIf($["${HOTLINE_RESULT}" != "ok"]?done)
 same => n,Set(N=1)
 same => n,While($[${N} <= ${HOTLINE_PROMPTS}])
 same => n,MRCPSynth(${HOTLINE_PROMPT_${N}}) ; or any other application that speaks
 same => n,Set(N=$[${N} + 1])
 same => n,EndWhile()
 same => n,Read(DIGIT,,1,,1,5)
 same => n,GotoIf($["${DIGIT}" = ""]?done)
 same => n,GotoIf($["${DIGIT}" = "${HOTLINE_CALLBACK}"]?callback)
 same => n,AGI({door}/reason?{call}&queue=${QUEUE},${DIGIT})
 same => n(done),Return()
 same => n(callback),Set(HOTLINE_RESULT=)
 same => n,AGI({door}/callback?{call}&queue=${QUEUE})
 same => n,GotoIf($["${HOTLINE_RESULT}" != "ok"]?done)
 same => n,MRCPSynth(${HOTLINE_PROMPT_1})
 same => n,Hangup()
exten => ask,1,Set(HOTLINE_RESULT=) ; after SpeechBackground(), with what was understood
 same => n,AGI({door}/answer?{call},"${SPEECH_TEXT(0)}")
 same => n,ExecIf($["${HOTLINE_RESULT}" = "ok"]?MRCPSynth(${HOTLINE_PROMPT_1}))
 same => n,Return()
"""
_CALL = "call=${URIENCODE(${CHANNEL(linkedid)})}"


def dialplan(system: str = "", port: int = PORT) -> str:
    """Give the lines for extensions.conf of a PBX that is named `system` in the sources file.

    A value is one argument of an application, without quotes around it; in `Set` and `$[…]` a comma of it
    shows as a backslash and a comma.
    """
    call = f"{_CALL}&system={system}" if system else _CALL
    return _DIALPLAN.replace("{door}", f"agi://127.0.0.1:{port}").replace("{call}", call)


@dataclass(frozen=True, slots=True)
class AgiRequest:
    """What one `AGI(…)` asks: `parameters` from the script's query, `arguments` in order, all headers.

    Names of headers are without `agi_`. Values are as the switch sent them, and may be personal.
    """

    script: str
    parameters: Mapping[str, str]
    arguments: tuple[str, ...]
    headers: Mapping[str, str]


OUTCOMES = (
    *("served", "hung_up", "failed", "unknown_call", "unknown_script", "bad_request", "not_set"),
    *("too_slow", "too_many", "stopped"),
)
"""How a session may end: `failed` is the handler's fault, `not_set` that the switch refused a variable."""
Handler = Callable[[AgiRequest], Awaitable[Mapping[str, str]]]
"""Answers a request with channel variables; it is let finish when the caller hangs up meanwhile."""


class NotKnown(LookupError):
    """Raised by a handler: nothing is known of the call that is asked about."""


class BadRequest(ValueError):
    """A request that is none; says what is wrong with it, without its content."""


class _HungUp(Exception):
    """The caller or the switch is gone."""


class _NotSet(Exception):
    """The switch did not set a variable."""


class AgiServer:
    """A FastAGI server on one address; `async with` serves, `ended` is told how each session ended.

    Without a `port` it is `PORT`, or a free one where another has taken that. Outcomes: `OUTCOMES`.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        ended: Callable[[str], None] = lambda _: None,
        session_within: float = SESSION_WITHIN,
        sessions_at_most: int = SESSIONS_AT_MOST,
    ) -> None:
        self._handlers = handlers
        self._host, self._port = host, port
        self._ended = ended
        self._session_within = session_within
        self._sessions_at_most = sessions_at_most
        self._sessions: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._log = get_logger(room="agi")

    async def __aenter__(self) -> Self:
        """Listen; raises OSError when the address is taken, or is none of this machine."""
        try:
            self._server = await self._listen(PORT if self._port is None else self._port)
        except OSError as error:
            if self._port is not None or error.errno != EADDRINUSE:
                raise
            self._server = await self._listen(0)
            self._log.warning("agi port taken", wanted=PORT, port=self.port)
        return self

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accept, self._host, port, limit=_LONGEST_LINE)

    async def __aexit__(self, *_: object) -> None:
        """Stop listening, and end what is under way."""
        if self._server is not None:
            self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._sessions) >= self._sessions_at_most:
            self._end("too_many", writer)
            return
        session = asyncio.create_task(self._session(reader, writer))
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        outcome = "stopped"
        try:
            async with asyncio.timeout(self._session_within):
                outcome = await self._serve(reader, writer)
        except TimeoutError:
            outcome = "too_slow"
        except BadRequest as error:
            outcome = "bad_request"
            self._log.warning("agi request refused", reason=str(error))
        except (_HungUp, ConnectionError):
            outcome = "hung_up"
        except _NotSet as error:
            outcome = "not_set"
            self._log.warning("agi variable not set", reason=str(error))
        finally:
            self._end(outcome, writer)

    def _end(self, outcome: str, writer: asyncio.StreamWriter) -> None:
        self._ended(outcome)
        if outcome in {"served", "failed", "unknown_call", "unknown_script"}:
            writer.close()
        else:  # a peer that does not read must not keep the connection
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        request = await _request(reader)
        handler = self._handlers.get(request.script)
        if handler is None:
            self._log.warning("agi script unknown", known=sorted(self._handlers))
            await _set(reader, writer, _command(RESULT, "failed"))
            return "unknown_script"
        try:
            commands = [_command(name, value) for name, value in (await handler(request)).items()]
        except NotKnown:
            self._log.warning(
                "agi call unknown", script=request.script, next="hotline telephony dialplan SOURCE"
            )
            await _set(reader, writer, _command(RESULT, "failed"))
            return "unknown_call"
        except Exception as error:
            # Only its kind, and no traceback: what it says may name the caller.
            self._log.error("agi handler failed", script=request.script, error=type(error).__name__)
            await _set(reader, writer, _command(RESULT, "failed"))
            return "failed"
        for command in (*commands, _command(RESULT, "ok")):
            await _set(reader, writer, command)
        return "served"


def variables(guidance: Guidance) -> dict[str, str]:
    """Give guidance as channel variables; what is not known is empty."""
    return {
        "HOTLINE_POSITION": "" if guidance.position is None else str(guidance.position),
        "HOTLINE_WAIT_TEXT": guidance.text("wait"),
        "HOTLINE_CALLBACK": guidance.callback_digit or "",
        "HOTLINE_PROMPTS": str(len(guidance.say)),
        **{f"HOTLINE_PROMPT_{n}": prompt.text for n, prompt in enumerate(guidance.say, 1)},
    }


async def _request(reader: asyncio.StreamReader) -> AgiRequest:
    """Read the lines up to the empty one."""
    headers: dict[str, str] = {}
    for _ in range(_MOST_LINES):
        line = await _line(reader)
        if not line:
            return _parsed(headers)
        name, colon, value = line.partition(":")
        if not colon or not name.startswith("agi_"):
            raise BadRequest("a line is not of the form `agi_name: value`; only Asterisk may connect here")
        # The first counts: a value with a line end in it must not replace who calls.
        headers.setdefault(name.removeprefix("agi_"), value.strip())
    raise BadRequest(f"more than {_MOST_LINES} lines before the empty one")


def _parsed(headers: dict[str, str]) -> AgiRequest:
    script, _, query = headers.get("network_script", "").partition("?")
    try:
        parameters = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
    except ValueError:
        raise BadRequest("the script has more than 20 parameters") from None
    arguments: list[str] = []
    while (argument := headers.get(f"arg_{len(arguments) + 1}")) is not None:
        arguments.append(argument)
    return AgiRequest(script.strip("/"), parameters, tuple(arguments), headers)


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        raw = await reader.readline()
    except ValueError:  # so asyncio says that its limit was passed
        raise BadRequest(f"a line is longer than {_LONGEST_LINE} bytes") from None
    if not raw.endswith(b"\n"):
        raise _HungUp
    return raw.decode("utf-8", "replace").rstrip("\r\n")


def _command(name: str, value: str) -> bytes:
    """Word the command that sets a variable; raises ValueError for what the switch cannot take."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no channel variable; use capitals, digits and underscores")
    command = f"SET VARIABLE {name} {_quoted(_argument(value))}\n".encode()
    if len(command) > _LONGEST_COMMAND:
        raise ValueError(f"{name} takes {len(command)} bytes of {_LONGEST_COMMAND}; shorten its text")
    return command


def _argument(value: str) -> str:
    """Make a text one argument of a dialplan application, whatever is in it."""
    return _DIALPLAN_SPECIAL.sub(r"\\\g<0>", _CONTROL.sub(" ", value))


def _quoted(value: str) -> str:
    """Make a text one word of a command line."""
    escaped = _LINE_SPECIAL.sub(r"\\\g<0>", value)
    return f'"{escaped}"'


async def _set(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: bytes) -> None:
    writer.write(command)
    await writer.drain()
    line = await _line(reader)
    if line == "HANGUP":
        raise _HungUp
    if not line.startswith("200 "):
        raise _NotSet(f"the switch answered {line[:3]!r} to {command.split(b' ', 3)[2].decode()}")

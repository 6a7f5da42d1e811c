"""A FastAGI server, spoken to over a socket as Asterisk does it."""

import asyncio
import re
from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st

from services.intake.waiting import agi
from services.intake.waiting.agi import PORT, AgiServer, NotKnown, dialplan, variables
from services.intake.waiting.guidance import Guidance, Prompt

OK = "200 result=1"


def headers(script, *arguments, **more):
    """What Asterisk sends first; the order is its own, the arguments come last."""
    lines = {
        "agi_network": "yes",
        "agi_network_script": script,
        "agi_request": f"agi://127.0.0.1/{script}",
        "agi_channel": "Local/8000@hotline-000000a9;2",
        "agi_language": "zh",
        "agi_type": "Local",
        "agi_uniqueid": "1795479578.339",
        "agi_callerid": "13800138000",
        "agi_enhanced": "0.0",
        "agi_accountcode": "",
        **more,
        **{f"agi_arg_{n}": argument for n, argument in enumerate(arguments, 1)},
    }
    return "".join(f"{name}: {value}\n" for name, value in lines.items()) + "\n"


class Switch:
    """The Asterisk end of one session; `replies` are given in turn, then the usual one."""

    def __init__(self, reader, writer, replies=()):
        self.reader, self.writer = reader, writer
        self.replies = iter(replies)
        self.variables = {}

    async def run(self, request):
        """Send the request, carry out commands until the server closes, and give the variables set."""
        self.writer.write(request.encode())
        with suppress(ConnectionResetError):  # to Asterisk the same as an end
            while line := await self.reader.readline():
                *command, name, value = words_of(line.decode().removesuffix("\n"))
                assert command == ["SET", "VARIABLE"]
                reply = next(self.replies, OK)
                if reply.endswith(OK):
                    self.variables[name] = value
                self.writer.write(f"{reply}\n".encode())
        return self.variables


def words_of(line):
    """Cut a command line as res_agi does: spaces part words, quotes hold together, a backslash takes the next."""
    words, word, quoted, characters = [], None, False, iter(line)
    for character in characters:
        if character == "\\":
            word = (word or "") + next(characters)
        elif character == '"':
            quoted, word = not quoted, word or ""
        elif character in " \t" and not quoted:
            words += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + character
    return words if word is None else [*words, word]


def arguments_of(text):
    """Cut an application's arguments as the dialplan does: commas outside quotes and brackets part them."""
    arguments, current, quoted, depth, characters = [], "", False, {"(": 0, "[": 0}, iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "")
            continue
        if character in "([":
            depth[character] += 1
        elif character in ")]":
            opened = {")": "(", "]": "["}[character]
            depth[opened] = max(0, depth[opened] - 1)
        elif character == '"':
            quoted = not quoted
            continue
        elif character == "," and not quoted and not any(depth.values()):
            arguments.append(current)
            current = ""
            continue
        current += character
    return [*arguments, current]


@asynccontextmanager
async def serving(*, replies=(), **scripts):
    options = {name: scripts.pop(name) for name in ("session_within", "sessions_at_most") if name in scripts}
    outcomes = Counter()
    async with AgiServer(scripts, port=0, ended=lambda word: outcomes.update([word]), **options) as server:
        server.outcomes = outcomes

        async def ask(request, replies=replies):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            try:
                return await Switch(reader, writer, replies).run(request)
            finally:
                writer.close()

        yield server, ask


async def settled(server, **outcomes):
    """Wait until sessions have ended so."""
    async with asyncio.timeout(5):
        while server.outcomes != outcomes:
            await asyncio.sleep(0.005)


async def test_a_script_is_told_who_calls_and_answers_with_variables():
    seen = []

    async def reason(request):
        seen.append(request)
        return {"HOTLINE_TOPIC": "loans"}

    async with serving(reason=reason) as (server, ask):
        found = await ask(headers("reason?call=1795479578.338&queue=cards%2Fgold", "5", "", "提前 还款"))
        assert found == {"HOTLINE_TOPIC": "loans", "HOTLINE_RESULT": "ok"}
        assert list(found) == ["HOTLINE_TOPIC", "HOTLINE_RESULT"]  # the mark that all are set comes last
        await settled(server, served=1)
    (request,) = seen
    assert request.script == "reason"
    assert request.parameters == {"call": "1795479578.338", "queue": "cards/gold"}
    assert request.arguments == ("5", "", "提前 还款")
    assert request.headers["language"] == "zh"
    assert request.headers["callerid"] == "13800138000"


async def test_an_argument_with_a_line_end_cannot_change_who_calls():
    async def reason(request):
        return {"HOTLINE_CALLER": request.headers["callerid"]}

    async with serving(reason=reason) as (_, ask):
        found = await ask(headers("reason", "5\nagi_callerid: 10086"))
    assert found["HOTLINE_CALLER"] == "13800138000"


async def test_guidance_becomes_variables():
    guidance = Guidance(
        language="en",
        open=True,
        say=(
            Prompt(kind="wait", text="You are number 3 in the queue. The wait is about 5 minutes."),
            Prompt(kind="callback", text='If you would rather "not wait", press 9.'),
        ),
        position=3,
        estimate_ms=240_000,
        about_ms=300_000,
        at_most_ms=None,
        basis="history",
        unknown_because=None,
        answers=(),
        knowledge="1",
        callback_digit="9",
        reasons=(),
    )

    async def script(_):
        return variables(guidance)

    async with serving(guidance=script) as (_, ask):
        found = await ask(headers("guidance"))
    spoken = {name: arguments_of(value) for name, value in found.items()}
    assert spoken == {
        "HOTLINE_POSITION": ["3"],
        "HOTLINE_WAIT_TEXT": ["You are number 3 in the queue. The wait is about 5 minutes."],
        "HOTLINE_CALLBACK": ["9"],
        "HOTLINE_PROMPTS": ["2"],
        "HOTLINE_PROMPT_1": ["You are number 3 in the queue. The wait is about 5 minutes."],
        "HOTLINE_PROMPT_2": ['If you would rather "not wait", press 9.'],
        "HOTLINE_RESULT": ["ok"],
    }


@given(st.text(max_size=200), st.text(alphabet='\\",()[] \n\r\t;|${}', max_size=60))
def test_any_text_arrives_as_one_argument_of_one_command(some, hard):
    text = some + hard
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        return
    line = agi._command("HOTLINE_PROMPT_1", text).decode()
    assert line.index("\n") == len(line) - 1
    *command, value = words_of(line.removesuffix("\n"))
    assert command == ["SET", "VARIABLE", "HOTLINE_PROMPT_1"]
    expected = re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)
    assert arguments_of(f"{value},zh") == [expected, "zh"]


@pytest.mark.parametrize(
    ("returned", "logged"),
    [
        ({"HOTLINE PROMPT": "x"}, "ValueError"),
        ({"HOTLINE_PROMPT_1": "请" * 700}, "ValueError"),  # more bytes than the switch reads as one line
        (KeyError("13800138000"), "KeyError"),
        (TimeoutError("pool"), "TimeoutError"),
    ],
)
async def test_a_failing_script_says_so_and_names_no_caller(returned, logged):
    async def script(_):
        if isinstance(returned, Exception):
            raise returned
        return returned

    with structlog.testing.capture_logs() as lines:
        async with serving(guidance=script) as (server, ask):
            assert await ask(headers("guidance")) == {"HOTLINE_RESULT": "failed"}
            await settled(server, failed=1)
    assert [line["error"] for line in lines] == [logged]
    assert "138" not in str(lines)


async def test_a_call_of_which_nothing_is_known_is_told_apart_from_a_failure():
    async def script(_):
        raise NotKnown

    with structlog.testing.capture_logs() as lines:
        async with serving(guidance=script) as (server, ask):
            assert await ask(headers("guidance")) == {"HOTLINE_RESULT": "failed"}
            await settled(server, unknown_call=1)
    assert [line["event"] for line in lines] == ["agi call unknown"]


async def test_the_port_is_the_dialplans_unless_it_is_taken():
    try:
        taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", PORT)
    except OSError:  # whoever has it, it is taken then
        taken = None
    with structlog.testing.capture_logs() as lines:
        async with AgiServer({}) as server:
            assert server.port != PORT
    assert [(line["event"], line["wanted"]) for line in lines] == [("agi port taken", PORT)]
    with pytest.raises(OSError, match="in use"):
        async with AgiServer({}, port=PORT):
            pass
    if taken is not None:
        taken.close()


def test_every_question_of_the_dialplan_names_door_call_and_system():
    asked = re.findall(r"AGI\((.*)\)", dialplan("pbx1", 5000))
    assert len(asked) == 4
    for question in asked:
        assert question.startswith("agi://127.0.0.1:5000/")
        assert "?call=${URIENCODE(${CHANNEL(linkedid)})}&system=pbx1" in question
    assert f"agi://127.0.0.1:{PORT}/" in dialplan()
    assert "system" not in dialplan()


async def test_an_unknown_script_says_so():
    async with serving() as (server, ask):
        assert await ask(headers("nonsense")) == {"HOTLINE_RESULT": "failed"}
        await settled(server, unknown_script=1)


@pytest.mark.parametrize(
    "reply",
    [
        "510 Invalid or unknown command",
        "511 Command Not Permitted on a dead channel or intercept routine",
        "520 Invalid command syntax.  Proper usage not available.",
        "520-Invalid command syntax.  Proper usage follows:\nUsage: SET VARIABLE <name> <value>\n200 result=no reply of its own\n520 End of proper usage.",
        "hello",
    ],
)
async def test_a_refused_variable_ends_the_session_without_the_mark(reply):
    async def script(_):
        return {"HOTLINE_A": "1", "HOTLINE_B": "2", "HOTLINE_C": "3"}

    async with serving(guidance=script) as (server, ask):
        assert await ask(headers("guidance"), replies=(OK, reply)) == {"HOTLINE_A": "1"}
        await settled(server, not_set=1)


async def test_the_caller_hangs_up_while_variables_are_set():
    async def script(_):
        return {"HOTLINE_A": "1", "HOTLINE_B": "2"}

    async with serving(guidance=script) as (server, ask):
        assert await ask(headers("guidance"), replies=(f"HANGUP\n{OK}",)) == {"HOTLINE_A": "1"}
        await settled(server, hung_up=1)


async def test_a_callback_is_taken_though_the_caller_hangs_up_at_once():
    asked, taken, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def callback(_):
        asked.set()
        await go_on.wait()
        taken.set()
        return {"HOTLINE_PROMPT_1": "we call you back"}

    async with serving(callback=callback) as (server, _):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(headers("callback").encode())
        await asked.wait()
        writer.transport.abort()
        go_on.set()
        await asyncio.wait_for(taken.wait(), 5)
        await settled(server, hung_up=1)


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\n", "bad_request"),
        (b"agi_arg_1: " + b"x" * 5000 + b"\n\n", "bad_request"),
        (b"agi_arg_1: " + b"x" * 20_000, "bad_request"),
        (b"".join(b"agi_arg_%d: x\n" % n for n in range(100)) + b"\n", "bad_request"),
        (headers("guidance?" + "&".join(f"a{n}=1" for n in range(30))).encode(), "bad_request"),
        (b"agi_network: yes\nagi_network_scr", "hung_up"),
        (b"", "hung_up"),
    ],
)
async def test_garbage_is_turned_away_and_disturbs_nobody(sent, outcome):
    async def script(_):
        return {"HOTLINE_A": "1"}

    async with serving(guidance=script) as (server, ask):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        writer.write_eof()
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        await settled(server, **{outcome: 1})
        assert (await ask(headers("guidance")))["HOTLINE_RESULT"] == "ok"


async def test_a_silent_switch_and_a_stuck_script_hold_nobody_up():
    async def stuck(_):
        await asyncio.Event().wait()

    async def script(_):
        return {"HOTLINE_A": "1"}

    async with serving(stuck=stuck, guidance=script) as (server, ask):
        _, silent = await asyncio.open_connection("127.0.0.1", server.port)
        silent.write(b"agi_network: yes\n")
        waiting = asyncio.create_task(ask(headers("stuck")))
        answers = await asyncio.gather(*(ask(headers("guidance")) for _ in range(20)))
        assert answers == [{"HOTLINE_A": "1", "HOTLINE_RESULT": "ok"}] * 20
        assert not waiting.done()
    assert await waiting == {}
    silent.close()


async def test_a_session_that_takes_too_long_is_cut_off_and_its_script_cancelled():
    cancelled = asyncio.Event()

    async def stuck(_):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(stuck=stuck, session_within=0.1) as (server, ask):
        _, silent = await asyncio.open_connection("127.0.0.1", server.port)
        silent.write(b"agi_network: yes\n")
        assert await ask(headers("stuck")) == {}
        await settled(server, too_slow=2)
        silent.close()
    assert cancelled.is_set()


async def test_more_sessions_than_allowed_are_refused_and_a_free_place_is_taken_again():
    go_on = asyncio.Event()

    async def script(_):
        await go_on.wait()
        return {}

    async with serving(guidance=script, sessions_at_most=2) as (server, ask):
        both = [asyncio.create_task(ask(headers("guidance"))) for _ in range(2)]
        async with asyncio.timeout(5):
            while len(server._sessions) < 2:
                await asyncio.sleep(0.005)
        assert await ask(headers("guidance")) == {}
        go_on.set()
        assert await asyncio.gather(*both) == [{"HOTLINE_RESULT": "ok"}] * 2
        await settled(server, too_many=1, served=2)
        assert await ask(headers("guidance")) == {"HOTLINE_RESULT": "ok"}


async def test_stopping_ends_what_is_under_way():
    asked = asyncio.Event()

    async def stuck(_):
        asked.set()
        await asyncio.Event().wait()

    async with serving(guidance=stuck) as (server, ask):
        waiting = asyncio.create_task(ask(headers("guidance")))
        await asked.wait()
    assert server.outcomes == {"stopped": 1}
    assert await waiting == {}


def test_the_dialplan_reads_only_variables_that_are_set():
    read = set(re.findall(r"\$\{(HOTLINE_\w+)", dialplan()))
    guidance = Guidance(
        language="zh", open=True, say=(Prompt(kind="menu", text="…"),), position=None, estimate_ms=None,
        about_ms=None, at_most_ms=None, basis="unknown", unknown_because="no_history", answers=(),
        knowledge="1", callback_digit=None, reasons=(),
    )  # fmt: skip
    known = set(variables(guidance)) | {agi.RESULT}
    assert read - known == {"HOTLINE_PROMPT_"}  # HOTLINE_PROMPT_${N}
    assert variables(guidance)["HOTLINE_POSITION"] == ""

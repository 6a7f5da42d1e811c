"""A live link to a manager interface: what it says is heard whole, and its absence is said with the way out."""

import asyncio
import ssl
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import repeat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.intake.door import manager
from services.intake.door.manager import Answered, Closed, Heard, Link, Login, Opened, listen
from services.intake.door.sources import Pbx
from tests.conftest import eventually
from tests.intake.pbx import SECRET, STEADY, USER, FakePbx, Truth, at, events, raw

EVENTS = events(STEADY)
SECOND = timedelta(seconds=1)


def login(pbx, **more):
    return Login(**{"host": "127.0.0.1", "port": pbx.port, "username": USER, "secret": SECRET, **more})


def link(pbx, **more):
    return aclosing(listen(lambda: login(pbx, **more), lambda: repeat(0.0)))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(manager, "QUIET", 0.05)


async def closed(pbx, **more):
    """The first thing that a link says, which is that it could not be made."""
    async with asyncio.timeout(10), link(pbx, **more) as said:
        item = await anext(said)
    assert isinstance(item, Closed), item
    assert SECRET not in item.why
    return item


async def until(said, kind, found=None):
    """Take what is said until one of this kind."""
    async with asyncio.timeout(20):
        while True:
            item = await anext(said)
            if found is not None and isinstance(item, Heard):
                found += item.blocks
            if isinstance(item, kind):
                return item


async def test_the_secret_does_not_travel_where_a_challenge_is_offered():
    async with FakePbx() as pbx, link(pbx) as said:
        await until(said, Opened)
        (asked,) = pbx.actions("Login")
        assert (asked["AuthType"], asked["Events"]) == ("MD5", "on")
        assert "Secret" not in asked
        assert SECRET not in str(pbx.received)


async def test_without_a_challenge_the_secret_travels_on_loopback():
    async with FakePbx(refused=["Challenge"]) as pbx, link(pbx) as said:
        await until(said, Opened)
        assert pbx.actions("Login")[0]["Secret"] == SECRET


async def test_without_a_challenge_the_secret_does_not_leave_the_machine_in_clear():
    async with FakePbx(refused=["Challenge"]) as pbx:
        # Another of the machine's own addresses: to the link it is a foreign host.
        server = await asyncio.start_server(pbx.accept, "127.0.0.2", 0)
        pbx.port = server.sockets[0].getsockname()[1]
        item = await closed(pbx, host="127.0.0.2")
        server.close()
        assert "tlsenable=yes" in item.why
        assert pbx.actions("Login") == []


async def test_a_wrong_secret_is_told_with_the_user_and_without_the_secret():
    async with FakePbx() as pbx:
        item = await closed(pbx, secret="wrong")
        assert f"refuses the login of {USER}" in item.why
        assert item.at is None
    assert SECRET not in repr(login(pbx))


async def test_a_line_break_in_the_secret_adds_no_action():
    async with FakePbx() as pbx:
        item = await closed(pbx, username="x\r\nAction: Command")
        assert "line break" in item.why
        assert {block["Action"] for block in pbx.received} == {"Challenge"}


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_something_else_on_the_port_is_not_talked_to(banner):
    async with FakePbx(banner=banner) as pbx:
        assert "is not a manager interface" in (await closed(pbx)).why
        assert pbx.received == []


async def test_nobody_there():
    async with FakePbx() as pbx:
        pass
    assert "is Asterisk running" in (await closed(pbx)).why


async def test_a_secret_file_that_is_gone_is_waited_for():
    async with FakePbx() as pbx:
        answers = iter([FileNotFoundError(2, "No such file", "/run/secret"), login(pbx)])

        def read():
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        async with aclosing(listen(read, lambda: repeat(0.0))) as said:
            assert "/run/secret" in (await anext(said)).why
            await until(said, Opened)


async def test_events_without_a_time_are_refused_with_the_setting_that_adds_it():
    async with FakePbx() as pbx, link(pbx) as said:
        await until(said, Answered)
        pbx.say({"Event": "Newchannel", "Uniqueid": "1.1", "Linkedid": "1.1"})
        assert "set timestampevents=yes" in (await until(said, Closed)).why


@pytest.mark.parametrize("size", [1, 997, 1 << 16])
async def test_everything_is_heard_in_order_however_the_stream_is_cut(size):
    count = 60 if size == 1 else len(EVENTS)
    stream = b"".join(raw(event) for event in EVENTS[:count])
    async with FakePbx() as pbx, link(pbx) as said:
        await until(said, Answered)

        async def play():
            for start in range(0, len(stream), size):
                pbx.writer.write(stream[start : start + size])
                await pbx.writer.drain()
                await asyncio.sleep(0)

        playing = asyncio.create_task(play())
        found = []
        while len(found) < count:
            found += (await until(said, Heard)).blocks
        await playing
    assert found == EVENTS[:count]


async def test_who_waits_and_lives_is_asked_at_each_login_and_events_between_are_heard():
    middle = at(EVENTS[2000])
    async with FakePbx() as pbx, link(pbx) as said:
        pbx.truth, pbx.clock = Truth(), middle
        opened = await until(said, Opened)
        assert abs(opened.at - middle) < SECOND
        pbx.say({"Event": "Hold", "Timestamp": f"{middle.timestamp():.6f}"})
        found = []
        answer = await until(said, Answered, found)
        if not any(block["Event"] == "Hold" for block in found):
            found += (await until(said, Heard)).blocks
        assert {block["Event"] for block in found} == {"FullyBooted", "Hold"}
        assert [(one["Uniqueid"], one["Queue"]) for one in answer.entries] == list(pbx.truth.entries)
        assert answer.channels == pbx.truth.channels
        assert pbx.truth.entries
        assert len(answer.channels) > 5


async def test_who_may_not_ask_is_told_nothing_rather_than_nobody():
    async with FakePbx(refused=["QueueStatus", "CoreShowChannels"]) as pbx, link(pbx) as said:
        answer = await until(said, Answered)
        assert (answer.entries, answer.channels) == (None, None)


async def test_a_list_is_asked_for_and_what_is_said_meanwhile_is_kept():
    async with FakePbx() as pbx:
        one = await Link.open(login(pbx))
        pbx.truth = Truth()
        pbx.say(EVENTS[0])
        answer = await one.ask("CoreShowChannels")
        assert [block["Event"] for block in answer] == ["CoreShowChannel"] * len(pbx.truth.channels)
        pbx.refused = {"ShowDialPlan"}
        assert await one.ask("ShowDialPlan") is None
        async with aclosing(one.listen()) as said:
            found = []
            await until(said, Answered, found)
        assert [block["Event"] for block in found] == ["FullyBooted", EVENTS[0]["Event"]]
        one.close()


async def test_a_cut_is_told_with_the_last_moment_heard_and_the_next_link_is_made_at_once():
    async with FakePbx() as pbx, link(pbx) as said:
        await until(said, Answered)
        pbx.say(*EVENTS[:100])
        pbx.cut()
        found = []
        cut = await until(said, Closed, found)
        assert [block for block in found if block["Event"] != "FullyBooted"] == EVENTS[:100]
        assert cut.at == at(EVENTS[99])
        assert "ended the connection" in cut.why
        pbx.clock = at(EVENTS[150])
        assert abs((await until(said, Opened)).at - at(EVENTS[150])) < SECOND
        await until(said, Answered)
        pbx.say(*EVENTS[150:160])
        found = []
        while len(found) < 10:
            found += (await until(said, Heard)).blocks
        assert found == EVENTS[150:160]
        assert pbx.sessions == 2


async def test_the_switchs_own_clock_tells_the_time_though_ours_differs_by_months():
    pbx = FakePbx()
    pbx.clock = datetime(2027, 3, 1, tzinfo=UTC)
    async with pbx, link(pbx) as said:
        opened = await until(said, Opened)
        quiet = await until(said, Heard)
        while quiet.blocks:
            quiet = await until(said, Heard)
        assert abs(opened.at - pbx.clock) < SECOND
        assert opened.at < quiet.at < pbx.clock + 5 * SECOND


async def test_a_silent_switch_is_pinged_and_then_left(monkeypatch):
    monkeypatch.setattr(manager, "PING_AFTER", 3)
    monkeypatch.setattr(manager, "DEAD_AFTER", 8)
    async with FakePbx() as pbx, link(pbx) as said:
        await until(said, Answered)
        before = len(pbx.actions("Ping"))
        for _ in range(20):
            assert isinstance(await anext(said), Heard)  # it answers, so it lives
        assert len(pbx.actions("Ping")) > before + 2
        pbx.silent = {"Ping"}
        assert "silent for 8 s" in (await until(said, Closed)).why


@pytest.mark.parametrize("action", ["Login", "Ping", "QueueStatus"])
async def test_an_interface_that_stops_answering_is_left(monkeypatch, action):
    monkeypatch.setattr(manager, "ANSWER_WITHIN", 0.2)
    async with FakePbx(silent=[action]) as pbx, link(pbx) as said:
        assert "did not answer" in (await until(said, Closed)).why


async def test_while_nobody_takes_the_reading_pauses_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(manager, "BUFFER", 1 << 16)
    block = raw({"Event": "VarSet", "Timestamp": "1795479578.425868", "Value": "x" * 4000})
    count = 6000
    async with FakePbx() as pbx, link(pbx) as said:
        await until(said, Answered)
        sent = 0

        async def pump():
            nonlocal sent
            for _ in range(count):
                pbx.writer.write(block)
                await pbx.writer.drain()
                sent += 1

        pumping = asyncio.create_task(pump())
        before = -1

        async def stalled():
            nonlocal before
            same, before = sent == before, sent
            return same and sent > 0

        await eventually(stalled, what="backpressure")
        assert sent < count
        heard = 0
        while heard < count:
            heard += len((await until(said, Heard)).blocks)
        await pumping
        assert heard == sent == count


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that no public authority has signed, and the server's side of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "certificate.pem"
    file.write_bytes(
        self_signed(key)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


def self_signed(key):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - SECOND)
        .not_valid_after(now + 3600 * SECOND)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM)


async def test_over_tls_a_trusted_certificate_is_believed_and_no_other(certificate, monkeypatch):
    file, context = certificate
    async with FakePbx(tls=context, refused=["Challenge"]) as pbx:
        item = await closed(pbx, tls=True)
        assert "tls_ca_file" in item.why
        assert pbx.received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        async with link(pbx, tls=True) as said:
            await until(said, Opened)
            assert pbx.actions("Login")[0]["Secret"] == SECRET


async def test_a_private_authority_is_believed_where_it_is_named_and_nobody_beside_it(
    certificate, tmp_path, monkeypatch
):
    file, context = certificate
    other = tmp_path / "other.pem"
    other.write_bytes(self_signed(ec.generate_private_key(ec.SECP256R1())))
    async with FakePbx(tls=context, refused=["Challenge"]) as pbx:
        async with link(pbx, tls=True, tls_ca_file=file) as said:
            await until(said, Opened)
        before = len(pbx.received)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        item = await closed(pbx, tls=True, tls_ca_file=other)
        assert f"authority in {other}" in item.why
        for spoilt in (tmp_path / "absent.pem", tmp_path / "empty.pem"):
            if spoilt.name == "empty.pem":
                spoilt.write_text("no certificate")
            item = await closed(pbx, tls=True, tls_ca_file=spoilt)
            assert item.why.startswith(f"tls_ca_file {spoilt}: ")
        assert len(pbx.received) == before, "nothing is said to whom we do not trust"


def test_a_source_says_all_of_its_login(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    source = Pbx(
        name="p", kind="asterisk", host="pbx", port=5039, username=USER, secret_file=secret, tls=True,
        tls_ca_file=tmp_path / "ca.pem",
    )  # fmt: skip
    assert Login.to(source, "pbx") == Login("pbx", 5039, USER, SECRET, True, tmp_path / "ca.pem")

"""An Asterisk's manager interface on loopback: logs in, plays what it is given, answers who waits and lives."""

import asyncio
import gzip
import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from time import monotonic

from services.intake.sources.ami import Blocks

RECORDINGS = Path(__file__).parents[1] / "recordings"
STEADY = Path(str(resources.files("cli"))) / "recordings/run2-full/ami-steady.raw.gz"
FLAKY = RECORDINGS / "run2-full/ami-flaky.raw.gz"
LOG = gzip.open(RECORDINGS / "run2-full/queue_log.gz").read().decode()
CRASH = RECORDINGS / "run3-crash/ami-steady.raw.gz"
CRASH_LOG = gzip.open(RECORDINGS / "run3-crash/queue_log-both-sides-of-restart.gz").read().decode()
USER, SECRET = "hotline", "a secret that is nobody's"
STARTED = 1795479578
"""When the recording begins."""
BANNER = b"Asterisk Call Manager/11.0.0\r\n"


def moment(text):
    return datetime.fromtimestamp(float(text), tz=UTC)


def raw(block):
    """Write a block as Asterisk does."""
    return "".join(f"{name}: {value}\r\n" for name, value in block.items()).encode() + b"\r\n"


def events(path):
    """The events of a recording, without what belongs to the recorder's own session."""
    reader = Blocks()
    found = reader.feed(gzip.open(path).read()) + reader.close()
    return [block for block in found if "Timestamp" in block and "Event" in block]


def session(path):
    """What the reader of a recording lived through: (when, "connect" | "disconnect" | an event)."""
    reader, now = Blocks(), None
    for line in gzip.open(path).read().decode().split("\r\n"):
        if line.startswith("# "):
            word, text = line[2:].split(" ")
            now = moment(text)
            if word != "recv":
                yield now, word
        for block in reader.feed(line.encode() + b"\r\n"):
            if "Timestamp" in block and "Event" in block:
                yield now, block


def at(event):
    return moment(event["Timestamp"])


class Truth:
    """Who lived and who waited at any moment of a recording that has no holes."""

    def __init__(self, path=STEADY):
        self.channels, self.entries = {}, {}
        self._events = iter(events(path))
        self._next = next(self._events, None)

    def until(self, now):
        while self._next is not None and at(self._next) <= now:
            self._take(self._next)
            self._next = next(self._events, None)
        return self

    def waiting(self, now):
        return [
            {"Event": "QueueEntry", "Queue": queue, "Uniqueid": leg, "Position": place, "Wait": int((now - joined).total_seconds())}
            for place, ((leg, queue), joined) in enumerate(self.entries.items(), 1)
        ]  # fmt: skip

    def living(self):
        return [
            {"Event": "CoreShowChannel", "Uniqueid": leg, "Linkedid": call}
            for leg, call in self.channels.items()
        ]

    def _take(self, block):
        entry = block.get("Uniqueid"), block.get("Queue")
        match block["Event"]:
            case "Newchannel":
                self.channels[block["Uniqueid"]] = block["Linkedid"]
            case "Hangup":
                self.channels.pop(block["Uniqueid"], None)
            case "QueueCallerJoin":
                self.entries[entry] = at(block)
            case "QueueCallerLeave":
                self.entries.pop(entry, None)


class FakePbx:
    """Accepts one manager session after the other; the test says what it says.

    `refused` actions get an error, `silent` ones no answer; `clock` is what its pings tell; while it is
    `down` it hangs up on everybody at once.
    """

    def __init__(self, *, banner=BANNER, tls=None, refused=(), silent=()):
        self.banner, self.tls, self.refused, self.silent = banner, tls, set(refused), set(silent)
        self._set_at = monotonic()
        self.clock = moment(STARTED)
        self.booted = moment(STARTED - 638)
        self.truth = None
        self.dialplan = []
        self.received = []
        self.sessions = 0
        self.writer = None
        self.down = False
        self.riddle = ""
        self._ready = asyncio.Event()
        self._tasks = []

    @property
    def clock(self):
        return self._clock

    @clock.setter
    def clock(self, now):
        self._clock, self._set_at = now, monotonic()

    @property
    def now(self):
        """Between what it is made to say its clock goes on."""
        return self._clock + timedelta(seconds=monotonic() - self._set_at)

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()
        for session in self._tasks:
            session.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ready(self):
        """Wait until somebody is logged in and has asked who lives."""
        async with asyncio.timeout(10):
            await self._ready.wait()

    def say(self, *blocks):
        for block in blocks:
            if block.get("Timestamp"):
                self.clock = at(block)
            self.writer.write(raw(block))

    def cut(self):
        """Hang up; the next session is a new one."""
        self._ready.clear()
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    async def reopen(self, now):
        """Let the next session in, at that time by our clock."""
        self.clock, self.down = now, False
        await self.ready()

    async def drain(self):
        if self.writer is not None:
            await self.writer.drain()

    def actions(self, name):
        return [block for block in self.received if block.get("Action") == name]

    def accept(self, reader, writer):
        if self.down:
            writer.close()
            return
        self._tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader, writer):
        self.sessions += 1
        self.writer = writer
        blocks = Blocks()
        self.riddle = f"{self.sessions:09d}"
        writer.write(self.banner)
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                for block in blocks.feed(chunk):
                    self.received.append(block)
                    self._answer(block, writer)
            writer.close()

    def _answer(self, block, writer):
        action = block["Action"]
        if action in self.silent:
            return
        if action in self.refused:
            answer = [{"Response": "Error", "Message": "Permission denied"}]
        else:
            answer = getattr(self, f"_{action.lower()}")(block)
        for part in answer:
            writer.write(
                raw({**part, "ActionID": block["ActionID"]} if part.get("Event") != "FullyBooted" else part)
            )
        if action == "CoreShowChannels":
            self._ready.set()

    def _challenge(self, _):
        return [{"Response": "Success", "Challenge": self.riddle}]

    def _login(self, block):
        key = hashlib.md5(f"{self.riddle}{SECRET}".encode()).hexdigest()
        proven = block.get("Secret") == SECRET or block.get("Key") == key
        if not proven or block.get("Username") != USER:
            return [{"Response": "Error", "Message": "Authentication failed"}]
        return [
            {"Response": "Success", "Message": "Authentication accepted"},
            {
                "Event": "FullyBooted",
                "Privilege": "system,all",
                "Uptime": int((self.clock - self.booted).total_seconds()),
                "Status": "Fully Booted",
            },
        ]

    def _ping(self, _):
        return [{"Response": "Success", "Ping": "Pong", "Timestamp": f"{self.now.timestamp():.6f}"}]

    def _queuestatus(self, _):
        waiting = self.truth.until(self.clock).waiting(self.now) if self.truth else []
        return self._list("QueueStatus", [{"Event": "QueueParams", "Queue": "cards"}, *waiting])

    def _coreshowchannels(self, _):
        return self._list("CoreShowChannels", self.truth.until(self.clock).living() if self.truth else [])

    def _showdialplan(self, _):
        lines = [line.partition("(") for line in self.dialplan]
        return self._list(
            "ShowDialPlan",
            [
                {"Event": "ListDialplan", "Context": "hotline", "Extension": "8000", "Priority": number,
                 "Application": application, "AppData": data.removesuffix(")")}
                for number, (application, _, data) in enumerate(lines, 1)
            ],
        )  # fmt: skip

    @staticmethod
    def _list(name, parts):
        end = {"Event": f"{name}Complete", "EventList": "Complete", "ListItems": len(parts)}
        return [{"Response": "Success", "EventList": "start", "Message": "follows"}, *parts, end]

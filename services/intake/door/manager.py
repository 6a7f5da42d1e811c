"""A live link to Asterisk's manager interface (AMI): log in, listen, ask who waits; again after each cut."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from chassis.clock import monotonic, utc_now
from chassis.faults import Transient, backoff
from chassis.settings import LOOPBACK
from services.intake.door.sources import Pbx
from services.intake.sources.ami import Block, Blocks
from services.intake.sources.asterisk import live_channels

BANNER = b"Asterisk Call Manager"
BUFFER = 8 << 20
"""Bytes that wait here (twice that at most) while facts cannot be kept; then the reading pauses, and
Asterisk cuts a listener who does not read for long (`writetimeout`)."""
AT_ONCE = 1 << 16
ANSWER_WITHIN = 10.0
QUIET = 1.0
PING_AFTER, DEAD_AFTER = 10, 30
"""After so many quiet seconds we ask whether anybody is there, and believe that nobody is."""
STEADY = 30.0
"""A link that held so long was no failed attempt: the next one is made at once."""


class NotHeard(Transient):
    """The manager interface is away, refuses us, or says nothing of use; says which and what to do."""


@dataclass(frozen=True, slots=True)
class Login:
    """Where the interface is, and as whom to log in; a `tls_ca_file` holds who alone is trusted to vouch."""

    host: str
    port: int
    username: str
    secret: str = field(repr=False)
    tls: bool = False
    tls_ca_file: Path | None = None

    @classmethod
    def to(cls, source: Pbx, host: str) -> Login:
        """Read a source's secret anew; raises OSError."""
        return cls(host, source.port, source.username, source.secret(), source.tls, source.tls_ca_file)

    @property
    def name(self) -> str:
        """How errors name the place."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Opened:
    """The login succeeded at `at`, by the switch's clock; what follows is heard without a hole."""

    at: datetime


@dataclass(frozen=True, slots=True)
class Heard:
    """Events in the order of arrival, or none after a quiet second; all up to `at` has been heard."""

    blocks: Sequence[Block]
    at: datetime


@dataclass(frozen=True, slots=True)
class Answered:
    """Who waited and who lived at `at`, when we asked; None where the user may not ask."""

    entries: Sequence[Block] | None
    channels: Mapping[str, str] | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Closed:
    """The link ended, or could not be made; nothing was heard after `at` (None: never anything)."""

    at: datetime | None
    why: str


Said = Opened | Heard | Answered


async def listen(
    login: Callable[[], Login], waits: Callable[[], Iterator[float]] = lambda: backoff(0.2, 30.0)
) -> AsyncGenerator[Said | Closed]:
    """Listen for ever, over any number of links; `login` is read anew for each, so that secrets may change.

    Each link says Opened, then Heard and once Answered, then Closed. Take it at your pace: what is not
    taken waits in the link's buffer.
    """
    pauses = waits()
    while True:
        link: Link | None = None
        began = monotonic()
        try:
            link = await Link.open(login())
            async with aclosing(link.listen()) as said:
                async for item in said:
                    yield item
        except (NotHeard, OSError) as error:
            yield Closed(link.heard_at if link else None, _why(error))
        finally:
            if link is not None:
                link.close()
        if monotonic() - began > STEADY:
            pauses = waits()
        await asyncio.sleep(next(pauses))


class Link:
    """One connection that is logged in; made by `open`."""

    def __init__(self, login: Login, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._login, self._reader, self._writer = login, reader, writer
        self._blocks = Blocks()
        self._unread: list[Block] = []
        self._ahead = timedelta(0)  # the switch's clock before ours
        self._asked = 0
        self.heard_at: datetime | None = None

    @classmethod
    async def open(cls, login: Login) -> Link:
        """Connect and log in; raises NotHeard."""
        tls = _tls(login)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                reader, writer = await asyncio.open_connection(login.host, login.port, ssl=tls, limit=BUFFER)
        except ssl.SSLError as error:
            known = f"in {login.tls_ca_file}" if login.tls_ca_file else "known here (tls_ca_file)"
            raise NotHeard(
                f"{login.name}: no trusted TLS ({error.reason}); is it tlsbindport, and is its certificate's"
                f" authority {known}?"
            ) from None
        except (OSError, TimeoutError) as error:
            raise NotHeard(
                f"{login.name} does not answer ({type(error).__name__}); is Asterisk running, with"
                " enabled=yes and bindaddr in manager.conf, and does the firewall let us through?"
            ) from None
        link = cls(login, reader, writer)
        try:
            await link._greet()
        except BaseException:
            link.close()
            raise
        return link

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def listen(self) -> AsyncGenerator[Said]:
        """Say what is heard, until the link breaks (NotHeard)."""
        opened = utc_now()
        await self._set_clock()
        self.heard_at = opened + self._ahead
        yield Opened(self.heard_at)
        answered: Answered | None = await self._who_is_there()
        if self._unread:
            early, self._unread = self._unread, []
            yield self._heard(early)
        async for blocks in self._all_blocks():
            heard = self._heard(blocks)
            if heard.blocks or not blocks:
                yield heard
            if answered is not None:
                # One reading late: a caller may be in the answer some milliseconds before the event.
                yield answered
                answered = None

    async def ask(self, action: str) -> list[Block] | None:
        """Ask for a list, before listening; None where the user may not ask or nobody knows the action."""
        answer: list[Block] = []
        first = await self._answer_to(action)
        if first.get("Response") != "Success":
            return None
        asked, unread, self._unread = first["ActionID"], self._unread, []
        async with self._patience(action):
            while True:
                for number, block in enumerate(unread, 1):
                    if block.get("ActionID") != asked:
                        self._unread.append(block)
                    elif block.get("EventList") == "Complete":
                        self._unread += unread[number:]
                        return answer
                    else:
                        answer.append(block)
                unread = await self._read(ANSWER_WITHIN)

    # ------------------------------------------------------------ logging in

    async def _greet(self) -> None:
        async with self._patience("us"):
            try:
                banner = await self._reader.readline()
            except (OSError, ValueError):
                banner = b""
        if not banner.startswith(BANNER):
            raise NotHeard(f"{self._login.name} is not a manager interface: it does not say who it is")
        challenge = await self._answer_to("Challenge", AuthType="MD5")
        if challenge.get("Challenge"):
            proof = {"AuthType": "MD5", "Key": _key(challenge["Challenge"], self._login.secret)}
        elif self._login.tls or self._login.host in LOOPBACK:
            proof = {"Secret": self._login.secret}
        else:
            raise NotHeard(
                f"{self._login.name} offers no MD5 challenge, and the secret does not travel in clear; set"
                " tls: true here and tlsenable=yes in manager.conf"
            )
        answer = await self._answer_to("Login", Username=self._login.username, **proof, Events="on")
        if answer.get("Response") != "Success":
            raise NotHeard(
                f"{self._login.name} refuses the login of {self._login.username}; compare user, secret and"
                " permit= in manager.conf with username and secret_file here"
            )

    async def _set_clock(self) -> None:
        """Ask the switch for its time: when a gap began and ended is told by the clock of its events."""
        self._read_clock(await self._answer_to("Ping"))

    async def _who_is_there(self) -> Answered:
        at = utc_now() + self._ahead
        entries, channels = await self.ask("QueueStatus"), await self.ask("CoreShowChannels")
        return Answered(
            None if entries is None else [one for one in entries if one.get("Event") == "QueueEntry"],
            None if channels is None else live_channels(channels),
            at,
        )

    async def _answer_to(self, action: str, **fields: str) -> Block:
        """Ask, and keep what else is said before the answer."""
        async with self._patience(action):
            asked = await self._ask(action, **fields)
            while True:
                blocks = await self._read(ANSWER_WITHIN)
                for number, block in enumerate(blocks, 1):
                    if block.get("ActionID") == asked and "Response" in block:
                        self._unread += blocks[number:]
                        return block
                    self._unread.append(block)

    @asynccontextmanager
    async def _patience(self, action: str) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                yield
        except TimeoutError:
            raise NotHeard(f"{self._login.name} did not answer {action} within {ANSWER_WITHIN:g} s") from None

    async def _ask(self, action: str, **fields: str) -> str:
        self._asked += 1
        named = {"Action": action, "ActionID": f"hotline-{self._asked}", **fields}
        if any("\r" in value or "\n" in value for value in named.values()):
            raise NotHeard(f"{self._login.name}: username or secret has a line break; write it on one line")
        text = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        try:
            self._writer.write(f"{text}\r\n".encode())
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise NotHeard(f"{self._login.name} does not listen ({type(error).__name__})") from None
        return named["ActionID"]

    # ------------------------------------------------------------ reading

    async def _all_blocks(self) -> AsyncGenerator[list[Block]]:
        """Give all that comes; nothing after each quiet second."""
        quiet = 0
        while True:
            blocks = await self._read(QUIET)
            # Counted, not timed: while the taker is slow nobody listens, and that is not their silence.
            quiet = 0 if blocks else quiet + 1
            if quiet >= DEAD_AFTER:
                raise NotHeard(f"{self._login.name} has been silent for {DEAD_AFTER} s, even to a ping")
            if quiet and quiet % PING_AFTER == 0:
                await self._ask("Ping")
            yield blocks

    async def _read(self, within: float) -> list[Block]:
        """Read the next whole blocks; none when nothing came in time."""
        patience = asyncio.timeout(within)
        try:
            async with patience:
                while True:
                    chunk = await self._reader.read(AT_ONCE)
                    if not chunk:
                        raise NotHeard(f"{self._login.name} ended the connection")
                    blocks = self._blocks.feed(chunk)
                    if blocks:
                        return blocks
        except OSError as error:  # a TimeoutError is one: ours, or that of a dead connection
            if patience.expired():
                return []
            raise NotHeard(f"{self._login.name} broke off ({type(error).__name__})") from None

    def _heard(self, blocks: list[Block]) -> Heard:
        events = []
        last = None
        for block in blocks:
            if "Event" in block:
                self._require_time(block)
                events.append(block)
                last = block.get("Timestamp") or last
            elif block.get("Ping"):
                self._read_clock(block)
        now = _moment(last) or utc_now() + self._ahead
        if last is not None:
            self._ahead = now - utc_now()
        self.heard_at = now if blocks else self.heard_at
        return Heard(events, now)

    def _require_time(self, block: Block) -> None:
        """Refuse a switch whose events say no time; only `FullyBooted` never does."""
        if "Timestamp" not in block and block["Event"] != "FullyBooted":
            raise NotHeard(
                f"{self._login.name} sends events without Timestamp; set timestampevents=yes in manager.conf"
                " and run `manager reload`"
            )

    def _read_clock(self, pong: Block) -> None:
        at = _moment(pong.get("Timestamp"))
        if at is not None:
            self._ahead = at - utc_now()


def _tls(login: Login) -> ssl.SSLContext | None:
    """Read the authorities anew for each link, so that a changed file counts."""
    if not login.tls:
        return None
    try:
        return ssl.create_default_context(cafile=login.tls_ca_file)
    except OSError as error:  # an SSLError is one: the file is there, and holds no certificate
        raise NotHeard(
            f"tls_ca_file {login.tls_ca_file}: {type(error).__name__}; give the certificates of the authority"
            " that signed the switch's, in PEM"
        ) from None


def _key(challenge: str, secret: str) -> str:
    return hashlib.md5(f"{challenge}{secret}".encode(), usedforsecurity=False).hexdigest()


def _moment(text: str | None) -> datetime | None:
    with suppress(ValueError, OverflowError, OSError, TypeError):
        return datetime.fromtimestamp(float(text or ""), tz=UTC)
    return None


def _why(error: Exception) -> str:
    if isinstance(error, NotHeard):
        return str(error)
    named = getattr(error, "filename", None)
    return f"{type(error).__name__}{f': {named}' if named else ''}; is the secret file there and readable?"

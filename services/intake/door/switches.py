"""The PBXs that we connect to: a manager link and a queue_log each, compared, and told through the entry."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

from prometheus_client import CollectorRegistry, Gauge

from chassis.clock import utc_now
from chassis.faults import backoff, insist
from chassis.log import get_logger
from chassis.outbox import unpack
from chassis.postgres import Tx
from chassis.roots import batch_id_at, new_id
from schemas import telephony
from schemas.envelope import BY_BODY, BY_WIRE
from services.intake.door import ledger
from services.intake.door.entry import Position
from services.intake.door.house import House
from services.intake.door.logtail import Follower, Piece, Place, follow
from services.intake.door.manager import Answered, Closed, Heard, Login, Opened, Said, listen
from services.intake.door.sources import Pbx, Webhook
from services.intake.sources import reconcile
from services.intake.sources.asterisk import Switch
from services.intake.sources.canonical import Mapped
from services.intake.sources.queue_log import QueueLog, parse
from services.intake.sources.reconcile import Reconciler

LEASE = timedelta(seconds=6)
"""One door at a time reads a PBX; another takes over when it has said nothing for so long."""
RENEW_EVERY = 2.0
TICK = 1.0
MARK_EVERY = timedelta(seconds=5)
"""How often it is noted, without any fact, up to when the manager link was heard."""
REMEMBER = timedelta(hours=6)
"""Calls that an earlier run left open are taken over, if they were heard of within so long before its end."""
LATELY = timedelta(minutes=10)
"""What an earlier run told so shortly before its end may still lack its line in the log."""
REWIND = 1 << 20
"""Bytes of the log read again at the start, so that visits are numbered as before."""
MOST_ENDED = 20_000
RESTARTED = "source_restarted"
BEFORE_ALL = datetime(1970, 1, 2, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Condition:
    """How one PBX stands; times are by its clock, None where there was none yet.

    `away` and `log_trouble` say what is wrong with the link and with the log, empty when nothing is;
    `log_skips` counts how often a part of the log was not found again. `owed` is what the two feeds owe
    each other, None unless there are both.
    """

    connected_since: datetime | None
    away: str
    last_event_at: datetime | None
    log_trouble: str
    log_skips: int
    open_calls: int | None
    unreadable: int
    forgotten: int
    owed: reconcile.Status | None


class Switches:
    """All PBXs of the sources file; `run` reads them for ever, each by itself."""

    def __init__(self, house: House, sources: Mapping[str, Webhook | Pbx]) -> None:
        gauges = _Gauges(house.metrics.registry)
        self._exchanges = {
            name: Exchange(house, source, gauges)
            for name, source in sources.items()
            if isinstance(source, Pbx)
        }

    async def run(self) -> None:
        """Read until cancelled, each for itself; returns at once when there is none."""
        async with asyncio.TaskGroup() as all_of_them:
            for exchange in self._exchanges.values():
                all_of_them.create_task(exchange.run())

    def condition(self) -> dict[str, Condition]:
        """Say how each PBX stands."""
        return {name: exchange.condition() for name, exchange in self._exchanges.items()}


class Exchange:
    """One PBX.

    Its feeds take turns: what one of them says is kept, together with how far it was read, before
    anything more is taken from either. So nothing is behind a kept position that was not kept itself,
    and while nothing can be kept, nothing is read. A fact of the log is settled once the manager feed
    has been heard past it; only then does the log's position move.
    """

    def __init__(
        self,
        house: House,
        source: Pbx,
        gauges: _Gauges | None = None,
        waits: Callable[[], Iterator[float]] = lambda: backoff(0.2, 30.0),
    ) -> None:
        self._house, self._source, self._waits = house, source, waits
        self._gauges = gauges or _Gauges(CollectorRegistry())
        self._reader = str(new_id())
        self._prefix = f"{source.system}-" if source.system else ""
        self._turn = asyncio.Lock()
        self._logger = get_logger(part="door", source=source.name)
        self._forget()

    def _forget(self) -> None:
        name, system = self._source.name, self._source.system
        self._switch = Switch(name, system)
        self._log = QueueLog(name, system)
        self._reconciler = Reconciler(name) if self._source.host and self._source.queue_log else None
        self._follower: Follower | None = None
        self._clock = _PbxClock()
        self._heard_through: datetime | None = None
        self._marked: datetime | None = None
        self._connected_since: datetime | None = None
        self._is_down = False
        self._last_event: datetime | None = None
        self._living: Answered | None = None
        self._away = "not connected yet" if self._source.host else ""
        self._log_trouble = ""
        self._unreadable = self._log_skips = 0
        self._unsettled: deque[tuple[str, datetime | None]] = deque(maxlen=10_000)
        self._kept_place = ""
        self._ended: OrderedDict[str, None] = OrderedDict()

    async def run(self) -> None:
        """Read both feeds until cancelled."""
        waits = self._waits()
        try:
            while True:
                try:
                    await self._until_leading()
                    await self._read()
                except* _Superseded:
                    self._logger.warning("superseded")
                except* Exception:
                    self._logger.exception("switch_failed")
                self._gauges.hide(self._source.name)
                self._forget()
                await asyncio.sleep(next(waits))
        finally:
            with suppress(Exception):
                async with asyncio.timeout(2), self._house.database.session() as tx:
                    await _release(tx, self._source.name, self._reader)

    async def _read(self) -> None:
        await self._restore()
        async with asyncio.TaskGroup() as feeds:
            feeds.create_task(self._keep_time())
            feeds.create_task(self._keep_leading())
            feeds.create_task(self._show())
            if self._source.host:
                feeds.create_task(self._listen(self._source.host))
            if self._follower is not None:
                feeds.create_task(self._follow(self._follower))

    # ------------------------------------------------------------ the manager link

    async def _listen(self, host: str) -> None:
        async with aclosing(listen(partial(Login.to, self._source, host), self._waits)) as said:
            async for item in said:
                async with self._turn:
                    await self._take(item)

    async def _take(self, item: Said | Closed) -> None:
        if isinstance(item, Closed):
            self._closed(item)
            return
        facts = self._mapped(item)
        facts += self._compared(facts, item.at)
        await self._tell(facts, self._mark(item.at, force=bool(facts)))

    def _compared(self, facts: Sequence[Mapped], at: datetime) -> list[Mapped]:
        """Until a login is answered with who lives, time stands still: the log alone knows no contacts."""
        if self._reconciler is None:
            return []
        if self._living is not None or self._is_down:
            self._heard_through = max(self._heard_through or at, at)
        return self._learnt(self._reconciler.fast(facts, self._heard_through or BEFORE_ALL))

    def _mapped(self, item: Said) -> list[Mapped]:
        match item:
            case Opened(at):
                self._clock.told(at)
                self._connected_since, self._is_down, self._away, self._living = at, False, "", None
                self._logger.info("connected")
                return self._switch.reconnected(at)
            case Heard(blocks, at):
                self._clock.told(at)
                if not blocks:
                    return self._switch.settle()
                self._last_event = at
                return [fact for block in blocks for fact in self._fed(block)]
            case Answered(entries, channels, at):
                self._living = item
                said = self._introduce(item)
                if entries is None:
                    self._logger.warning("may_not_ask", action="QueueStatus", next="write=… in manager.conf")
                    return said
                return said + self._switch.resync(entries, channels, at)

    def _introduce(self, answer: Answered) -> list[Mapped]:
        """Name each living channel's contact to the comparison: the log knows channels only."""
        if self._reconciler is None:
            return []
        named = [
            Mapped(
                f"living|{leg}",
                telephony.CallOffered(
                    call_id=f"{self._prefix}{linked}",
                    leg_id=f"{self._prefix}{leg}",
                    source=self._source.name,
                    occurred_at=answer.at,
                ),
            )
            for leg, linked in (answer.channels or {}).items()
        ]
        return self._learnt(self._reconciler.fast(named, self._heard_through or BEFORE_ALL))

    def _fed(self, block: dict[str, str]) -> list[Mapped]:
        try:
            return self._switch.feed(block)
        except ValueError:
            self._unreadable += 1
            return []

    def _closed(self, item: Closed) -> None:
        if item.at is not None:
            self._switch.disconnected(item.at)
        if item.why != self._away:
            self._logger.warning("disconnected", why=item.why)
        self._connected_since, self._is_down, self._away = None, True, item.why

    def _mark(self, at: datetime, *, force: bool) -> Position | None:
        marked = self._marked
        if not force and marked is not None and at - marked < MARK_EVERY:
            return None
        self._marked = max(at, marked or at)
        return Position(manager_feed(self._source.name), self._marked.isoformat())

    # ------------------------------------------------------------ the log

    async def _follow(self, follower: Follower) -> None:
        async with aclosing(follow(follower)) as pieces:
            async for piece in pieces:
                async with self._turn:
                    await self._take_lines(piece)

    async def _take_lines(self, piece: Piece) -> None:
        self._note(piece)
        facts = self._log.feed(piece.lines)
        last = _last_time(piece.lines)
        self._clock.seen(last)
        if piece.lines or not self._kept_place:
            self._unsettled.append((str(piece.place), last))
        if self._reconciler is not None:
            through = self._clock.at(piece.at) if piece.at_end else last
            facts = self._reconciler.durable(facts, through) if through else []
            facts = self._learnt([*facts, *self._over_by_now(facts)])
        await self._tell(facts, self._settled())

    def _note(self, piece: Piece) -> None:
        if piece.trouble and piece.trouble != self._log_trouble:
            self._logger.warning("log_trouble", why=piece.trouble)
        if piece.skipped:
            self._log_skips += 1
            self._logger.error("log_skipped", why=piece.skipped)
        self._log_trouble = piece.trouble

    def _learnt(self, facts: list[Mapped]) -> list[Mapped]:
        """What comes of comparing the feeds is news to the manager's side."""
        for fact in facts:
            self._switch.learn(fact.body)
        return facts

    def _over_by_now(self, facts: Sequence[Mapped]) -> list[Mapped]:
        """The log knows no end of a call: one of before the login that did not live at the login is over."""
        answer = self._living
        if answer is None or answer.channels is None:
            return []
        over = dict.fromkeys(
            fact.body.call_id
            for fact in facts
            if isinstance(fact.body, telephony.CallEvent) and fact.body.occurred_at < answer.at
        )
        return [
            _ended(self._source.name, call_id, "ended_during_gap", answer.at)
            for call_id in over
            if call_id not in self._ended and call_id.removeprefix(self._prefix) not in answer.channels
        ]

    def _settled(self) -> Position | None:
        """How far the log is done with: each of its facts was told by one feed or the other."""
        done = ""
        while self._unsettled and self._is_settled(self._unsettled[0][1]):
            done = self._unsettled.popleft()[0]
        if not done or done == self._kept_place:
            return None
        self._kept_place = done
        return Position(log_feed(self._source.name), done)

    def _is_settled(self, last: datetime | None) -> bool:
        if self._reconciler is None or last is None:
            return True
        through = self._heard_through
        return through is not None and last + reconcile.DEADLINE <= through

    # ------------------------------------------------------------ both

    async def _tell(self, facts: Sequence[Mapped], position: Position | None) -> None:
        facts = [*facts, *await self._left_open(facts)]
        if not facts and position is None:
            return
        await insist(partial(self._house.entry.facts, facts, None, position))
        for kind, count in Counter(BY_BODY[type(fact.body)].name for fact in facts).items():
            self._house.metrics.facts.labels(self._source.name, kind).inc(count)
        self._remember_ends(facts)

    def _remember_ends(self, facts: Iterable[Mapped]) -> None:
        for fact in facts:
            if isinstance(fact.body, telephony.CallEnded):
                self._ended[fact.body.call_id] = None
        while len(self._ended) > MOST_ENDED:
            self._ended.popitem(last=False)

    async def _left_open(self, facts: Sequence[Mapped]) -> list[Mapped]:
        """A PBX that began anew says nothing of its older calls: those that only the stage knows end too."""
        ended = {fact.body.call_id for fact in facts if isinstance(fact.body, telephony.CallEnded)}
        found = []
        for fact in facts:
            restart = fact.body
            if isinstance(restart, telephony.SourceInterrupted) and restart.reason == RESTARTED:
                open_calls = await insist(partial(self._open_calls, restart.gap_to))
                gone = [one for one in open_calls if one not in ended and one not in self._ended]
                found += [_ended(self._source.name, one, RESTARTED, restart.gap_to) for one in gone]
        return self._learnt(found)

    async def _open_calls(self, before: datetime) -> list[str]:
        async with self._house.database.session() as tx:
            return await ledger.open_calls(tx, self._source.name, before)

    async def _keep_time(self) -> None:
        """While the link is down its time moves on with the clock: what happened meanwhile will not come."""
        while True:
            async with self._turn:
                now = self._clock.at(utc_now())
                late = self._compared([], now) if self._is_down and now is not None else []
                await self._tell(late, self._settled())
            await asyncio.sleep(TICK)

    async def _show(self) -> None:
        """Beside the turns: while nothing can be kept it must be seen, too."""
        while True:
            self._gauges.show(self._source.name, self.condition())
            await asyncio.sleep(TICK)

    def condition(self) -> Condition:
        """Say how this PBX stands."""
        now = utc_now()
        owed = self._reconciler.status(self._clock.at(now) or now) if self._reconciler else None
        return Condition(
            connected_since=self._connected_since,
            away=self._away,
            last_event_at=self._last_event,
            log_trouble=self._log_trouble,
            log_skips=self._log_skips,
            open_calls=self._switch.open_calls if self._source.host else None,
            unreadable=self._unreadable + self._log.odd,
            forgotten=self._switch.forgotten,
            owed=owed,
        )

    # ------------------------------------------------------------ beginning

    async def _until_leading(self) -> None:
        while not await insist(self._lead):
            await asyncio.sleep(RENEW_EVERY)

    async def _keep_leading(self) -> None:
        """While the database is away nobody can take over, and we go on."""
        while True:
            await asyncio.sleep(RENEW_EVERY)
            try:
                leading = await self._lead()
            except Exception as error:
                self._logger.warning("lease_not_renewed", error=type(error).__name__)
                continue
            if not leading:
                raise _Superseded

    async def _lead(self) -> bool:
        async with self._house.database.session() as tx:
            return await _lease(tx, self._source.name, self._reader)

    async def _restore(self) -> None:
        """Take over what an earlier run told of calls that are under way, and where it stood."""
        told, heard_at, place = await insist(self._told_before)
        self._remember_ends(told)
        if self._source.host:
            self._learnt(told)
        if heard_at is not None:
            self._switch.disconnected(heard_at)
        if self._source.queue_log is None:
            return
        self._kept_place = place or ""
        self._follower = Follower(self._source.queue_log, Place.of(place) if place else None)
        lines = await asyncio.to_thread(self._follower.before, REWIND)
        known = await asyncio.to_thread(self._log.feed, lines)
        if self._reconciler is not None and heard_at is not None:
            _pair_up(self._reconciler, told, known, heard_at)

    async def _told_before(self) -> tuple[list[Mapped], datetime | None, str | None]:
        name = self._source.name
        async with self._house.database.session() as tx:
            heard = await ledger.position(tx, manager_feed(name))
            place = await ledger.position(tx, log_feed(name))
            told = await _told(tx, name) if heard or place else []
        return told, datetime.fromisoformat(heard) if heard else None, place


class _PbxClock:
    """The PBX's clock by ours. The link tells it; until it did once, the log's lines give its least value."""

    def __init__(self) -> None:
        self._ahead: timedelta | None = None
        self._is_told = False

    def told(self, at: datetime) -> None:
        self._ahead, self._is_told = at - utc_now(), True

    def seen(self, at: datetime | None) -> None:
        if at is not None and not self._is_told:
            ahead = at - utc_now()
            self._ahead = ahead if self._ahead is None else max(self._ahead, ahead)

    def at(self, ours: datetime) -> datetime | None:
        return None if self._ahead is None else ours + self._ahead


class _Superseded(Exception):
    """Another door reads this PBX now."""


def _pair_up(
    reconciler: Reconciler, told: Iterable[Mapped], lines: Sequence[Mapped], heard_at: datetime
) -> None:
    """Remind the reconciler of calls under way; all that it finds was told by the earlier run."""
    times = [fact.body.occurred_at for fact in lines if isinstance(fact.body, telephony.CallEvent)]
    since = times[0] - reconcile.SAME if times else None
    fast = [
        fact
        for fact in told
        if since is None
        or isinstance(fact.body, telephony.CallOffered)
        or getattr(fact.body, "occurred_at", since) >= since
    ]
    legs = {getattr(fact.body, "leg_id", None) for fact in fast} - {None}
    reconciler.fast(fast, heard_at)
    if times:
        known = [fact for fact in lines if getattr(fact.body, "leg_id", None) in legs]
        reconciler.durable(known, times[-1])


def manager_feed(source: str) -> str:
    """Name the feed whose position is the moment up to which the link was heard."""
    return f"manager:{source}"


def log_feed(source: str) -> str:
    """Name the feed whose position is a place in the log."""
    return f"queue_log:{source}"


def _ended(source: str, call_id: str, cause: str, at: datetime) -> Mapped:
    body = telephony.CallEnded(call_id=call_id, source=source, occurred_at=at, cause=cause)
    return Mapped(f"{source}|{cause}|{int(at.timestamp())}|{call_id}", body)


def _last_time(lines: Sequence[str]) -> datetime | None:
    return next((line.at for text in reversed(lines) if (line := parse(text))), None)


# ---------------------------------------------------------------- SQL


async def _lease(tx: Tx, source: str, reader: str) -> bool:
    """Take or keep the lease of one PBX; false while another door has it."""
    taken = await tx.fetchval(
        "insert into feeds as f (feed, position) values ($1, $2)"
        " on conflict (feed) do update set position = $2, moved_at = now()"
        " where f.position = $2 or f.moved_at < now() - $3::interval returning true",
        f"reader:{source}",
        reader,
        LEASE,
    )
    return bool(taken)


async def _release(tx: Tx, source: str, reader: str) -> None:
    await tx.execute("delete from feeds where feed = $1 and position = $2", f"reader:{source}", reader)


async def _told(tx: Tx, source: str) -> list[Mapped]:
    """Read what was told of a PBX's calls that had not ended, and all that was told last, as it was told."""
    until: datetime | None = await tx.fetchval(
        "select max(moved_at) from feeds where feed = any($1::text[])",
        [manager_feed(source), log_feed(source)],
    )
    if until is None:
        return []
    rows = await tx.fetch(
        "with said as materialized (select batch, ordinal, key, headers, value from outbox"
        " where batch >= $1 and topic = $2 and convert_from(value, 'UTF8')::jsonb ->> 'source' = $3)"
        " select headers, value from said s where batch >= $4 or not exists"
        " (select from said e where e.key = s.key and position($5::bytea in e.headers) > 0)"
        " order by batch, ordinal",
        batch_id_at(until - REMEMBER),
        telephony.TOPIC,
        source,
        batch_id_at(until - LATELY),
        BY_BODY[telephony.CallEnded].wire.encode(),
    )
    return [_as_told(row["headers"], row["value"]) for row in rows]


def _as_told(packed: bytes, value: bytes) -> Mapped:
    headers = dict(unpack(packed))
    kind = BY_WIRE[headers["ce_type"].decode()]
    return Mapped(str(UUID(headers["ce_id"].decode())), kind.body.parse(value))


# ---------------------------------------------------------------- gauges


class _Gauges:
    """What an operator sees of each PBX; a figure that is not known has no sample."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"door_pbx_{name}", text, ["source", *labels], registry=registry)

        self._connected = gauge("connected", "Whether the manager link is up (1) or down (0)")
        self._since = gauge("connected_since_seconds", "Since when the link is up, Unix time of the PBX")
        self._event = gauge("last_event_seconds", "When the link last said anything, Unix time of the PBX")
        self._calls = gauge("open_calls", "Calls under way, as far as the feeds tell")
        self._trouble = gauge("log_trouble", "Whether queue_log cannot be read (1)")
        self._skips = gauge("log_skips", "How often a part of queue_log was not found again")
        self._unreadable = gauge("unreadable", "Blocks and lines that could not be read")
        self._forgotten = gauge("forgotten_calls", "Calls that were given up without an end, after a day")
        self._owed = gauge("owed_facts", "Facts that one feed owes the other, late or lost", "feed", "state")
        self._behind = gauge("behind_seconds", "How far each feed has been read, before now", "feed")

    def show(self, source: str, condition: Condition) -> None:
        """Set what is known."""
        if condition.away or condition.connected_since is not None:
            self._connected.labels(source).set(condition.connected_since is not None)
        _set_time(self._since, source, condition.connected_since)
        _set_time(self._event, source, condition.last_event_at)
        if condition.open_calls is not None:
            self._calls.labels(source).set(condition.open_calls)
        self._trouble.labels(source).set(bool(condition.log_trouble))
        self._skips.labels(source).set(condition.log_skips)
        self._unreadable.labels(source).set(condition.unreadable)
        self._forgotten.labels(source).set(condition.forgotten)
        owed = condition.owed
        if owed is None:
            return
        for feed, late, lost, behind in (
            ("manager", owed.late_in_fast, owed.lost_in_fast, owed.fast_behind_ms),
            ("queue_log", owed.late_in_durable, owed.lost_in_durable, owed.durable_behind_ms),
        ):
            self._owed.labels(source, feed, "late").set(late.count)
            self._owed.labels(source, feed, "lost").set(lost.count)
            if behind is not None:
                self._behind.labels(source, feed).set(behind / 1000)

    def hide(self, source: str) -> None:
        """Say nothing of a PBX that another door reads."""
        for gauge in vars(self).values():
            for sample in list(gauge.collect()[0].samples):
                if sample.labels["source"] == source:
                    gauge.remove(*sample.labels.values())


def _set_time(gauge: Gauge, source: str, at: datetime | None) -> None:
    if at is not None:
        gauge.labels(source).set(at.timestamp())
    else:
        with suppress(KeyError):
            gauge.remove(source)

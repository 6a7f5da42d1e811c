"""Wiring of the observer: read, see the commits, take the ends, judge, store, show."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from dataclasses import replace
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from chassis.clock import epoch_ms, monotonic, utc_now
from chassis.faults import Transient, backoff, insist, is_transient
from chassis.following import Follower, Unread
from chassis.health import Health, Server, application
from chassis.ids import derived_id
from chassis.kafka import KafkaPublisher, Offsets
from chassis.log import get_logger
from chassis.message import Writer, time_header
from chassis.postgres import Database, role_of
from chassis.process import run_process, stop_on_signals, until_stopped
from chassis.transport import Outgoing, Place
from observer import actions, store
from observer.barrier import Barrier, Barriers
from observer.canary import Canary
from observer.contract import Contract, contract_of
from observer.deferred import Deferred
from observer.gauges import Gauges
from observer.lag import Lag, LagWatch, ReadingLag, paused
from observer.ledger import UPSTREAM, Ledger, State, Verdict
from observer.metrics import ObserverMetrics
from observer.reading import Desk
from observer.sequences import KEPT_MS, Sequences
from observer.settings import ObserverSettings
from schemas import telephony
from schemas.operations import CANARY_GROUP, VerdictGiven
from schemas.topics import BY_NAME, STAGES, TOPICS

SCHEMA = "observer"
MOST_AT_ONCE = 4_000
LAST_LOOK_S = 0.05
READ_ON = (20_000, 1.0)
"""So many records, for so many seconds, one cycle reads behind a backlog before it stores and judges."""
CATCH_UP = (80_000, 2.0)
"""The same while it catches up with what was there when it started: nobody waits for a verdict then, and
the more is read at once, the more causes meet their answers before they are stored."""
LOOK_EVERY_S = 1.0
PRUNE_EVERY_S = 60.0
AUDITED = tuple(topic.name for topic in TOPICS if topic.name != "ops.verdicts")
COMPACTED = "compacted"
"""Why nothing can be proved on a topic: Kafka keeps only the last record of each key."""
_BY_SILENCE = frozenset({State.DROPPED, State.PARTIAL, State.SEQUENCE_GAP, State.TIMER_LOST, State.ORPHAN})
"""Verdicts that say of something that it is nowhere."""
GROUPS: dict[str, tuple[str, ...]] = {}
for _topic in TOPICS:
    for _group in _topic.read_by:
        if _group not in {"observer", "operations", CANARY_GROUP}:
            GROUPS[_group] = (*GROUPS.get(_group, ()), _topic.name)


class Superseded(Exception):
    """Another observer has taken over; this one must not write any more."""


class Observer:
    """One observer: it alone writes the ledger, in the order in which it reads."""

    def __init__(self, settings: ObserverSettings, contract: Contract | None = None) -> None:
        self._settings = settings
        schema = settings.schema_of(SCHEMA)
        url = settings.database_url.get_secret_value()
        self._database = Database(url, schema, role=role_of(schema), size=3, planning=store.PLANNING)
        self._contract = contract or contract_of()
        self._follower = Follower(settings.kafka)
        self._offsets = Offsets(settings.kafka)
        self._publisher = KafkaPublisher(settings.kafka, "hotline-observer")
        self._writer = Writer("observer")
        self.metrics = ObserverMetrics(
            self._contract.edges, GROUPS, AUDITED, (*STAGES, telephony.TOPIC.partition(".")[0])
        )
        self._gauges = Gauges(self.metrics)
        self._health = Health(facts=self._facts)
        self._canary = Canary(settings.kafka, self._publisher, self._offsets)
        self._stop = asyncio.Event()
        self._token = 0
        self._log = get_logger(part="observer")
        self._begin_empty()

    def _begin_empty(self) -> None:
        self.ledger = Ledger(self._contract)
        self._sequences = Sequences(self._contract, self.ledger, telephony.TOPIC)
        self._deferred = Deferred(self._contract, self.ledger)
        self._desk = Desk(self._contract, self.ledger, self._sequences, self._deferred)
        self._barriers = Barriers()
        self._watch = LagWatch()
        self._positions: dict[Place, int] = {}
        self._stored: dict[Place, tuple[int, int]] = {}
        self._stored_commits: dict[tuple[str, Place], int] = {}
        self._ends: dict[Place, int] = {}
        self._starts: dict[Place, int] = {}
        self._leaderless: dict[Place, int] = {}
        self._catch_up: dict[Place, int] = {}
        self._lags: list[Lag] = []
        self._unread: list[Unread] = []
        self._cut: list[Unread] = []
        self._blinded_writers: set[str] = set()
        self._blind_since: dict[str, int] = {}
        self._kept_ms: dict[str, int] = {}
        self._by_size: set[str] = set()
        self._compacted: dict[str, int] = {}
        self._reading = ReadingLag()
        self._action = 0
        self._paused: dict[str, actions.Action] = {}
        self._looked = self._pruned = self._judged = 0.0
        self._backlog = True

    # ------------------------------------------------------------ life

    async def run(self) -> int:
        """Run until told to stop; returns the exit code."""
        # Handoffs are many, live long and hold no cycles: the collector would walk over them for nothing.
        gc.freeze()
        gc.disable()
        # Who watches must not slow what it watches: where no core is idle, it is the one that waits.
        os.nice(self._settings.niceness)
        stop_on_signals(self._stop)
        settings = self._settings
        server = Server(
            application(self._health, self.metrics.registry, settings.http_token_file),
            settings.http_host,
            settings.http_port,
            settings.port_file,
        )
        await server.start()
        background: list[asyncio.Task[None]] = []
        try:
            await until_stopped(self.start(), self._stop)
            background.append(asyncio.create_task(self._tell_verdicts()))
            if settings.canary_every_s:
                background.append(asyncio.create_task(self._canary.sing_every(settings.canary_every_s)))
            await until_stopped(self.watch(), self._stop)
        except Superseded:
            self._log.error("superseded", why="another observer writes this ledger")
            return 1
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await self.close()
            await server.stop()
        return 0

    async def start(self) -> None:
        """Connect, take over from whoever wrote before, and go on where the store stands."""
        for wait in backoff(0.2, 5.0):
            try:
                await self._connect()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._health.not_ready("start", f"{type(error).__name__}: {error}"[:200])
                self._log.warning("waiting", why=str(error)[:200] or type(error).__name__)
                await self.close()
                await asyncio.sleep(wait)
            else:
                self._health.ready("start")
                return

    async def _connect(self) -> None:
        self._begin_empty()
        await self._database.reopen("observer")
        self._follower, self._offsets = Follower(self._settings.kafka), Offsets(self._settings.kafka)
        self._canary.offsets = self._offsets
        await self._offsets.start()
        await self._follower.start()
        async with self._database.transaction() as tx:
            self._token = await store.take_over(tx)
            restored = await store.restore(tx, self._contract, self._deferred, epoch_ms())
            self._action = await actions.last_applied(tx)
            self._paused = await actions.paused(tx)
            self._blind_since = await store.blind_topics(tx)
        self.ledger.restore(restored.handoffs, restored.effects, restored.commits)
        self._sequences.restore(restored.counts)
        self._deferred.restore(restored.waiting, restored.acts, restored.met)
        self._stored, self._stored_commits = restored.positions, restored.commits
        places = await self._offsets.partitions(AUDITED)
        self._starts, self._ends = await self._offsets.starts(places), await self._offsets.highs(places)
        self._catch_up = dict(self._ends)
        await self._look_at_topics(epoch_ms())
        await self._follow(places)
        self._sequences.from_the_beginning = not self._blind_since
        self._log.info("started", partitions=len(places), open=len(restored.handoffs), token=self._token)

    async def close(self) -> None:
        """Disconnect."""
        await self._follower.stop()
        await self._offsets.stop()
        await self._publisher.stop()
        await self._database.close()

    async def _adopt(self, places: list[Place]) -> None:
        """Read the partitions that have appeared, if any have."""
        new = [place for place in places if place not in self._positions and place not in self._leaderless]
        if new:
            self._starts.update(await self._offsets.starts(new))
            await self._follow(new)

    async def _follow(self, places: list[Place]) -> None:
        """Read partitions from where the store stands; from the groups' commits, where those are behind.

        What lies between is known already: it is read again for the records' times alone.
        """
        commits: dict[Place, int] = {}
        for group in GROUPS:
            for place, offset in (await self._offsets.commits(group)).items():
                commits[place] = min(offset, commits.get(place, offset))
        begin: dict[Place, int] = {}
        for place in places:
            start = self._starts.get(place)
            if start is None or place in self._follower.followed:
                continue  # without a leader it is taken up later
            taken, last = self._stored.get(place, (start, start))
            if taken < start:
                self._gap(self._unread, Unread(place, taken, start))
                taken = start
            elif place not in self._stored and start > 0:
                self._gap(self._cut, Unread(place, 0, start))
            begin[place] = max(start, min(taken, commits.get(place, taken)))
            self._desk.begin(place, taken, last, begin[place])
            self._positions[place] = taken
        self._follower.follow(begin)

    # ------------------------------------------------------------ the cycle

    async def watch(self) -> None:
        """Read and judge for ever; a fault of the infrastructure begins again from the store."""
        while True:
            try:
                await self.cycle()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._log.warning("cycle_retried", why=f"{type(error).__name__}: {error}"[:200])
                await self.close()
                await asyncio.sleep(0.5)
                await self.start()

    async def cycle(self) -> None:
        """Let records gather, read them, judge; raises Transient when a part is away.

        Verdicts are given only when it is time, and who takes each record as it comes asks Kafka a hundred
        times a second. The client holds back what comes to a partition that it has something of: so there
        are two looks, the first to empty its hands. Behind a backlog there is no rest.
        """
        begun, read = monotonic(), 0
        most, longest_s = CATCH_UP if self._catch_up else READ_ON
        ends_at = self._judged + self._settings.judge_every_s
        pause = ends_at - LAST_LOOK_S - begun
        while True:
            if not self._backlog:
                await asyncio.sleep(max(0.0, pause))
            wait_s = LAST_LOOK_S if self._backlog and read else 0.0
            records = await self._follower.poll(wait_s, MOST_AT_ONCE)
            self._desk.take(records)
            read, pause = read + len(records), ends_at - monotonic()
            self._backlog = bool(records) and self._follower.waiting() > MOST_AT_ONCE
            reads_on = self._backlog and monotonic() < begun + longest_s
            if read >= most or (pause <= 0 and not reads_on):
                break
        self._judged = monotonic()
        await self.judge()

    async def judge(self) -> None:
        """One pass: commits first, then fresh ends, then what is proved by now, into one transaction."""
        now_ms = epoch_ms()
        for unread in self._follower.unread():
            self._gap(self._unread, unread)
        await self._advance()
        candidates = self._blinded()
        await self._recall()
        await self._raise_barriers(now_ms)
        wanted = self._barriers.wants
        if wanted:
            places = await self._offsets.partitions(sorted(wanted))
            highs = await self._offsets.highs(places)
            self._barriers.ends({place: highs.get(place) for place in places}, now_ms, wanted)
            await self._adopt(places)
        self._deferred.tick(now_ms)
        for barrier in self._barriers.passed(self._positions, now_ms):
            for room in (self.ledger, self._sequences, self._deferred):
                candidates += map(self._doubted, room.judge(barrier))
        await self._store(_each_once(candidates), now_ms)
        await self._look(now_ms)

    def _gap(self, gaps: list[Unread], gap: Unread) -> None:
        gaps.append(gap)
        self._blind_since[gap.place.topic] = epoch_ms()

    def _doubted(self, verdict: Verdict) -> Verdict:
        """Call nothing an orphan, or lost, whose counterpart may be gone from the log before it was read."""
        handoff, note = verdict.handoff, ""
        compacted = self._compacted.keys() & self._silent_topics(verdict)
        if compacted and verdict.state in _BY_SILENCE:
            note = f"what would disprove it may be compacted away: {', '.join(sorted(compacted))}"
        elif verdict.state is State.ORPHAN and self._blind_since:
            note = "its cause may be among records that were deleted before they were read"
        elif verdict.state in (State.DROPPED, State.PARTIAL):
            topics = self._contract.answers_on[handoff.owed.group]
            # An answer stands behind its cause: what was said after the last gap was noticed has none in it.
            if handoff.at_ms <= max((self._blind_since.get(topic, 0) for topic in topics), default=0):
                note = "its answer may be among records that were deleted before they were read"
        return replace(verdict, state=State.UNPROVABLE, note=note) if note else verdict

    def _silent_topics(self, verdict: Verdict) -> frozenset[str]:
        """The topics whose silence is the proof of a verdict."""
        group = verdict.handoff.owed.group
        if group == UPSTREAM:
            return frozenset({telephony.TOPIC})
        return (self._contract.reads if verdict.state is State.ORPHAN else self._contract.answers_on)[group]

    async def _advance(self) -> None:
        for place, position in (await self._follower.positions()).items():
            self._positions[place] = max(position, self._positions.get(place, 0))

    async def _raise_barriers(self, now_ms: int) -> None:
        for group in self._contract.groups:
            commits = await self._offsets.commits(group)
            barrier = self.ledger.commit(group, commits)
            self._barriers.committed(group, commits, self._positions, self._desk.last)
            if barrier is not None:
                self._barriers.raise_(barrier, now_ms)
        for barrier in (
            *self.ledger.effects_without_cause(),
            *self._sequences.barriers(now_ms),
            *self._deferred.barriers(),
            *self._deleted(),
        ):
            self._barriers.raise_(barrier, now_ms)

    async def _recall(self) -> None:
        """Ask the store for the counts that memory has let go, before anything is concluded from them."""
        unsure = self._sequences.unsure()
        known: dict[tuple[str, bytes], int] = {}
        if unsure:
            async with self._database.session() as tx:
                known = await store.recall(tx, unsure)
        self._sequences.recall(known)

    def _deleted(self) -> list[Barrier]:
        """What retention or somebody deleted before its group has read it."""
        found = [self.ledger.expired(group, self._starts) for group in self._contract.groups]
        for unread in self._unread:
            if unread.recreated:
                found += [self.ledger.vanished(group, unread.place) for group in self._contract.groups]
        return [barrier for barrier in found if barrier is not None]

    def _blinded(self) -> list[Verdict]:
        """Claim nothing about what may have been answered in records that nobody can read any more."""
        found: list[Verdict] = []
        for unread in self._unread:
            place, following = unread.place, unread.following
            if unread.recreated:
                self._positions[place] = following
                self._desk.begin(place, following, following, following)
            for group in self._contract.groups:
                if place.topic in self._contract.answers_on[group]:
                    found += self.ledger.blinded(group)
                    self._sequences.blinded(group)
                    self._deferred.blinded(group)
                    self._blinded_writers.add(group)
            self._sequences.from_the_beginning = False
        return found

    async def _store(self, candidates: list[Verdict], now_ms: int) -> None:
        waived = await self._operators_word(now_ms)
        positions = {
            place: (position, self._desk.last.get(place, 0))
            for place, position in self._positions.items()
            if self._stored.get(place) != (position, self._desk.last.get(place, 0))
        }
        commits = {
            (group, place): offset
            for group in self._contract.groups
            for place, offset in self.ledger.commits_of(group).items()
            if self._stored_commits.get((group, place)) != offset
        }
        unread, self._unread = self._unread, []
        cut, self._cut = self._cut, []
        writing = store.Writing(
            changes=self.ledger.drain(),
            counts=self._sequences.drain(),
            acts=self._deferred.drain(),
            positions=positions,
            commits=commits,
            candidates=candidates,
            now_ms=epoch_ms(),
            blind=[
                *((item.place, item.first, item.following, _reason(item)) for item in unread),
                *((item.place, item.first, item.following, store.BEFORE) for item in cut),
            ],
            blinded=frozenset(self._blinded_writers),
            applied=self._action if waived else None,
        )

        async def write() -> list[Verdict]:
            async with self._database.transaction() as tx:
                if await store.token(tx) != self._token:
                    raise Superseded
                return await store.write(tx, writing)

        standing = await insist(write)
        self._blinded_writers.clear()
        self._stored.update(positions)
        self._stored_commits.update(commits)
        self._gauges.count(writing.changes)
        self._gauges.discipline(self.ledger.after_commit)
        self._apply(candidates, standing, now_ms)

    def _apply(self, candidates: list[Verdict], standing: list[Verdict], now_ms: int) -> None:
        stands = set(map(id, standing))
        for verdict in candidates:
            if id(verdict) not in stands:
                self.ledger.known_before(verdict)
                continue
            self.ledger.apply(verdict)
            if verdict.handoff.owed.group == CANARY_GROUP:
                self._canary.flagged(verdict.handoff.key, epoch_ms())
                self.ledger.waive(CANARY_GROUP, verdict.handoff.key, now_ms)
                continue
            self._gauges.judged(verdict, now_ms)
            self._log.warning(
                "verdict",
                state=verdict.state.value,
                edge=verdict.handoff.owed.edge,
                topic=verdict.handoff.place.topic,
                partition=verdict.handoff.place.partition,
                offset=verdict.handoff.offset,
            )

    async def _operators_word(self, now_ms: int) -> bool:
        """Apply what operators have decided since the last pass."""
        async with self._database.session() as tx:
            decided = await actions.after(tx, self._action)
        for action in decided:
            self._action = action.number
            actions.note_pause(self._paused, action)
            if action.verb in actions.ENDING:
                for target in action.targets:
                    self.ledger.waive(target.group, target.key, now_ms)
        return bool(decided)

    # ------------------------------------------------------------ what is shown

    async def _look(self, now_ms: int) -> None:
        """Measure lag, show everything, prune; once a second."""
        if monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = monotonic()
        groups = {group: await self._offsets.commits(group) for group in GROUPS}
        places = await self._offsets.partitions(AUDITED)
        self._ends = await self._offsets.highs(places)
        self._starts = await self._offsets.starts(places)
        self._leaderless = {
            place: self._leaderless.get(place, now_ms) for place in places if place not in self._ends
        }
        await self._adopt(places)
        self._lags = [lag for group, commits in groups.items() for lag in self._lag(group, commits, now_ms)]
        self._forget_times(groups)
        self._catch_up = {
            place: end for place, end in self._catch_up.items() if self._positions.get(place, 0) < end
        }
        overdue = self._deferred.overdue()
        prunes = monotonic() - self._pruned > PRUNE_EVERY_S
        if prunes:
            self._pruned = monotonic()
            gc.collect()
            await self._look_at_topics(now_ms)
        async with self._database.session() as tx:
            document = self._document(now_ms, await store.blind_ranges(tx, now_ms), overdue)
            await store.write_status(tx, now_ms, json.dumps(document))
            if prunes:
                before = now_ms - int(self._settings.keep.total_seconds() * 1000)
                await store.prune(tx, before, now_ms - KEPT_MS)
        behind = self._reading.observe(self._ends, self._positions, self._desk.newest, now_ms)
        self._gauges.show(document, self._lags, overdue, behind, now_ms)

    async def _look_at_topics(self, now_ms: int) -> None:
        """Ask Kafka how long it keeps each topic, and which it compacts: there silence proves nothing.

        A limit by size deletes when enough has come: nobody can tell when that is.
        """
        found = await self._offsets.settings(AUDITED)
        self._kept_ms = {topic: int(settings["retention.ms"]) for topic, settings in found.items()}
        self._by_size = {
            topic for topic, settings in found.items() if int(settings.get("retention.bytes", "-1")) >= 0
        }
        compacted = [topic for topic, settings in found.items() if "compact" in settings["cleanup.policy"]]
        self._compacted = {topic: self._compacted.get(topic, now_ms) for topic in compacted}

    def _lag(self, group: str, commits: dict[Place, int], now_ms: int) -> list[Lag]:
        topics = GROUPS[group]
        ends: dict[Place, int | None] = {
            place: self._ends.get(place)
            for place in (*self._ends, *self._leaderless)
            if place.topic in topics
        }
        times = self._desk.times

        def age(place: Place, offset: int) -> int | None:
            return times[place].at(offset) if place in times else None

        first = {place: times[place].first or 0 for place in ends if place in times}
        lags = self._watch.observe(
            group, commits, ends, self._starts, age, now_ms, self._retention_ms, self._positions, first
        )
        return list(map(paused, lags)) if group in self._paused else lags

    def _retention_ms(self, topic: str) -> int | None:
        if topic in self._by_size:
            return None
        return self._kept_ms.get(topic, BY_NAME[topic].retention_ms)

    def _forget_times(self, groups: dict[str, dict[Place, int]]) -> None:
        for place, times in self._desk.times.items():
            readers = [
                commits.get(place, 0) for group, commits in groups.items() if place.topic in GROUPS[group]
            ]
            if readers:
                times.forget_below(max(min(readers), self._starts.get(place, 0)))

    def _document(
        self, now_ms: int, blind_ranges: list[dict[str, Any]], overdue: dict[tuple[str, str], int]
    ) -> dict[str, Any]:
        opened = {**self.ledger.open_by_edge(), **self._deferred.open_by_edge()}
        watched = self.ledger.watched_by_edge()
        edges = {
            edge: {
                "open": opened.get(edge, (0, 0))[0],
                "oldest_s": (now_ms - opened[edge][1]) / 1000 if edge in opened else None,
                **{state.value: count for state in State if (count := watched.get((edge, state), 0))},
            }
            for edge in sorted({*opened, *(edge for edge, _ in watched), *self._contract.edges})
            if not edge.startswith("ops.canary")
        }
        return {
            "at_ms": now_ms,
            "blind": self._blind(blind_ranges, now_ms),
            "edges": edges,
            "overdue": [[edge, department, count] for (edge, department), count in overdue.items()],
            "lag": [
                {**lag.as_json(), "kept_by_size": lag.place.topic in self._by_size} for lag in self._lags
            ],
            "kept_by_size": sorted(self._by_size),
            "paused": {
                group: {"by": action.actor, "since_ms": action.at_ms, "reason": action.reason}
                for group, action in self._paused.items()
            },
            "behind_records": sum(
                max(0, end - self._positions.get(place, 0)) for place, end in self._ends.items()
            ),
            "blind_ranges": blind_ranges,
            "pending": self._barriers.suspects,
            "read": self._desk.read,
            "missing_numbers": dict(self._sequences.missing),
            "blocked": self._blocked(),
            "canary": {
                "flagged_ms": self._canary.last_flagged_ms or None,
                "detection_ms": self._canary.detection_ms,
            },
        }

    def _blocked(self) -> dict[str, dict[str, int]]:
        found = self._barriers.blocked(self._positions, self._follower.held(), self._leaderless)
        for topic, since_ms in self._compacted.items():
            found.setdefault(topic, {})[COMPACTED] = since_ms
        return found

    def _blind(self, ranges: list[dict[str, Any]], now_ms: int) -> str:
        """Why nobody may say that nothing is lost; empty when it may be said."""
        found = []
        if self._catch_up:
            behind = sum(end - self._positions.get(place, 0) for place, end in self._catch_up.items())
            found.append(f"catching up: {behind} records to read")
        if silent_ms := self._canary.silent_for_ms(now_ms):
            found.append(f"no canary was named for {silent_ms / 1000:.0f} s")
        if ranges:
            topics = sorted({entry["topic"] for entry in ranges})
            found.append(f"records were deleted before they were read: {', '.join(topics)}")
        if self._compacted:
            found.append(f"compacted, so that silence proves nothing: {', '.join(sorted(self._compacted))}")
        return "; ".join(found)

    def _facts(self) -> dict[str, Any]:
        return {"part": "observer", "pid": os.getpid(), "read": self._desk.read}

    # ------------------------------------------------------------ what is told

    async def _tell_verdicts(self) -> None:
        """Publish verdicts; each at least once, under an id that its number decides."""
        while True:
            try:
                async with self._database.session() as tx:
                    rows = await store.untold(tx)
                if rows:
                    told = [self._told(row) for row in rows if row["grp"] != CANARY_GROUP]
                    await self._publisher.publish([message for message in told if message is not None])
                    async with self._database.session() as tx:
                        await store.mark_told(tx, [row["verdict_id"] for row in rows])
            except Exception as error:
                if not is_transient(error):
                    self._log.error("verdicts_not_told", exc_info=error)
            await asyncio.sleep(0.5)

    def _told(self, row: Any) -> Outgoing | None:
        """Write a verdict; one that the contract refuses stays in the table and holds up no other."""
        try:
            return self._verdict(row)
        except ValidationError as error:
            fields = sorted({str(fault["loc"][0]) for fault in error.errors(include_input=False)})
            self._log.error("verdict_not_told", verdict=row["verdict_id"], fields=fields)
            return None

    def _verdict(self, row: Any) -> Outgoing:
        body = VerdictGiven(
            verdict_id=row["verdict_id"],
            subject=row["subject"] or "-",
            event_id=row["name"] or str(UUID(bytes=row["key"])),
            group=row["grp"],
            edge=row["edge"],
            state=row["state"],
            topic=row["topic"] or "-",
            partition=row["partition"],
            offset=row["record_offset"],
            judged_at=utc_now().fromtimestamp(row["judged_ms"] / 1000, tz=utc_now().tzinfo),
            note=row["note"][:500],
        )
        at = time_header(body.judged_at)
        uid = derived_id(UUID(int=row["judged_ms"] << 80), "verdict", row["verdict_id"])
        return self._writer.write(body, uid=uid, at=at, correlation=body.subject)


def _each_once(candidates: list[Verdict]) -> list[Verdict]:
    """Keep the first verdict on each handoff: what cannot be proved comes before what seems proved."""
    first: dict[tuple[bytes, str], Verdict] = {}
    for verdict in candidates:
        first.setdefault((verdict.handoff.key, verdict.handoff.owed.group), verdict)
    return list(first.values())


def _reason(unread: Unread) -> str:
    return "the topic was made anew" if unread.recreated else "retention"


def main() -> None:
    """Run the observer as a process and exit: 0 stopped, 1 superseded, 78 misconfigured."""

    async def run(settings: ObserverSettings) -> int:
        try:
            return await Observer(settings).run()
        except Transient as error:
            print(f"hotline: {error}", file=sys.stderr)  # noqa: T201 - the last word before exit
            return 1

    run_process(ObserverSettings, run)

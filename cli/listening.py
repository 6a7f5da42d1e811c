"""Listening to telephony: what a recording holds, what a source says, and what it does not say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import file_digest
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chassis.faults import insist
from cli import show
from cli.needs import NEEDS, Need
from schemas import telephony
from schemas.envelope import BY_BODY, Body
from services.intake.sources.ami import Block
from services.intake.sources.canonical import Mapped

if TYPE_CHECKING:
    from chassis.postgres import Database
    from cli.world import World
    from services.intake.door.entry import Entry
    from services.intake.door.sources import Pbx, Webhook


AT_ONCE = 200
TAIL = 1 << 20

# ---------------------------------------------------------------- replay


@dataclass(slots=True)
class Recording:
    """One file and what was found in it; `facts` reads it once. Raises ValueError without timestamps."""

    path: Path
    source: str
    form: str
    kinds: Counter[str] = field(default_factory=Counter)
    calls: dict[str, set[str]] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)

    def name(self) -> str:
        """Name the content: the same file under another name is the same recording."""
        with self.path.open("rb") as file:
            return f"replay|{self.form}|{file_digest(file, 'blake2b').hexdigest()[:32]}"

    def batches(self) -> Iterator[list[Mapped]]:
        """Give its facts, some at once, counted."""
        facts = self._of_manager() if self.form == "ami" else self._of_log()
        while batch := list(islice(facts, AT_ONCE)):
            for fact in batch:
                self._count(fact.body)
            yield batch

    def _of_manager(self) -> Iterator[Mapped]:
        from services.intake.sources.ami import blocks, recorded_chunks
        from services.intake.sources.asterisk import Switch

        switch = Switch(self.source)
        for block in blocks(recorded_chunks(self.path)):
            yield from switch.feed(block)
        yield from switch.settle()
        self.unused = switch.unused

    def _of_log(self) -> Iterator[Mapped]:
        from services.intake.sources.queue_log import QueueLog

        log = QueueLog(self.source)
        for line in _lines(self.path):
            yield from log.feed([line])
        self.unused = log.unused + Counter({"unreadable lines": log.odd})

    def _count(self, body: Body) -> None:
        self.kinds[BY_BODY[type(body)].name] += 1
        if isinstance(body, telephony.CallEvent):
            word = body.reason if isinstance(body, telephony.QueueLeft) else _WORDS.get(type(body))
            for one in ("calls", word):
                if one:
                    self.calls.setdefault(one, set()).add(body.call_id)


_WORDS: Mapping[type[Body], str] = {
    telephony.CallAnswered: "answered",
    telephony.CallRefused: "refused",
    telephony.CallbackRequested: "callback",
    telephony.CallTransferred: "transferred",
    telephony.SurveyAnswered: "surveyed",
    telephony.CallEnded: "ended",
}


async def send(world: World, recording: Recording, *, quiet: bool) -> dict[str, Any]:
    """Send a recording through the running world's way in; counts what was kept and what it says."""
    from services.intake.door.entry import Delivery

    verdicts: Counter[str] = Counter()
    name = recording.name()
    async with _entry(world) as entry:
        for number, batch in enumerate(recording.batches()):
            delivery = Delivery.of(recording.source, f"{name}|{number}", b"")

            async def keep(batch: list[Mapped] = batch, delivery: Delivery = delivery) -> str:
                return await entry.facts(batch, delivery)

            verdicts[await insist(keep)] += len(batch)
            if not quiet and number % 10 == 9:
                show.progress(f"{sum(verdicts.values())} events")
    return {
        "file": str(recording.path),
        "format": recording.form,
        "source": recording.source,
        "events": sum(verdicts.values()),
        "kept": verdicts["kept"],
        "known_before": verdicts["duplicate"],
        "calls": {word: len(calls) for word, calls in recording.calls.items()},
        "kinds": dict(recording.kinds.most_common()),
        "unused": dict(recording.unused.most_common(20)),
    }


@asynccontextmanager
async def _entry(world: World) -> AsyncIterator[Entry]:
    """The way in of a running world; what is kept is sent by the world's own relays."""
    from chassis.kafka import KafkaPublisher
    from chassis.metrics import StageMetrics
    from chassis.postgres import Database, role_of
    from chassis.relay import Relay
    from services.intake.app import STAGE
    from services.intake.door.entry import Entry

    place = world.place()
    schema = f"{place.database_prefix}{STAGE.name}"
    database = Database(place.database_url, schema, role=role_of(schema), size=2)
    await database.open()
    vault = await world.vault(place)
    relay = Relay(STAGE, database, KafkaPublisher(place.kafka, "hotline-replay"), StageMetrics("replay"))
    entry = Entry(database, vault, relay)
    running = asyncio.create_task(entry.run())
    try:
        yield entry
    finally:
        running.cancel()
        await database.close()


def print_replay(summary: Mapping[str, Any]) -> None:
    """Show what a recording came to."""
    title = f"{summary['file']} · {summary['format']} · {summary['source']}"
    rows = [{"what": word, "calls": count} for word, count in summary["calls"].items()]
    show.table(title, rows)
    kept, known = summary["kept"], summary["known_before"]
    show.lines([f"{summary['events']} events: {kept} kept, {known} known before"])


def guess(path: Path) -> str:
    """Tell a manager connection from a queue_log by its first lines; empty when it is neither."""
    from services.intake.sources.queue_log import parse

    first = [line.strip() for line in islice(_lines(path), 50)]
    if any(line.startswith(("Event: ", "Response: ", "Asterisk Call Manager")) for line in first):
        return "ami"
    return "queue_log" if any(parse(line) for line in first) else ""


def _lines(path: Path) -> Iterator[str]:
    import gzip

    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace", newline="\n") as file:
        yield from file


# ---------------------------------------------------------------- check


class CannotHear(Exception):
    """The source does not answer at all."""

    def __init__(self, why: str, next_step: str = "hotline doctor") -> None:
        super().__init__(why)
        self.next = next_step


@dataclass(slots=True)
class Findings:
    """What a PBX was found to say.

    `events` by the manager link (None: there is none), `verbs` in the log's last lines, `dialplan` the
    user events that it raises somewhere (None: we may not look).
    """

    events: Counter[str] | None = None
    verbs: Counter[str] = field(default_factory=Counter)
    dialplan: set[str] | None = None
    faults: list[str] = field(default_factory=list)

    def seen(self, need: Need) -> int:
        """How often a need was seen: by the link if there is one, for what the log has is late."""
        return (
            sum(self.verbs[verb] for verb in need.verbs) if self.events is None else self.events[need.event]
        )

    def verdict(self, need: Need) -> str:
        """Judge a need: seen, in_dialplan, missing, or unproven when it may only not have happened."""
        if self.seen(need):
            return "seen"
        if self.events is None:
            return "unproven" if need.verbs else "missing"
        if self.dialplan is not None and need.event.startswith("UserEvent "):
            return "in_dialplan" if need.event in self.dialplan else "missing"
        return "unproven"


def event_name(block: Block) -> str:
    """Name an event of the manager as `NEEDS` does."""
    name = block.get("Event", "")
    return f"UserEvent {block.get('UserEvent', '')}" if name == "UserEvent" else name


def judged(source: str, findings: Findings) -> dict[str, Any]:
    """Give the verdict on a PBX: fine when every needed event was seen, or stands in the dialplan."""
    rows = [_row(need, findings.seen(need), findings.verdict(need)) for need in NEEDS["asterisk"]]
    return {
        "source": source,
        "kind": "asterisk",
        "fine": not _lacking(rows) and not findings.faults,
        "faults": findings.faults,
        "needs": rows,
        "events": dict((findings.events or Counter()).most_common(40)),
        "log": dict(findings.verbs.most_common()),
    }


def _row(need: Need, seen: int, verdict: str) -> dict[str, Any]:
    return {
        "event": need.event,
        "means": BY_BODY[need.kind].name,
        "needed": need.is_needed,
        "seen": seen,
        "verdict": verdict,
        "where": need.where,
        "fix": need.fix,
    }


def _lacking(rows: Iterable[Mapping[str, Any]]) -> bool:
    return any(row["needed"] and row["verdict"] not in _ENOUGH for row in rows)


_ENOUGH = ("seen", "in_dialplan")


async def check_pbx(source: Pbx, seconds: float, *, quiet: bool) -> dict[str, Any]:
    """Listen to a PBX and judge what it says; raises CannotHear."""
    findings = Findings()
    if source.queue_log is not None:
        _read_log(source.queue_log, findings)
    if source.host is None:
        findings.faults.append(
            "queue_log knows no caller before the queue and no end of a call: give host too"
        )
    else:
        if not quiet:
            show.progress(f"listening to {source.host}:{source.port} for {seconds:g} s; call the hotline now")
        await _listen(source, source.host, seconds, findings)
    return judged(source.name, findings)


def _read_log(path: Path, findings: Findings) -> None:
    from services.intake.door.logtail import Follower
    from services.intake.sources.queue_log import parse

    follower = Follower(path)
    trouble = follower.read().trouble
    if trouble:
        raise CannotHear(trouble, "ls -l, and queue_log = yes in logger.conf")
    for line in follower.before(TAIL):
        parsed = parse(line)
        findings.verbs[parsed.verb if parsed else "unreadable line"] += 1
    follower.close()


async def _listen(source: Pbx, host: str, seconds: float, findings: Findings) -> None:
    from services.intake.door.manager import Answered, Heard, Link, Login, NotHeard

    try:
        link = await Link.open(Login.to(source, host))
    except (NotHeard, OSError) as error:
        raise CannotHear(str(error), "compare the sources file with manager.conf") from None
    findings.events = Counter()
    try:
        findings.dialplan = _user_events(await link.ask("ShowDialPlan"))
        async with asyncio.timeout(seconds), aclosing(link.listen()) as said:
            async for item in said:
                if isinstance(item, Heard):
                    findings.events.update(event_name(block) for block in item.blocks)
                elif isinstance(item, Answered) and None in (item.entries, item.channels):
                    findings.faults.append(
                        "we may not ask who waits and who lives, so a call that ends in a gap stays open: add"
                        " write = system,reporting in manager.conf"
                    )
    except TimeoutError:
        return
    except NotHeard as error:
        findings.faults.append(str(error))
    finally:
        link.close()


def _user_events(dialplan: Iterable[Block] | None) -> set[str] | None:
    if dialplan is None:
        return None
    lines = [block.get("AppData", "") for block in dialplan if block.get("Application") == "UserEvent"]
    return {f"UserEvent {line.partition(',')[0].strip()}" for line in lines}


async def check_webhook(world: World, source: Webhook, seconds: float, *, quiet: bool) -> dict[str, Any]:
    """Wait for deliveries of a webhook; raises CannotHear when the door does not answer."""
    from cli.world import DOOR, connected

    health = await world.health(DOOR)
    if not health:
        raise CannotHear("the door does not run, so nobody can deliver", "hotline up")
    url = _url(world, source)
    if not quiet:
        show.progress(f"waiting {seconds:g} s for deliveries to {url}; call the hotline now")
    before = await asyncio.to_thread(_counts, world, source.name)
    async with connected(world.place(), "intake") as database:
        since = await _now(database)
        await asyncio.sleep(seconds)
        delivered, refused, why = await _arrived(database, source.name, since)
        counts_on = not source.every_event or await _is_numbered(database, source.name)
    after = await asyncio.to_thread(_counts, world, source.name)
    seen = after - before
    duplicates = seen.pop(_DUPLICATES, 0)
    # What says nothing to us is no fault of the sender's: most switches say more than we need.
    refused.pop(_UNKNOWN, None)
    of_no_use = why.pop(_UNKNOWN, "")
    rows = [
        _row(need, seen[name], "seen" if seen[name] else "unproven")
        for need in _needs_of(source)
        for name in [BY_BODY[need.kind].name]
    ]
    return {
        "source": source.name,
        "kind": source.kind,
        "url": url,
        "auth": _AUTH[source.auth],
        "deliveries": delivered,
        "duplicates": duplicates,
        "refused": refused,
        "why": why,
        "of_no_use": of_no_use,
        "facts": dict(seen),
        "needs": rows,
        "faults": [] if counts_on else [_NOT_NUMBERED],
        "fine": not _lacking(rows) and not refused and counts_on,
    }


def _needs_of(source: Webhook) -> tuple[Need, ...]:
    needs = NEEDS[source.kind]
    if source.kind == "freeswitch" and source.every_event:
        # With fewer the numbers have gaps.
        return tuple(need._replace(fix="event json ALL") for need in needs)
    return needs


_NOT_NUMBERED = (
    "every_event, but no event has had a number: send contiguous integers as the attribute sequence, or as"
    " source_seq (FreeSWITCH: Core-UUID and Event-Sequence)"
)
_AUTH = {
    "standard": "Standard Webhooks: webhook-id, webhook-timestamp, webhook-signature",
    "twilio": "X-Twilio-Signature over the address in url",
    "bearer": "Authorization: Bearer TOKEN, a token with the role telephony",
    "none": "none: loopback only",
}


def _url(world: World, source: Webhook) -> str:
    import json

    if source.url:
        return source.url
    port = json.loads((world.folder / "door.port").read_text())["port"]
    return f"http://127.0.0.1:{port}/telephony/{source.name}"


_FOREIGN, _DUPLICATES, _UNKNOWN = "of no use to us", "duplicates", "unknown_type"


def _counts(world: World, source: str) -> Counter[str]:
    """The door's own count of facts by type, of events of no use to it, of deliveries known before."""
    import json
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    port = json.loads((world.folder / "door.port").read_text())["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    counted: Counter[str] = Counter()
    for sample in chain.from_iterable(family.samples for family in families):
        if sample.labels.get("source") == source:
            match sample.name:
                case "door_facts_total" | "door_repeated_facts_total":
                    counted[sample.labels["type"]] += int(sample.value)
                case "door_unknown_types_total":
                    counted[_FOREIGN] += int(sample.value)
                case "door_deliveries_total" if sample.labels["outcome"] == "duplicate":
                    counted[_DUPLICATES] += int(sample.value)
    return counted


async def _is_numbered(database: Database, source: str) -> bool:
    from services.intake.door import ledger
    from services.intake.door.entry import numbers_feed
    from services.intake.sources.sequence import Numbers

    async with database.session() as tx:
        text = await ledger.position(tx, numbers_feed(source))
    return bool(text and Numbers.parse(text).marks)


async def _now(database: Database) -> datetime:
    async with database.session() as tx:
        now: datetime = await tx.fetchval("select now()")
    return now


async def _arrived(
    database: Database, source: str, since: datetime
) -> tuple[int, dict[str, int], dict[str, str]]:
    """What came since then: how many deliveries, what was refused by reason, and what it last was."""
    async with database.session() as tx:
        delivered: int = await tx.fetchval(
            "select count(*) from deliveries where source = $1 and received_at >= $2", source, since
        )
        rows = await tx.fetch(
            "select reason, count(*) as n, (array_agg(explanation order by refused_id desc))[1] as last"
            " from refused_deliveries where source = $1 and received_at >= $2"
            " group by reason order by 2 desc",
            source,
            since,
        )
    return delivered, {row["reason"]: row["n"] for row in rows}, {row["reason"]: row["last"] for row in rows}


def print_check(found: Mapping[str, Any]) -> None:
    """Show what a source says, what is missing, and what adds it."""
    if "url" in found:
        show.lines([f"POST {found['url']}", f"  {found['auth']}"])
        show.table(found["source"], [{"what": what, "facts": n} for what, n in found["facts"].items()])
        show.lines([f"{found['deliveries']} deliveries kept, {found['duplicates']} known before"])
        show.faults(
            f"refused: {reason} ×{n}, last: {found['why'][reason]}" for reason, n in found["refused"].items()
        )
        if found["of_no_use"]:
            show.lines([f"of no use to us, kept and counted: {found['of_no_use']}"])
        if not any(found[one] for one in ("deliveries", "duplicates", "facts", "refused")):
            show.faults(["nothing arrived: is the sender's address this one?"])
    _print_needs(found)


_SIGNS = {"seen": "[green]✓[/green]", "in_dialplan": "[green]✓ in the dialplan[/green]"}


def _print_needs(found: Mapping[str, Any]) -> None:
    from rich.markup import escape

    for need in found["needs"]:
        sign = _SIGNS.get(need["verdict"], "[red]✗[/red]" if need["needed"] else "[yellow]—[/yellow]")
        line = f"{sign} {need['event']} → {need['means']}  ({need['seen']} seen)"
        show.out.print(line, highlight=False, soft_wrap=True)
    lacking = [need for need in found["needs"] if need["verdict"] not in _ENOUGH]
    # What one line would add is named together, and the line once.
    for where, fix in dict.fromkeys((need["where"], need["fix"]) for need in lacking):
        here = [need for need in lacking if (need["where"], need["fix"]) == (where, fix)]
        events = ", ".join(dict.fromkeys(need["event"] for need in here))
        word = "missing" if any(need["verdict"] == "missing" for need in here) else "not seen in this time"
        for line in (f"{word}: {events}", f"  {where}:", f"  {fix}"):
            show.out.print(escape(line), highlight=False, soft_wrap=True)
    for fault in found["faults"]:
        show.out.print(f"[red]✗[/red] {escape(fault)}", highlight=False)

"""Two feeds of one recorded PBX: the manager feed with holes, and queue_log, together tell the whole story."""

import gzip
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from heapq import merge
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import telephony
from services.intake.sources import reconcile
from services.intake.sources.ami import Blocks, blocks, recorded_chunks
from services.intake.sources.asterisk import Switch, replay
from services.intake.sources.canonical import Mapped
from services.intake.sources.queue_log import QueueLog
from services.intake.sources.reconcile import Reconciler

RECORDINGS = Path(__file__).parents[1] / "recordings"
STEADY = Path(str(resources.files("cli"))) / "recordings/run2-full/ami-steady.raw.gz"
FLAKY = RECORDINGS / "run2-full/ami-flaky.raw.gz"
LINES = gzip.open(RECORDINGS / "run2-full/queue_log.gz").read().decode().splitlines()
CRASH = RECORDINGS / "run3-crash"
CRASH_LINES = gzip.open(CRASH / "queue_log-both-sides-of-restart.gz").read().decode().splitlines()
SECOND = timedelta(seconds=1)


def moment(text):
    return datetime.fromtimestamp(float(text), tz=UTC)


def recorded(path):
    """What the reader of a recording lived through: (when, "connect" | "disconnect" | block)."""
    reader = Blocks()
    at = None
    for line in gzip.open(path).read().decode().split("\r\n"):
        if line.startswith("# "):
            word, at = line[2:].split(" ")
            if word != "recv":
                yield moment(at), word
        for block in reader.feed(line.encode() + b"\r\n"):
            yield moment(at), block


STEPS = list(recorded(FLAKY))


class Truth:
    """Who was alive and who waited at any moment, from the feed that never broke."""

    def __init__(self):
        self.channels, self.entries = {}, {}
        self.blocks = [one for one in blocks(recorded_chunks(STEADY)) if "Timestamp" in one]
        self.next = 0

    def at(self, now):
        while self.next < len(self.blocks) and moment(self.blocks[self.next]["Timestamp"]) <= now:
            self._take(self.blocks[self.next])
            self.next += 1
        waiting = [
            {
                "Event": "QueueEntry",
                "Queue": queue,
                "Uniqueid": leg,
                "Position": str(place),
                "Wait": str(int((now - joined).total_seconds())),
            }
            for place, ((leg, queue), joined) in enumerate(self.entries.items(), 1)
        ]
        return waiting, dict(self.channels)

    def _take(self, block):
        entry = block.get("Uniqueid"), block.get("Queue")
        match block["Event"]:
            case "Newchannel":
                self.channels[block["Uniqueid"]] = block["Linkedid"]
            case "Hangup":
                self.channels.pop(block["Uniqueid"], None)
            case "QueueCallerJoin":
                self.entries[entry] = moment(block["Timestamp"])
            case "QueueCallerLeave":
                self.entries.pop(entry, None)


class Pair:
    """Both feeds of one PBX, wired as intake wires them; `told` is all that went out."""

    def __init__(self, truth=None):
        self.switch, self.log, self.reconciler = Switch("pbx"), QueueLog("pbx"), Reconciler("pbx")
        self.truth = truth
        self.down = False
        self.told = []

    def step(self, at, step):
        if isinstance(step, str) and step not in ("connect", "disconnect"):
            self._say(self.reconciler.durable(self.log.feed([step]), at))
            if self.down:
                self._say(self.reconciler.fast([], at))
        else:
            self.hear(self._manager(at, step), at)

    def _manager(self, at, step):
        match step:
            case "disconnect":
                self.switch.disconnected(at)
                self.down = True
                return []
            case "connect":
                self.down = False
                said = self.switch.reconnected(at)
                return said + self.switch.resync(*self.truth.at(at), at) if self.truth else said
            case _:
                return self.switch.feed(step)

    def hear(self, facts, at):
        self.told += facts
        self._say(self.reconciler.fast(facts, at))

    def end(self, at):
        self.hear(self.switch.settle(), at)
        self._say(self.reconciler.durable([], at))

    def _say(self, facts):
        self.told += facts
        for fact in facts:
            self.switch.learn(fact.body)


class Visit(NamedTuple):
    queue: str
    end: str = "-"
    wait_ms: int | None = None
    agent: str = ""
    talk_ms: int | None = None


def visits(facts, contact_of=None):
    """Each contact's visits as a reader of the topic comes to know them; `unknown` ranks below all else."""
    known = defaultdict(dict)
    entered = defaultdict(dict)
    for body in sorted(
        (fact.body for fact in facts if hasattr(fact.body, "visit")), key=lambda one: one.occurred_at
    ):
        call_id = (contact_of or {}).get(body.call_id, body.call_id)
        place = (body.queue, body.visit)
        before = known[call_id].get(place, Visit(body.queue))
        match body:
            case telephony.CallQueued():
                entered[call_id].setdefault(place, body.occurred_at)
                now = before
            case telephony.CallAnswered():
                now = before._replace(end="answered", wait_ms=body.wait_ms, agent=body.agent)
            case telephony.QueueLeft() if body.reason != "unknown" or before.end == "-":
                now = before._replace(end=body.reason, wait_ms=body.wait_ms)
            case telephony.TalkEnded():
                now = before._replace(talk_ms=body.talk_ms)
            case _:
                continue
        known[call_id][place] = now
    return {
        call_id: [
            of_call[place] for place in sorted(of_call, key=lambda one: entered[call_id].get(one, moment(0)))
        ]
        for call_id, of_call in known.items()
    }


@pytest.fixture(scope="module")
def steady():
    switch = Switch("pbx")
    facts = [fact for block in blocks(recorded_chunks(STEADY)) for fact in switch.feed(block)]
    return facts + switch.settle()


@pytest.fixture(scope="module")
def contact_of(steady):
    return {
        fact.body.leg_id: fact.body.call_id for fact in steady if isinstance(fact.body, telephony.CallQueued)
    }


@pytest.fixture(scope="module")
def by_log(contact_of):
    return visits(QueueLog("pbx").feed(LINES), contact_of)


def lines_with_times(lines, delay=timedelta(0)):
    return [(moment(line.split("|")[0]) + SECOND + delay, line) for line in lines]


def by_time(delay=timedelta(0)):
    return list(merge(STEPS, lines_with_times(LINES, delay), key=lambda step: step[0]))


ORDERS = {
    "by time": by_time(),
    "log 3 s late": by_time(timedelta(seconds=3)),
    "log a minute late": by_time(timedelta(seconds=60)),
    "log first": lines_with_times(LINES) + STEPS,
    "manager first": STEPS + lines_with_times(LINES),
}
END = moment("1795479800")


def lived(order, truth=None):
    pair = Pair(truth)
    for at, step in ORDERS[order]:
        pair.step(at, step)
    pair.end(END)
    return pair


def kinds(facts):
    return Counter(type(fact.body).__name__ for fact in facts)


def of(facts, kind):
    return [fact.body for fact in facts if isinstance(fact.body, kind)]


# ---------------------------------------------------------------- the recordings


def test_what_the_whole_manager_feed_tells_of_waits_talks_and_ends_equals_queue_log(steady, by_log):
    offered = Counter(body.call_id for body in of(steady, telephony.CallOffered))
    ended = Counter(body.call_id for body in of(steady, telephony.CallEnded))
    assert (len(offered), offered) == (72, ended)
    assert visits(steady) == by_log
    told = [visit for of_call in by_log.values() for visit in of_call]
    assert Counter(visit.end for visit in told) == {
        "answered": 50,
        "abandoned": 5,
        "key": 4,
        "timeout": 3,
        "withdrawn": 1,
    }
    assert all(visit.wait_ms is not None for visit in told)
    assert all((visit.talk_ms is not None) == (visit.end == "answered") for visit in told)


def test_whole_feeds_owe_each_other_nothing():
    pair = Pair()
    for at, step in merge(
        ((moment(one["Timestamp"]), one) for one in blocks(recorded_chunks(STEADY)) if "Timestamp" in one),
        lines_with_times(LINES),
        key=lambda step: step[0],
    ):
        pair.step(at, step)
    pair.end(END)
    status = pair.reconciler.status(END)
    assert (status.paired, status.corrected, status.let_go) == (201, 0, 0)
    assert [one.count for one in owed(status)] == [0, 0, 0, 0]
    assert (status.fast_behind_ms, status.durable_behind_ms) == (0, 0)


def owed(status):
    return status.late_in_fast, status.lost_in_fast, status.late_in_durable, status.lost_in_durable


def test_the_manager_feed_with_holes_alone_tells_some_visits_wrongly(by_log):
    alone = Switch("pbx")
    facts = [fact for _, step in STEPS if not isinstance(step, str) for fact in alone.feed(step)]
    known = visits(facts + alone.settle())
    assert len([call_id for call_id in by_log if known.get(call_id) != by_log[call_id]]) == 8


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("asks", [True, False], ids=["with resync", "without resync"])
def test_the_feed_with_holes_and_the_log_together_tell_every_visit_exactly(order, asks, by_log):
    pair = lived(order, Truth() if asks else None)
    assert visits(pair.told) == by_log
    assert len({fact.key for fact in pair.told}) == len(pair.told)
    numbers = [(body.call_id, body.visit) for body in of(pair.told, telephony.CallQueued)]
    assert len(numbers) == len(set(numbers)) == 63


@pytest.mark.parametrize("order", ORDERS)
def test_what_the_manager_feed_lost_is_named_and_lies_in_a_named_gap(order):
    pair = lived(order, Truth())
    status = pair.reconciler.status(END)
    gaps = [body for body in of(pair.told, telephony.SourceInterrupted) if body.reason == "disconnected"]
    assert len(gaps) == 5
    lost = status.lost_in_fast
    assert lost.count == len(lost.named) > 0
    assert all(missing.in_gap for missing in lost.named)
    assert [one.count for one in (status.late_in_fast, status.late_in_durable, status.lost_in_durable)] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_with_an_answer_to_who_is_there_every_call_ends_once_although_hang_ups_were_lost(order):
    told = lived(order, Truth()).told
    ended = Counter(body.call_id for body in of(told, telephony.CallEnded))
    assert ended == Counter(body.call_id for body in of(told, telephony.CallOffered))
    assert len(ended) == 72
    causes = Counter(body.cause for body in of(told, telephony.CallEnded))
    assert causes["ended_during_gap"] == 10


@pytest.mark.parametrize("by_uptime", [True, False], ids=["AMI comes back", "the log alone"])
def test_a_killed_switch_ends_three_talks_and_three_waits_once(by_uptime):
    pair = Pair()
    for block in blocks(recorded_chunks(CRASH / "ami-steady.raw.gz")):
        if "Timestamp" in block:
            pair.step(moment(block["Timestamp"]), block)
    pair.step(moment("1795479808.5"), "disconnect")
    for at, line in lines_with_times(CRASH_LINES):
        pair.step(at, line)
        if by_uptime and "QUEUESTART" in line:
            pair.step(moment("1795479813"), "connect")
            pair.hear(pair.switch.feed({"Event": "FullyBooted", "Uptime": "2"}), moment("1795479813"))
            pair.step(moment("1795479813.1"), "disconnect")
    pair.end(END + 100 * SECOND)
    ended = of(pair.told, telephony.CallEnded)
    restarted = [body.call_id for body in ended if body.cause == "source_restarted"]
    assert len(restarted) == len(set(restarted)) == 6
    assert Counter(body.call_id for body in ended) == Counter(
        body.call_id for body in of(pair.told, telephony.CallOffered)
    )
    assert sum(body.reason == "source_restarted" for body in of(pair.told, telephony.SourceInterrupted)) == 1
    unknown = [body.call_id for body in of(pair.told, telephony.QueueLeft) if body.reason == "unknown"]
    assert len(unknown) == len(set(unknown) & set(restarted)) == 3
    after = [body for body in of(pair.told, telephony.CallQueued) if body.occurred_at > moment("1795479811")]
    assert {body.call_id for body in after} == {
        line.split("|")[1] for line in CRASH_LINES if "ENTERQUEUE" in line and line > "1795479811"
    }
    assert pair.switch.open_calls == len(after)  # nobody has told that these ended


# ---------------------------------------------------------------- one fact at a time

T = moment("1795479600")
CALL = {"call_id": "1795479590.1", "source": "pbx", "leg_id": "1795479590.2", "queue": "cards"}


def fast(kind, after=0.0, visit=1, key=None, **fields):
    at = T + after * SECOND
    body = kind(**{**CALL, "visit": visit, "occurred_at": at, **fields})
    return Mapped(key or f"ami|{kind.__name__}|{after}", body)


def durable(kind, after=0, visit=1, **fields):
    return fast(
        kind,
        after,
        visit,
        key=f"log|{kind.__name__}|{after}|{visit}",
        **{"call_id": CALL["leg_id"], **fields},
    )


def test_what_only_the_log_has_is_told_when_the_fast_feed_is_past_it_and_not_before():
    reconciler = Reconciler("pbx")
    reconciler.fast([fast(telephony.CallQueued)], T)
    answered = durable(telephony.CallAnswered, 4, agent="Agent/1", wait_ms=4000)
    assert reconciler.durable([durable(telephony.CallQueued), answered], T + 60 * SECOND) == []
    assert reconciler.fast([], T + 8.9 * SECOND) == []
    late = reconciler.status(T + 9 * SECOND)
    assert [(missing.kind, missing.call_id) for missing in late.late_in_fast.named] == [
        ("answered", CALL["call_id"])
    ]
    assert late.late_in_fast.oldest_at == T + 4 * SECOND
    (told,) = reconciler.fast([], T + 9 * SECOND)
    assert told.key == answered.key
    assert (told.body.call_id, told.body.visit, told.body.wait_ms) == (CALL["call_id"], 1, 4000)
    status = reconciler.status(T + 10 * SECOND)
    assert [one.count for one in owed(status)] == [0, 1, 0, 0]
    assert (status.lost_in_fast.named[0].in_gap, status.fast_behind_ms) == (False, 1000)


def test_a_line_is_late_while_the_log_is_behind_and_lost_once_it_has_been_read_past():
    reconciler = Reconciler("pbx")
    reconciler.fast([fast(telephony.CallQueued)], T + 3600 * SECOND)
    assert [one.count for one in owed(reconciler.status(T))] == [0, 0, 1, 0]
    assert reconciler.status(T).durable_behind_ms is None
    reconciler.durable([], T + 4.9 * SECOND)
    assert [one.count for one in owed(reconciler.status(T))] == [0, 0, 1, 0]
    reconciler.durable([], T + 5 * SECOND)
    status = reconciler.status(T + 65 * SECOND)
    assert [one.count for one in owed(status)] == [0, 0, 0, 1]
    assert (status.lost_in_durable.named[0].key, status.durable_behind_ms) == ("ami|CallQueued|0.0", 60_000)


def test_a_line_that_comes_after_all_is_no_longer_lost():
    reconciler = Reconciler("pbx")
    reconciler.fast([fast(telephony.CallQueued)], T)
    reconciler.durable([], T + 60 * SECOND)
    assert reconciler.durable([durable(telephony.CallQueued)], T + 61 * SECOND) == []
    assert [one.count for one in owed(reconciler.status(T))] == [0, 0, 0, 0]
    reconciler = Reconciler("pbx")
    reconciler.durable([durable(telephony.CallQueued)], T)
    assert len(reconciler.fast([], T + 5 * SECOND)) == 1
    assert reconciler.fast([fast(telephony.CallQueued, 0.5)], T + 6 * SECOND) == []
    assert [one.count for one in owed(reconciler.status(T))] == [0, 0, 0, 0]


def test_the_same_line_read_twice_is_one_fact():
    reconciler = Reconciler("pbx")
    line = durable(telephony.CallQueued)
    reconciler.durable([line], T)
    assert len(reconciler.fast([], T + 5 * SECOND)) == 1
    assert reconciler.durable([line], T + 60 * SECOND) == []
    assert reconciler.fast([], T + 60 * SECOND) == []
    assert reconciler.status(T).lost_in_fast.count == 1


@pytest.mark.parametrize("log_first", [True, False])
def test_a_reason_that_the_fast_feed_did_not_know_is_corrected_under_its_visit(log_first):
    reconciler = Reconciler("pbx")
    seen = [
        fast(telephony.CallQueued, visit=1021),
        fast(telephony.QueueLeft, 30, visit=1021, reason="unknown"),
    ]
    lines = [
        durable(telephony.CallQueued),
        durable(telephony.QueueLeft, 12, reason="abandoned", wait_ms=12_000),
    ]
    if log_first:
        told = reconciler.durable(lines, T) + reconciler.fast(seen, T + 40 * SECOND)
    else:
        told = reconciler.fast(seen, T + 40 * SECOND) + reconciler.durable(lines, T + 40 * SECOND)
    assert [(fact.body.reason, fact.body.visit, fact.body.wait_ms) for fact in told] == [
        ("abandoned", 1021, 12_000)
    ]
    assert reconciler.status(T + 60 * SECOND).lost_in_durable.count == 0


def test_a_wrong_reason_is_corrected_at_once():
    reconciler = Reconciler("pbx")
    reconciler.fast([fast(telephony.QueueLeft, 12.4, reason="abandoned", wait_ms=12_000)], T)
    (told,) = reconciler.durable([durable(telephony.QueueLeft, 12, reason="timeout", wait_ms=12_000)], T)
    assert (told.body.reason, told.body.call_id) == ("timeout", CALL["call_id"])
    assert reconciler.status(T).corrected == 1


def test_pairs_are_found_by_time_not_by_number():
    reconciler = Reconciler("pbx")
    reconciler.fast([fast(telephony.CallQueued, 60.3, visit=1)], T + 61 * SECOND)
    lines = [durable(telephony.CallQueued, 0, 1), durable(telephony.CallQueued, 60, 2)]
    (missed,) = reconciler.durable(lines, T + 61 * SECOND)
    assert missed.key == lines[0].key
    assert missed.body.visit == reconcile.ASIDE + 1  # 1 is the number of another visit
    (answered,) = reconciler.durable(
        [durable(telephony.CallAnswered, 70, 2, agent="A", wait_ms=1)], T + 80 * SECOND
    ) or (reconciler.fast([], T + 80 * SECOND))
    assert answered.body.visit == 1


def test_of_two_agents_tried_at_once_the_one_that_was_missed_is_told():
    reconciler = Reconciler("pbx")
    tried = {"result": "no_answer", "ring_ms": 0}
    reconciler.fast([fast(telephony.AgentOffered, 9.5, agent="Agent/2", **tried)], T)
    one, two = (durable(telephony.AgentOffered, 9, agent=agent, **tried) for agent in ("Agent/1", "Agent/2"))
    reconciler.durable([Mapped("log|one", one.body), Mapped("log|two", two.body)], T)
    assert [fact.key for fact in reconciler.fast([], T + 60 * SECOND)] == ["log|one"]


def test_a_refused_caller_is_expected_in_no_log():
    reconciler = Reconciler("pbx")
    refused = telephony.CallRefused(**CALL, occurred_at=T, reason="full")
    reconciler.fast([Mapped("ami|refused", refused)], T)
    reconciler.durable([], T + 3600 * SECOND)
    assert [one.count for one in owed(reconciler.status(T))] == [0, 0, 0, 0]


def test_a_call_that_the_fast_feed_never_met_is_told_under_its_channel():
    reconciler = Reconciler("pbx")
    reconciler.durable([durable(telephony.CallQueued)], T)
    (told,) = reconciler.fast([], T + 5 * SECOND)
    assert told.body.call_id == CALL["leg_id"]


def test_memory_is_bounded_and_what_is_let_go_is_counted(monkeypatch):
    monkeypatch.setattr(reconcile, "MAX_LEGS", 10)
    reconciler = Reconciler("pbx")
    for number in range(30):
        other = {"leg_id": f"1795479590.{number}", "call_id": f"1795479590.{number}"}
        reconciler.fast([fast(telephony.CallQueued, number, **other)], T)
    status = reconciler.status(T)
    assert (status.late_in_durable.count, status.let_go) == (10, 20)
    assert (len(reconciler._legs), len(reconciler._contacts)) == (10, 10)


def test_a_loss_is_shown_for_a_day():
    reconciler = Reconciler("pbx")
    reconciler.fast([fast(telephony.CallQueued)], T)
    reconciler.durable([], T + reconcile.KEEP)
    assert reconciler.status(T).lost_in_durable.count == 1
    reconciler.durable([], T + reconcile.KEEP + SECOND)
    assert reconciler.status(T).lost_in_durable.count == 0


BEFORE_CRASH = QueueLog("pbx").feed(line for line in CRASH_LINES if line < "1795479809")
SEEN = [
    fact
    for fact in replay(CRASH / "ami-steady.raw.gz", "pbx")
    if type(fact.body) in reconcile._KINDS and getattr(fact.body, "result", "") != "ringing"
    if not isinstance(fact.body, telephony.CallEnded)
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=len(SEEN), max_size=len(SEEN)), st.integers(0, 20), st.booleans())
def test_whatever_the_fast_feed_misses_every_line_is_paired_or_told_once(heard, delay, log_first):
    """Any facts lost by the manager feed, any delay of the log: the topic has each fact of the log once."""
    assert len(SEEN) == len(BEFORE_CRASH) == 23
    steps = [(fact.body.occurred_at, False, fact) for fact, keep in zip(SEEN, heard, strict=True) if keep]
    steps += [(fact.body.occurred_at + delay * SECOND, True, fact) for fact in BEFORE_CRASH]
    reconciler, told = Reconciler("pbx"), []
    for at, is_line, fact in sorted(steps, key=lambda step: (log_first and not step[1], step[0])):
        told += reconciler.durable([fact], at) if is_line else reconciler.fast([fact], at)
    end = moment("1795479900")
    told += reconciler.fast([], end) + reconciler.durable([], end)
    status = reconciler.status(end)
    assert (status.paired, len(told)) == (sum(heard), 23 - sum(heard))
    assert len({fact.key for fact in told} & {fact.key for fact in BEFORE_CRASH}) == len(told)
    assert [one.count for one in owed(status)] == [0, len(told), 0, 0]

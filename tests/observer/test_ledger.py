"""The ledger's awkward cases, one by one: what is read in which order, what is committed, what is then proved."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations
from types import SimpleNamespace
from uuid import UUID

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.protocol.metadata import MetadataResponse_v1

from bench.ledger import opened
from chassis.kafka import Connection, Offsets
from chassis.message import Writer, time_header
from chassis.transport import Place
from observer.barrier import Barrier, Barriers
from observer.contract import CLOCKS_APART_MS, contract_of
from observer.deferred import Deferred
from observer.headers import Said, key_of, read_said, shown, time_ms
from observer.ledger import UPSTREAM, Ledger, State
from observer.sequences import MANY, UNPROVED_WAIT_MS, Sequences
from schemas.feedback import CommandRefused
from tests.observer.simulation import Rule, Store

RECORDED, ROUTED = "intake.case-recorded.v1", "router.case-routed.v1"
DELIVERED, ASSIGNED, ACCEPTED = (
    "resolver.case-delivered.v1",
    "resolver.case-assigned.v1",
    "resolver.case-accepted.v1",
)
ESCALATED, RESOLVED = "resolver.case-escalated.v1", "resolver.case-resolved.v1"
ENDED, LATE = "telephony.call-ended.v1", "intake.recording-overdue.v1"
BEGIN_MS = 1_790_000_000_000
MINUTE_MS = 60_000
WITHIN_MS = 10 * MINUTE_MS


class Bench:
    """A log, the groups' commits, and the observer's rooms; everything that a test says is read at once."""

    def __init__(self, *, from_the_beginning: bool = False) -> None:
        self.contract = contract_of()
        self.store = Store(guarded=True)
        self.rule = Rule()
        self.now_ms = BEGIN_MS
        self.highs: dict[Place, int] = {}
        self.commits: dict[str, dict[Place, int]] = {}
        self.starts: dict[Place, int] = {}
        self.ids = 0
        self.from_the_beginning = from_the_beginning
        self.start()

    def start(self) -> None:
        """Begin, or begin again after a kill: only what was stored is known."""
        self.ledger = Ledger(self.contract)
        self.sequences = Sequences(self.contract, self.ledger, "telephony.calls")
        self.sequences.from_the_beginning = self.from_the_beginning
        self.deferred = Deferred(self.contract, self.ledger)
        self.barriers = Barriers()
        self.positions: dict[Place, int] = {}
        self.last: dict[Place, int] = {}
        self.store.restore(self)

    # ------------------------------------------------------------ the log

    def writes(self, topic, wire, *, by="", cause=b"", part=(1, 1), number=0, **more) -> tuple[Place, Said]:
        """Append a record that is not read yet."""
        place = Place(topic, more.get("partition", 0))
        offset = self.highs.get(place, 0)
        self.highs[place] = offset + 1
        self.ids += 1
        uid = more.get("uid", b"%08x-0000-7000-8000-%012x" % (1, self.ids))
        subject = more.get("subject", "case-1").encode()
        source = f"/hotline/{by}".encode() if by else b"/pbx"
        at = time_header(datetime.fromtimestamp(self.now_ms / 1000, tz=UTC))
        said = Said(
            offset, self.now_ms, uid, wire.encode(), source, cause, *part, number, subject, at, subject
        )
        return place, said

    def reads(self, record: tuple[Place, Said]) -> bytes:
        """Read a record as the observer's desk does; gives its id."""
        place, said = record
        self._pass(place, said)
        self.ledger.take(place, said)
        self.sequences.take(place, said)
        self.deferred.take(place, said)
        return said.event_id

    def says(self, topic, wire, **more) -> bytes:
        """Append a record and read it; gives its id."""
        return self.reads(self.writes(topic, wire, **more))

    def _pass(self, place: Place, said: Said) -> None:
        self.positions[place] = said.offset + 1
        self.last[place] = said.offset + 1

    def letter(self, group, about: tuple[Place, Said], *, named=False, reused=False):
        """A dead letter, ready to be read: most letters name only the place."""
        place, said = about
        cause = said.event_id if named else f"{place.topic}/{place.partition}/{said.offset}".encode()
        at, letter = self.writes(f"{group}.dead", "ops.letter-died.v1", by=group, cause=cause)

        def read() -> None:
            self._pass(at, letter)
            take = self.ledger.take_reuse if reused else self.ledger.take_letter
            take(group, (place, said.offset), letter)

        return read

    def receipt(self, group, *names: bytes) -> None:
        """A stage's word that nothing follows."""
        place, said = self.writes("ops.receipts", "ops.receipts-given.v1", by=group)
        self._pass(place, said)
        self.ledger.take_receipts(group, [name.decode() for name in names], place, said)

    def watermark(self, stage, *, through, sent=None, said=None) -> None:
        """A stage's word about its timers and its outbox, in milliseconds after the beginning."""
        through, sent, said = (BEGIN_MS + (at if at is not None else through) for at in (through, sent, said))
        self.deferred.watermark(stage, through, sent, said)

    # ------------------------------------------------------------ groups and verdicts

    def commits_all(self, group) -> None:
        """The group commits everything that there is on the topics that it reads."""
        for place, high in self.highs.items():
            if place.topic in self.contract.reads[group]:
                self.commits.setdefault(group, {})[place] = high

    def judges(self, passes: int = 3) -> list[tuple[bytes, str, State, str]]:
        """Let the observer judge; gives the new verdicts."""
        before = len(self.store.verdicts)
        for _ in range(passes):
            self._judge()
        return self.store.verdicts[before:]

    def _judge(self) -> None:
        for group in self.contract.groups:
            commits = dict(self.commits.get(group, {}))
            barrier = self.ledger.commit(group, commits)
            self.barriers.committed(group, commits, self.positions, self.last)
            if barrier is not None:
                self.barriers.raise_(barrier, self.now_ms)
        for barrier in (
            *self.ledger.effects_without_cause(),
            *self.sequences.barriers(self.now_ms),
            *self.deferred.barriers(),
            *self._deleted(),
        ):
            self.barriers.raise_(barrier, self.now_ms)
        wanted = self.barriers.wants
        ends = {place: high for place, high in self.highs.items() if place.topic in wanted}
        self.barriers.ends(ends, self.now_ms, wanted)
        candidates = []
        self.deferred.tick(self.now_ms)
        for barrier in self.barriers.passed(self.positions, self.now_ms):
            for room in (self.ledger, self.sequences, self.deferred):
                candidates += room.judge(barrier)
        self.settle(candidates)

    def _deleted(self):
        found = [self.ledger.expired(group, self.starts) for group in self.contract.groups]
        return [barrier for barrier in found if barrier is not None]

    def settle(self, candidates) -> None:
        """Store a pass, and let the verdicts stand that nothing stored contradicts."""
        standing = set(map(id, self.store.write(self, candidates)))
        for verdict in candidates:
            if id(verdict) in standing:
                self.ledger.apply(verdict)
            else:
                self.ledger.known_before(verdict)

    def state(self, name: bytes, group: str = "router") -> State | None:
        """How a handoff stands in the store."""
        row = self.store.rows.get((key_of(name), group))
        return None if row is None else row.state

    def in_time(
        self,
        name: bytes = b"call-1",
        edge: str = "telephony.call-ended→intake in time",
        stage: str = "intake",
    ):
        """How a deferred handoff stands in the store, by what obliges: a call that has ended, or an event."""
        return self.state(name + b"@" + edge.encode(), stage)

    def states_in_time(self) -> set[State]:
        """How all deferred handoffs stand in the store."""
        return {row.state for row in self.store.rows.values() if row.due_ms}


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ------------------------------------------------------------------ dropped, late, answered


def test_what_is_committed_and_not_answered_is_dropped_with_its_evidence(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.commits_all("router")
    assert bench.judges() == [(key_of(event), "router", State.DROPPED, "")]


def test_an_answer_that_is_not_read_yet_keeps_the_verdict_waiting(bench):
    event = bench.says("intake.cases", RECORDED)
    answer = bench.writes("router.cases", ROUTED, by="router", cause=event)
    bench.commits_all("router")
    assert not bench.judges()
    bench.reads(answer)
    assert not bench.judges()
    assert bench.state(event) is State.DISCHARGED


def test_what_is_not_committed_is_late_however_long_it_takes(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.now_ms += 100 * 24 * 60 * MINUTE_MS
    assert not bench.judges(20)
    assert bench.state(event) is State.OPEN
    assert bench.ledger.open_by_edge() == {"intake.case-recorded→router": (1, BEGIN_MS)}


def test_a_receipt_closes_what_rightly_brought_about_nothing(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.receipt("router", event)
    bench.commits_all("router")
    assert not bench.judges()
    assert bench.state(event) is State.CLOSED


def test_an_answer_by_another_group_answers_nothing(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.says("feedback.cases", "feedback.case-opened.v1", by="feedback", cause=event)
    bench.commits_all("router")
    assert (key_of(event), "router", State.DROPPED, "") in bench.judges()


def test_a_wrong_cause_is_one_dropped_and_one_orphan_side_by_side(bench):
    event = bench.says("intake.cases", RECORDED)
    never = b"00000009-0000-7000-8000-000000000009"
    bench.says("router.cases", ROUTED, by="router", cause=never)
    bench.commits_all("router")
    found = {(key, state) for key, _, state, _ in bench.judges()}
    assert found == {(key_of(event), State.DROPPED), (key_of(never), State.ORPHAN)}


def test_an_orphan_is_one_only_when_all_that_its_writer_reads_was_read(bench):
    event = bench.writes("intake.cases", RECORDED)
    bench.says("router.cases", ROUTED, by="router", cause=event[1].event_id)
    assert not bench.judges(10)
    bench.reads(event)
    assert not bench.judges(10)
    assert bench.state(event[1].event_id) is State.DISCHARGED


def test_the_canary_is_dropped_within_a_pass_of_its_commit(bench):
    song = bench.says("ops.canary", "ops.canary-sung.v1", by="observer")
    bench.commits_all("canary")
    assert [(key, group) for key, group, _, _ in bench.judges(1)] == [(key_of(song), "canary")]


# ------------------------------------------------------------------ fan-out


def test_one_lost_output_of_two_is_named_by_its_number(bench):
    event = bench.says("router.cases", ROUTED)
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event, part=(1, 2))
    bench.commits_all("resolver")
    assert bench.judges() == [(key_of(event), "resolver", State.PARTIAL, "parts [2] of 2 are missing")]


def test_a_partial_fan_out_goes_on_after_a_restart(bench):
    event = bench.says("router.cases", ROUTED)
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event, part=(1, 2))
    bench.judges()
    bench.start()
    bench.says("departments.cards", ASSIGNED, by="resolver", cause=event, part=(2, 2))
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DISCHARGED


def test_half_an_answer_that_is_read_before_its_cause_survives_a_restart(bench):
    event = bench.writes("router.cases", ROUTED)
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event[1].event_id, part=(1, 2))
    bench.judges()
    bench.start()
    bench.reads(event)
    bench.commits_all("resolver")
    assert [note for _, _, _, note in bench.judges()] == ["parts [2] of 2 are missing"]


def test_a_dropped_fan_out_recovers_part_by_part_even_over_a_restart(bench):
    event = bench.says("router.cases", ROUTED)
    bench.commits_all("resolver")
    assert [state for _, _, state, _ in bench.judges()] == [State.DROPPED]
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event, part=(1, 2))
    bench.judges()
    assert bench.state(event, "resolver") is State.DROPPED
    bench.start()
    bench.says("departments.cards", ASSIGNED, by="resolver", cause=event, part=(2, 2))
    bench.judges()
    assert bench.state(event, "resolver") is State.RECOVERED


# ------------------------------------------------------------------ copies


def test_a_copy_of_what_was_answered_long_ago_is_looked_up_and_forgotten(bench):
    first = bench.writes("intake.cases", RECORDED)
    event = bench.reads(first)
    bench.says("router.cases", ROUTED, by="router", cause=event)
    bench.judges()
    bench.says("intake.cases", RECORDED, uid=event)
    bench.commits_all("router")
    assert not bench.judges()
    assert bench.state(event) is State.DISCHARGED
    assert "intake.case-recorded→router" not in bench.ledger.open_by_edge()


@pytest.mark.parametrize("restarts", [False, True])
def test_a_copy_of_an_answer_is_no_orphan(bench, restarts):
    event = bench.says("intake.cases", RECORDED)
    bench.says("router.cases", ROUTED, by="router", cause=event)
    bench.judges()
    if restarts:
        bench.start()
    bench.says("router.cases", ROUTED, by="router", cause=event)
    assert not bench.judges()
    assert bench.state(event) is State.DISCHARGED


@pytest.mark.parametrize("receipt_first", [True, False])
def test_what_is_closed_and_comes_to_something_later_is_looked_up_nowhere(bench, receipt_first):
    place, said = bench.writes("telephony.calls", ENDED, subject="call-1")
    event = bench.reads((place, said))
    steps = [
        lambda: bench.receipt("intake", event),
        lambda: bench.says("intake.cases", RECORDED, by="intake", cause=event, subject="call-1"),
    ]
    for step in steps if receipt_first else reversed(steps):
        step()
    assert not list(bench.ledger.effects_without_cause())
    assert bench.ledger.drain().early == []


def test_what_ended_long_ago_is_forgotten_in_its_turn(bench, monkeypatch):
    monkeypatch.setattr("observer.ledger._ENDED_KEPT", 2)
    events = [bench.says("intake.cases", RECORDED) for _ in range(3)]
    for event in events:
        bench.says("router.cases", ROUTED, by="router", cause=event)
    for event in events:
        bench.says("router.cases", ROUTED, by="router", cause=event)
    (barrier,) = bench.ledger.effects_without_cause()
    assert [suspect.key for suspect in barrier.suspects] == [key_of(events[0])]


def test_a_copy_of_the_cause_and_half_a_copy_of_the_answer_take_nothing_back(bench):
    event = bench.says("router.cases", ROUTED)
    for topic, part in (("resolver.cases", (1, 2)), ("departments.cards", (2, 2))):
        bench.says(topic, DELIVERED, by="resolver", cause=event, part=part)
    bench.judges()
    bench.says("router.cases", ROUTED, uid=event)
    bench.judges()
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event, part=(1, 2))
    bench.judges()
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DISCHARGED


# ------------------------------------------------------------------ dead letters


def test_a_letter_without_an_id_finds_its_record_by_place(bench):
    record = bench.writes("departments.commands", "department.acceptance-requested.v1")
    event = bench.reads(record)
    bench.letter("resolver", record)()
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DEAD_LETTERED


def test_a_letter_that_is_read_before_its_record_waits_for_it(bench):
    record = bench.writes("departments.commands", "department.acceptance-requested.v1")
    bench.letter("resolver", record)()
    assert not bench.judges()
    event = bench.reads(record)
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DEAD_LETTERED


def test_a_letter_that_is_read_after_the_commit_was_seen_is_no_loss(bench):
    record = bench.writes("departments.commands", "department.acceptance-requested.v1")
    event = bench.reads(record)
    letter = bench.letter("resolver", record)
    bench.commits_all("resolver")
    assert not bench.judges()
    letter()
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DEAD_LETTERED


def test_a_letter_about_a_record_that_the_contract_does_not_know_is_named(bench):
    record = bench.writes("departments.commands", "nobody.knows-this", uid=b"")
    bench.reads(record)
    bench.letter("resolver", record)()
    bench.commits_all("resolver")
    [(key, group, state, note)] = bench.judges()
    assert (key, group, state) == (key_of(b"departments.commands/0/0"), "resolver", State.DEAD_LETTERED)
    assert "unknown" in note


@pytest.mark.parametrize("order", list(permutations(("answer", "copy", "letter"))), ids=" ".join)
@pytest.mark.parametrize("restarts", [False, True])
def test_other_content_under_a_used_id_is_a_dead_letter_of_its_own(bench, order, restarts):
    event = bench.says("router.cases", ROUTED)
    copy = bench.writes("router.cases", ROUTED, uid=event)
    steps = {
        "answer": lambda: bench.says("resolver.cases", DELIVERED, by="resolver", cause=event),
        "copy": lambda: bench.reads(copy),
        "letter": bench.letter("resolver", copy, named=True, reused=True),
    }
    for step in order:
        steps[step]()
        bench.judges()
        if restarts:
            bench.start()
    bench.commits_all("resolver")
    bench.judges()
    assert bench.state(event, "resolver") is State.DISCHARGED
    assert bench.state(b"router.cases/0/1 under a used id", "resolver") is State.DEAD_LETTERED
    assert [handoff.offset for handoff in bench.ledger.watched()] == [1]


def test_a_dead_letter_that_is_sent_again_and_answered_has_recovered(bench):
    record = bench.writes("departments.commands", "department.acceptance-requested.v1")
    event = bench.reads(record)
    bench.letter("resolver", record)()
    bench.judges()
    bench.says("departments.commands", "department.acceptance-requested.v1", uid=event)
    bench.says("resolver.cases", ACCEPTED, by="resolver", cause=event)
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.RECOVERED
    assert bench.ledger.after_commit["resolver"] == 0


@pytest.mark.parametrize("letter_first", [False, True])
def test_a_dead_letter_that_dies_again_at_another_place_is_still_one(bench, letter_first):
    record = bench.writes("departments.commands", "department.acceptance-requested.v1")
    event = bench.reads(record)
    bench.letter("resolver", record)()
    bench.judges()
    copy = bench.writes("departments.commands", "department.acceptance-requested.v1", uid=event, partition=1)
    steps = [lambda: bench.reads(copy), bench.letter("resolver", copy)]
    for step in reversed(steps) if letter_first else steps:
        step()
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DEAD_LETTERED
    assert len(bench.store.rows) == 1


def test_a_letter_about_a_record_is_not_about_the_number_whose_want_that_record_showed(bench):
    bench.says("router.cases", ROUTED, by="router", number=1)
    record = bench.writes("router.cases", "nobody.knows-this", by="router", uid=b"", number=3)
    bench.reads(record)
    bench.commits_all("router")
    bench.judges()
    assert bench.state(b"case-1#2") is State.SEQUENCE_GAP
    bench.letter("router", record)()
    bench.judges()
    assert bench.state(b"case-1#2") is State.SEQUENCE_GAP
    assert bench.state(b"router.cases/0/1") is State.DEAD_LETTERED


def test_many_letters_cost_as_much_each_as_few(bench):
    """What is watched already is looked up, not walked through."""
    group = bench.ledger._groups["resolver"]
    for _ in range(3):
        record = bench.writes("departments.commands", "nobody.knows-this", uid=b"")
        bench.reads(record)
        bench.letter("resolver", record)()
    assert len(bench.judges()) == 3

    class Looked(dict):
        def __iter__(self):
            raise AssertionError("walked through all that is watched")

        values = items = keys = __iter__

    group.watched, group.watched_at = Looked(group.watched), Looked(group.watched_at)
    bench.letter("resolver", bench.writes("departments.commands", "nobody.knows-this", uid=b""))()
    again = Place("departments.commands", 0), SimpleNamespace(offset=1, event_id=b"")
    bench.letter("resolver", again)()
    assert len(group.early) == 1, "the second is about what is watched already"


def test_half_an_answer_does_not_mend_a_dead_letter_that_was_read_first(bench):
    record = bench.writes("router.cases", ROUTED)
    bench.letter("resolver", record)()
    event = bench.reads(record)
    bench.says("router.cases", ROUTED, uid=event)
    bench.says("departments.cards", ASSIGNED, by="resolver", cause=event, part=(2, 2))
    bench.judges()
    assert bench.state(event, "resolver") is State.DEAD_LETTERED
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event, part=(1, 2))
    bench.judges()
    assert bench.state(event, "resolver") is State.RECOVERED


@pytest.mark.parametrize("named", [False, True])
def test_a_letter_and_the_answer_after_it_may_both_be_read_before_the_cause(bench, named):
    record = bench.writes("router.cases", ROUTED)
    event = record[1].event_id
    bench.letter("resolver", record, named=named)()
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event)
    bench.judges()
    bench.reads(record)
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DISCHARGED


def test_a_letter_that_is_read_after_the_answer_to_the_copy_kills_nothing(bench):
    record = bench.writes("router.cases", ROUTED)
    event = bench.reads(record)
    letter = bench.letter("resolver", record)
    bench.says("resolver.cases", DELIVERED, by="resolver", cause=event)
    letter()
    bench.commits_all("resolver")
    assert not bench.judges()
    assert bench.state(event, "resolver") is State.DISCHARGED


# ------------------------------------------------------------------ commits


def test_a_rewind_takes_nothing_back_and_later_effects_recover(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.commits_all("router")
    bench.judges()
    bench.commits["router"][Place("intake.cases", 0)] = 0
    assert not bench.judges()
    assert bench.state(event) is State.DROPPED
    bench.says("router.cases", ROUTED, by="router", cause=event)
    bench.judges()
    assert bench.state(event) is State.RECOVERED


def test_a_group_that_has_never_committed_is_only_late(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.commits["router"] = {}
    assert not bench.judges()
    assert bench.state(event) is State.OPEN


def test_what_was_committed_is_judged_although_the_offsets_have_expired_since(bench):
    record = bench.writes("intake.cases", RECORDED)
    bench.commits_all("router")
    bench.judges()
    bench.commits["router"] = {}
    event = bench.reads(record)
    assert [state for _, _, state, _ in bench.judges()] == [State.DROPPED]
    assert bench.state(event) is State.DROPPED


def test_commits_are_restored_so_a_restart_judges_what_was_suspected(bench):
    event = bench.says("intake.cases", RECORDED)
    unread = bench.writes("router.cases", ROUTED, by="router", cause=b"something else")
    bench.commits_all("router")
    bench.judges()
    bench.start()
    bench.commits["router"] = {}
    bench.reads(unread)
    assert (key_of(event), "router", State.DROPPED, "") in bench.judges()


def test_an_effect_after_the_commit_recovers_and_shows_that_the_discipline_is_broken(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.commits_all("router")
    bench.judges()
    bench.says("router.cases", ROUTED, by="router", cause=event)
    bench.judges()
    assert bench.state(event) is State.RECOVERED
    assert bench.ledger.after_commit["router"] == 1


def test_an_effect_after_a_redrive_says_nothing_about_the_discipline(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.commits_all("router")
    bench.judges()
    bench.says("intake.cases", RECORDED, uid=event)
    bench.says("router.cases", ROUTED, by="router", cause=event)
    bench.judges()
    assert bench.state(event) is State.RECOVERED
    assert bench.ledger.after_commit["router"] == 0


def test_waiving_ends_what_is_lost_and_a_late_effect_does_not_bring_it_back(bench):
    event = bench.says("intake.cases", RECORDED)
    assert not bench.ledger.waive("router", key_of(event), 1), "what is open is not lost"
    bench.commits_all("router")
    bench.judges()
    assert bench.ledger.waive("router", key_of(event), bench.now_ms)
    bench.judges()
    assert bench.state(event) is State.WAIVED
    bench.says("router.cases", ROUTED, by="router", cause=event)
    assert not bench.judges()
    assert bench.state(event) is State.WAIVED
    assert not bench.ledger.waive("nobody", key_of(event), 1)


# ------------------------------------------------------------------ retention and topics made anew


def test_what_retention_deletes_before_it_is_read_has_expired_and_what_is_committed_has_not(bench):
    committed, deleted, kept = (bench.says("intake.cases", RECORDED) for _ in range(3))
    place = Place("intake.cases", 0)
    bench.commits["router"] = {place: 1}
    bench.says("router.cases", ROUTED, by="router", cause=committed)
    bench.judges()
    bench.starts[place] = 2
    [(key, _, state, note)] = bench.judges()
    assert (key, state, note) == (
        key_of(deleted),
        State.EXPIRED_UNREAD,
        "the log was deleted up to here before the group read it",
    )
    assert bench.state(committed) is State.DISCHARGED
    assert bench.state(kept) is State.OPEN


def test_a_topic_that_is_made_anew_loses_what_was_not_committed_and_its_old_commits_mean_nothing(bench):
    old = bench.says("intake.cases", RECORDED)
    place = Place("intake.cases", 0)
    bench.commits["router"] = {place: 1}
    bench.says("router.cases", ROUTED, by="router", cause=old)
    lost = bench.says("intake.cases", RECORDED)
    bench.judges()
    bench.barriers.raise_(bench.ledger.vanished("router", place), bench.now_ms)
    bench.commits["router"] = {}
    bench.judges()
    assert bench.state(old) is State.DISCHARGED
    assert bench.state(lost) is State.EXPIRED_UNREAD
    bench.highs[place] = 0
    bench.start()
    fresh = bench.says("intake.cases", RECORDED)
    assert not bench.judges(), "the commit of the old topic says nothing about the new one"
    assert bench.state(fresh) is State.OPEN


# ------------------------------------------------------------------ numbers


def test_a_number_that_is_read_later_on_another_topic_was_never_missing(bench):
    event = bench.says("router.cases", ROUTED, number=1, by="router")
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    second = bench.writes("departments.cards", ASSIGNED, by="resolver", number=2)
    bench.says("resolver.cases", ACCEPTED, by="resolver", number=3)
    bench.receipt("resolver", event)
    bench.commits_all("resolver")
    assert not bench.judges(10)
    bench.reads(second)
    assert not bench.judges(10)
    assert not bench.sequences.missing["resolver"]


def test_a_number_that_never_comes_is_a_gap_once_its_writer_has_committed_all_it_read(bench):
    event = bench.says("router.cases", ROUTED)
    bench.receipt("resolver", event)
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    bench.says("resolver.cases", RESOLVED, by="resolver", number=3)
    assert not bench.judges(), "the resolver may still be about to say it"
    bench.commits_all("resolver")
    [(_, writer, state, note)] = bench.judges()
    assert (writer, state) == ("resolver", State.SEQUENCE_GAP)
    assert note.startswith("resolver never said number 2 of case-1; it said a later number")
    bench.says("resolver.cases", ACCEPTED, by="resolver", number=2)
    bench.judges()
    assert bench.state(b"case-1#2", "resolver") is State.RECOVERED


def test_a_marker_at_the_end_of_a_partition_does_not_keep_a_gap_waiting(bench):
    event = bench.says("router.cases", ROUTED)
    bench.receipt("resolver", event)
    bench.commits_all("resolver")
    place = Place("router.cases", 0)
    bench.highs[place] = bench.positions[place] = 2  # a transaction's marker: nobody commits past it
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    bench.says("resolver.cases", RESOLVED, by="resolver", number=3)
    assert [state for _, _, state, _ in bench.judges()] == [State.SEQUENCE_GAP]


def test_the_first_number_is_missed_only_by_who_has_read_from_the_beginning():
    for from_the_beginning in (False, True):
        bench = Bench(from_the_beginning=from_the_beginning)
        bench.says("resolver.cases", DELIVERED, by="resolver", number=2)
        bench.commits_all("resolver")
        assert len(bench.judges()) == from_the_beginning


@pytest.mark.parametrize(("stored", "gaps"), [({}, 3), ({"resolver": 4}, 0), ({"resolver": 2}, 2)])
def test_a_count_that_begins_in_the_middle_lacks_what_the_store_does_not_know(stored, gaps):
    bench = Bench(from_the_beginning=True)
    bench.says("resolver.cases", DELIVERED, by="resolver", number=4)
    bench.commits_all("resolver")
    assert bench.sequences.unsure() == [("resolver", b"case-1")]
    bench.sequences.recall({(writer, b"case-1"): following for writer, following in stored.items()})
    assert len(bench.judges()) == gaps


def test_a_subject_so_old_that_its_count_was_pruned_need_not_begin_with_one():
    bench = Bench(from_the_beginning=True)
    old = str(UUID(int=1_000 << 80))
    bench.says("resolver.cases", DELIVERED, by="resolver", number=4, subject=old)
    bench.commits_all("resolver")
    assert not bench.judges()


def test_counts_that_lack_nothing_leave_memory_and_are_asked_for_again():
    bench = Bench(from_the_beginning=True)
    for number in range(60_000):
        bench.sequences._begin("router", b"%d" % number, 1, Place("router.cases", 0), None)
    assert len(bench.sequences._counts["router"]) <= 50_000


def test_nothing_is_claimed_about_answers_in_records_that_are_gone(bench):
    event = bench.says("intake.cases", RECORDED)
    bench.judges()
    bench.settle(bench.ledger.blinded("router"))
    bench.commits_all("router")
    assert not bench.judges()
    assert bench.state(event) is State.UNPROVABLE


def test_a_gap_that_was_named_is_not_named_again_after_a_restart(bench):
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    bench.says("resolver.cases", RESOLVED, by="resolver", number=3)
    assert len(bench.judges()) == 1
    bench.start()
    assert not bench.judges()
    bench.says("resolver.cases", ACCEPTED, by="resolver", number=2)
    bench.judges()
    assert bench.state(b"case-1#2", "resolver") is State.RECOVERED


def test_the_closing_digest_names_the_last_number_too(bench):
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    place, said = bench.writes("feedback.cases", "feedback.case-closed.v1", by="feedback")
    bench._pass(place, said)
    bench.sequences.take_end("resolver", b"case-1", 2, place, said, "the closing digest")
    [(key, writer, state, note)] = bench.judges()
    assert (key, writer, state) == (key_of(b"case-1#2"), "resolver", State.SEQUENCE_GAP)
    assert note == "resolver never said number 2 of case-1; the closing digest"
    bench.sequences.take_end("nobody", b"case-1", 9, place, said, "")
    bench.sequences.take_end("resolver", b"case-1", 0, place, said, "")
    assert not bench.judges()


def test_a_number_that_two_records_show_to_be_missing_is_named_once(bench):
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    bench.says("resolver.cases", RESOLVED, by="resolver", number=3)
    place, said = bench.writes("feedback.cases", "feedback.case-closed.v1", by="feedback")
    bench._pass(place, said)
    bench.sequences.take_end("resolver", b"case-1", 3, place, said, "the closing digest")
    assert len(bench.judges()) == 1
    bench.sequences.take_end("resolver", b"case-1", 3, place, said, "the closing digest")
    assert not bench.judges()


def test_numbers_before_the_first_that_was_read_may_have_been_deleted_unless_all_was_read():
    for from_the_beginning in (False, True):
        bench = Bench(from_the_beginning=from_the_beginning)
        call(bench, 5)
        call(bench, 2, partition=1)
        bench.judges()
        bench.now_ms += UNPROVED_WAIT_MS
        assert len(bench.judges()) == (2 if from_the_beginning else 0)


def test_a_manifest_says_from_where_on_numbers_exist_to_who_has_read_everything():
    for from_the_beginning in (False, True):
        bench = Bench(from_the_beginning=from_the_beginning)
        call(bench, 5)
        place, said = bench.writes("telephony.calls", "telephony.manifest-published.v1")
        bench._pass(place, said)
        bench.sequences.take_end(UPSTREAM, b"/pbx", 6, place, said, "its manifest", 3)
        named = {key for key, *_ in bench.judges()}
        assert named == {
            key_of(b"/pbx#%d" % number) for number in ((3, 4, 6) if from_the_beginning else (6,))
        }


def call(bench, number, **more) -> bytes:
    return bench.says("telephony.calls", "telephony.call-offered.v1", number=number, **more)


def test_telephonys_gap_is_named_at_once_where_a_manifest_proves_it(bench):
    call(bench, 1)
    call(bench, 3)
    place, said = bench.writes("telephony.calls", "telephony.manifest-published.v1")
    bench._pass(place, said)
    bench.sequences.take_end(UPSTREAM, b"/pbx", 4, place, said, "its manifest up to 4")
    named = {key: note for key, _, _, note in bench.judges()}
    assert set(named) == {key_of(b"/pbx#2"), key_of(b"/pbx#4")}
    assert all(note.endswith("its manifest up to 4") for note in named.values())


def test_a_gap_of_a_source_with_a_long_name_has_a_name_that_the_contract_takes(bench):
    source = "/pbx/" + "b" * 195
    place, said = bench.writes("telephony.calls", "telephony.manifest-published.v1")
    bench._pass(place, said)
    bench.sequences.from_the_beginning = True
    bench.sequences.take_end(UPSTREAM, source.encode(), 2, place, said, "its manifest up to 2", 1)
    named = []
    judge = bench.sequences.judge
    bench.sequences.judge = lambda barrier: named.extend(judge(barrier)) or []
    bench.judges()
    assert sorted(verdict.name for verdict in named) == [f"{source[:198]}#1", f"{source[:198]}#2"]
    assert {verdict.handoff.key for verdict in named} == {key_of(f"{source}#{n}".encode()) for n in (1, 2)}
    assert all(len(verdict.name) == 200 for verdict in named)


def test_telephonys_gap_without_a_manifest_is_given_thirty_seconds(bench):
    call(bench, 1)
    call(bench, 3)
    bench.now_ms += UNPROVED_WAIT_MS - 1
    assert not bench.judges(1)
    bench.now_ms += UNPROVED_WAIT_MS - 1
    assert not bench.judges(10)
    bench.now_ms += 1
    assert [key for key, *_ in bench.judges()] == [key_of(b"/pbx#2")]


def test_a_call_that_comes_within_the_wait_is_not_missing_although_it_is_read_later(bench):
    call(bench, 1)
    call(bench, 3)
    bench.judges()
    late = bench.writes("telephony.calls", "telephony.call-offered.v1", number=2)
    bench.now_ms += UNPROVED_WAIT_MS + 1
    assert not bench.judges()
    bench.reads(late)
    assert not bench.judges()


def test_a_source_that_begins_anew_far_ahead_has_lost_nothing(bench):
    call(bench, 1)
    call(bench, 1 + MANY)
    assert bench.sequences.missing[UPSTREAM] == MANY - 1
    bench = Bench()
    call(bench, 1)
    call(bench, 3 + MANY)
    assert bench.sequences.missing[UPSTREAM] == 0


# ------------------------------------------------------------------ what must follow in time


def ended(bench, *, handled: bool = True, subject: str = "call-1") -> bytes:
    """A call has ended; intake has noted that, so that its timer is set. Its number counts for its source."""
    place, said = bench.writes("telephony.calls", ENDED, subject=subject, number=1)
    event = bench.reads((place, said._replace(subject=b"/pbx")))
    bench.receipt("intake", event)
    if handled:
        bench.commits_all("intake")
        bench.judges()
    return event


def over(bench) -> None:
    """The deadline is over, and intake's watermarks say that its timers have fired and are sent."""
    bench.now_ms += 2 * WITHIN_MS
    for minutes in (20, 21, 22):
        at = minutes * MINUTE_MS
        bench.watermark("intake", through=at, sent=at, said=at)
        if minutes == 20:
            assert not [verdict for verdict in bench.judges() if verdict[2] is State.TIMER_LOST]


def test_an_act_before_what_it_answers_meets_it_even_over_a_restart(bench):
    bench.says("intake.cases", RECORDED, by="intake", subject="call-1", number=1)
    bench.judges()
    bench.start()
    ended(bench)
    assert bench.in_time() is State.DISCHARGED
    over(bench)
    assert not [verdict for verdict in bench.judges() if verdict[2] is State.TIMER_LOST]


def test_who_is_late_is_overdue_and_may_still_act(bench):
    ended(bench)
    bench.now_ms += WITHIN_MS + 1
    assert not bench.judges()
    assert bench.in_time() is State.OVERDUE
    assert bench.deferred.overdue() == {("telephony.call-ended→intake in time", "-"): 1}
    bench.says("intake.cases", RECORDED, by="intake", subject="call-1")
    bench.judges()
    assert bench.in_time() is State.DISCHARGED
    assert not bench.deferred.open_by_edge()


def test_what_is_met_is_not_kept_until_its_time(bench, monkeypatch):
    monkeypatch.setattr("observer.deferred._MANY_OVER", 10)
    for number in range(100):
        subject = f"call-{number}"
        ended(bench, subject=subject)
        if number < 99:
            bench.says("intake.cases", RECORDED, by="intake", subject=subject)
    bench.judges()
    assert len(bench.deferred._to_be_late) <= 11
    assert sum(map(len, bench.deferred._due.values())) <= 11
    over(bench)
    assert [state for _, _, state, _ in bench.judges()] == [State.TIMER_LOST]


def test_a_timer_that_has_fired_without_a_word_is_lost_and_an_act_mends_it(bench):
    ended(bench)
    over(bench)
    assert [(state, group) for _, group, state, _ in bench.judges()] == [(State.TIMER_LOST, "intake")]
    bench.start()
    bench.says("intake.cases", RECORDED, by="intake", subject="call-1", cause=b"the agent's command")
    bench.judges()
    assert bench.in_time() is State.RECOVERED


@pytest.mark.parametrize("restart", [False, True])
def test_an_alarm_proves_the_timer_also_after_a_restart(bench, restart):
    ended(bench)
    bench.now_ms += WITHIN_MS + 1
    bench.judges()
    bench.says("intake.cases", LATE, by="intake", subject="call-1")
    bench.judges()
    if restart:
        bench.start()
    over(bench)
    assert not bench.judges()
    assert bench.in_time() is State.OVERDUE


def test_an_alarm_that_is_read_before_what_it_is_about_proves_the_timer(bench):
    bench.says("intake.cases", LATE, by="intake", subject="call-1")
    bench.judges()
    bench.start()
    ended(bench)
    over(bench)
    assert not bench.judges()
    assert bench.in_time() is State.OVERDUE


def test_a_watermark_with_unsent_batches_proves_nothing(bench):
    ended(bench)
    bench.now_ms += 2 * WITHIN_MS
    for minutes in (20, 21, 22):
        at = minutes * MINUTE_MS
        bench.watermark("intake", through=at, sent=19 * MINUTE_MS, said=at)
    assert not bench.judges()
    assert bench.in_time() is State.OVERDUE


def test_a_timer_that_is_due_and_has_not_fired_yet_is_not_lost(bench):
    ended(bench)
    bench.now_ms += 2 * WITHIN_MS
    bench.watermark("intake", through=20 * MINUTE_MS, said=20 * MINUTE_MS)
    bench.watermark("intake", through=WITHIN_MS, sent=21 * MINUTE_MS, said=21 * MINUTE_MS)
    assert not bench.judges()
    assert bench.in_time() is State.OVERDUE


def test_a_timer_cannot_be_lost_before_the_stage_has_read_what_sets_it(bench):
    ended(bench, handled=False)
    over(bench)
    assert not bench.judges()
    assert bench.in_time() is State.OVERDUE
    bench.commits_all("intake")
    bench.judges()
    over(bench)
    assert [state for _, _, state, _ in bench.judges()] == [State.TIMER_LOST]


def test_a_watermark_from_before_the_timer_was_set_proves_nothing_however_late_it_is_read(bench):
    ended(bench, handled=False)
    bench.now_ms += 2 * WITHIN_MS
    before, after = (bench.writes("ops.watermarks", "ops.watermark-passed.v1", by="intake") for _ in "12")
    bench.commits_all("intake")
    bench.judges()  # intake has handled the end, late: its timer is set, due at once, and not sent yet
    for said_by, minutes, sent in ((before, 20, 20), (after, 21, 20.5)):
        bench.reads(said_by)
        at = minutes * MINUTE_MS
        bench.watermark("intake", through=at, sent=int(sent * MINUTE_MS), said=at)
        assert not bench.judges()
    for minutes in (22, 23, 24):
        at = minutes * MINUTE_MS
        bench.watermark("intake", through=at, sent=int(20.5 * MINUTE_MS), said=at)
        assert not bench.judges(), "its timer is not sent yet, and the watermarks say so"
    for minutes in (25, 26):
        bench.watermark("intake", through=minutes * MINUTE_MS)
    assert [state for _, _, state, _ in bench.judges()] == [State.TIMER_LOST]


def test_a_timer_is_not_lost_while_its_command_is_on_its_way_through_the_stage(bench):
    ended(bench)
    fired = bench.says("intake.commands", "intake.timer-fired.v1", by="intake", subject="call-1")
    over(bench)
    assert not bench.judges(), "intake has not handled its own timer yet"
    bench.says("intake.cases", LATE, by="intake", subject="call-1", cause=fired)
    bench.commits_all("intake")
    assert not bench.judges()
    assert bench.in_time() is State.OVERDUE


def test_a_copy_of_what_was_met_is_not_lost(bench):
    event = ended(bench)
    bench.says("intake.cases", RECORDED, by="intake", subject="call-1")
    bench.judges()
    bench.says("telephony.calls", ENDED, subject="call-1", uid=event)
    bench.commits_all("intake")
    bench.judges()
    over(bench)
    assert not [verdict for verdict in bench.judges() if verdict[2] is State.TIMER_LOST]
    assert bench.in_time() is State.DISCHARGED


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("order", ["first act second", "act first second", "first second act"])
@pytest.mark.parametrize("what", [RECORDED, LATE])
def test_a_call_whose_end_two_feeds_tell_owes_one_record(bench, what, order, restart):
    for step in order.split():
        if step == "act":
            bench.says("intake.cases", what, by="intake", subject="call-1")
        else:
            ended(bench)
        bench.judges()
        if restart:
            bench.start()
    if what is RECORDED:
        assert not bench.deferred.open_by_edge()
    over(bench)
    assert not bench.judges()
    assert bench.states_in_time() == {State.DISCHARGED if what is RECORDED else State.OVERDUE}


def test_a_timer_that_is_lost_is_named_once_however_many_tell_of_the_end(bench):
    ended(bench)
    ended(bench)
    over(bench)
    assert [state for _, _, state, _ in bench.judges()] == [State.TIMER_LOST]
    ended(bench)
    bench.says("intake.cases", RECORDED, by="intake", subject="call-1")
    bench.judges()
    ended(bench)
    assert not bench.deferred.open_by_edge()
    assert bench.states_in_time() == {State.RECOVERED}


ACCEPT = "resolver.case-delivered→department"
RULING = "router.case-parked→triage"


def test_an_earlier_act_does_not_meet_a_later_delivery_and_a_later_one_may_be_read_first(bench):
    first = bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    bench.says("resolver.cases", ACCEPTED, by="resolver", number=3)
    again = bench.says("resolver.cases", DELIVERED, by="resolver", number=5)
    bench.judges()
    assert bench.in_time(first, ACCEPT, "resolver") is State.DISCHARGED
    assert bench.in_time(again, ACCEPT, "resolver") is State.OPEN
    bench.says("resolver.cases", ACCEPTED, by="resolver", number=9, subject="case-2", partition=1)
    bench.judges()
    bench.start()
    overtaken = bench.says("resolver.cases", DELIVERED, by="resolver", number=8, subject="case-2")
    newer = bench.says("resolver.cases", DELIVERED, by="resolver", number=10, subject="case-2")
    bench.judges()
    assert bench.in_time(overtaken, ACCEPT, "resolver") is State.DISCHARGED
    assert bench.in_time(newer, ACCEPT, "resolver") is State.OPEN


def test_a_deadline_that_another_stage_has_set_may_differ_by_what_clocks_differ(bench):
    event = bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    hours = 2 * 60 * MINUTE_MS
    for at in (hours + CLOCKS_APART_MS - 1, hours + CLOCKS_APART_MS):
        bench.watermark("resolver", through=at)
    assert not bench.judges()
    for at in (hours + CLOCKS_APART_MS + 1, hours + CLOCKS_APART_MS + 2):
        bench.watermark("resolver", through=at)
    assert [state for _, _, state, _ in bench.judges()] == [State.TIMER_LOST]
    assert bench.in_time(event, ACCEPT, "resolver") is State.TIMER_LOST


@pytest.mark.parametrize("act", [ROUTED, "router.case-rejected.v1", "router.ruling-lapsed.v1"])
def test_a_case_that_waits_for_a_ruling_is_overdue_at_triage_until_somebody_rules(bench, act):
    event = bench.says("router.cases", "router.case-parked.v1", by="router", number=3)
    bench.says("departments.cards", ASSIGNED, by="resolver", number=2)
    bench.says("router.cases", "router.triage-overdue.v1", by="router", number=4)
    for at in (121 * MINUTE_MS, 122 * MINUTE_MS):
        bench.watermark("router", through=at)
    assert not bench.judges()
    assert bench.in_time(event, RULING, "router") is State.OVERDUE
    assert bench.deferred.overdue() == {(RULING, "triage"): 1}
    bench.says("router.cases", act, by="router", number=5)
    bench.judges()
    assert bench.in_time(event, RULING, "router") is State.DISCHARGED


def test_an_overdue_delivery_is_told_by_the_department_that_was_asked(bench):
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    bench.says("departments.cards", ASSIGNED, by="resolver", number=2)
    bench.says("departments.commands", "department.acceptance-requested.v1")
    bench.now_ms += 3 * 60 * MINUTE_MS
    bench.judges()
    assert bench.deferred.overdue() == {(ACCEPT, "cards"): 1}


# ------------------------------------------------------------------ barriers and headers


def test_a_barrier_without_all_its_ends_waits_and_blames_the_topic_that_it_waits_for():
    barriers, place = Barriers(), Place("a", 0)
    barriers.raise_(Barrier("router", frozenset({"a", "b"}), ["suspect"]), 1)
    barriers.ends({place: 5}, 2, {"a"})
    assert (barriers.unmarked, barriers.suspects) == (1, 1)
    barriers.ends({place: 5}, 3, {"a", "b"})
    assert not barriers.passed({place: 4}, 4)
    assert barriers.blocked({place: 4}, {}, {}) == {"a": {"reading": 3}}
    [passed] = barriers.passed({place: 6}, 5)
    assert passed.read == {place: 6}
    assert not barriers.suspects


def record(*headers: tuple[str, bytes | None]):
    return SimpleNamespace(offset=3, timestamp=9, key=b"key", headers=headers)


def test_the_headers_that_a_stage_writes_are_read_as_they_were_meant():
    body = CommandRefused(subject="case-1", code="late", explanation="too late", current_state="closed")
    outgoing = Writer("feedback").write(
        body,
        uid=UUID(int=5),
        at=b"2026-11-25T10:00:00+00:00",
        correlation="x",
        cause="the command",
        sequence=7,
        numbered_for="call-1",
        part=(2, 3),
    )
    said = read_said(record(*outgoing.headers))
    assert (said.cause, said.part, said.total, said.sequence) == (b"the command", 2, 3, 7)
    assert (said.source, said.wire) == (b"/hotline/feedback", b"feedback.command-refused.v1")
    assert (said.subject, said.key) == (b"call-1", b"key")
    assert time_ms(said.time) == 1_795_600_800_000


def test_a_record_without_headers_or_with_odd_ones_is_read_as_nothing():
    said = read_said(record(("ce_sequence", b"9" * 19), ("ce_causationid", None), ("ce_time", b"yesterday")))
    assert (said.event_id, said.cause, said.sequence, said.subject) == (b"", b"", 0, b"key")
    assert time_ms(said.time) == time_ms(b"2026-11-25T10:00:00") == time_ms(b"\xff") == 0
    assert shown(b"a\x00b\xff") == "a?b\ufffd"


@pytest.mark.parametrize(
    ("part", "total"),
    [
        (b"0", b"2"),
        (b"3", b"2"),
        (b"1", b"0"),
        (b"1", b"63"),
        (b"99999999999999999", b"99999999999999999"),
        (b"x", b""),
    ],
)
def test_odd_parts_are_one_of_one_and_fill_no_memory(bench, part, total):
    said = read_said(record(("ce_causationid", b"e"), ("ce_handoffk", part), ("ce_handoffn", total)))
    assert (said.part, said.total) == (1, 1)


def test_ids_of_any_shape_make_keys_of_sixteen_bytes():
    uid = b"0199c7d5-8f00-7000-8000-0000000000ff"
    assert key_of(uid).hex() == uid.replace(b"-", b"").decode()
    for odd in (b"", b"\xff" * 36, b"pbx-1", b"0199c7d5-8f00-7000-8000-0000000000fg"):
        assert len(key_of(odd)) == 16


def test_what_keeps_verdicts_waiting_is_told_apart():
    barriers, whole, held, lost = Barriers(), Place("a", 0), Place("a", 1), Place("b", 0)
    barriers.raise_(Barrier("router", frozenset({"a", "b"}), ["suspect"]), 1)
    barriers.ends({whole: 5, held: 5, lost: None}, 2, {"a", "b"})
    assert barriers.unmarked == 1, "the end of a partition without a leader is not known"
    assert barriers.blocked({whole: 5}, {}, {lost: 2}) == {"b": {"no_leader": 2}}
    barriers.ends({whole: 5, held: 5, lost: 7}, 4, {"a", "b"})
    positions = {whole: 5, held: 3, lost: 6}
    assert barriers.blocked(positions, {held: 3}, {}) == {"a": {"open_txn": 4}, "b": {"reading": 4}}
    assert barriers.blocked(positions, {held: 4}, {lost: 9}) == {"a": {"reading": 4}, "b": {"no_leader": 4}}
    assert barriers.passed({whole: 5, held: 5, lost: 7}, 5)
    assert not barriers.blocked(positions, {held: 3}, {lost: 9})


def test_a_partition_that_the_metadata_shows_without_a_leader_is_not_asked_for_its_end():
    cluster = ClusterMetadata()
    partitions = [(0, 0, 1, [1], [1]), (5, 1, -1, [1], [])]
    cluster.update_metadata(
        MetadataResponse_v1([(1, "localhost", 1, None)], 1, [(0, "p.router.cases", False, partitions)])
    )
    ends = Offsets(Connection("localhost:1", "p."))
    ends._consumer = SimpleNamespace(_client=SimpleNamespace(cluster=cluster))
    found = [ends._is_leaderless(Place(topic, n)) for topic in ("router.cases", "unknown") for n in (0, 1)]
    assert found == [False, True, False, False]


def test_what_a_case_first_says_is_not_kept_as_an_answer_to_what_came_before(bench):
    bench.says("resolver.cases", DELIVERED, by="resolver", number=1)
    bench.judges()
    assert not bench.store.acts
    bench.says("resolver.cases", ACCEPTED, by="resolver", number=2, subject="case-2")
    bench.judges()
    assert bench.store.acts, "another partition may hold what it answers"


# ------------------------------------------------------------------ what it costs


def test_an_open_handoff_costs_less_than_300_bytes_with_everything_around_it(capsys):
    count = 200_000
    held, ledger = opened(count)
    per_handoff = held / count
    with capsys.disabled():
        print(f"\n  {per_handoff:.0f} bytes per open handoff")
    assert ledger.open_by_edge()["intake.case-recorded→router"][0] == count
    assert per_handoff <= 300


def test_taking_a_record_costs_microseconds(capsys):
    ledger, count = Ledger(contract_of()), 60_000
    cases, routed = Place("intake.cases", 0), Place("router.cases", 0)
    causes = [
        Said(
            n,
            BEGIN_MS,
            b"%08x-0000-7000-8000-%012x" % (n, n),
            RECORDED.encode(),
            b"",
            b"",
            1,
            1,
            0,
            b"c",
            b"",
        )
        for n in range(count)
    ]
    effects = [
        cause._replace(wire=b"router.case-parked.v1", source=b"/hotline/router", cause=cause.event_id)
        for cause in causes
    ]
    started = time.process_time()
    for cause, effect in zip(causes, effects, strict=True):
        ledger.take(cases, cause)
        ledger.take(routed, effect)
        if cause.offset % 4_000 == 0:
            ledger.drain()
    each = (time.process_time() - started) / (2 * count) * 1e6
    with capsys.disabled():
        print(f"\n  {each:.1f} µs of CPU per record")
    assert not ledger.open_by_edge()
    assert each < 50


def test_a_contract_without_a_stage_judges_the_others():
    contract = replace(contract_of(), reads={})
    deferred = Deferred(contract, Ledger(contract))
    deferred.watermark("intake", 1, 1, 1)
    deferred.watermark("nobody", 1, 1, 1)
    assert not deferred.barriers()

"""How anybody checks a verdict: commands to run without this program, and the same again by other code.

Each kind of edge has its own proof, so its own way to disprove it. Independent of the ledger: whole topics
are read from their first records, and text is compared.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chassis.kafka import whole
from cli.world import Place
from observer.contract import Later, contract_of
from observer.headers import shown
from observer.ledger import UPSTREAM, State
from schemas import telephony

_CONTRACT = contract_of()
NUMBER, NOBODY, UNREADABLE = "number", "nobody", "unreadable"
"""How the edges begin that no contract names: a number that is nowhere, an answer to nothing, a letter."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What would disprove a verdict (for a letter: prove it).

    `what` says in words what the commands show. A record is it where `finds` says so of its headers and
    itself; in its line as kcat prints it (with the value, if `value`), all `patterns` match.
    """

    what: str
    topics: Sequence[str]
    patterns: Sequence[str]
    finds: Callable[[Mapping[str, bytes], Any], bool]
    value: bool = False


def by_hand(place: Place, handoff: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[str]:
    """Write the commands with which anybody can check a verdict without this program."""
    if verdict["state"] == State.UNPROVABLE.value:
        return [f"# nothing is proved, so nothing can be checked: {verdict['note']}"]
    return [*_record(place, handoff), *_commit(place, handoff, verdict), *_search(place, handoff, verdict)]


async def check_again(place: Place, handoff: Mapping[str, Any]) -> list[str]:
    """Look for what would disprove a verdict on every topic where it could be, from the first record on.

    Gives the places of what was found.
    """
    wanted = wanted_of(handoff)
    return [
        f"{record.topic}/{record.partition}/{record.offset}"
        async for record in whole(place.kafka, *wanted.topics)
        if wanted.finds(dict(record.headers), record)
    ]


# ------------------------------------------------------------------ by hand


def _record(place: Place, handoff: Mapping[str, Any]) -> list[str]:
    if handoff["partition"] < 0:
        return []  # a gap from before a restart: which record has shown it was not kept
    what = {
        NUMBER: "the record that shows it: it has a later number, or says how far its writer has come",
        NOBODY: "the answer",
    }.get(_kind(handoff), "the input, as it lies on its topic; nothing, if it was deleted")
    where = f"-t {place.kafka_prefix}{handoff['topic']} -p {handoff['partition']} -o {handoff['offset']}"
    return [f"# {what}", f"kcat -b {place.bootstrap} -C {where} -c 1 -f '%o %k %h\\n'"]


def _commit(place: Place, handoff: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[str]:
    offset, kept = handoff["offset"], verdict["committed"]
    says = {
        State.DROPPED.value: f"it must be more than {offset}",
        State.PARTIAL.value: f"it must be more than {offset}",
        State.EXPIRED_UNREAD.value: f"it was {'nowhere' if kept is None else kept} when {offset} was deleted",
        State.SEQUENCE_GAP.value: "it is past what the group had to read, so all that it numbered is sent",
        State.TIMER_LOST.value: "it is past the group's own commands, the one of this timer among them",
    }.get(verdict["state"])
    if says is None or handoff["group"] == UPSTREAM:
        return []  # nobody commits for telephony; an orphan and a letter need no commit
    group = f"{place.kafka_prefix}{handoff['group']}"
    return [
        f"# the group's commit: {says}",
        f"kafka-consumer-groups.sh --bootstrap-server {place.bootstrap} --describe --group {group}",
    ]


def _search(place: Place, handoff: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[str]:
    """Search every partition up to the end that was taken after the commit."""
    wanted = wanted_of(handoff)
    ends = {(mark["topic"], mark["partition"]): mark["end"] for mark in verdict["barrier"]}
    parts = [
        f"-t {place.kafka_prefix}{topic} -p {partition} -o beginning -c {end} -e"
        for (topic, partition), end in ends.items()
        if end and topic in wanted.topics
    ]
    if not {topic for topic, _ in ends} & set(wanted.topics):
        parts = [f"-t {place.kafka_prefix}{topic} -o beginning -e" for topic in wanted.topics]
    line = "'%t/%p/%o %k %h" + (" %s" if wanted.value else "") + "\\n'"
    found = " | ".join(f"grep -E {shlex.quote(pattern)}" for pattern in wanted.patterns)
    return [
        f"# {wanted.what}",
        *(f"kcat -b {place.bootstrap} -C {part} -f {line} | {found}" for part in parts),
    ]


# ------------------------------------------------------------------ what would disprove it


def wanted_of(handoff: Mapping[str, Any]) -> Wanted:
    """Tell what would disprove a verdict on a handoff, by its edge."""
    later = next((later for later in _CONTRACT.later.values() if later.edge == handoff["edge"]), None)
    if later is not None:
        return _act(handoff, later)
    return {NUMBER: _number, NOBODY: _cause, UNREADABLE: _letter}.get(_kind(handoff), _answer)(handoff)


def _kind(handoff: Mapping[str, Any]) -> str:
    return str(handoff["edge"]).partition("→")[0]


def _answer(handoff: Mapping[str, Any]) -> Wanted:
    event, group = handoff["event_id"], handoff["group"]
    source, name = f"/hotline/{group}".encode(), event.encode()

    def finds(of: Mapping[str, bytes], record: Any) -> bool:
        if of.get("ce_source") != source:
            return False
        about_work = of.get("ce_type", b"").startswith(b"ops.")
        return of.get("ce_causationid") == name or (about_work and name in (record.value or b""))

    what = f"no answer of {group} names it"
    return Wanted(what, sorted(_CONTRACT.answers_on[group]), [_plain(event)], finds, value=True)


def _number(handoff: Mapping[str, Any]) -> Wanted:
    """The record with the number that did not come: of a source, or of what a stage said of a case."""
    subject, _, text = str(handoff["event_id"]).rpartition("#")
    number, group = int(text), handoff["group"]
    counted = _header("ce_sequence", f"0*{number}")
    if group == UPSTREAM:
        return Wanted(
            f"no record of {subject} has the number {number}",
            [telephony.TOPIC],
            [_header("ce_source", _plain(subject)), counted],
            lambda of, _: shown(of.get("ce_source", b"")) == subject and _counted(of) == number,
        )
    source = f"/hotline/{group}"
    return Wanted(
        f"no record of {group} about {subject} has the number {number}",
        sorted(_CONTRACT.answers_on[group]),
        [_header("ce_source", source), counted, _about(subject)],
        lambda of, record: (
            of.get("ce_source") == source.encode()
            and _counted(of) == number
            and _subject(of, record) == subject
        ),
    )


def _act(handoff: Mapping[str, Any], later: Later) -> Wanted:
    """What was due, or the alarm that it was not done."""
    wires, subject = later.acts | later.alarms, handoff["subject"]
    after = handoff["sequence"] if later.numbered else -1
    words = "|".join(sorted(_plain(wire.decode()) for wire in wires))
    return Wanted(
        f"no act and no alarm about {subject}" + (f" with a number above {after}" if later.numbered else ""),
        sorted(_CONTRACT.answers_on[later.stage]),
        [_header("ce_type", f"({words})"), _about(subject)],
        lambda of, record: (
            of.get("ce_type") in wires and _subject(of, record) == subject and _counted(of) > after
        ),
    )


def _cause(handoff: Mapping[str, Any]) -> Wanted:
    event, group = handoff["event_id"], handoff["group"]
    return Wanted(
        f"nothing that {group} reads is what the answer names as its cause",
        sorted(_CONTRACT.reads[group]),
        [_header("ce_id", _plain(event))],
        lambda of, _: of.get("ce_id") == event.encode(),
    )


def _letter(handoff: Mapping[str, Any]) -> Wanted:
    where = f'"topic":"{_plain(handoff["topic"])}","partition":{handoff["partition"]}'
    pattern = f'{where},"offset":{handoff["offset"]},'
    return Wanted(
        "the letter about it, which must be there",
        [f"{handoff['group']}.dead"],
        [pattern],
        lambda _, record: re.search(pattern.encode(), record.value or b"") is not None,
        value=True,
    )


def _plain(text: str) -> str:
    """Write text so that grep and Python read it as it is (`re.escape` marks more than grep knows)."""
    return re.sub(r"[][.^$*+?(){}|\\]", r"\\\g<0>", text)


def _header(name: str, value: str) -> str:
    return f"[ ,]{name}={value}([ ,]|$)"


def _about(subject: str) -> str:
    """A record's key is what it is about, unless it says what its number counts."""
    named = _plain(subject)
    return f"^[^ ]+ {named} |[ ,]ce_sequenceof={named}([ ,]|$)"


def _subject(of: Mapping[str, bytes], record: Any) -> str:
    return shown(of.get("ce_sequenceof") or record.key or b"")


def _counted(of: Mapping[str, bytes]) -> int:
    text = of.get("ce_sequence", b"")
    return int(text) if text.isdigit() and len(text) <= 18 else 0

"""Which handoffs really have no answer: found by reading everything once more, without the ledger's code."""

import json
from collections import Counter
from dataclasses import dataclass, field

from chassis.kafka import whole
from cli.world import Place
from schemas.envelope import BY_BODY
from schemas.handoffs import HANDOFFS
from schemas.topics import STAGES, TOPICS

OWES: dict[str, list[str]] = {}
for _handoff in HANDOFFS:
    if _handoff.group in STAGES:
        OWES.setdefault(BY_BODY[_handoff.on].wire, []).append(_handoff.group)


@dataclass
class Truth:
    """Obligations and answers, as they lie on the topics."""

    owed: dict[tuple[str, str], str] = field(default_factory=dict)
    parts: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    totals: dict[tuple[str, str], int] = field(default_factory=dict)
    records: Counter = field(default_factory=Counter)

    def take(self, record) -> None:
        headers = {name: value.decode(errors="replace") for name, value in record.headers}
        wire, event_id = headers.get("ce_type", ""), headers.get("ce_id", "")
        self.records[wire] += 1
        source = headers.get("ce_source", "").rpartition("/")[2]
        if wire == "ops.receipts-given.v1":
            for given in json.loads(record.value)["receipts"]:
                for closed in given["event_ids"]:
                    self._answer(closed, source, 1, 1)
        elif headers.get("ce_causationid") and source in STAGES:
            part, total = int(headers.get("ce_handoffk", 1)), int(headers.get("ce_handoffn", 1))
            self._answer(headers["ce_causationid"], source, part, total)
        for group in OWES.get(wire, ()):
            self.owed[event_id, group] = wire

    def _answer(self, cause: str, group: str, part: int, total: int) -> None:
        self.parts.setdefault((cause, group), set()).add(part)
        self.totals[cause, group] = max(total, self.totals.get((cause, group), 0))

    @property
    def unanswered(self) -> set[tuple[str, str]]:
        """Obligations of which at least one part of the answer is nowhere."""
        return {who for who in self.owed if len(self.parts.get(who, ())) < self.totals.get(who, 1)}


async def read_all(place: Place, truth: Truth | None = None) -> Truth:
    """Read every topic from its first record to its end; adds to an earlier reading, if there is one."""
    truth = truth or Truth()
    async for record in whole(place.kafka, *(topic.name for topic in TOPICS)):
        truth.take(record)
    return truth

"""From the ledger's changes and the last look to metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from observer.barrier import READING, Barrier
from observer.lag import Lag, worst
from observer.ledger import LOST, Changes, Handoff, State, Verdict
from observer.metrics import OUTCOMES, ObserverMetrics
from schemas.operations import CANARY_GROUP

_DROPPED = LOST - {State.TIMER_LOST, State.SEQUENCE_GAP}
_ANSWERED = frozenset({State.DISCHARGED, State.CLOSED})


class Gauges:
    """Keeps the metrics up with what is known."""

    def __init__(self, metrics: ObserverMetrics) -> None:
        self._metrics = metrics
        self._shown: set[str] = set()
        self._after_commit: dict[str, int] = {}

    def count(self, changes: Changes) -> None:
        """Count what one pass has stored."""
        ended: Counter[tuple[str, State]] = Counter()
        for opened in changes.opened:
            if opened.handoff.state is not State.OPEN:
                self._end(ended, opened.handoff, opened.settled_ms)
        for settled in changes.settled:
            self._end(ended, settled.handoff, settled.at_ms)
        for (edge, state), number in ended.items():
            outcome = state.value.replace(" ", "_")
            if outcome in OUTCOMES:
                self._metrics.settled.labels(edge, outcome).inc(number)
            if state is State.RECOVERED:
                self._metrics.recovered.labels(edge).inc(number)

    def _end(self, ended: Counter[tuple[str, State]], handoff: Handoff, at_ms: int) -> None:
        edge = handoff.owed.edge
        if handoff.owed.group == CANARY_GROUP:
            return
        ended[edge, handoff.state] += 1
        if handoff.state in _ANSWERED:
            self._metrics.durations.observe(edge, max(0, at_ms - handoff.at_ms))

    def discipline(self, after_commit: Mapping[str, int]) -> None:
        """Count effects that came after their cause was committed: `after_commit` counts since the start."""
        for group, number in after_commit.items():
            known = self._after_commit.get(group, 0)
            new = number - known if number >= known else number  # the ledger began anew from its store
            if new > 0 and group != CANARY_GROUP:
                self._metrics.effect_after_commit.labels(group).inc(new)
        self._after_commit = dict(after_commit)

    def judged(self, verdict: Verdict, now_ms: int) -> None:
        """Count one verdict that stands."""
        handoff, metrics = verdict.handoff, self._metrics
        if verdict.state is State.ORPHAN:
            metrics.orphans.labels(handoff.place.topic).inc()
        elif verdict.state is State.SEQUENCE_GAP:
            metrics.sequence_gaps.labels(handoff.owed.group).inc()
        elif verdict.state in _DROPPED:
            metrics.dropped.labels(handoff.owed.edge).inc()
        if isinstance(verdict.barrier, Barrier):
            metrics.detection.observe(max(0, now_ms - verdict.barrier.raised_ms) / 1000)

    def show(
        self,
        document: Mapping[str, Any],
        lags: Sequence[Lag],
        overdue: Mapping[tuple[str, str], int],
        behind: Mapping[str, int | None],
        now_ms: int,
    ) -> None:
        """Show what the last look has found; `behind` is the reading's own lag by topic, in ms."""
        metrics = self._metrics
        # An edge of nobody (a number that never came) vanishes when it is mended: then it shows 0.
        gone = {edge: {"open": 0, "oldest_s": None} for edge in self._shown - set(document["edges"])}
        self._shown = set(document["edges"])
        for edge, found in (document["edges"] | gone).items():
            metrics.open.labels(edge).set(found["open"])
            metrics.oldest_open.labels(edge).set(found["oldest_s"] or 0)
            metrics.dropped_open.labels(edge).set(sum(found.get(state.value, 0) for state in _DROPPED))
            metrics.dead_lettered_open.labels(edge).set(found.get(State.DEAD_LETTERED.value, 0))
            metrics.timer_lost_open.labels(edge).set(found.get(State.TIMER_LOST.value, 0))
            departments = {name: count for (of, name), count in overdue.items() if of == edge}
            metrics.overdue(edge, departments)
        for group in {lag.group for lag in lags}:
            self._show_group(group, [lag for lag in lags if lag.group == group])
        for topic, lag_ms in behind.items():
            metrics.read_lag(topic, None if lag_ms is None else lag_ms / 1000)
        for topic in {*behind, *document["blocked"]}:
            waited = {
                reason: (now_ms - since_ms) / 1000
                for reason, since_ms in document["blocked"].get(topic, {}).items()
            }
            metrics.blocked(topic, {READING: 0, **waited})
        metrics.kept_by_size(document["kept_by_size"])
        metrics.blind(document["blind_ranges"])
        metrics.last_pass.set(now_ms / 1000)
        canary = document["canary"]
        if canary["flagged_ms"]:
            metrics.canary_last_flagged.set(canary["flagged_ms"] / 1000)
        if canary["detection_ms"] is not None:
            metrics.canary_detection.set(canary["detection_ms"] / 1000)

    def _show_group(self, group: str, lags: Sequence[Lag]) -> None:
        metrics = self._metrics
        metrics.status(group, worst(lags).value)
        for lag in lags:
            age = None if lag.oldest_age_ms is None else lag.oldest_age_ms / 1000
            metrics.lag(group, lag.place, lag.records, age)
        drains = [lag.drain_eta_ms for lag in lags]
        known = [eta for eta in drains if eta is not None]
        metrics.drains_in(group, max(known) / 1000 if len(known) == len(drains) and known else None)
        for topic in {lag.place.topic for lag in lags}:
            room = [lag.retention_headroom_ms for lag in lags if lag.place.topic == topic]
            tight = [left for left in room if left is not None]
            metrics.headroom(group, topic, min(tight) / 1000 if tight else None)

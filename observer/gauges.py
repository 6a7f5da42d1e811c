"""From the ledger's changes and the last look to metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chassis.transport import Place
from observer.barrier import Barrier
from observer.lag import Lag, worst
from observer.ledger import LOST, Changes, State, Verdict
from observer.metrics import OUTCOMES, ObserverMetrics
from schemas.operations import CANARY_GROUP

_DROPPED = LOST - {State.TIMER_LOST}


class Gauges:
    """Keeps the metrics up with what is known; `known` edges only: an edge of nobody is no label."""

    def __init__(self, metrics: ObserverMetrics) -> None:
        self._metrics = metrics

    def count(self, changes: Changes, unread: Sequence[Any]) -> None:
        """Count what one pass has stored."""
        for opened in changes.opened:
            if opened.handoff.state is not State.OPEN:
                self._settled(
                    opened.handoff.owed.edge, opened.handoff.state, opened.settled_ms, opened.handoff.at_ms
                )
        for settled in changes.settled:
            handoff = settled.handoff
            if handoff.owed.group != CANARY_GROUP:
                self._settled(handoff.owed.edge, handoff.state, settled.at_ms, handoff.at_ms)
        for item in unread:
            self._metrics.audit_blind.labels(item.place.topic).inc(max(0, item.following - item.first))

    def _settled(self, edge: str, state: State, settled_ms: int, at_ms: int) -> None:
        outcome = state.value.replace(" ", "_")
        if outcome in OUTCOMES:
            self._metrics.settled.labels(edge, outcome).inc()
        if state is State.RECOVERED:
            self._metrics.recovered.labels(edge).inc()
        if state in (State.DISCHARGED, State.CLOSED):
            self._metrics.duration.labels(edge).observe(max(0, settled_ms - at_ms) / 1000)

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
        positions: Mapping[Place, int],
        ends: Mapping[Place, int],
        now_ms: int,
    ) -> None:
        """Show what the last look has found."""
        metrics = self._metrics
        for edge, found in document["edges"].items():
            metrics.open.labels(edge).set(found["open"])
            metrics.oldest_open.labels(edge).set(found["oldest_s"] or 0)
            metrics.dropped_open.labels(edge).set(sum(found.get(state.value, 0) for state in _DROPPED))
            metrics.dead_lettered_open.labels(edge).set(found.get(State.DEAD_LETTERED.value, 0))
            metrics.timer_lost_open.labels(edge).set(found.get(State.TIMER_LOST.value, 0))
            departments = {name: count for (of, name), count in overdue.items() if of == edge}
            metrics.overdue(edge, departments)
        for group in {lag.group for lag in lags}:
            self._show_group(group, [lag for lag in lags if lag.group == group])
        behind = {place: end - positions.get(place, 0) for place, end in ends.items()}
        for topic in {place.topic for place in ends}:
            late = any(behind[place] > 0 for place in behind if place.topic == topic)
            since = document["blocked"].get(topic)
            waited = (now_ms - since) / 1000 if since else 0.0
            metrics.audit_read_lag.labels(topic).set(waited if late else 0)
            metrics.blocked(topic, {"reading": waited} if waited else {"reading": 0})
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

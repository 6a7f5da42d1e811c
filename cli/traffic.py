"""Calls for the demo: the recorded PBX, and generated load shaped like a bank's day."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from heapq import merge
from importlib import resources

from chassis.clock import monotonic, utc_now
from chassis.faults import insist
from chassis.kafka import KafkaPublisher
from chassis.message import Writer, time_header
from chassis.roots import new_id
from chassis.transport import Outgoing
from chassis.vault import Vault
from cli.texts import scripts
from schemas import telephony
from schemas.envelope import Body
from services.intake.door.entry import fact_id, identified, sealed
from services.intake.sources.asterisk import replay
from services.intake.sources.canonical import Mapped

# Calls per half-hour of a bank's working day, 8:00 to 20:00, as shares of the busiest.
DAY_SHAPE = (
    0.35, 0.55, 0.85, 0.97, 1.0, 0.96, 0.90, 0.82, 0.66, 0.60, 0.68, 0.80,
    0.88, 0.90, 0.86, 0.80, 0.72, 0.60, 0.48, 0.38, 0.30, 0.25, 0.21, 0.18,
)  # fmt: skip
_QUEUES = ("cards", "loans", "digital", "general")


def recorded() -> list[Mapped]:
    """The calls of the recorded PBX, in the order in which its events arrived."""
    with resources.as_file(resources.files("cli").joinpath("recordings/run2-full/ami-steady.raw.gz")) as path:
        return list(replay(path, "asterisk-demo"))


def generated(calls: int, rate: float, seed: int) -> Iterator[tuple[float, Mapped]]:
    """Calls beyond the recording: (seconds from the start, event), in time order.

    Arrivals are a Poisson process whose intensity follows `DAY_SHAPE`, scaled to `rate` calls
    per second on average; 2 % are refused, 8 % abandon, the rest is answered.
    """
    dice = random.Random(seed)  # noqa: S311 - repeatable load, not a secret
    length = calls / rate
    arrivals = sorted(_arrival(dice, length) for _ in range(calls))
    started = utc_now()
    streams = (
        [(at + after, number, index, Mapped(f"{call_id}|{index}", body, phone))]
        for number, at in enumerate(arrivals)
        for call_id, events in [_call(dice, seed, number, at)]
        for index, (after, body, phone) in enumerate(events)
    )
    for at, _, _, fact in (
        merge(*streams) if calls < 2000 else sorted(item for one in streams for item in one)
    ):
        moment = started + timedelta(seconds=at)
        yield at, Mapped(fact.key, fact.body.model_copy(update={"occurred_at": moment}), fact.phone)


def _arrival(dice: random.Random, length: float) -> float:
    """Draw one arrival by rejection against the day's shape."""
    while True:
        share = dice.random()
        if dice.random() < DAY_SHAPE[int(share * len(DAY_SHAPE))]:
            return share * length


def _call(
    dice: random.Random, seed: int, number: int, at: float
) -> tuple[str, list[tuple[float, Body, str | None]]]:
    call_id = f"load-{seed}-{number:07d}"
    queue = dice.choice(_QUEUES)
    phone = scripts()[number % len(scripts())].phone
    base = {"call_id": call_id, "source": f"load-{seed}", "occurred_at": utc_now()}
    offered = telephony.CallOffered(**base, dialled="95000", language="zh")
    luck = dice.random()
    if luck < 0.02:
        refused = telephony.CallRefused(**base, queue=queue, reason="full")
        ended = telephony.CallEnded(**base, cause="refused")
        return call_id, [(0.0, offered, phone), (0.01, refused, None), (0.02, ended, None)]
    queued = telephony.CallQueued(**base, queue=queue, visit=1, position=1)
    wait = dice.expovariate(1 / 0.2)
    waited = int(wait * 60_000)
    if luck < 0.10:
        left = telephony.QueueLeft(**base, queue=queue, visit=1, reason="abandoned", wait_ms=waited)
        gone = telephony.CallEnded(**base, cause="caller_hung_up")
        return call_id, [
            (0.0, offered, phone),
            (0.01, queued, None),
            (wait, left, None),
            (wait + 0.01, gone, None),
        ]
    agent = f"agent-{dice.randrange(40):02d}"
    talk = dice.lognormvariate(-1.2, 0.6)
    answered = telephony.CallAnswered(**base, queue=queue, visit=1, agent=agent, wait_ms=waited)
    talked = telephony.TalkEnded(
        **base, queue=queue, visit=1, agent=agent, talk_ms=int(talk * 300_000), ended_by="caller"
    )
    over = telephony.CallEnded(**base, cause="normal")
    return call_id, [
        (0.0, offered, phone),
        (0.01, queued, None),
        (wait, answered, None),
        (wait + talk, talked, None),
        (wait + talk + 0.01, over, None),
    ]


_SOURCE = "telephony"


class Telephony:
    """Publishes call events as an adapter does: deterministic ids, telephone numbers sealed at the edge.

    It counts what it publishes, so that the ledger can tell what never arrived.
    """

    def __init__(self, publisher: KafkaPublisher, vault: Vault) -> None:
        self._publisher, self._vault = publisher, vault
        self._writer = Writer("telephony")
        self._since, self._count = utc_now(), 0

    async def publish(self, facts: Sequence[Mapped]) -> None:
        """Seal and send a run of call events, in order; tries until it works, as an adapter must."""
        known = [identified(fact) for fact in facts]
        refs = [self._vault.customer_ref(fact.phone) for fact in known if fact.phone]
        await insist(partial(self._vault.ready, refs, create=True))
        await insist(partial(self._publisher.publish, [self._message(fact) for fact in known]))

    def _message(self, fact: Mapped) -> Outgoing:
        body = sealed(fact, self._vault)
        at = getattr(body, "occurred_at", None) or utc_now()
        correlation = str(getattr(body, "call_id", None) or getattr(body, "source", "-"))
        return self._writer.write(
            body,
            uid=fact_id(fact),
            at=time_header(at),
            correlation=correlation,
            sequence=self._next(),
            numbered_for=_SOURCE,
        )

    def _next(self) -> int:
        self._count += 1
        return self._count

    async def manifest(self) -> None:
        """Say how much was published since the start: what is missing then is proved to be lost."""
        body = telephony.ManifestPublished(
            source=_SOURCE,
            from_seq=1,
            to_seq=self._count,
            count=self._count,
            period_from=self._since,
            period_to=utc_now(),
        )
        message = self._writer.write(body, uid=new_id(), at=time_header(body.period_to), correlation=_SOURCE)
        await insist(partial(self._publisher.publish, [message]))

    async def replay(self, facts: Iterable[Mapped], batch: int = 60) -> int:
        """Send a recording, much faster than it happened; returns how many events."""
        run = list(facts)
        for start in range(0, len(run), batch):
            await self.publish(run[start : start + batch])
            await asyncio.sleep(0.02)
        return len(run)

    async def play(self, schedule: Iterable[tuple[float, Mapped]]) -> AsyncIterator[int]:
        """Send generated calls at their due times; yields how many events were sent so far."""
        started, sent = monotonic(), 0
        waiting: list[Mapped] = []
        for at, fact in schedule:
            ahead = at - (monotonic() - started)
            if ahead > 0.02 or len(waiting) >= 500:
                if waiting:
                    await self.publish(waiting)
                    sent += len(waiting)
                    waiting = []
                    yield sent
                await asyncio.sleep(max(0.0, ahead))
            waiting.append(fact)
        if waiting:
            await self.publish(waiting)
            yield sent + len(waiting)

"""The voice assistant: looks up how a caller stands, composes what is told, and keeps that it was told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from chassis.clock import monotonic, utc_now
from schemas import telephony
from schemas.case import Language
from services.intake.customers import store as customers
from services.intake.desk.masking import mask
from services.intake.desk.phones import normalise
from services.intake.domain import Policy, promised_for
from services.intake.door.house import House
from services.intake.sources.canonical import Mapped
from services.intake.waiting import store
from services.intake.waiting.guidance import Guidance, OpenCase, Situation, guide, reason_of
from services.intake.waiting.hours import load_hours
from services.intake.waiting.knowledge import load_knowledge
from services.intake.waiting.queues import Queue, rank_of
from services.intake.waiting.wording import Told

FRESH_FOR = 1.0
SOURCE = "assistant"
NO_QUEUE = "none"
"""What is told to a caller who is in no queue is told for this one."""
WORTH_A_CALLBACK = timedelta(minutes=1)


class UnknownCall(LookupError):
    """No event of this call has arrived."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the IVR asks about a call; `identified` says that the caller has proved who he is, by PIN say.

    Without a `queue` it is the one in which the caller waits.
    """

    queue: str
    call_id: str
    language: Language | None = None
    question: str | None = None
    identified: bool = False


class Assistant:
    """Answers for all queues; what it knows of a queue is at most a second old."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.knowledge = load_knowledge(house.settings.knowledge_file)
        self.hours = load_hours(house.settings.hours_file)
        self._queues: dict[str, tuple[float, Queue]] = {}
        self._reading = asyncio.Lock()

    async def guidance(self, asked: Asked) -> Guidance:
        """Compose what this caller is told now, and keep it as an event first; raises UnknownCall."""
        now = utc_now()
        async with self._house.database.session() as tx:
            row = await store.caller(tx, asked.call_id, asked.queue)
            if row is None:
                raise UnknownCall(asked.call_id)
            case = None
            if asked.identified and row["customer_ref"]:
                survivor = await customers.survivor_of(tx, row["customer_ref"])
                case = await store.open_case(tx, await customers.references(tx, survivor))
        asked = replace(asked, queue=asked.queue or row["queue"] or NO_QUEUE)
        queue = await self.queue(asked.queue)
        situation = self._situation(asked, row, case, queue, now)
        told = guide(situation, self.knowledge)
        await self._keep_told(asked, row, told, now)
        return told

    async def queue(self, name: str) -> Queue:
        """What is known of a queue, read again when it is older than a second, by one for all who ask."""
        async with self._reading:
            read_at, queue = self._queues.get(name, (-FRESH_FOR, Queue(utc_now())))
            if monotonic() - read_at >= FRESH_FOR:
                now = utc_now()
                async with self._house.database.session() as tx:
                    rows = await store.stays(tx, name, now)
                queue.refresh(rows, now)
                if rows or name in self._queues:
                    # Names come from outside: only queues that exist are remembered.
                    self._queues[name] = (monotonic(), queue)
            return queue

    def _situation(self, asked: Asked, row: Any, case: Any, queue: Queue, now: datetime) -> Situation:
        calendar = self.hours.calendar(asked.queue)
        zone = calendar.tz if isinstance(calendar.tz, ZoneInfo) else ZoneInfo(str(calendar.tz))
        in_line = row["phase"] in ("offered", "queued") and asked.queue != NO_QUEUE
        joined = row["queued_at"] or now
        stay = (row["call_id"], row["visit"]) if row["visit"] is not None else None
        where = queue.standing(rank_of(joined, row["priority"]), now, stay, row["place"])
        estimate = queue.estimate(where)
        long = estimate.expected is None or estimate.expected >= WORTH_A_CALLBACK
        is_open = self.hours.is_open(asked.queue, now)
        # Who waits in another queue, or left this one, has no place here; who is in none yet would have.
        here = row["phase"] == "offered" or row["visit"] is not None
        # Nobody is next where nobody works; after hours, agents may still be at it.
        waits = in_line and here and (is_open or where.staffed > 0)
        return Situation(
            language=asked.language or _language(row["language"]),
            now=now.astimezone(zone),
            open=is_open,
            next_opening=None if is_open else self.hours.next_opening(asked.queue, now),
            position=where.ahead + 1 if waits else None,
            estimate=estimate if waits else None,
            before=_before(row),
            since=now - row["told_at"] if row["told_at"] else timedelta(0),
            callback_offered=row["callback_state"] is None and in_line and (long or not is_open),
            open_case=OpenCase(case["case_no"], case["state"], case["changed_at"], case["department"])
            if case
            else None,
            question=asked.question,
        )

    async def _keep_told(self, asked: Asked, row: Any, told: Guidance, now: datetime) -> None:
        body = telephony.PositionTold(
            call_id=asked.call_id,
            source=SOURCE,
            occurred_at=now,
            queue=asked.queue,
            visit=row["visit"] or 0,
            position=told.position,
            estimate_ms=told.estimate_ms,
            about_ms=told.about_ms,
            at_most_ms=told.at_most_ms,
            basis=told.basis,
            language=told.language,
            answers=told.answers,
        )
        await self._house.entry.facts([Mapped(f"told|{asked.call_id}|{now.isoformat()}", body)])

    async def capture(self, call_id: str, said: str, language: Language | None) -> str:
        """Keep why the caller calls, by digit or in words, masked and sealed; gives the topic."""
        now = utc_now()
        row = await self._call(call_id)
        language = language or _language(row["language"])
        topic = reason_of(said, language, self.knowledge)
        digit = said.strip() if len(said.strip()) == 1 and said.strip().isdigit() else ""
        ref = row["customer_ref"] or self._house.vault.customer_ref(f"call:{call_id}")
        text = None
        if not digit:
            await self._house.vault.ready([ref], create=True)
            text = self._house.vault.seal(ref, mask(said[:2000]).text)
        body = telephony.ReasonCaptured(
            call_id=call_id,
            source=SOURCE,
            occurred_at=now,
            topic=topic,
            digit=digit,
            customer_ref=ref if text else None,
            text=text,
        )
        await self._house.entry.facts([Mapped(f"reason|{call_id}|{now.isoformat()}", body)])
        return topic

    async def call_back(
        self, call_id: str, queue: str, number: str | None = None, due_at: datetime | None = None
    ) -> datetime:
        """Keep that the caller wants to be called back; tells when, in the queue's zone.

        Without a `queue` it is the one in which the caller waits. The last wish counts. Raises UnknownCall,
        ValueError without a number.
        """
        now = utc_now()
        row = await self._call(call_id)
        phone = normalise(number) if number else None
        if number and (phone is None or not phone.personal):
            # Who gives the police's number, or one that costs, is not called there at the bank's expense.
            raise ValueError("not a telephone number at which a customer can be called")
        if phone is None and row["customer_ref"] is None:
            raise ValueError("the caller's own number is not known; ask for one")
        queue = queue or row["queue"] or NO_QUEUE
        policy = Policy(callback_after=self._house.settings.callback_after, opens=self.hours.next_opening)
        due = promised_for(due_at, queue, now, policy)
        body = telephony.CallbackRequested(
            call_id=call_id, source=SOURCE, occurred_at=now, queue=queue, due_at=due
        )
        fact = Mapped(f"callback|{call_id}|{queue}", body, phone.number if phone else None)
        await self._house.entry.facts([fact])
        return due.astimezone(self.hours.calendar(queue).tz)

    async def _call(self, call_id: str) -> Any:
        async with self._house.database.session() as tx:
            row = await store.caller(tx, call_id, "")
        if row is None:
            raise UnknownCall(call_id)
        return row

    async def board(self) -> list[dict[str, Any]]:
        """How every queue stands now, for the wallboard."""
        now = utc_now()
        async with self._house.database.session() as tx:
            names = await store.busy_queues(tx, now - timedelta(days=1))
        return [self._line(name, await self.queue(name), now) for name in names]

    def _line(self, name: str, queue: Queue, now: datetime) -> dict[str, Any]:
        waiting = queue.waiting(now)
        where = queue.standing(now, now)
        estimate = queue.estimate(where)
        oldest = min((stay.queued_at for stay in waiting), default=None)
        return {
            "queue": name,
            "open": self.hours.is_open(name, now),
            "in_queue": len(waiting),
            "oldest_contact_age_s": round((now - oldest).total_seconds(), 1) if oldest else None,
            "on_contact": queue.talking(now),
            "staffed": where.staffed or None,
            "estimate_s": round(estimate.expected.total_seconds()) if estimate.expected is not None else None,
            "at_most_s": round(estimate.at_most.total_seconds()) if estimate.at_most is not None else None,
            "basis": estimate.basis,
            "unknown_because": estimate.reason,
        }


def _language(code: str | None) -> Language:
    return "en" if (code or "").lower().startswith("en") else "zh"


def _before(row: Any) -> Told | None:
    if row["told_at"] is None or row["told_place"] is None:
        return None

    def span(milliseconds: int | None) -> timedelta | None:
        return None if milliseconds is None else timedelta(milliseconds=milliseconds)

    return Told("", row["told_place"], span(row["told_about"]), span(row["told_at_most"]))

"""The agent's desk over HTTP: who calls, what is written so far, and what is to become of the call."""

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import (
    BaseModel,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from chassis.clock import utc_now
from chassis.roots import new_id
from chassis.vault import ERASED
from schemas import intake
from schemas.case import Category, Decision, Personal
from schemas.envelope import Body, Code, Identifier
from services.intake.contact import Contact
from services.intake.customers import store as customers
from services.intake.customers.record import WORDINGS, Person, Record, Refused, came_to
from services.intake.desk import masking, phones
from services.intake.desk.checklist import (
    Checklist,
    Wording,
    assess,
    load_checklists,
    problems,
    read_back_text,
)
from services.intake.desk.masking import Kind
from services.intake.door import drafts
from services.intake.door.drafts import Verdict, Verdicts
from services.intake.door.forms import (
    Added,
    Answered,
    Attached,
    Attachment,
    Attempted,
    Callback,
    CallbackAttempt,
    CallbackCancellation,
    CallbackDue,
    Callbacks,
    CallFacts,
    Cancelled,
    Closed,
    Closing,
    CommandVerdict,
    CustomerFacts,
    Denied,
    Draft,
    DraftKept,
    DraftStands,
    EarlierContact,
    Facts,
    Hidden,
    KnownCategory,
    Learnt,
    Malformed,
    OpenCase,
    Pending,
    Recorded,
    Recording,
    ScreenPop,
)
from services.intake.door.house import House
from services.intake.door.objections import Objection, desk_route, refused_by_stage, unusable

LARGEST_TEXT = 48_000
"""Bytes of JSON that fit into a `Cipher` once they are sealed."""
MOST_CALLBACKS = 200

# ---------------------------------------------------------------- what is written, without its numbers

D = TypeVar("D", bound=Draft)
_FREE_TEXT = ("name", "summary", "demand", "suggestion")


def _masked(draft: D, checklist: Checklist | None) -> tuple[D, list[Hidden]]:
    """Mask the numbers in every free text; a telephone number stays where the checklist asks for one."""
    asked_for = {item.code for item in checklist.items if item.kind == "phone"} if checklist else set()
    hidden: list[Hidden] = []

    def masked(field: str, text: str, keep: frozenset[Kind] = frozenset()) -> str:
        result = masking.mask(text, keep)
        hidden.extend(
            Hidden(field=field, kind=found.kind, start=found.start, end=found.end) for found in result.found
        )
        return result.text

    change: dict[str, Any] = {field: masked(field, getattr(draft, field)) for field in _FREE_TEXT}
    change["answers"] = {
        code: masked(f"answers.{code}", text, frozenset({Kind.PHONE} if code in asked_for else ()))
        for code, text in draft.answers.items()
    }
    return draft.model_copy(update=change), hidden


def _personal(draft: Draft) -> Personal:
    phone = phones.normalise(draft.phone)
    return Personal(
        name=draft.name,
        phone=phone.number if phone else draft.phone,
        summary=draft.summary,
        demand=draft.demand,
        suggestion=draft.suggestion,
        answers=draft.answers,
    )


_ETAG = re.compile(r'"?(\d{1,9})"?')
_AGENT: TypeAdapter[str] = TypeAdapter(Code)


def _version(if_match: str | None) -> int:
    if if_match is None:
        return 0
    match = _ETAG.fullmatch(if_match.strip())
    if match is None:
        raise unusable(("header", "if-match"), 'is not the ETag of a draft, for example "3"')
    return int(match[1])


def _facts(said: Sequence[Body], case_no: str | None) -> Facts:
    """Say what a command came to, from the events that it caused."""
    kinds = {type(body) for body in said}
    match said[0]:
        case intake.CaseRecorded() | intake.CaseAnswered() as body:
            case = body.case
            return Recorded(case_id=case.case_id, case_no=case.case_no, completeness=case.completeness)
        case intake.ContactAttached() as body:
            return Attached(
                case_id=body.case_id,
                case_no=case_no,
                repeat_no=body.repeat_no,
                escalated=intake.CaseEscalated in kinds,
            )
        case intake.CallbackAttempted() as body:
            return Attempted(
                call_id=body.call_id,
                attempt=body.attempt,
                outcome=body.outcome,
                next_at=body.next_at,
                exhausted=intake.CallbackExhausted in kinds,
            )
        case intake.CallbackCancelled() as body:
            return Cancelled(call_id=body.call_id, reason=body.reason)
        case intake.ContactClosed() as body:
            return Closed(call_id=body.call_id, reason=body.reason, referred_to=body.referred_to)
    raise AssertionError(f"no command of the desk causes {type(said[0]).__name__}")


# ---------------------------------------------------------------- the desk


async def _agent(request: Request) -> str:
    agent: str = request.state.agent
    return agent


Agent = Annotated[str, Depends(_agent)]
CallId = Annotated[Identifier, Path(description="The call's id, as the telephone system gives it.")]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200)]
IdempotencyKey = Annotated[
    Key, Header(description="The same key with the same body is the same request, however often it is sent.")
]
MaybeKey = Annotated[Key | None, Header(alias="idempotency-key")]


class Desk:
    """What the desk answers; reads the reading copies, and changes a call only by commands to the stage."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._checklists = load_checklists(house.settings.checklists_file)
        self._verdicts = Verdicts(house.database)

    async def admit(self, request: Request) -> None:
        """Name the agent, whom the route has let in; raises RequestValidationError for what is no name."""
        try:
            request.state.agent = _AGENT.validate_python(request.state.visitor.name)
        except ValidationError:
            raise unusable(("header", "x-agent"), "is not the name of an agent") from None

    # ------------------------------------------------------------ looking

    async def pop(
        self,
        call_id: CallId,
        agent: Agent,
        category: Annotated[KnownCategory | None, Query()] = None,
        product: Annotated[Code | None, Query()] = None,
    ) -> ScreenPop:
        """Show who calls and what is known, from the first ring on; that somebody looked is kept."""
        async with self._house.database.session() as tx:
            contact = await drafts.contact_of(tx, call_id)
            if contact is None:
                raise _unknown(call_id)
            family = await customers.family(tx, contact.customer_ref) if contact.customer_ref else []
            refs = [record.customer_ref for record in family]
            cases = await drafts.open_cases(tx, refs)
            added = await drafts.attached(tx, [case["case_id"] for case in cases])
            earlier = await drafts.earlier_contacts(tx, refs, besides=call_id)
            owed = await drafts.callbacks_owed(tx, refs, call_id)
            kept = await drafts.draft_of(tx, call_id)
            await drafts.note_views(tx, [(ref, f"screen pop of call {call_id}") for ref in refs[:1]], agent)
        now = utc_now()
        keys = _keys(contact, family[0] if family else None)
        await self._house.vault.ready([*keys, *(row["customer_ref"] for row in added if row["sealed"])])
        return ScreenPop(
            call=_call_facts(contact, now),
            customer=self._customer_facts(contact, family[0]) if family else None,
            open_cases=[self._open_case(case, added) for case in cases],
            contacts=[_earlier(row) for row in earlier],
            learnt=self._learnt(contact),
            told=contact.told,
            callbacks=[Callback(**_owed(row, now)) for row in owed],
            draft=DraftStands.model_validate(kept, from_attributes=True) if kept else None,
            checklist=self._checklist(category, product),
        )

    def _open_case(self, case: Any, attached: Sequence[Any]) -> OpenCase:
        added = [
            Added(
                **{name: row[name] for name in ("call_id", "repeat_no", "agent", "attached_at")},
                text=self._opened(row["customer_ref"], row["sealed"]),
            )
            for row in attached
            if row["case_id"] == case["case_id"]
        ]
        return OpenCase(**case, stands=_worded(case["state"]), added=added)

    def _customer_facts(self, contact: Contact, record: Record) -> CustomerFacts:
        person = self._person(record, contact)
        phone = phones.normalise(person.phone)
        erased = record.erased_at is not None
        return CustomerFacts(
            customer_ref=record.customer_ref,
            version=record.version,
            number=phone.masked if phone else None,
            number_unknown=None if phone else "erased" if erased else "unreadable",
            name=person.name or None,
            name_unknown=None if person.name else "erased" if erased else "not_recorded",
            language=record.language or contact.language,
            vulnerable=record.vulnerable,
            consents=record.consents,
        )

    def _person(self, record: Record | None, contact: Contact | None) -> Person:
        """Who the bank knows; of somebody it does not know, the number that called."""
        opened = self._opened(record.customer_ref, record.sealed) if record else None
        person = Person.parse(opened) if opened else Person()
        if person.phone or contact is None:
            return person
        return person.model_copy(update={"phone": self._opened(contact.customer_ref, contact.caller) or ""})

    def _learnt(self, contact: Contact) -> Learnt | None:
        if contact.reason is None:
            return None
        text = self._opened(contact.reason.customer_ref or contact.customer_ref, contact.reason.text)
        return Learnt(topic=contact.reason.topic, text=text)

    def _opened(self, ref: str | None, sealed: str | None) -> str | None:
        """Open what `Vault.ready` has the key for; None where nothing was kept or it was erased."""
        if ref is None or sealed is None:
            return None
        text = self._house.vault.open(ref, sealed)
        return None if text == ERASED else text

    async def callbacks(
        self,
        agent: Agent,
        queue: Annotated[Code | None, Query()] = None,
        after: Annotated[Identifier | None, Query(description="`next` of the page before.")] = None,
    ) -> Callbacks:
        """List who must be called back, the longest wait first; whose number was shown to whom is kept."""
        async with self._house.database.session() as tx:
            found = await drafts.callbacks(tx, queue, after, MOST_CALLBACKS + 1)
            if after is not None and not found and await drafts.contact_of(tx, after) is None:
                raise unusable(("query", "after"), "is no call; take it from `next` of the page before")
        rows = found[:MOST_CALLBACKS]
        now = utc_now()
        await self._house.vault.ready([row["customer_ref"] for row in rows if row["customer_ref"]])
        due = [self._callback_due(row, now) for row in rows]
        async with self._house.database.session() as tx:
            shown = [
                (row["customer_ref"], f"number of callback {callback.call_id}")
                for row, callback in zip(rows, due, strict=True)
                if callback.number
            ]
            await drafts.note_views(tx, shown, agent)
        more = len(found) > len(rows)
        return Callbacks(callbacks=due, next=due[-1].call_id if more else None)

    def _callback_due(self, row: Any, now: datetime) -> CallbackDue:
        number = self._opened(row["customer_ref"], row["number"])
        return CallbackDue(
            **_owed(row, now),
            place=row["place"],
            ready=row["ready"],
            language=row["language"],
            reason_topic=row["reason_topic"],
            number=number,
            number_unknown=None if number else "unreadable" if row["number"] else "withheld",
        )

    # ------------------------------------------------------------ writing

    async def read_draft(self, call_id: CallId, response: Response) -> DraftKept:
        """Give what was written so far; the ETag is its version."""
        async with self._house.database.session() as tx:
            kept = await drafts.draft_of(tx, call_id)
            contact = await drafts.contact_of(tx, call_id)
        if kept is None:
            raise Objection("no_draft", f"nobody has written about call {call_id}, or it has its case by now")
        await self._house.vault.ready([kept.customer_ref])
        opened = self._opened(kept.customer_ref, kept.sealed)
        if opened is None:
            raise Objection("erased", f"the customer of call {call_id} was erased", version=kept.version)
        return await self._kept(kept, contact, Draft.model_validate_json(opened), [], response)

    async def write_draft(
        self,
        call_id: CallId,
        agent: Agent,
        asked: Draft,
        response: Response,
        if_match: Annotated[
            str | None, Header(description="The ETag read before; none for the first.")
        ] = None,
    ) -> DraftKept:
        """Keep what is written so far, masked and sealed; says what the case still lacks."""
        over = _version(if_match)
        draft, hidden = _masked(asked, self._checklist(asked.category, asked.product))
        async with self._house.database.session() as tx:
            contact = await drafts.contact_of(tx, call_id)
        if contact is None:
            raise _unknown(call_id)
        ref = self._ref(call_id, contact, draft.phone)
        sealed = await self._sealed(ref, _fitting(draft.model_dump_json()))
        async with self._house.database.session() as tx:
            kept = await drafts.keep_draft(
                tx, call_id, over=over, agent=agent, customer_ref=ref, sealed=sealed
            )
            if kept is None:
                raise _stale(over, await drafts.draft_of(tx, call_id))
        return await self._kept(kept, contact, draft, hidden, response)

    async def _kept(
        self,
        kept: drafts.Kept,
        contact: Contact | None,
        draft: Draft,
        hidden: list[Hidden],
        response: Response,
    ) -> DraftKept:
        response.headers["etag"] = f'"{kept.version}"'
        judged: dict[str, Any] = {"completeness": None, "problems": [], "read_back_text": None}
        checklist = self._checklist(draft.category, draft.product)
        if checklist is not None:
            now = utc_now()
            personal, identified = await self._held(_personal(draft), kept.customer_ref, contact)
            given: dict[str, Any] = {"read_back": draft.read_back, "identified": identified, "now": now}
            judged = {
                "completeness": assess(checklist, personal, **given),
                "problems": problems(checklist, personal, **given),
                "read_back_text": read_back_text(checklist, personal, language=draft.language, now=now),
            }
        return DraftKept(
            version=kept.version,
            agent=kept.agent,
            updated_at=kept.updated_at,
            draft=draft,
            masked=hidden,
            **judged,
        )

    async def _held(self, personal: Personal, ref: str, contact: Contact | None) -> tuple[Personal, bool]:
        """Fill in what the bank holds already, and tell whether it knows the customer."""
        async with self._house.database.session() as tx:
            try:
                record = await customers.load(tx, ref)
            except Refused:
                record = None
        mine = contact if contact is not None and contact.customer_ref == ref else None
        await self._house.vault.ready([ref], create=True)
        await self._house.vault.ready(_keys(mine, record))
        held = self._person(record, mine)
        filled = {"name": personal.name or held.name, "phone": personal.phone or held.phone}
        return personal.model_copy(update=filled), record is not None and record.sealed is not None

    def _checklist(self, category: Category | None, product: str | None) -> Checklist | None:
        return self._checklists.checklist_for(category, product or "") if category else None

    def _ref(self, call_id: str, contact: Contact | None, phone_given: str = "") -> str:
        """Name the customer: by the number that was given, else by the caller's, else by this one call."""
        phone = phones.normalise(phone_given)
        if phone is not None and phone.personal:
            return self._house.vault.customer_ref(phone.number)
        if contact is not None and contact.customer_ref is not None:
            return contact.customer_ref
        return self._house.vault.customer_ref(f"call:{call_id}")

    async def _sealed(self, ref: str, text: str) -> str:
        await self._house.vault.ready([ref], create=True)
        try:
            return self._house.vault.seal(ref, text)
        except KeyError:
            raise Objection("just_erased", "the customer was erased, and has no new key yet") from None

    # ------------------------------------------------------------ deciding

    async def record(
        self, call_id: CallId, agent: Agent, asked: Recording, idempotency_key: IdempotencyKey
    ) -> Facts | Response:
        """Record the case of a call; with a decision, as answered on first contact."""
        if asked.phone and phones.normalise(asked.phone) is None:
            raise unusable(("body", "phone"), "is not a valid number; a landline needs its area code")
        recording, _ = _masked(asked, self._checklist(asked.category, asked.product))
        _fitting(_personal(recording).model_dump_json())

        async def command(at: datetime) -> Body:
            async with self._house.database.session() as tx:
                contact = await drafts.contact_of(tx, call_id)
            ref = self._ref(call_id, contact, recording.phone)
            personal, identified = await self._held(_personal(recording), ref, contact)
            return intake.RecordingRequested(
                call_id=call_id,
                agent=agent,
                language=recording.language,
                category=recording.category,
                product=recording.product,
                severity=recording.severity,
                vulnerable=recording.vulnerable,
                customer_ref=ref,
                sealed=await self._sealed(ref, personal.model_dump_json()),
                decision=await self._decision(ref, recording.decision),
                completeness=assess(
                    self._checklists.checklist_for(recording.category, recording.product),
                    personal,
                    read_back=recording.read_back,
                    identified=identified,
                    now=at,
                ),
                follows=recording.follows,
            )

        return await self._ask(call_id, agent, asked, idempotency_key, command)

    async def _decision(self, ref: str, asked: Answered | None) -> Decision | None:
        if asked is None:
            return None
        return Decision(
            outcome=asked.outcome,
            text=await self._sealed(ref, _fitting(masking.mask(asked.text).text)),
            root_cause=asked.root_cause,
            redress_amount=None if asked.redress_amount is None else f"{asked.redress_amount:.2f}",
            redress_currency=asked.redress_currency,
        )

    async def attach(
        self, call_id: CallId, agent: Agent, asked: Attachment, idempotency_key: MaybeKey = None
    ) -> Facts | Response:
        """Say that a call belongs to an open case; who calls too often about one is escalated."""
        text = _fitting(masking.mask(asked.text).text)

        async def command(_: datetime) -> Body:
            async with self._house.database.session() as tx:
                case_id = _attachable(asked, await drafts.find_case(tx, asked.case_id, asked.case_no))
                contact = await drafts.contact_of(tx, call_id) if text else None
            ref = self._ref(call_id, contact) if text else None
            return intake.AttachmentRequested(
                call_id=call_id,
                agent=agent,
                to_case_id=case_id,
                customer_ref=ref,
                text=await self._sealed(ref, text) if ref else None,
            )

        return await self._ask(call_id, agent, asked, idempotency_key, command)

    async def close(
        self, call_id: CallId, agent: Agent, asked: Closing, idempotency_key: MaybeKey = None
    ) -> Facts | Response:
        """Close a call that needs no case."""
        command = intake.ClosingRequested(
            call_id=call_id, agent=agent, reason=asked.reason, referred_to=asked.referred_to
        )
        return await self._ask(call_id, agent, asked, idempotency_key, _ready(command))

    async def report_attempt(
        self, call_id: CallId, agent: Agent, asked: CallbackAttempt, idempotency_key: MaybeKey = None
    ) -> Facts | Response:
        """Report how calling back went; `call_id` is the call that asked for it."""
        command = intake.CallbackAttemptReported(
            call_id=call_id, agent=agent, outcome=asked.outcome, by_call_id=asked.by_call_id
        )
        return await self._ask(call_id, agent, asked, idempotency_key, _ready(command))

    async def cancel_callback(
        self, call_id: CallId, agent: Agent, asked: CallbackCancellation, idempotency_key: MaybeKey = None
    ) -> Facts | Response:
        """Cancel a callback that nobody needs any more; `call_id` is the call that asked for it."""
        command = intake.CallbackCancellationRequested(
            call_id=call_id, reason=asked.reason, by_call_id=asked.by_call_id
        )
        return await self._ask(call_id, agent, asked, idempotency_key, _ready(command))

    async def verdict(self, command_id: UUID) -> CommandVerdict:
        """Tell what became of a command."""
        async with self._house.database.session() as tx:
            call_id = await drafts.call_of(tx, command_id)
        if call_id is None:
            raise Objection("unknown_command", f"the desk has sent no command {command_id}")
        verdict, facts, _ = await self._read(command_id, call_id)
        return CommandVerdict(
            command_id=command_id,
            call_id=call_id,
            verdict=verdict.outcome,
            facts=facts,
            refusal=verdict.refusal,
            why=verdict.why,
        )

    async def _ask(
        self,
        call_id: str,
        agent: str,
        asked: BaseModel,
        key: str | None,
        command: Callable[[datetime], Awaitable[Body]],
    ) -> Facts | Response:
        """Send a command once per key, and wait a moment for its verdict.

        The key is bound to the command's id before the command is kept. Who finds a key that another has
        bound waits half the time; then that other may have died in between, and the same command is sent
        again: the stage decides an id once. So nobody is told "pending" of a command that is not kept.
        """
        command_id, within = new_id(), self._house.settings.verdict_within
        bound_to = f"{agent}/{key}" if key else str(command_id)
        async with self._house.database.session() as tx:
            claim = await drafts.claim(tx, bound_to, self._digest(call_id, asked), command_id, call_id)
        if claim.digest != self._digest(call_id, asked):
            raise Objection("idempotency_mismatch", "this Idempotency-Key was used for another request")
        if not claim.fresh:
            within /= 2
        if claim.fresh or not await self._verdicts.wait(claim.command_id, within):
            await self._house.entry.command(claim.command_id, await command(claim.created_at))
            await self._verdicts.wait(claim.command_id, within)
        return self._answer(*await self._read(claim.command_id, call_id))

    def _digest(self, call_id: str, asked: BaseModel) -> bytes:
        # Blinded first: what a customer said must not be guessed from a digest once it is erased.
        text = f"request:{type(asked).__name__}:{call_id}:{_canonical(asked)}"
        return blake2b(self._house.vault.customer_ref(text).encode(), digest_size=16).digest()

    async def _read(
        self, command_id: UUID, call_id: str
    ) -> tuple[Verdict, Facts | None, tuple[UUID, str | None] | None]:
        async with self._house.database.session() as tx:
            verdict = await drafts.verdict_on(tx, command_id, call_id)
            case = None if verdict.outcome == "pending" else await drafts.case_of_call(tx, call_id)
            done = verdict.outcome == "done" and verdict.said
            facts = _facts(verdict.said, case[1] if case else None) if done else None
            if isinstance(facts, Recorded | Attached | Closed):
                await drafts.drop_draft(tx, call_id)
        return verdict, facts, case

    @staticmethod
    def _answer(
        verdict: Verdict, facts: Facts | None, case: tuple[UUID, str | None] | None
    ) -> Facts | Response:
        if verdict.outcome == "refused":
            raise refused_by_stage(verdict, case)
        if facts is not None:
            return facts
        if verdict.why is None:
            raise Objection("no_longer_kept", "this request was decided long ago")
        pending = Pending(
            command_id=verdict.command_id, verdict=f"/commands/{verdict.command_id}", why=verdict.why
        )
        return JSONResponse(pending.model_dump(mode="json"), 202, headers={"location": pending.verdict})


def _canonical(asked: BaseModel) -> str:
    return json.dumps(asked.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)


def _ready(command: Body) -> Callable[[datetime], Awaitable[Body]]:
    async def ready(_: datetime) -> Body:
        return command

    return ready


def _fitting(text: str) -> str:
    if len(text.encode()) > LARGEST_TEXT:
        raise Objection("too_large", f"all texts together are larger than {LARGEST_TEXT} bytes")
    return text


def _unknown(call_id: str) -> Objection:
    return Objection("unknown_call", f"no event of call {call_id} has arrived")


def _stale(over: int, stands: drafts.Kept | None) -> Objection:
    if stands is None:
        return Objection("stale_draft", f"version {over} is gone: the call was decided, or the draft deleted")
    at = stands.updated_at.isoformat(timespec="seconds")
    why = f"{stands.agent} saved version {stands.version} at {at}; this was written over version {over}"
    return Objection("stale_draft", why, version=stands.version, by=stands.agent, at=at)


def _attachable(asked: Attachment, known: Any) -> UUID:
    """Choose the case; on a closed one nobody would work any more."""
    case_id: UUID | None = known["case_id"] if known else asked.case_id
    if case_id is None:
        raise Objection("unknown_case", f"the desk knows no case {asked.case_no}")
    if known and known["closed_at"] is not None:
        raise Objection("case_closed", f"case {known['case_no'] or case_id} is closed")
    return case_id


# ---------------------------------------------------------------- what is shown


def _keys(contact: Contact | None, record: Record | None) -> list[str]:
    """Name whose keys open what is kept of a call and of its customer."""
    refs = [record.customer_ref] if record is not None and record.sealed else []
    if contact is not None and contact.customer_ref is not None:
        refs.append(contact.customer_ref)
    if contact is not None and contact.reason is not None and contact.reason.customer_ref is not None:
        refs.append(contact.reason.customer_ref)
    return refs


def _call_facts(contact: Contact, now: datetime) -> CallFacts:
    stay = contact.last_stay
    waiting = stay is not None and contact.ended_at is None and not (stay.answered_at or stay.left_at)
    waited = contact.waited_ms
    if waiting and stay is not None and stay.queued_at is not None:
        waited = max(0, (now - stay.queued_at) // timedelta(milliseconds=1))
    return CallFacts(
        call_id=contact.call_id,
        phase=contact.phase,
        queue=contact.queue,
        agent=contact.agent,
        language=contact.language,
        first_at=contact.first_at,
        waited_ms=waited,
        waited_unknown=None if waited is not None else "not_said" if contact.visits else "never_queued",
        waiting=waiting,
        callback_of=contact.callback_of,
        repeat_no=contact.repeat,
    )


def _worded(code: str) -> Wording:
    zh, en = WORDINGS.get(code, (code, code))
    return Wording(zh=zh, en=en)


def _earlier(row: Any) -> EarlierContact:
    end = came_to(row["phase"], row["closed_for"], row["callback_state"], recorded_it=row["recorded_it"])
    shown = {name: row[name] for name in EarlierContact.model_fields if name not in ("came_to", "wording")}
    return EarlierContact(**shown, came_to=end, wording=_worded(end))


def _owed(row: Any, now: datetime) -> dict[str, Any]:
    shown = {name: row[name] for name in Callback.model_fields if name != "due"}
    return {**shown, "due": row["due_at"] <= now}


# ---------------------------------------------------------------- the routes

_NO: dict[int | str, dict[str, Any]] = {
    401: {"model": Denied},
    403: {"model": Denied},
    422: {"model": Malformed | Denied},
    503: {"model": Denied},
}
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Denied}}
_VERDICT: dict[int | str, dict[str, Any]] = {
    202: {"model": Pending},
    409: {"model": Denied},
    413: {"model": Denied},
}


def router(house: House) -> APIRouter:
    """Build the desk's routes; agents only. Raises BadChecklists when the checklists may not be used."""
    desk = Desk(house)
    made = APIRouter(
        tags=["desk"],
        route_class=desk_route(house, role="agent"),
        dependencies=[Depends(desk.admit)],
        responses=_NO,
    )
    call, callback = "/calls/{call_id:path}", "/callbacks/{call_id:path}"
    made.get(f"{call}/pop", summary="What an agent sees of a call", responses=_MISSING)(desk.pop)
    made.get(f"{call}/draft", summary="What was written so far", responses=_MISSING)(desk.read_draft)
    made.put(
        f"{call}/draft", summary="Keep what is written so far", responses={**_MISSING, 412: {"model": Denied}}
    )(desk.write_draft)
    made.post(
        f"{call}/record",
        summary="Record the case",
        status_code=201,
        response_model=Recorded,
        responses=_VERDICT,
    )(desk.record)
    made.post(
        f"{call}/attach",
        summary="Add the call to an open case",
        response_model=Attached,
        responses=_VERDICT | _MISSING,
    )(desk.attach)
    made.post(
        f"{call}/close", summary="Close a call without a case", response_model=Closed, responses=_VERDICT
    )(desk.close)
    made.get("/callbacks", summary="Who must be called back")(desk.callbacks)
    made.post(
        f"{callback}/attempts",
        summary="Report how calling back went",
        response_model=Attempted,
        responses=_VERDICT,
    )(desk.report_attempt)
    made.post(
        f"{callback}/cancel", summary="Cancel a callback", response_model=Cancelled, responses=_VERDICT
    )(desk.cancel_callback)
    made.get("/commands/{command_id}", summary="What became of a command", responses=_MISSING)(desk.verdict)
    return made

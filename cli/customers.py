"""The verbs about one customer: look, export, erase, hold, merge; each act is kept with who and why.

Exit codes: 0 done, 1 refused or unknown, 2 usage, 3 cannot reach.
"""

from __future__ import annotations

import asyncio
import fcntl
import json as jsons
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli import show
from cli.verbs import PROBLEM, UP, Folder, Json, run, say

if TYPE_CHECKING:
    from chassis.postgres import Database
    from chassis.vault import Vault
    from cli.world import World

T = TypeVar("T")

customer_app = typer.Typer(
    help="Ask about one customer, and do what customers may demand.", no_args_is_help=True
)

SEALED = frozenset({"sealed", "caller", "text", "note", "number", "comment"})
"""The fields of the contract that hold personal data, sealed."""
PAGE, PROGRESS_EVERY = 5_000, 50_000

Asked = Annotated[
    str,
    typer.Argument(
        metavar="CUSTOMER",
        help="Reference c-…, case number, call id, or - to read a telephone number from standard input.",
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept for ever, so name nobody.", prompt=True)]
By = Annotated[str, typer.Option("--by", help="Who; the account's name if nobody is named.")]


@customer_app.command("show")
def customer_show(asked: Asked, reason: Reason, by: By = "", folder: Folder = UP, json: Json = False) -> None:
    """Print the record, with every reference that was merged into it; numbers are masked."""

    async def work(books: Books) -> dict[str, Any]:
        return await books.shown(await books.noted(asked, "viewed", by, reason))

    found = _run(folder, work)
    show.as_json(found) if json else _print_record(found)


@customer_app.command("history")
def customer_history(
    asked: Asked,
    reason: Reason,
    limit: Annotated[int, typer.Option(min=1, help="Print at most so many.")] = 50,
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Print calls and cases, newest first, with what each came to."""

    async def work(books: Books) -> list[dict[str, Any]]:
        return await books.history(await books.noted(asked, "viewed history", by, reason), limit)

    found = _run(folder, work)
    show.as_json(found) if json else _print_history(found)


@customer_app.command("export")
def customer_export(
    asked: Asked,
    out: Annotated[Path, typer.Option("--out", help="The file to write; it must not exist yet.")],
    reason: Reason,
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Write everything that the bank holds about the customer, opened, to a file that only you can read."""

    async def work(books: Books) -> dict[str, Any]:
        with _private(out) as file:
            found = await books.everything(await books.noted(asked, "exported", by, reason))
            jsons.dump(found, file, ensure_ascii=False, indent=1, default=str)
        return {"file": str(out), **{name: len(found[name]) for name in ("contacts", "cases", "messages")}}

    try:
        done = _run(folder, work)
    except FileExistsError:
        raise typer.Exit(say("not exported", f"{out} exists already", "name a new file", PROBLEM)) from None
    counts = f"{done['contacts']} calls, {done['cases']} cases, {done['messages']} messages"
    show.as_json(done) if json else show.lines([f"{counts} in {out}: hand it over, then delete it"])


@customer_app.command("erase")
def customer_erase(
    asked: Asked,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept for ever, so name nobody.")],
    by: Annotated[str, typer.Option("--by", help="Who decided it.")],
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Destroy the customer's keys: nothing personal can be read again. Refused under a legal hold."""

    async def work(books: Books) -> dict[str, Any]:
        return await books.erase(await books.ref_of(asked), by, reason)

    done = _run(folder, work)
    show.as_json(done) if json else _print_erased(done)


@customer_app.command("hold")
def customer_hold(asked: Asked, reason: Reason, by: By = "", folder: Folder = UP, json: Json = False) -> None:
    """Set a legal hold: while it stands, the customer may not be erased."""
    _decide("hold", asked, by, reason, folder, json=json)


@customer_app.command("release")
def customer_release(
    asked: Asked, reason: Reason, by: By = "", folder: Folder = UP, json: Json = False
) -> None:
    """Take the legal hold away."""
    _decide("release", asked, by, reason, folder, json=json)


@customer_app.command("merge")
def customer_merge(
    asked: Asked,
    into: Annotated[str, typer.Argument(metavar="INTO", help="The record that stands for both from now on.")],
    reason: Reason,
    by: By = "",
    folder: Folder = UP,
    json: Json = False,
) -> None:
    """Say that two records are one customer, for ever; no case changes."""
    _decide("merge", asked, by, reason, folder, into, json=json)


def _decide(verb: str, asked: str, by: str, reason: str, folder: Path, *into: str, json: bool) -> None:
    async def work(books: Books) -> dict[str, Any]:
        return await books.decide(verb, asked, into, by, reason)

    found = _run(folder, work)
    show.as_json(found) if json else _print_record(found)


def _run(folder: Path, work: Callable[[Books], Awaitable[T]]) -> T:
    """Do one thing with the books open; what a rule refuses is said with the next step."""
    from cli.world import World
    from services.intake.customers.record import Refused

    async def with_books() -> T:
        async with opened(World(folder, show.progress)) as books:
            return await work(books)

    try:
        done: T = run(with_books())
    except Refused as refused:
        raise typer.Exit(
            say(f"refused: {refused.code.replace('_', ' ')}", refused.why, refused.next_step, PROBLEM)
        ) from None
    return done


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[Books]:
    """Open the customer records of a world, and its vault; raises CannotReach when it was never started."""
    from cli.world import connected

    place = world.place()
    async with connected(place, "intake") as database:
        vault = await world.vault(place)
        try:
            yield Books(world, database, vault)
        finally:
            await vault.close()


# ------------------------------------------------------------------ the books


class Books:
    """The customer records of one world, and what its stages hold about a customer."""

    def __init__(self, world: World, database: Database, vault: Vault) -> None:
        self._world, self._database, self._vault = world, database, vault
        self._place = world.place()

    async def ref_of(self, asked: str) -> str:
        """Find the reference behind what was asked; raises Refused for what nobody knows."""
        from services.intake.customers.record import Refused
        from services.intake.desk import phones

        if asked.startswith("c-"):
            return asked
        if asked == "-":
            phone = phones.normalise(sys.stdin.readline())
            if phone is None:
                raise Refused("not_a_number", "standard input is not a telephone number", "echo NUMBER | …")
            return self._vault.customer_ref(phone.number)
        async with self._database.session() as tx:
            found: str | None = await tx.fetchval(
                "select customer_ref from cases where case_no = $1 union all"
                " select customer_ref from calls where call_id = $2 and customer_ref is not null limit 1",
                asked.strip().upper(),
                asked,
            )
        if found is None:
            raise Refused("unknown_customer", f"no case or call {asked}", "ask by telephone number")
        return found

    async def noted(self, asked: str, action: str, by: str, reason: str) -> str:
        """Keep who looks and why, before anything is shown; gives the survivor's reference."""
        from cli.mend import Operator
        from services.intake.customers import store

        ref = await self.ref_of(asked)
        async with self._database.transaction() as tx:
            record = await store.load(tx, ref)
            await store.note(tx, record.customer_ref, action, Operator.named(by).name, reason)
        return record.customer_ref

    async def shown(self, ref: str) -> dict[str, Any]:
        """The record as a screen shows it, and who looked or acted, newest first."""
        from services.intake.customers import store
        from services.intake.customers.record import view

        async with self._database.transaction() as tx:
            records = await store.family(tx, ref)
            actions = await store.actions(tx, [record.customer_ref for record in records])
        await self._vault.ready([record.customer_ref for record in records])
        return {**view(records, self._vault.open).model_dump(mode="json"), "actions": actions}

    async def history(self, ref: str, limit: int) -> list[dict[str, Any]]:
        """Calls and cases, newest first."""
        from services.intake.customers import store

        async with self._database.transaction() as tx:
            contacts = await store.history(tx, await store.references(tx, ref), limit)
        return [contact.model_dump(mode="json") for contact in contacts]

    async def decide(
        self, verb: str, asked: str, into: Sequence[str], by: str, reason: str
    ) -> dict[str, Any]:
        """Merge, hold or release; gives the record as it is then."""
        from cli.mend import Operator
        from services.intake.customers import store

        acts: dict[str, Callable[..., Awaitable[Any]]] = {
            "merge": store.merge,
            "hold": store.hold,
            "release": store.release,
        }
        refs = [await self.ref_of(one) for one in (asked, *into)]
        async with self._database.transaction() as tx:
            record = await acts[verb](tx, *refs, Operator.named(by).name, reason)
        return await self.shown(record.customer_ref)

    async def erase(self, ref: str, by: str, reason: str) -> dict[str, Any]:
        """Destroy the keys, then blank the local file's messages about the cases; says what remains."""
        from chassis.clock import utc_now
        from services.intake.customers import erasure

        done = await erasure.erase(self._database, self._vault, ref, by, reason, utc_now())
        numbers = [str(case["case_no"]) async for _, case, _ in self._cases(done.references)]
        blanked = await asyncio.to_thread(blank, self._world.told_file, numbers)
        letters = await self._letters()
        return {**asdict(done), "messages": blanked, "remains": _remains(done, letters)}

    async def _letters(self) -> int:
        """Count what nobody could read and lies sealed with the service key: whose it is cannot be known."""
        from cli.world import connected
        from schemas.topics import STAGES

        async with self._database.session() as tx:
            count: int = await tx.fetchval("select count(*) from refused_deliveries where sealed is not null")
        for stage in STAGES:
            async with connected(self._place, stage) as database, database.session() as tx:
                count += await tx.fetchval("select count(*) from quarantine")
        return count

    # -------------------------------------------------------------- everything

    async def everything(self, ref: str) -> dict[str, Any]:
        """All that the bank holds about a customer, opened: record, calls, cases, drafts, messages, looks."""
        from services.intake.customers import store

        async with self._database.transaction() as tx:
            refs = await store.references(tx, ref)
            calls = await tx.fetch(
                "select document from entities join calls on call_id = key"
                " where customer_ref = any($1::text[]) order by first_at",
                refs,
            )
            drafts = await tx.fetch(
                "select call_id, agent, updated_at, sealed from drafts where customer_ref = any($1::text[])",
                refs,
            )
            rows = await tx.fetch("select * from customers where customer_ref = any($1::text[])", refs)
        await self._vault.ready(refs)
        read = Opener(self._vault, refs)
        contacts = {doc["call_id"]: doc for doc in (jsons.loads(row["document"]) for row in calls)}
        cases = await self._held_cases(refs, contacts)
        found = {
            "record": await self.shown(ref),
            "references": [{**dict(row), "consents": jsons.loads(row["consents"])} for row in rows],
            "contacts": list(contacts.values()),
            "cases": list(cases.values()),
            "drafts": [dict(row) for row in drafts],
        }
        numbers = [case["case"]["case_no"] for case in cases.values()]
        return {**read(found), "messages": list(_messages(self._world.told_file, numbers))}

    async def _held_cases(self, refs: Sequence[str], contacts: dict[str, Any]) -> dict[str, Any]:
        """Gather each case: its fullest snapshot, how each stage stands, and all that was said of it."""
        cases: dict[str, dict[str, Any]] = {}
        async for stage, case, document in self._cases(refs):
            held = _case(cases, case)
            held["stages"][stage] = document
        named = {contact["case_id"] for contact in contacts.values() if contact.get("case_id")}
        async with self._database.session() as tx:
            rows = await tx.fetch("select case_id from cases where customer_ref = any($1::text[])", refs)
        asked = [*contacts, *cases, *named, *(str(row["case_id"]) for row in rows)]
        async for subject, said in self._said(sorted(set(asked))):
            case = said["body"].pop("case", None)
            if case is not None and case["customer"]["customer_ref"] in refs:
                _case(cases, case)
            if subject in cases:
                cases[subject]["said"].append(said)
            elif subject in contacts:
                contacts[subject].setdefault("said", []).append(said)
        for held in cases.values():
            held["said"].sort(key=lambda said: said["at"])
        return cases

    async def _cases(self, refs: Sequence[str]) -> AsyncIterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Look through every case that a stage holds for those of these references: stage, case, the rest."""
        from cli.world import connected
        from schemas.topics import STAGES

        for stage in STAGES[1:]:
            async with connected(self._place, stage) as database:
                async for document in _documents(database, refs, stage):
                    case = document.pop("case", None)
                    if case is not None and case["customer"]["customer_ref"] in refs:
                        yield stage, case, document

    async def _said(self, subjects: Sequence[str]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Read what each stage said of these cases and calls, in the order in which it said it."""
        from chassis.outbox import unpack
        from cli.world import connected
        from schemas.topics import STAGES

        for stage in STAGES:
            async with connected(self._place, stage) as database, database.session() as tx:
                rows = await tx.fetch(
                    "select correlation, headers, value from outbox where correlation = any($1::text[])"
                    " order by batch, ordinal",
                    subjects,
                )
            for row in rows:
                headers = dict(unpack(row["headers"]))
                at, event = headers["ce_time"].decode(), headers["ce_type"].decode()
                said = {"at": at, "stage": stage, "event": event, "body": jsons.loads(row["value"])}
                yield row["correlation"], said


def _case(cases: dict[str, dict[str, Any]], case: dict[str, Any]) -> dict[str, Any]:
    """Have the case in the book, with the snapshot that knows most of its attempts."""
    held = cases.setdefault(case["case_id"], {"case": case, "stages": {}, "said": []})
    if _knows(case) > _knows(held["case"]):
        held["case"] = case
    return held


def _knows(case: dict[str, Any]) -> tuple[int, int]:
    return case.get("cycle", 1), len(case.get("attempts", ()))


async def _documents(database: Database, refs: Sequence[str], stage: str) -> AsyncIterator[dict[str, Any]]:
    """Read a stage's whole table page by page; gives the documents in which one of the references stands."""
    last, seen = "", 0
    while True:
        async with database.session() as tx:
            row = await tx.fetchrow(
                "with page as (select key, document from entities where key > $1 order by key limit $2)"
                " select (select max(key) from page) as last, (select count(*) from page) as seen,"
                " array(select document from page where exists"
                " (select from unnest($3::text[]) as asked(ref) where strpos(document, ref) > 0)) as found",
                last,
                PAGE,
                refs,
            )
        for document in row["found"]:
            yield jsons.loads(document)
        seen += row["seen"]
        if row["seen"] < PAGE:
            return
        last = row["last"]
        if seen % PROGRESS_EVERY == 0:
            show.progress(f"{stage}: {seen} cases looked through")


class Opener:
    """Opens every sealed field of a document with the keys of one customer's references."""

    def __init__(self, vault: Vault, refs: Sequence[str]) -> None:
        self._vault, self._refs = vault, refs

    def __call__(self, value: Any) -> Any:
        """Give the document with every sealed text opened, `[erased]` where no key opens it."""
        if isinstance(value, dict):
            return {name: self._field(name, inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self(inner) for inner in value]
        return value

    def _field(self, name: str, value: Any) -> Any:
        if name not in SEALED or not isinstance(value, str):
            return self(value)
        text = self._opened(value)
        return jsons.loads(text) if name == "sealed" and text.startswith("{") else text

    def _opened(self, sealed: str) -> str:
        from chassis.vault import ERASED

        texts = (self._vault.open(ref, sealed) for ref in self._refs)
        return next((text for text in texts if text != ERASED), ERASED)


# ------------------------------------------------------------------ files


@contextmanager
def _private(path: Path) -> Iterator[IO[str]]:
    """Make a file that only this account can read; it is gone again if writing fails."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
    except BaseException:
        path.unlink()
        raise


def _messages(told: Path, case_numbers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read what the file channel sent about these cases; nothing where there is no such file."""
    if told.exists():
        with told.open("rb") as lines:
            yield from (message for line in lines if (message := _about(line, case_numbers)) is not None)


def _about(line: bytes, case_numbers: Sequence[str]) -> dict[str, Any] | None:
    """Read one message if it is whole and names one of the cases, as every message does."""
    try:
        message: dict[str, Any] = jsons.loads(line)
    except ValueError:
        return None
    return message if any(number in message["text"] for number in case_numbers) else None


def blank(told: Path, case_numbers: Sequence[str]) -> int:
    """Blank number and text of the file channel's messages about these cases, in place; gives how many.

    Lines keep their length and their ids: the channel goes on from where it stood, and sends none again.
    """
    if not told.exists():
        return 0
    blanked, at = 0, 0
    with told.open("r+b") as lines:
        fcntl.flock(lines, fcntl.LOCK_EX)
        for line in lines:
            message = _about(line, case_numbers)
            if message is not None:
                empty = jsons.dumps({**message, "to": "", "text": ""}).encode()
                os.pwrite(lines.fileno(), empty.ljust(len(line.rstrip(b"\n"))), at)
                blanked += 1
            at += len(line)
        os.fsync(lines.fileno())
    return blanked


# ------------------------------------------------------------------ words


def _remains(done: Any, letters: int) -> list[str]:
    """Say honestly what an erasure leaves."""
    left = [
        f"{done.calls_remaining} calls and {done.cases_remaining} cases: times, codes and results, of nobody",
        "sealed bytes on topics and in tables, which nobody can open",
        "in a backup of the vault from before, the keys: they are gone when the last such backup is",
        "in memory of running processes, the keys, for at most a minute",
    ]
    if letters:
        left.append(
            f"{letters} records that nobody could read, under the service key: they may be anybody's, and"
            " go at the end of their retention"
        )
    return left


def _print_record(found: dict[str, Any]) -> None:
    marks = [word for word in ("vulnerable", "legal_hold", "erased_at") if found[word]]
    show.lines([f"customer {found['customer_ref']}  version {found['version']}  {' '.join(marks)}".rstrip()])
    facts = {
        "name": found["name"],
        "number": found["phone"],
        "language": found["language"],
        "legal hold": found["legal_hold"],
        "erased": found["erased_at"],
        "known since": found["first_at"],
    }
    show.lines([f"  {name:12} {value or '—'}" for name, value in facts.items()])
    for purpose, consent in found["consents"].items():
        word = "yes" if consent["given"] else "no"
        show.lines([f"  consent      {purpose}: {word}, {consent['at']}, {consent['by']}"])
    for other in found["references"][1:]:
        show.lines(
            [f"  merged       {other['customer_ref']}  {other['name'] or '—'}  {other['phone'] or '—'}"]
        )
    for act in found["actions"]:
        show.lines([f"  {act['at']:%Y-%m-%d %H:%M:%S}  {act['action']} by {act['by']}: {act['reason']}"])


def _print_history(found: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("since (UTC)", "what", "came to", "where", "waited", "talked")
    for contact in found:
        where = contact["department"] or contact["queue"]
        table.add_row(
            contact["at"][:19],
            contact["case_no"] if contact["kind"] == "case" else f"call {contact['id']}",
            f"{contact['came_to_zh']} · {contact['came_to_en']}",
            where or "—",
            _seconds(contact["wait_ms"]),
            _seconds(contact["talk_ms"]),
        )
    show.out.print(table if found else "no contacts")


def _seconds(ms: int | None) -> str:
    return "—" if ms is None else f"{ms / 1000:.0f} s"


def _print_erased(done: dict[str, Any]) -> None:
    show.lines(
        [
            f"erased: {done['customer_ref']}, {len(done['references'])} references, at {done['erased_at']}",
            f"  destroyed now: {done['keys']} keys, {done['drafts']} drafts, {done['messages']} messages",
            *(f"  remains: {line}" for line in done["remains"]),
        ]
    )

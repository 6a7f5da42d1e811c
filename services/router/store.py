"""The router's SQL: the reading copy of its cases, the rules and models in force, what decided once."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from chassis.copies import Copy
from chassis.postgres import Tx
from schemas.case import Case
from services.router.domain import Routing

_COLUMNS = {
    "case_id": "uuid", "case_no": "text", "cycle": "int", "language": "text", "customer_ref": "text",
    "phase": "text", "department": "text", "stage": "text", "rule": "text", "attempt_no": "int",
    "moves": "int", "changed_at": "timestamptz", "recorded_at": "timestamptz", "suggested": "text",
    "suggested_p": "float8", "top": "text", "would_route": "bool", "known_share": "float8",
    "model_sha256": "text", "abstained": "text", "degraded": "text", "audit": "bool", "label": "text",
    "label_source": "text", "label_at": "timestamptz",
}  # fmt: skip


def _row(routing: Routing) -> tuple[Any, ...]:
    case, why, label = routing.case, routing.explanation, routing.label
    model = why.model if why else None
    first = model.top[0] if model and model.top else None
    return (
        case.case_id,
        case.case_no,
        case.cycle,
        case.language,
        case.customer.customer_ref,
        routing.phase,
        routing.department,
        routing.stage,
        routing.rule,
        routing.attempt_no,
        routing.moves,
        routing.changed_at,
        case.recorded_at,
        first.department if first else None,
        first.p if first else None,
        json.dumps([[one.department, one.p] for one in model.top] if model else []),
        model.would_route if model else False,
        model.known_share if model else None,
        model.sha256 if model else None,
        why.abstained if why else None,
        why.degraded if why else None,
        why.audit if why else False,
        label.department if label else None,
        label.source if label else None,
        label.at if label else None,
    )


ROUTINGS = Copy("routings", ("case_id",), _COLUMNS, lambda routing: [_row(routing)])
"""The router's reading copy of its cases."""


async def cases_of(tx: Tx, keys: Sequence[str]) -> list[Case]:
    """Read these cases as the router knows them; what it does not know is left out."""
    rows = await tx.fetch("select document from entities where key = any($1::text[])", keys)
    return [Routing.parse(row["document"]).case for row in rows]


async def departments_of(tx: Tx, cases: Sequence[UUID]) -> dict[UUID, str]:
    """Tell which department has, or had, each of these cases."""
    rows = await tx.fetch(
        "select case_id, department from routings where case_id = any($1::uuid[]) and department is not null",
        cases,
    )
    return {row["case_id"]: row["department"] for row in rows}


async def in_force(tx: Tx) -> tuple[str | None, dict[tuple[str, str], str], frozenset[str]]:
    """Read what is in force: the ruleset's hash, models' by role and language, restricted departments.

    What was never activated is missing: then the files of the installation count.
    """
    row = await tx.fetchrow(
        "select (select sha256 from rulesets order by activation_id desc limit 1) as ruleset,"
        " array(select role || '|' || language || '|' || sha256 from (select distinct on (role, language)"
        " role, language, sha256 from model_activations order by role, language, activation_id desc) m)"
        " as models, array(select department from restrictions) as restricted"
    )
    parts = [entry.split("|", 2) for entry in row["models"]]
    models = {(role, language): digest for role, language, digest in parts}
    return row["ruleset"], models, frozenset(row["restricted"])


async def ruleset(tx: Tx, sha256: str) -> str | None:
    """Read the text of a ruleset that was activated, or came with the installation and decided."""
    found: str | None = await tx.fetchval(
        "(select document from rulesets where sha256 = $1 order by activation_id desc limit 1)"
        " union all select document from documents where sha256 = $1 and kind = 'rules' limit 1",
        sha256,
    )
    return found


async def activated_rules(tx: Tx) -> list[str]:
    """List the rulesets that were put in force, by hash, the last first."""
    rows = await tx.fetch("select sha256 from rulesets group by sha256 order by max(activation_id) desc")
    return [row["sha256"] for row in rows]


async def departments(tx: Tx, sha256: str) -> str | None:
    """Read the departments of this hash, with which something was decided."""
    found: str | None = await tx.fetchval(
        "select document from documents where sha256 = $1 and kind = 'departments'", sha256
    )
    return found


async def model(tx: Tx, sha256: str) -> bytes | None:
    """Read a stored model."""
    found: bytes | None = await tx.fetchval("select content from models where sha256 = $1", sha256)
    return found


async def not_kept(tx: Tx, hashes: Sequence[str]) -> frozenset[str]:
    """Tell which of these rules, departments and models lie neither in `documents` nor in `models`."""
    rows = await tx.fetch(
        "select unnest($1::text[]) as sha256"
        " except select sha256 from documents except select sha256 from models",
        hashes,
    )
    return frozenset(row["sha256"] for row in rows)


async def keep_document(
    tx: Tx, kind: Literal["rules", "departments"], sha256: str, version: str, document: str
) -> None:
    """Keep rules or departments under their hash, once."""
    await tx.execute(
        "insert into documents (sha256, kind, version, document) values ($1, $2, $3, $4)"
        " on conflict do nothing",
        sha256,
        kind,
        version,
        document,
    )


async def keep_model(tx: Tx, sha256: str, version: str, language: str, content: bytes, now: datetime) -> bool:
    """Keep a model, whole, under its hash; False when it is kept already."""
    done = await tx.execute(
        "insert into models (sha256, version, language, content, stored_at) values ($1, $2, $3, $4, $5)"
        " on conflict do nothing",
        sha256,
        version,
        language,
        content,
        now,
    )
    return done.endswith(" 1")

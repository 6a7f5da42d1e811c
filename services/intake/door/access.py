"""Who may knock: people and machines by bearer token; on loopback without a token file, everybody."""

import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from fastapi import HTTPException, Request
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from chassis.faults import Misconfigured
from chassis.health import shown_token
from schemas.envelope import Code

Role = Literal["telephony", "ivr", "agent", "manager"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks, and in which roles."""

    name: str
    roles: frozenset[Role]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Code
    roles: tuple[Role, ...]
    token_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Access:
    """Tells who a request comes from."""

    def __init__(self, known: dict[str, Visitor] | None) -> None:
        self._known = known

    @classmethod
    def at(cls, path: Path | None) -> "Access":
        """Read the token file: a YAML list of {name, roles, token_sha256}; raises Misconfigured."""
        if path is None:
            return cls(None)
        try:
            entries = [
                _Entry.model_validate(entry) for entry in yaml.safe_load(path.read_text("utf-8")) or ()
            ]
        except (OSError, yaml.YAMLError, ValidationError, TypeError) as error:
            raise Misconfigured(
                f"tokens file {path}: {type(error).__name__}; it is a list of name, roles, token_sha256"
                " (64 hexadecimal digits, lower case)"
            ) from None
        return cls({entry.token_sha256: Visitor(entry.name, frozenset(entry.roles)) for entry in entries})

    def visitor(self, request: Request) -> Visitor:
        """Name the visitor; raises HTTPException 401. Without tokens an agent is who `X-Agent` says."""
        if self._known is None:
            return Visitor(request.headers.get("x-agent", "local")[:80] or "local", frozenset(ROLES))
        shown = shown_token(request)
        for known, visitor in self._known.items():
            if hmac.compare_digest(known, shown):
                return visitor
        raise HTTPException(
            401, "no known token: send Authorization: Bearer …", headers={"www-authenticate": "Bearer"}
        )

    def require(self, request: Request, role: Role) -> Visitor:
        """Name the visitor if it has the role; raises HTTPException 401 or 403."""
        visitor = self.visitor(request)
        if role not in visitor.roles:
            raise HTTPException(403, f"{visitor.name} is not {role}")
        return visitor

"""Logs: one JSON object per line; what looks like a person's number is hidden in every text."""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

_LONG_DIGITS = re.compile(r"\+?\d[\d\s-]{5,}\d")
_DATE = re.compile(r"20(?:2[4-9]|[3-9]\d)-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?: [0-2]\d)?")
"""A day on which hotlines run, perhaps with the hour behind it: no number, and nobody's birthday."""


def configure(level: str = "INFO") -> None:
    """Send structured and library logs to standard error as JSON lines."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(ensure_ascii=False)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide anything that looks like a phone, card or identity number in any text field.

    Numbers that are not text stay: offsets, counts and milliseconds are long, and nobody's.
    """
    for name, value in event.items():
        if name not in ("timestamp", "level"):
            event[name] = _hidden(value)
    return event


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return _LONG_DIGITS.sub(_masked, value)
    if isinstance(value, Mapping):
        return {_hidden(name): _hidden(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden(inner) for inner in value]
    return value


def _masked(match: re.Match[str]) -> str:
    text = match.group()
    numbered = sum(char.isdigit() for char in text) >= 7 and not _DATE.fullmatch(text)
    return f"{text[:2]}***" if numbered else text


def get_logger(**bound: Any) -> Any:
    """Give a logger that carries these fields on every line."""
    return structlog.get_logger(**bound)

"""May a reader of the old schema read the new one, and the other way round? Pure."""

from collections.abc import Iterator
from typing import Any

_BOUNDS = (
    ("maxLength", min), ("maximum", min), ("exclusiveMaximum", min), ("maxItems", min),
    ("minLength", max), ("minimum", max), ("exclusiveMinimum", max), ("minItems", max),
)  # fmt: skip


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List what readers or writers of the old schema would stumble over, with the field's path.

    Allowed: a new optional field, a wider limit, other words in a description. Everything else is
    a new version beside the old.
    """
    faults = [
        f"{name} changed from {old[name]!r} to {new.get(name)!r}"
        for name in ("x-key", "x-topics", "x-kind")
        if name in old and old[name] != new.get(name)
    ]
    return faults + list(_compare(old, new, old, new, "body", frozenset()))


def _compare(
    old: Any, new: Any, old_root: dict[str, Any], new_root: dict[str, Any], path: str, seen: frozenset[str]
) -> Iterator[str]:
    reference = old.get("$ref") if isinstance(old, dict) else None
    if reference in seen:
        return
    if reference:
        seen |= {reference}
    old, new = _resolve(old, old_root), _resolve(new, new_root)
    yield from _keywords(old, new, path)
    yield from _fields(old, new, old_root, new_root, path, seen)
    for name in ("items", "additionalProperties"):
        if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
            yield from _compare(old[name], new[name], old_root, new_root, f"{path}[]", seen)
    for name in ("prefixItems", "anyOf", "oneOf"):
        pairs = zip(old.get(name, []), new.get(name, []), strict=False)
        for index, (before, after) in enumerate(pairs):
            yield from _compare(before, after, old_root, new_root, f"{path}|{index}", seen)
        if len(new.get(name, [])) < len(old.get(name, [])):
            yield f"{path}: fewer alternatives"


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**root["$defs"][schema["$ref"].rpartition("/")[2]], **rest}
    return schema


def _keywords(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
    for name in ("type", "format", "pattern", "const"):
        if old.get(name) != new.get(name) and new.get(name) is not None:
            yield f"{path}: {name} changed from {old.get(name)!r} to {new.get(name)!r}"
    if "enum" in new and set(old.get("enum", [])) - set(new["enum"]):
        yield f"{path}: values were removed: {sorted(set(old.get('enum', [])) - set(new['enum']))}"
    if "enum" in new and "enum" not in old:
        yield f"{path}: is restricted to a list now"
    for name, narrower in _BOUNDS:
        if name in new and (name not in old or narrower(old[name], new[name]) != old[name]):
            yield f"{path}: {name} is {new[name]} now, was {old.get(name)}"


def _fields(
    old: dict[str, Any],
    new: dict[str, Any],
    old_root: dict[str, Any],
    new_root: dict[str, Any],
    path: str,
    seen: frozenset[str],
) -> Iterator[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    for name in sorted(set(before) - set(after)):
        yield f"{path}.{name}: was removed"
    for name in sorted(set(new.get("required", [])) - set(old.get("required", []))):
        yield f"{path}.{name}: is required now"
    for name in sorted(set(before) & set(after)):
        yield from _compare(before[name], after[name], old_root, new_root, f"{path}.{name}", seen)

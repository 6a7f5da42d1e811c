"""May a reader of the old schema read the new one, and the other way round? Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_BOUNDS = (
    ("maxLength", min), ("maximum", min), ("exclusiveMaximum", min), ("maxItems", min),
    ("minLength", max), ("minimum", max), ("exclusiveMinimum", max), ("minItems", max),
)  # fmt: skip


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List what readers or writers of the old schema would stumble over, with the field's path.

    Allowed: a new optional field, a wider limit, one more word in a list, other words in a description;
    in a command, which only we read, whatever takes all that the old one took. Everything else is a new
    version beside the old. Wider limits and longer lists ask that readers are brought up to date before
    writers.
    """
    faults = [
        f"{name} changed from {old[name]!r} to {new.get(name)!r}"
        for name in ("x-key", "x-topics", "x-kind")
        if name in old and old[name] != new.get(name)
    ]
    both_ways = new.get("x-kind") != "command"
    return faults + list(_Comparison(old, new, both_ways).of(old, new, "body", frozenset()))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Two schemas with the definitions that they refer to; `both_ways`: old readers meet new data too."""

    old_root: dict[str, Any]
    new_root: dict[str, Any]
    both_ways: bool

    def of(self, old: Any, new: Any, path: str, seen: frozenset[str]) -> Iterator[str]:
        reference = old.get("$ref")
        if reference in seen:
            return
        if reference:
            seen |= {reference}
        before, after = _alternatives(old, self.old_root), _alternatives(new, self.new_root)
        for shape in before.keys() - after.keys():
            yield f"{path}: {shape} is not allowed any more"
        if self.both_ways:
            for shape in after.keys() - before.keys():
                yield f"{path}: may be {shape} now, which older readers refuse"
        for shape in sorted(before.keys() & after.keys()):
            yield from self._one(before[shape], after[shape], path, seen)

    def _one(
        self, old: dict[str, Any], new: dict[str, Any], path: str, seen: frozenset[str]
    ) -> Iterator[str]:
        yield from _keywords(old, new, path)
        yield from self._fields(old, new, path, seen)
        for name in ("items", "additionalProperties"):
            if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
                yield from self.of(old[name], new[name], f"{path}[]", seen)
        places = zip(old.get("prefixItems", []), new.get("prefixItems", []), strict=False)
        for index, (before, after) in enumerate(places):
            yield from self.of(before, after, f"{path}|{index}", seen)

    def _fields(
        self, old: dict[str, Any], new: dict[str, Any], path: str, seen: frozenset[str]
    ) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        needed, needed_now = set(old.get("required", [])), set(new.get("required", []))
        for name in sorted(set(before) - set(after)):
            yield f"{path}.{name}: was removed"
        for name in sorted(needed_now - needed):
            yield f"{path}.{name}: is required now"
        if self.both_ways:
            for name in sorted((needed - needed_now) & set(after)):
                yield f"{path}.{name}: may be missing now, which older readers refuse"
        for name in sorted(set(before) & set(after)):
            yield from self.of(before[name], after[name], f"{path}.{name}", seen)


def _alternatives(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take a schema apart into what a value may be, by JSON type and, of objects, by name."""
    schema = _resolve(schema, root)
    found: dict[str, dict[str, Any]] = {}
    for name in ("anyOf", "oneOf"):
        for inner in schema.get(name, ()):
            found |= _alternatives(inner, root)
    if found:
        return found
    kind = schema.get("type", "any value")
    kinds = kind if isinstance(kind, list) else [kind]
    title = schema.get("title")
    return {f"{one} {title}" if one == "object" and title else one: {**schema, "type": one} for one in kinds}


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**root["$defs"][schema["$ref"].rpartition("/")[2]], **rest}
    return schema


def _keywords(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
    for name in ("format", "pattern", "const"):
        if old.get(name) != new.get(name) and new.get(name) is not None:
            yield f"{path}: {name} changed from {old.get(name)!r} to {new.get(name)!r}"
    if "enum" in new and set(old.get("enum", [])) - set(new["enum"]):
        yield f"{path}: values were removed: {sorted(set(old.get('enum', [])) - set(new['enum']))}"
    if "enum" in new and "enum" not in old:
        yield f"{path}: is restricted to a list now"
    for name, narrower in _BOUNDS:
        if name in new and (name not in old or narrower(old[name], new[name]) != old[name]):
            yield f"{path}: {name} is {new[name]} now, was {old.get(name)}"

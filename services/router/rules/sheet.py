"""YAML that operators write, read with the line of each part, so that every fault can be shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

Place: TypeAlias = tuple[str | int, ...]
"""Where something stands in a file: names and positions, from the outside in."""

_LARGEST, _DEEPEST = 1 << 20, 40


class Part(BaseModel):
    """Something an operator writes: an unknown name is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Fault(NamedTuple):
    """What is wrong in a file; line 0: with the file as a whole."""

    line: int
    where: str
    reason: str


class BadSheet(ValueError):
    """A file that may not be used; names every fault at once."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source, self.faults = source, tuple(sorted(faults))
        super().__init__("; ".join(self.lines()))

    def lines(self) -> list[str]:
        """Write each fault in a line, in the order of the file: file:line: place: reason."""
        return [
            f"{self.source}{f':{fault.line}' if fault.line else ''}: {fault.where}: {fault.reason}"
            for fault in self.faults
        ]


class _Composer(yaml.SafeLoader):
    """Reads YAML to its nodes; with aliases a small file could be endless, with depth break the stack."""

    deep = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        at = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read; write it out", problem_mark=at)
        if self.deep == _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"is nested more than {_DEEPEST} deep", problem_mark=at)
        self.deep += 1
        node = super().compose_node(parent, index)
        self.deep -= 1
        return node


class _Sheet:
    """A YAML document as plain data, the line of each part, and what is wrong with it as YAML."""

    def __init__(self, text: str) -> None:
        self.faults: list[Fault] = []
        self._lines: dict[Place, int] = {(): 1}
        self.data: Any = None
        if len(text) > _LARGEST:
            self.faults.append(Fault(0, "file", f"has more than {_LARGEST} characters"))
            return
        try:
            self.data = self._read(_Composer(text).get_single_node(), ())
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 0
            self.faults.append(Fault(line, "YAML", str(error.problem)))
        except yaml.YAMLError as error:
            self.faults.append(Fault(0, "YAML", str(error).splitlines()[0]))

    def _read(self, node: yaml.Node | None, at: Place) -> Any:
        match node:
            case yaml.MappingNode():
                return self._mapping(node, at)
            case yaml.SequenceNode():
                for index, item in enumerate(node.value):
                    self._lines[*at, index] = item.start_mark.line + 1
                return [self._read(item, (*at, index)) for index, item in enumerate(node.value)]
            case yaml.ScalarNode():
                return _scalar(node)
        return None

    def _mapping(self, node: yaml.MappingNode, at: Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in node.value:
            line, name = key.start_mark.line + 1, str(key.value)
            if not isinstance(key, yaml.ScalarNode):
                self.faults.append(Fault(line, _dotted(at), "a name must be a word"))
            elif name in data:
                earlier = self._lines[*at, name]
                self.faults.append(Fault(line, _dotted((*at, name)), f"stands in line {earlier} already"))
            else:
                self._lines[*at, name] = line
                data[name] = self._read(value, (*at, name))
        return data

    def fault(self, at: Place, reason: str) -> Fault:
        """Find a fault's line: that of the innermost part that is there."""
        # Pydantic adds which kind of a union it tried, and that a key is meant; those stand in no file.
        at = tuple(part for part in at if not str(part).startswith(("<", "[key]")))
        there = next(at[:end] for end in range(len(at), -1, -1) if at[:end] in self._lines)
        return Fault(self._lines[there], _dotted(at), reason)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    try:
        match node.tag.rpartition(":")[2]:
            case "null":
                return None
            case "bool":
                return yaml.SafeLoader.bool_values.get(text.lower(), text)
            case "int":
                return int(text.replace("_", ""))
            case "float":
                return float(text)
    except ValueError:
        pass  # 0x1F, 12:30:00, .inf: no field wants them, its type says so
    return text


def _dotted(at: Place) -> str:
    return ".".join(map(str, at)) or "file"


Model = TypeVar("Model", bound=BaseModel)


def read_sheet(model: type[Model], text: str, source: str, bad: type[BadSheet]) -> Model:
    """Read what an operator wrote; raises `bad` with every fault."""
    sheet = _Sheet(text)
    try:
        if not sheet.faults:
            return model.model_validate(sheet.data)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        sheet.faults += [sheet.fault(fault["loc"], reason(fault)) for fault in faults]
    raise bad(source, sheet.faults) from None


def fault_in(text: str, at: Place, said: str) -> Fault:
    """Name a fault that shows only when the file is used; the text is one that was read without faults."""
    return _Sheet(text).fault(at, said)


def read_file(path: Path, bad: type[BadSheet]) -> str:
    """Give the text of a file; raises `bad` when it cannot be read."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        said = str(error.strerror)
    except UnicodeDecodeError as error:
        said = f"is not UTF-8 at byte {error.start}"
    raise bad(str(path), [Fault(0, "file", said)])


def reason(fault: Mapping[str, Any]) -> str:
    """Give pydantic's reason for a fault, without its preamble."""
    return str(fault["msg"]).removeprefix("Value error, ")


def refuse(faults: Sequence[tuple[Place, str]]) -> None:
    """Raise faults within a validator, each at its place; no faults, no error."""
    if faults:
        details = [
            InitErrorDetails(type=PydanticCustomError("sheet", "{said}", {"said": said}), loc=at, input=None)
            for at, said in faults
        ]
        raise ValidationError.from_exception_data("sheet", details)

"""Channels that tell a customer something: a port, and a file that stands for the SMS gateway."""

import asyncio
import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol
from uuid import UUID

_TAIL = 4 * 1024 * 1024
_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Message:
    """One message to one customer; `message_id` is the same at every retry."""

    message_id: UUID
    to: str
    text: str


class Channel(Protocol):
    """Sends messages; sending one again has no second effect."""

    @property
    def name(self) -> str: ...

    async def send(self, messages: Sequence[Message]) -> Mapping[UUID, str]:
        """Try to send; gives for each message `delivered` or the reason why not."""
        ...


class FileChannel:
    """Appends each message once to a JSON-lines file of mode 0600, safe among processes of one machine."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, None] = {}
        self._read_to: int | None = None

    async def send(self, messages: Sequence[Message]) -> Mapping[UUID, str]:
        """Append what is not in the file yet; a full or missing disk is a reason, not an exception."""
        try:
            await asyncio.to_thread(self._append, messages)
        except OSError as error:
            return {message.message_id: f"file_{error.errno}" for message in messages}
        return {message.message_id: "delivered" for message in messages}

    def _append(self, messages: Sequence[Message]) -> None:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._learn(file.fileno())
            known = self._known
            fresh = {key: message for message in messages if (key := str(message.message_id)) not in known}
            data = "".join(_line(key, message) for key, message in fresh.items()).encode()
            while data:
                data = data[os.write(file.fileno(), data) :]
            self._remember(fresh)
            self._read_to = os.fstat(file.fileno()).st_size

    def _remember(self, message_ids: Iterable[str]) -> None:
        """Keep the newest ids: a retry comes within a lease, not after thousands of other messages."""
        self._known.update(dict.fromkeys(message_ids))
        for oldest in list(islice(self._known, max(0, len(self._known) - _REMEMBERED))):
            del self._known[oldest]

    def _learn(self, handle: int) -> None:
        """Read what other processes (or an earlier life) appended since we looked last."""
        size = os.fstat(handle).st_size
        start = max(0, size - _TAIL) if self._read_to is None else self._read_to
        whole, _, torn = os.pread(handle, size - start, start).rpartition(b"\n")
        if torn:
            # A process died in the middle of a line: that message was not sent.
            os.ftruncate(handle, size - len(torn))
        marks = ((line, line.find(b'"message_id": "')) for line in whole.split(b"\n"))
        self._remember(line[at + 15 : at + 51].decode() for line, at in marks if at >= 0)


def _line(message_id: str, message: Message) -> str:
    told = {"message_id": message_id, "to": message.to, "text": message.text}
    return json.dumps(told, ensure_ascii=False) + "\n"

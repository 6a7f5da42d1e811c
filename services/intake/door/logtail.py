"""Follows a log that another process appends to: each line once, in order, over rotations and restarts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

from chassis.clock import utc_now

AT_ONCE = 1 << 16
"""Bytes read at once; a longer line is cut, and its pieces are lines that mean nothing."""
PAUSE = 0.4
_MARK = 64
_PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".tmp", ".swp"})


class Place(NamedTuple):
    """Where a reader stands: behind whole lines of one file.

    `mark` is the digest of the last bytes before: the inode alone does not tell a file that was
    truncated and has grown again, nor one that was given a deleted file's inode.
    """

    inode: int = 0
    offset: int = 0
    mark: str = ""

    @classmethod
    def of(cls, text: str) -> Place:
        """Read `inode:offset:mark`; anything else is the beginning."""
        inode, _, rest = text.partition(":")
        offset, _, mark = rest.partition(":")
        if not (inode.isdecimal() and offset.isdecimal()):
            return cls()
        return cls(int(inode), int(offset), mark)

    def __str__(self) -> str:
        return f"{self.inode}:{self.offset}:{self.mark}"


@dataclass(frozen=True, slots=True)
class Piece:
    """What one look at the log gave; `place` is where the next one begins, `at` when it was begun.

    `at_end`: everything written before `at` has been read. `trouble` says why nothing can be read,
    `skipped` why lines before these may be missing; both are empty when all is well.
    """

    lines: tuple[str, ...]
    place: Place
    at: datetime
    at_end: bool
    trouble: str = ""
    skipped: str = ""


class Follower:
    """Reads one log; `read` blocks on the disk.

    Without a place it begins at the end of what is there: what is older is a matter for an import. A file
    that is not there yet is read from its beginning. The writer is one process: once it writes to a new
    file, the old one is complete.

    A rotated log is found beside the new one, by its inode (renamed) or by what stands before our place
    (copied and truncated); of several rotated ones that were missed, the order is that of their last
    change. Packed files are not read.
    """

    def __init__(self, path: Path, place: Place | None = None) -> None:
        self.path, self.place = path, place or Place()
        self._begins = place is None
        self._file: BinaryIO | None = None
        self._skipped = ""

    def read(self) -> Piece:
        """Read the next lines; never raises for what the disk says."""
        at = utc_now()
        try:
            lines = self._next_lines()
        except OSError as error:
            self.close()
            return Piece((), self.place, at, at_end=False, trouble=_why(self.path, error))
        skipped, self._skipped = self._skipped, ""
        return Piece(lines, self.place, at, at_end=not lines, skipped=skipped)

    def before(self, limit: int) -> list[str]:
        """Give the lines before the place, at most `limit` bytes of them, of this file and the one before."""
        try:
            if self._file is None:
                self._open()
            lines = _tail(self._opened(), self.place.offset, limit)
            previous = self._previous()
            if previous is None or self.place.offset >= limit:
                return lines
            with previous.open("rb") as file:
                return _tail(file, file.seek(0, os.SEEK_END), limit - self.place.offset) + lines
        except OSError:
            return []

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # ------------------------------------------------------------ reading

    def _next_lines(self) -> tuple[str, ...]:
        if self._file is None or not self._fits(self._file):
            self.close()
            self._open()
        while True:
            # Asked before the reading: what was written before the writer moved on is then read below.
            newer = self._newer()
            lines = self._lines(complete=newer is not None)
            if lines or newer is None:
                return lines
            self._go_to(newer, Place())

    def _lines(self, *, complete: bool) -> tuple[str, ...]:
        """Take the whole lines after the place; of a complete file the last one may lack its end."""
        chunk = os.pread(self._opened().fileno(), AT_ONCE, self.place.offset)
        size = chunk.rfind(b"\n") + 1
        if not size and (complete or len(chunk) == AT_ONCE):
            size = len(chunk)
        if not size:
            return ()
        self.place = self._place_at(self.place.offset + size)
        return tuple(chunk[:size].decode("utf-8", "replace").removesuffix("\n").split("\n"))

    def _newer(self) -> Path | None:
        """The file that came after the open one, once its writer has begun it."""
        mine = os.fstat(self._opened().fileno())
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return None
        if now.st_ino == mine.st_ino or now.st_size == 0:
            return None
        between = [
            (state.st_mtime_ns, path)
            for path, state in self._rotated()
            if state.st_mtime_ns > mine.st_mtime_ns and state.st_ino not in (mine.st_ino, now.st_ino)
        ]
        return min(between)[1] if between else self.path

    def _previous(self) -> Path | None:
        """The file that was complete before the open one was begun."""
        mine = os.fstat(self._opened().fileno())
        older = [
            (state.st_mtime_ns, path)
            for path, state in self._rotated()
            if state.st_ino != mine.st_ino and state.st_mtime_ns <= mine.st_mtime_ns
        ]
        return max(older)[1] if older else None

    # ------------------------------------------------------------ finding the place

    def _open(self) -> None:
        """Find the place again, in the log or in a rotated one; the log's beginning when it is gone."""
        if self._begins:
            self._open_first()
            return
        candidates = [self.path, *(path for path, _ in self._rotated())]
        for same_inode in (True, False):
            for path in candidates:
                if self._is_there(path, same_inode=same_inode):
                    return
        file = self.path.open("rb")
        if self.place.offset:
            self._skipped = (
                f"{self.path}: where we stood (inode {self.place.inode}, byte {self.place.offset}) is in no"
                " file beside it; it is read from its beginning, lines between may be missing"
            )
        self._take(file, Place())

    def _is_there(self, path: Path, *, same_inode: bool) -> bool:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        alike = os.fstat(file.fileno()).st_ino == self.place.inode
        if alike is same_inode and (same_inode or self.place.offset) and self._fits(file):
            self._take(file, self.place)
            return True
        file.close()
        return False

    def _open_first(self) -> None:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._begins = False
            raise
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - AT_ONCE)
        whole = os.pread(file.fileno(), end - start, start).rfind(b"\n") + 1
        self._take(file, Place())
        self.place = self._place_at(start + whole if whole else 0)
        self._begins = False

    def _go_to(self, path: Path, place: Place) -> None:
        file = path.open("rb")
        self.close()
        self._take(file, place)

    def _take(self, file: BinaryIO, place: Place) -> None:
        self._file = file
        self.place = place._replace(inode=os.fstat(file.fileno()).st_ino)

    def _fits(self, file: BinaryIO) -> bool:
        """Whether what stands before the place is in this file."""
        offset = self.place.offset
        long_enough = os.fstat(file.fileno()).st_size >= offset
        return long_enough and (not offset or _mark(file, offset) == self.place.mark)

    def _place_at(self, offset: int) -> Place:
        file = self._opened()
        return self.place._replace(offset=offset, mark=_mark(file, offset) if offset else "")

    def _opened(self) -> BinaryIO:
        assert self._file is not None, "opened by _open"
        return self._file

    def _rotated(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in sorted(self.path.parent.iterdir()):
            named_alike = path.name.startswith(self.path.name) and path.suffix not in _PACKED
            if path != self.path and named_alike and path.is_file():
                with suppress(FileNotFoundError):
                    yield path, path.stat()


async def follow(follower: Follower, pause: float = PAUSE) -> AsyncGenerator[Piece]:
    """Give piece after piece for ever, also empty ones; looks every `pause` seconds at the end."""
    try:
        while True:
            piece = await asyncio.to_thread(follower.read)
            yield piece
            if not piece.lines:
                await asyncio.sleep(pause)
    finally:
        follower.close()


def _tail(file: BinaryIO, end: int, limit: int) -> list[str]:
    start = max(0, end - limit)
    lines = os.pread(file.fileno(), end - start, start).decode("utf-8", "replace").splitlines()
    return lines[1:] if start else lines


def _mark(file: BinaryIO, offset: int) -> str:
    start = max(0, offset - _MARK)
    return blake2b(os.pread(file.fileno(), offset - start, start), digest_size=8).hexdigest()


def _why(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} is not there (yet): is queue_log switched on in logger.conf, is the path right?"
    return f"{path}: {type(error).__name__}; may this process read it?"

"""The bytes of an Asterisk manager connection, block by block; no IO."""

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_BLOCK = 64 * 1024

Block = dict[str, str]


class Blocks:
    """Splits a stream into `Key: Value` blocks, however it is cut, with CRLF or LF.

    Lines without a colon are skipped, blocks of more than `MAX_BLOCK` bytes too, and counted in `skipped`;
    no more than that is kept between two calls. A line that begins with `#` is a remark of our recorder
    and belongs to no block.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._rest = bytearray()
        self._cr = b""
        self._skipping = False

    def feed(self, chunk: bytes) -> list[Block]:
        """Take the next bytes; returns the blocks that they complete."""
        chunk = self._cr + chunk
        self._cr = b"\r" if chunk.endswith(b"\r") else b""
        seam = max(0, len(self._rest) - 1)
        self._rest += chunk[: len(chunk) - len(self._cr)].replace(b"\r\n", b"\n")
        end = self._rest.rfind(b"\n\n", seam)
        if end < 0:
            self._bound()
            return []
        whole = bytes(self._rest[:end])
        del self._rest[: end + 2]
        raws = whole.split(b"\n\n")
        if self._skipping:
            raws, self._skipping = raws[1:], False
        self._bound()
        return [block for raw in raws if (block := self._block(raw))]

    def close(self) -> list[Block]:
        """The stream is over: what it left unfinished is the last block."""
        raw, skipping = bytes(self._rest), self._skipping
        self._rest.clear()
        self._cr, self._skipping = b"", False
        block = {} if skipping else self._block(raw)
        return [block] if block else []

    def _bound(self) -> None:
        if len(self._rest) > MAX_BLOCK:
            self.skipped += not self._skipping
            self._skipping = True
            del self._rest[:-1]  # a line end may be the first half of the blank line

    def _block(self, raw: bytes) -> Block:
        if len(raw) > MAX_BLOCK:
            self.skipped += 1
            return {}
        block: Block = {}
        for line in raw.decode("utf-8", "replace").split("\n"):
            name, colon, value = line.partition(":")
            if colon and not line.startswith("#"):
                block[name] = value.strip()
        return block


def blocks(chunks: Iterable[bytes]) -> Iterator[Block]:
    """Split a whole stream, as `Blocks` does."""
    reader = Blocks()
    for chunk in chunks:
        yield from reader.feed(chunk)
    yield from reader.close()


def recorded_chunks(path: Path, size: int = 1 << 16) -> Iterator[bytes]:
    """Read a recording, plain or gzip, in pieces."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk

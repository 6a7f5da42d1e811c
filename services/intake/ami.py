"""The bytes of an Asterisk manager connection, block by block; no IO."""

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_BLOCK = 64 * 1024

Block = dict[str, str]


def blocks(chunks: Iterable[bytes]) -> Iterator[Block]:
    """Split a stream into `Key: Value` blocks, however it is cut; odd lines and oversized blocks are skipped.

    A line that begins with `#` is a remark of our recorder and belongs to no block.
    """
    rest = b""
    for chunk in chunks:
        rest += chunk.replace(b"\r\n", b"\n") if b"\r" not in rest[-1:] else chunk
        rest = rest.replace(b"\r\n", b"\n")
        *whole, rest = rest.split(b"\n\n")
        for raw in whole:
            yield from _block(raw)
        if len(rest) > MAX_BLOCK:
            rest = rest[-1:]
    yield from _block(rest)


def _block(raw: bytes) -> Iterator[Block]:
    if len(raw) > MAX_BLOCK:
        return
    block: Block = {}
    for line in raw.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            block[name] = value.strip()
    if block:
        yield block


def recorded_chunks(path: Path, size: int = 1 << 16) -> Iterator[bytes]:
    """Read a recording, plain or gzip, in pieces."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk

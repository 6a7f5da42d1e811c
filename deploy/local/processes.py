"""Processes that outlive the command that started them: start, recognise, stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


class StackError(Exception):
    """A part of the local stack failed; the message says what, why, and what to do next."""


def free_port() -> int:
    """Find a TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(
    command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None
) -> psutil.Process:
    """Start a process in a session of its own, its output in `log`."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(env) if env is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return psutil.Process(started.pid)


def remember(file: Path, process: psutil.Process) -> None:
    """Write down a process so that a later command recognises it."""
    file.write_text(f"{process.pid} {process.create_time():.2f}")


def recall(file: Path) -> psutil.Process | None:
    """Give the process that was written down, unless it has ended or the number is somebody else's now."""
    try:
        pid, created = file.read_text().split()
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(created)) < 1
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return process if same and alive else None


def stop(process: psutil.Process, within: float = 20) -> None:
    """Ask a process to end; kill it when it does not in time."""
    try:
        process.send_signal(signal.SIGTERM)
        process.wait(within)
    except psutil.TimeoutExpired:
        kill(process)
    except psutil.NoSuchProcess:
        return


def kill(process: psutil.Process) -> None:
    """End a process without warning."""
    try:
        process.kill()
        process.wait(10)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return


def wait_for_port(port: int, process: psutil.Process, within: float = 30) -> bool:
    """Wait until something answers on the port; False when the process ends or takes too long."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.03)
    return False


def tail(log: Path, lines: int = 6) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def cache_folder() -> Path:
    """Where downloads are kept between checkouts."""
    named = os.environ.get("HOTLINE_CACHE")
    base = Path(named) if named else Path.home() / ".cache" / "hotline"
    base.mkdir(parents=True, exist_ok=True)
    return base

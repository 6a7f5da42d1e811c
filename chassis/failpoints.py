"""Named points at which a test can stop, kill or break this process; inert outside tests."""

import asyncio
import os
import signal

_ARMED: dict[str, str] = (
    dict(entry.split("=", 1) for entry in os.environ.get("HOTLINE_FAILPOINTS", "").split(",") if "=" in entry)
    if os.environ.get("HOTLINE_TESTING") == "1"
    else {}
)


class Injected(OSError):
    """A fault that a test asked for; transient like the faults it stands for."""


async def reach(point: str) -> None:
    """Do what a test armed for this point: `kill[:N]` (at the N-th time), `raise[:N]`, `hang`."""
    if not _ARMED:
        return
    action = _ARMED.get(point)
    if action is None:
        return
    verb, _, count = action.partition(":")
    if count and int(count) > 1:
        _ARMED[point] = f"{verb}:{int(count) - 1}"
        return
    del _ARMED[point]
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if verb == "hang":
        await asyncio.sleep(3600)
    raise Injected(f"failpoint {point}")


def arm(point: str, action: str) -> None:
    """Set a failpoint from a test in the same process."""
    _ARMED[point] = action

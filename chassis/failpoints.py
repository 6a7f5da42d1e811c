"""Named points at which a test can stop, kill or break this process, or make it lose; inert outside tests."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from chassis.transport import Outgoing

ARMED: dict[str, str] = (
    dict(entry.split("=", 1) for entry in os.environ.get("HOTLINE_FAILPOINTS", "").split(",") if "=" in entry)
    if os.environ.get("HOTLINE_TESTING") == "1"
    else {}
)
_counted: dict[str, int] = {}


class Injected(OSError):
    """A fault that a test asked for; transient like the faults it stands for."""


async def reach(point: str) -> None:
    """Do what a test armed for this point: `kill[:N]` (at the N-th time), `raise[:N]`, `hang`."""
    if not ARMED:
        return
    action = ARMED.get(point)
    if action is None:
        return
    verb, _, count = action.partition(":")
    if count and int(count) > 1:
        ARMED[point] = f"{verb}:{int(count) - 1}"
        return
    del ARMED[point]
    if verb == "kill":
        die()
    if verb == "hang":
        await asyncio.sleep(3600)
    raise Injected(f"failpoint {point}")


def die() -> None:
    """End this process as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, action: str) -> None:
    """Set a failpoint from a test in the same process."""
    ARMED[point] = action


def loses(what: str, name: str) -> bool:
    """Tell whether a test wants this one lost: armed as `lose_input=first:3` or `lose_output=every:50`.

    What is lost is written to the file that `HOTLINE_LOSSES` names, so that a test knows the truth.
    """
    action = ARMED.get(f"lose_{what}")
    if action is None:
        return False
    verb, _, number = action.partition(":")
    _counted[what] = count = _counted.get(what, 0) + 1
    lost = count <= int(number) if verb == "first" else count % int(number) == 0
    if lost and (path := os.environ.get("HOTLINE_LOSSES")):
        with Path(path).open("a") as file:
            file.write(f"{what} {name}\n")
    return lost


def survivors(messages: Sequence[Outgoing]) -> list[Outgoing]:
    """Take out what a test wants lost: all outputs of an input (`output`) or the last of several (`part`)."""
    total: dict[bytes, int] = {}
    for message in messages:
        cause = dict(message.headers).get("ce_causationid", b"")
        total[cause] = total.get(cause, 0) + 1
    total.pop(b"", None)
    whole = {cause for cause in total if loses("output", cause.decode())}
    several = {cause for cause, count in total.items() if count > 1 and cause not in whole}
    partly = {cause for cause in several if loses("part", cause.decode())}
    return [message for message in messages if not _is_lost(message, whole, partly)]


def _is_lost(message: Outgoing, whole: set[bytes], partly: set[bytes]) -> bool:
    headers = dict(message.headers)
    cause = headers.get("ce_causationid", b"")
    last = headers.get("ce_handoffk") == headers.get("ce_handoffn")
    return cause in whole or (cause in partly and last)

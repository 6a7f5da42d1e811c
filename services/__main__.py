"""Run stages side by side: `python -m services intake router …`; each its own process, memory shared.

The libraries are loaded once, then one process per stage is forked, so four stages on one machine
need half the memory and start in a third of the time. In a cluster a process is
`python -m services.<stage>`. The environment of a stage may be set apart: `HOTLINE_<STAGE>__NAME`
stands for `HOTLINE_NAME` in that stage alone. Pids go to `<stage>.pid`, logs to `<stage>.log`.
"""

import gc
import importlib
import os
import sys
from pathlib import Path

from chassis.settings import apart
from schemas.topics import STAGES


def main(stages: list[str]) -> int:
    """Fork one process per stage and end; returns 2 for a stage that does not exist."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        print(f"usage: python -m services {' '.join(STAGES)}", file=sys.stderr)  # noqa: T201
        return 2
    runners = {}
    for stage in stages:
        app = importlib.import_module(f"services.{stage}.app")
        settings = importlib.import_module(f"services.{stage}.settings")
        runners[stage] = (app.build, getattr(settings, f"{stage.capitalize()}Settings"))
    process = importlib.import_module("chassis.process")
    # What is loaded stays: moved out of the collector's sight, its pages are not written to.
    gc.collect()
    gc.freeze()
    for stage, (build, kind) in runners.items():
        pid = os.fork()
        if pid == 0:
            _become(stage)
            process.run_stage(build, kind)
        Path(f"{stage}.pid").write_text(str(pid))
    return 0


def _become(stage: str) -> None:
    """In the child: a session, a log and an environment of its own."""
    os.setsid()
    log = os.open(f"{stage}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(apart(os.environ, stage))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

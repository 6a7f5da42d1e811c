"""Run the stage: `python -m services.router`."""

from chassis.process import run_stage
from services.router.app import build
from services.router.settings import RouterSettings

run_stage(build, RouterSettings)

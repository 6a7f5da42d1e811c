"""Run the stage: `python -m services.intake`."""

from chassis.process import run_stage
from services.intake.app import build
from services.intake.settings import IntakeSettings

run_stage(build, IntakeSettings)

"""Run the stage: `python -m services.feedback`."""

from chassis.process import run_stage
from services.feedback.app import build
from services.feedback.settings import FeedbackSettings

run_stage(build, FeedbackSettings)

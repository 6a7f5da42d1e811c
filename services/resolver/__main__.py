"""Run the stage: `python -m services.resolver`."""

from chassis.process import run_stage
from services.resolver.app import build
from services.resolver.settings import ResolverSettings

run_stage(build, ResolverSettings)

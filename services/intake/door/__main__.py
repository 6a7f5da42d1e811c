"""Run the door: `python -m services.intake.door`."""

from services.intake.door.app import main

main()

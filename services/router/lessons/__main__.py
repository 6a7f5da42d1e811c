"""Run what the router does by the clock: `python -m services.router.lessons`."""

from services.router.lessons.app import main

main()

"""Run the observer: `python -m observer`."""

from observer.app import main

main()

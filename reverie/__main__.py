"""Run the command line `reverie` by `python -m reverie`."""

from reverie.cli import main

main()

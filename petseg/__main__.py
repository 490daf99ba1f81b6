"""`python -m petseg`."""

from petseg.cli.app import main

main()

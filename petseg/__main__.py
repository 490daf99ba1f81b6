"""`python -m petseg`."""

from petseg.cli import main

main()

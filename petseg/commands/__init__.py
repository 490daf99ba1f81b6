"""What the commands do, between the parser (`petseg.cli`) and the library."""

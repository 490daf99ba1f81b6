"""`petseg-shard` for people who look for a script: `python tools/make_shards.py SOURCE OUT`."""

from petseg.cli.app import shard_main

if __name__ == "__main__":
    shard_main()

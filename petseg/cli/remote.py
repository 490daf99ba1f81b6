"""Commands for remote shards, and for this machine's cache of them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from petseg.cli.console import progress
from petseg.data.objects import is_remote
from petseg.data.shards.manifest import Manifest
from petseg.data.shards.place import RemoteShards
from petseg.data.shards.shardcache import ShardCache, default_folder, verify
from petseg.data.shards.stage import Stage
from petseg.errors import PetsegError
from petseg.system import bytes_in_words


def fetch_command(console: Console, address: str, folder: str, minutes: float) -> None:
    """Fetch all shards of a store to this machine.

    Raises:
        PetsegError: it is not a store, or a shard cannot be had.
    """
    if not is_remote(address):
        raise PetsegError(f"{address} is not the address of a store; give s3://, gs://, az://, https:// or hf://.")
    remote = RemoteShards(address.rstrip("/"), _folder(folder), patience=60 * minutes, note=console.print)
    manifest = Manifest.load(remote)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    stage = Stage(remote, shards)
    stage.follow(range(len(shards)))
    try:
        with progress(console, "fetching", "shards") as (advance, expect):
            expect(len(shards))
            for number in range(len(shards)):
                stage.take([number], wait=True)
                stage.release([number])
                advance(1)
    finally:
        stage.close()
    size = bytes_in_words(sum(shard.bytes for shard in shards))
    console.print(f"{len(shards)} shards, {size}, are in {escape(str(remote.cache))}.")


def cache_command(console: Console, what: str, folder: str) -> None:
    """List, clear or verify the cache.

    Raises:
        PetsegError: an unknown word, or a shard that is not what its name says.
    """
    cache = ShardCache(_folder(folder))
    stored = cache.stored()
    size = bytes_in_words(sum(each.bytes for each in stored))
    if what == "list":
        parts = sum(not each.whole for each in stored)
        console.print(f"{escape(str(cache.folder))}: {len(stored) - parts} shards and {parts} parts of shards, {size}.")
    elif what == "clear":
        kept = [each for each in stored if not cache.remove(each)]
        console.print(f"Removed {len(stored) - len(kept)} of {len(stored)} ({size}) from {escape(str(cache.folder))}.")
        if kept:
            console.print(f"{len(kept)} are in use by a run; run it again when that run has ended.")
    elif what == "verify":
        wrong = [each for each, sound in verify(cache) if not sound]
        for each in wrong:
            cache.remove(each)
        if wrong:
            raise PetsegError(
                f"{wrong[0].path} and {len(wrong) - 1} more were damaged and have been removed; "
                "they are fetched again when needed."
            )
        console.print(f"[green]ok[/] {escape(str(cache.folder))}: {len(stored)} shards, {size}.")
    else:
        raise PetsegError(f"petseg cache {what}: choose list, clear or verify.")


def _folder(given: str) -> Path:
    return Path(given).expanduser().absolute() if given else default_folder()

"""Where shards are: a folder, or a store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from petseg.config import TrainConfig
from petseg.data.objects import PATIENCE, Objects, is_remote
from petseg.data.shards.shardcache import default_folder, parse_bytes


def _say_nothing(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class RemoteShards:
    """Shards in a store, and how they come to this machine.

    Examples:
        >>> RemoteShards("s3://bucket/oxford", limit=200 * 10**9).address
        's3://bucket/oxford'
    """

    address: str
    """`s3://BUCKET/PATH`, `gs://`, `az://`, `https://` or `hf://`."""
    cache: Path = field(default_factory=default_folder)
    """Folder that shards are kept in, for all runs of this machine."""
    limit: int | None = None
    """Bytes that it may take; None for what the disk has."""
    patience: float = PATIENCE
    """Seconds without progress after which a store is given up."""
    offline: bool = False
    """Only what is kept already is used."""
    note: Callable[[str], None] = field(default=_say_nothing, compare=False, repr=False)
    """Called with sentences for people, about a store that is waited for."""

    def __str__(self) -> str:
        return self.address

    def objects(self) -> Objects:
        """The store.

        Raises:
            PetsegError: not such an address, or the client is not installed.
        """
        return Objects(self.address, patience=self.patience, note=self.note)


Place = Path | RemoteShards
"""A folder of shards, wherever it is."""


def shards_for(config: TrainConfig, note: Callable[[str], None] = _say_nothing) -> Place:
    """A run's shards.

    Args:
        config: the run's.
        note: called with sentences for people, about a store that is waited for.

    Raises:
        PetsegError: a limit that is not a number of bytes.
    """
    if not is_remote(config.shards):
        return place_of(config.shards)
    return RemoteShards(
        config.shards.rstrip("/"),
        cache=Path(config.shard_cache).expanduser().absolute() if config.shard_cache else default_folder(),
        limit=parse_bytes(config.shard_cache_limit) if config.shard_cache_limit else None,
        patience=60 * config.remote_patience,
        offline=config.offline,
        note=note,
    )


def absolute(shards: str) -> str:
    """The name of a shard folder that holds from any working folder."""
    return shards if is_remote(shards) else str(Path(shards).absolute())


def place_of(shards: Path | str | RemoteShards) -> Place:
    """The folder or store that a text names.

    Examples:
        >>> place_of("shards/oxford")
        PosixPath('shards/oxford')
    """
    if isinstance(shards, RemoteShards):
        return shards
    if isinstance(shards, str) and is_remote(shards):
        return RemoteShards(shards.rstrip("/"))
    return Path(shards).expanduser()

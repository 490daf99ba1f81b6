"""One job of packing: a whole shard, with what is counted of it kept beside it so that a killed run can be resumed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import time
from dataclasses import dataclass

from petseg.data.shards.copies import look_of
from petseg.data.shards.index import index_name
from petseg.data.shards.manifest import ENCODINGS
from petseg.data.shards.mask_files import RejectError
from petseg.data.shards.normalise import normalise
from petseg.data.shards.options import PackOptions
from petseg.data.shards.output import Output
from petseg.data.shards.pool import Report
from petseg.data.shards.probe import Machine
from petseg.data.shards.stats import ShardStats
from petseg.data.shards.thinning import added, thinned
from petseg.data.shards.writer import ShardWriter
from petseg.data.sources import Pair, Rejected, Source
from petseg.data.sources.files import MAX_KEY, WORK_FOLDER
from petseg.data.sources.stored import read_each
from petseg.errors import PetsegError

_REPORT_EVERY = 8

_LOOKED_AT = 32
"""Masks of a shard, about, whose classes are measured before and after they are made smaller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """A shard to be written."""

    name: str
    """File name of the tar."""
    pairs: tuple[Pair, ...]
    """Its samples, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardWork:
    """Reads, normalises and writes the samples of a shard."""

    source: Source
    out: Output
    options: PackOptions
    machine: Machine
    """The one that planned the pack."""

    def __call__(self, job: ShardJob, report: Report) -> ShardStats:
        """Write one shard, its index and, last, its statistics, unless that was done before, from the same bytes.

        Raises:
            PetsegError: this machine would write other bytes than the one that planned the pack, or the output cannot
                be written.
        """
        try:
            self.machine.refuse_other(Machine.this())
            finished = finished_shard(self.out, job.name)
            if finished is not None and self._still_holds(job, finished):
                report(len(job.pairs))
                finished.resumed = True
                return finished
            stats = self._write(job, report)
            self.out.write(note_name(job.name), stats.to_bytes())
        except (BrokenPipeError, ConnectionError):
            raise  # the parent is gone
        except MemoryError as error:
            raise PetsegError(
                f"{job.name}: there is not enough memory for one of its images: give fewer --workers, or free some."
            ) from error
        except OSError as error:
            raise cannot_write(str(self.out), error) from error
        return stats

    def _still_holds(self, job: ShardJob, finished: ShardStats) -> bool:
        """Whether a finished shard is what it was, and so are the files that it was made of."""
        if finished.info is not None and not self.out.holds(finished.info, finished.tag):
            return False
        again = ShardStats(name=job.name)
        # What is drawn is the same for ever, and so is what a store says is the same.
        doubted = [
            pair for pair in job.pairs if pair.size and not (pair.tag and finished.tags.get(pair.key) == pair.tag)
        ]
        for pair, read in read_each(self._read, doubted):
            with contextlib.suppress(RejectError):
                _noted(pair, read(), again)
            if again.digests.get(pair.key) != finished.digests.get(pair.key):
                return False
        return True

    def _read(self, pair: Pair) -> tuple[bytes, ...]:
        if len(pair.key) > MAX_KEY:
            raise RejectError(f"its name is longer than {MAX_KEY} characters")
        return _read_patiently(self.source, pair)

    def _write(self, job: ShardJob, report: Report) -> ShardStats:
        stats = ShardStats(name=job.name)
        with self.out.shard_folder() as folder:
            with ShardWriter(folder, job.name, ENCODINGS[self.options.encoding]) as writer:
                self._fill(writer, job, stats, report)
            if writer.info is not None and writer.info.samples:
                stats.info = writer.info
                stats.tag = self.out.deliver(folder, job.name)
            else:
                (folder / job.name).unlink()
                (folder / index_name(job.name)).unlink()
        return stats

    def _fill(self, writer: ShardWriter, job: ShardJob, stats: ShardStats, report: Report) -> None:
        options, classes = self.options, self.source.classes
        every, unreported = max(1, len(job.pairs) // _LOOKED_AT), 0
        for number, (pair, read) in enumerate(read_each(self._read, job.pairs)):
            try:
                image, mask, *more = _noted(pair, read(), stats)
                sample = normalise(
                    image,
                    mask,
                    *more,
                    classes=classes,
                    short_side=options.short_side,
                    quality=options.quality,
                    encoding=options.encoding,
                    mask_orientation=options.mask_orientation,
                    resize_masks=options.resize_masks,
                    tones=options.tones,
                )
            except RejectError as error:
                stats.rejected.append(Rejected(key=pair.key, reason=str(error), kind=error.kind))
            else:
                stats.add_palette(sample.palette, pair.mask)
                stats.looks[pair.key] = look_of(sample.pixels)
                if sample.before is not None and number % every == 0:
                    stats.thin = added(stats.thin, thinned(sample.before, sample.codes))
                writer.add(pair.key, sample.image, sample.mask)
                stats.add(
                    sample.pixels,
                    sample.counts,
                    progressive=sample.progressive,
                    kept=sample.kept,
                    converted=sample.converted,
                )
            unreported += 1
            if unreported == _REPORT_EVERY:
                report(unreported)
                unreported = 0
        if unreported:
            report(unreported)


def note_name(shard: str) -> str:
    """The path of a finished shard's statistics, below the output."""
    return f"{WORK_FOLDER}/{shard}.json"


def finished_shard(out: Output, shard: str) -> ShardStats | None:
    """The statistics of a finished shard."""
    data = out.read(note_name(shard))
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return None if data is None else ShardStats.from_bytes(data)
    return None


def cannot_write(out: str, error: OSError) -> PetsegError:
    """The sentence for a full disk and its like."""
    return PetsegError(
        f"{out} cannot be written ({error.strerror or error}): free some space or choose another folder, then run the "
        "same command again; what is finished is kept."
    )


_GONE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, None}
"""Errors that are the file's own; all others are the disk's or the network's, and may be over in a moment."""

_PAUSES_S = (0.1, 1.0, 5.0)


def _read_patiently(source: Source, pair: Pair) -> tuple[bytes, ...]:
    """Read a pair, and again after errors of the disk or the network.

    A sample that is left out because of one would be there in the next pack of the same source, so the pack stops.

    Raises:
        RejectError: the file is not there, or may not be read.
        PetsegError: the error stays.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return source.read(pair)
        except OSError as error:
            if error.errno in _GONE:
                raise RejectError(f"it cannot be read ({error.strerror or error})", "unreadable") from error
            if pause is None:
                raise PetsegError(
                    f"{pair.key} cannot be read ({error.strerror or error}), and trying again did not help: check the "
                    "disk or the network, then run the same command again; what is finished is kept."
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _noted(pair: Pair, files: tuple[bytes, ...], stats: ShardStats) -> tuple[bytes, ...]:
    """The files of a pair, of which is noted what they were."""
    stats.bytes_in += sum(map(len, files))
    # Lengths too: no two pairs of files may look alike.
    head = f"{pair.key} {' '.join(str(len(file)) for file in files)}\n".encode()
    stats.digests[pair.key] = hashlib.sha256(b"".join((head, *files))).hexdigest()
    if pair.tag:
        stats.tags[pair.key] = pair.tag
    return files

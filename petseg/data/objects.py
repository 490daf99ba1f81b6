"""Objects in object stores (s3, gs, az, https, hf): the only module that uses a client for them.

The client's own retries are off: it gives up after a time that it counts from the first request on. Here the time
without progress counts, so that a long object may break off any number of times.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from petseg.errors import PetsegError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

PATIENCE = 600.0
"""Seconds without progress after which a store is given up."""

FIRST_PATIENCE = 10.0
"""Likewise for one that cannot be reached at all, before anything has come from it: a wrong name, most likely."""

CHUNK = 1 << 18
"""Bytes that are taken from a stream at once, or a little more; what it holds of these is lost where it breaks off."""

_PAGE = 1000
_LONGEST_PAUSE = 30.0
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_TIMEOUTS = {"read_timeout": "30s", "connect_timeout": "5s", "timeout": "7days"}
_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "http": "http", "https": "https", "hf": "hf"}
_STATUS = re.compile(r"status code: (\d{3})")
_LATER = {408, 425, 429}
_EXPIRED = re.compile(r"ExpiredToken|TokenRefreshRequired|token.{0,20}expired", re.IGNORECASE)
_REVISION = re.compile(r"[0-9a-f]{40}")

_forked = False


def _after_fork() -> None:
    global _forked  # noqa: PLW0603
    _forked = "obstore" in sys.modules  # its threads are not there


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_after_fork)


class ObjectMissing(PetsegError):  # noqa: N818
    """There is no such object."""


class ObjectChanged(PetsegError):  # noqa: N818
    """An object is not the one any more of which a part was read, or cannot be read from the middle."""


class Meta(NamedTuple):
    """Metadata of an object."""

    size: int
    """Bytes."""
    etag: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """An object of a listing."""

    name: str
    """Below the address."""
    meta: Meta


def is_remote(address: str | Path) -> bool:
    """Whether this names objects in a store, and not files.

    Examples:
        >>> is_remote("s3://bucket/set"), is_remote("shards/oxford")
        (True, False)
    """
    scheme, colon, _ = str(address).partition("://")
    return bool(colon) and scheme.lower() in _SCHEMES


class Objects:
    """The objects below one address.

    Credentials are those that the store's own tools read: AWS_*, GOOGLE_*, AZURE_* and HF_TOKEN in the environment, the
    machine's role, and profiles where boto3 is installed.

    Args:
        address: `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `az://CONTAINER/PATH`, `https://HOST/PATH` or
            `hf://datasets/USER/NAME[@REVISION]/PATH`, whose revision is pinned now.
        patience: seconds without progress after which a store is given up.
        note: called with a sentence when a store is waited for, once until it answers again.
        headers: sent with every request.

    Raises:
        PetsegError: not such an address, or the client is not installed.
    """

    def __init__(
        self,
        address: str,
        *,
        patience: float = PATIENCE,
        note: Callable[[str], None] = lambda _: None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.address = _normal(address)
        self._patience, self._note = patience, note
        self._reached = self._refreshed = False
        self._url, self._headers = self.address, headers or {}
        if self.address.startswith("hf://"):
            self._url, self._headers = self._pinned()
        self._store = _opened(self._url, self._headers)

    def url(self, name: str) -> str:
        """An object's address, for people."""
        return f"{self.address}/{name}"

    def get(self, name: str, most: int | None = None) -> bytes:
        """All of a small object, or its beginning.

        Args:
            name: below the address.
            most: bytes that are wanted.

        Raises:
            ObjectMissing: there is none.
            PetsegError: it cannot be read.
        """
        if most is not None:
            return self._patiently(name, lambda _waiting: self._beginning(name, most))
        parts: list[bytes] = []
        while True:
            try:
                self.fetch(name, lambda part: parts.append(bytes(part)))
                return b"".join(parts)
            except ObjectChanged:
                parts.clear()

    def _beginning(self, name: str, most: int) -> bytes:
        try:
            return bytes(_client().get_range(self._store, name, start=0, length=most))
        except Exception as error:
            if "416" not in str(error):
                raise
            return b""  # it is empty

    def fetch(
        self,
        name: str,
        take: Callable[[memoryview], object],
        *,
        start: int = 0,
        etag: str | None = None,
        begin: Callable[[Meta], object] = lambda _: None,
    ) -> Meta:
        """Read an object from a byte on, piece by piece; continues after a break, as long as it is the same object.

        Args:
            name: below the address.
            take: called with each piece, in order.
            start: first byte.
            etag: of the object that the bytes before `start` are of.
            begin: called before the object's first byte is taken.

        Returns:
            What the store says of the object.

        Raises:
            ObjectMissing: there is none.
            ObjectChanged: it is another one by now; what was taken is worth nothing.
            PetsegError: it cannot be read.
        """
        at, tag = start, etag

        def read(waiting: _Waiting) -> Meta:
            nonlocal at, tag
            options: dict[str, Any] = {}
            if at:
                options["range"] = {"offset": at}
                if tag and not tag.startswith("W/"):  # which never match
                    options["if_match"] = tag
            found = _client().get(self._store, name, options=options)
            self._reached = True
            meta = Meta(found.meta["size"], found.meta["e_tag"])
            if at and (meta.etag != tag or meta.size < at):
                raise ObjectChanged(f"{self.url(name)} changed while it was read.")
            tag = meta.etag
            if not at:
                begin(meta)
            for piece in found.stream(CHUNK):
                take(memoryview(piece))
                at += len(piece)
                waiting.progress()
            if at != meta.size:
                raise _BrokenOff(f"it ended after {at:,} of {meta.size:,} bytes")
            return meta

        return self._patiently(name, read)

    def head(self, name: str) -> Meta:
        """Metadata of an object.

        Raises:
            ObjectMissing: there is none.
            PetsegError: the store does not answer.
        """

        def ask(_waiting: _Waiting) -> Meta:
            found = _client().head(self._store, name)
            return Meta(found["size"], found["e_tag"])

        return self._patiently(name, ask)

    def every(self, below: str = "") -> Iterator[Listed]:
        """All objects below a name, in the store's order, page by page.

        Raises:
            PetsegError: it cannot be listed; plain https cannot.
        """
        if self._url.startswith("http"):
            raise PetsegError(f"{self.address}: a web server does not list its files; name a store, or its manifest.")
        after: str | None = None
        while True:
            page = self._page(below, after)
            for each in page:
                yield Listed(each["path"], Meta(each["size"], each["e_tag"]))
            if not page:
                return
            after = page[-1]["path"]

    def _page(self, below: str, after: str | None) -> list[Any]:
        """The next objects after a name."""

        def ask(_waiting: _Waiting) -> list[Any]:
            return next(iter(_client().list(self._store, below or None, offset=after, chunk_size=_PAGE)), [])

        return self._patiently(below, ask)

    def put(self, name: str, data: bytes | Path) -> str | None:
        """Write an object, whole or not at all.

        Returns:
            Its ETag, where the store has such.

        Raises:
            PetsegError: it cannot be written.
        """

        def put(_waiting: _Waiting) -> str | None:
            tag: str | None = _client().put(self._store, name, data)["e_tag"]
            return tag

        return self._patiently(name, put)

    def put_new(self, name: str, data: bytes) -> bool:
        """Write an object unless there is one; whether what is there now are these bytes.

        Raises:
            PetsegError: it cannot be written.
        """
        already: type[Exception] = _exceptions().AlreadyExistsError

        def put(_waiting: _Waiting) -> bool:
            try:
                _client().put(self._store, name, data, mode="create")
            except already:
                return False
            return True

        # An answer may have been lost, so that one's own object is in the way.
        return self._patiently(name, put) or self.get(name) == data

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects, if they are there.

        Raises:
            PetsegError: one cannot be removed.
        """

        def remove(_waiting: _Waiting) -> None:
            with contextlib.suppress(FileNotFoundError):
                _client().delete(self._store, names)

        if names:
            self._patiently(names[0], remove)

    def _patiently(self, name: str, act: Callable[[_Waiting], T]) -> T:
        if _forked:
            raise PetsegError(f"{self.url(name)}: a forked process cannot read from stores; start it by spawn.")
        waiting = _Waiting(self, name)
        while True:
            try:
                made = act(waiting)
            except PetsegError:
                raise
            except Exception as error:
                self._judge(name, error, waiting)
            else:
                self._reached = True
                waiting.progress()
                return made

    def _judge(self, name: str, error: Exception, waiting: _Waiting) -> None:
        """Return where it is worth another try, after a pause.

        Raises:
            PetsegError: it is not, in a sentence.
        """
        exceptions, said, where = _exceptions(), _said(error), self.url(name)
        status = int(found[1]) if (found := _STATUS.search(str(error))) else None
        self._reached = self._reached or status is not None
        if isinstance(error, FileNotFoundError):
            raise ObjectMissing(f"{where}: there is no such object.") from None
        if isinstance(error, exceptions.PreconditionError):
            raise ObjectChanged(f"{where} changed while it was read.") from None
        if isinstance(error, exceptions.NotSupportedError):
            raise ObjectChanged(f"{where} cannot be read from the middle.") from None
        if _EXPIRED.search(str(error)) or isinstance(error, exceptions.UnauthenticatedError):
            if self._refreshed:
                raise PetsegError(
                    f"{where}: the store does not accept the credentials, even after reading them again "
                    f"({said}): log in again."
                ) from None
            self._refreshed = True
            self._store = _opened(self._url, self._headers)
            return
        if isinstance(error, exceptions.PermissionDeniedError):
            raise PetsegError(
                f"{where}: access denied ({said}): check the name and the credentials{_hint(self.address)}."
            ) from None
        if "169.254.169.254" in str(error) or "metadata.google.internal" in str(error):
            raise PetsegError(f"{where}: no credentials were found{_hint(self.address)}.") from None
        if "redirect without LOCATION" in str(error):
            raise PetsegError(f"{where}: the bucket is in another region: set AWS_REGION.") from None
        if not isinstance(error, (exceptions.BaseError, _BrokenOff, OSError)):
            raise error
        if status is not None and status < 500 and status not in _LATER:
            raise PetsegError(f"{where}: the store refused ({said}).") from None
        waiting.pause(said, known=self._reached)

    def _pinned(self) -> tuple[str, dict[str, str]]:
        """The https form of a hf:// address, of one commit."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        parts = self.address.removeprefix("hf://").split("/")
        kind = parts.pop(0) if parts[0] in {"datasets", "spaces"} else ""
        if len(parts) < 2:
            raise PetsegError(f"{self.address}: give hf://datasets/USER/NAME[@REVISION]/PATH.")
        user, (name, _, revision), path = parts[0], parts[1].partition("@"), "/".join(parts[2:])
        headers = {"authorization": f"Bearer {token}"} if (token := os.environ.get("HF_TOKEN")) else {}
        api = f"{kind or 'models'}/{user}/{name}"
        if not _REVISION.fullmatch(revision):
            site = Objects(f"{endpoint}/api/{api}/revision", patience=self._patience, note=self._note, headers=headers)
            revision = str(json.loads(site.get(quote(revision or "main", safe="")))["sha"])
        below = f"{kind}/" if kind else ""
        return f"{endpoint}/{below}{user}/{name}/resolve/{revision}/{path}".rstrip("/"), headers


@functools.cache
def opened(address: str) -> Objects:
    """The objects below an address, by one client for the process, which says on standard error what it waits for.

    Raises:
        PetsegError: as `Objects`.
    """
    return Objects(address, note=_say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class _BrokenOff(Exception):  # noqa: N818
    """A stream ended early."""


class _Waiting:
    """How long one request has brought nothing."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects, self._name = objects, name
        self._since, self._tries, self._said = time.monotonic(), 0, False

    def progress(self) -> None:
        """Something came."""
        self._since, self._tries = time.monotonic(), 0
        if self._said:
            self._said = False
            self._objects._note(f"{self._objects.url(self._name)} answers again.")

    def pause(self, why: str, *, known: bool) -> None:
        """Wait a little.

        Raises:
            PetsegError: it has been long enough.
        """
        objects = self._objects
        most = objects._patience if known else min(FIRST_PATIENCE, objects._patience)
        waited = time.monotonic() - self._since
        if waited >= most:
            raise PetsegError(
                f"{objects.url(self._name)}: nothing for {waited:.0f} seconds ({why}); "
                + ("--remote-patience waits longer." if known else "check the name and the network.")
            )
        if not self._said and self._tries >= 2:
            self._said = True
            objects._note(f"Waiting for {objects.url(self._name)}: {why}; retrying for {most:.0f} seconds.")
        longest = min(_LONGEST_PAUSE, 0.2 * 2**self._tries, most - waited)
        self._tries += 1
        time.sleep(random.uniform(longest / 2, longest))


def _normal(address: str) -> str:
    scheme, colon, rest = address.partition("://")
    known = _SCHEMES.get(scheme.lower()) if colon else None
    if known is None or not rest.strip("/"):
        raise PetsegError(f"{address}: is not the address of a store; give s3://, gs://, az://, https:// or hf://.")
    if known.startswith("http") and (urlsplit(address).query or urlsplit(address).fragment):
        raise PetsegError(f"{address}: give the folder's address, without ? and #.")
    return f"{known}://{rest}".rstrip("/")


def _opened(url: str, headers: Mapping[str, str]) -> ObjectStore:
    client = _client()
    options: dict[str, Any] = {**_TIMEOUTS, "user_agent": "petseg"}
    if any(each.startswith("http://") for each in (url, *(os.environ.get(name, "") for name in _ENDPOINTS))):
        options["allow_http"] = True
    if headers:
        options["default_headers"] = dict(headers)
    extra: dict[str, Any] = {}
    if url.startswith("s3://") and (provider := _profile()) is not None:
        extra["credential_provider"] = provider
    try:
        made: ObjectStore = client.store.from_url(url, client_options=options, retry_config={"max_retries": 0}, **extra)
    except Exception as error:
        if not isinstance(error, (_exceptions().BaseError, ValueError)):
            raise
        raise PetsegError(f"{url}: {_said(error)}.") from None
    return made


def _profile() -> Any:
    """Credentials that boto3 finds, if a profile is given by name: the client itself reads the environment alone."""
    if not os.environ.get("AWS_PROFILE"):
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ModuleNotFoundError:
        raise PetsegError("AWS_PROFILE is set, and profiles are read by boto3: pip install boto3.") from None
    return Boto3CredentialProvider()


def _client() -> Any:
    try:
        import obstore
        import obstore.store
    except ModuleNotFoundError:
        raise PetsegError("objects in stores are read by obstore: pip install 'petseg[remote]'.") from None
    return obstore


def _exceptions() -> Any:
    import obstore.exceptions

    return obstore.exceptions


def _said(error: Exception) -> str:
    """The cause of an error, without the client's internals."""
    text = str(error).partition("\n\nDebug source")[0]
    if "dns error" in str(error):
        return "the host's name cannot be resolved"
    if found := re.search(r"<Code>([^<]*)</Code>", text):
        return found[1]
    if found := re.search(r"status code: (\d{3} ?[^:\n]*)", text):
        return found[1].strip()
    return " ".join(text.rpartition(" - ")[2].split())[:200] or type(error).__name__


def _hint(address: str) -> str:
    return {
        "s3": ": AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for a public one",
        "gs": ": GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public one",
        "az": ": AZURE_STORAGE_ACCOUNT_NAME and a key or token, or AZURE_SKIP_SIGNATURE=true for a public one",
        "hf": ": HF_TOKEN",
    }.get(address.partition("://")[0], "")

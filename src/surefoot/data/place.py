"""A folder at an address: on this machine, behind HTTP, or in a bucket, through `fsspec`.

What fails on the way is tried again, each time after a longer pause; what can never work (no such
file, no permission) is said at once. Credentials and options are those of fsspec's own environment
(`FSSPEC_S3_…`, `AWS_…`), so that none is ever written into a run.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from surefoot.data.fetch import is_offline
from surefoot.errors import DataError, OutOfResources, SurefootError, Unsupported

__all__ = ["Place", "Silent"]

T = TypeVar("T")

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds; the tries in between may take time, too
_SILENCE = 30.0  # seconds without a byte after which a connection counts as lost
_HERE = ("file", "local", "memory")
_BUSY = (408, 425, 429)  # what a server answers that may have time later


class Silent(SurefootError):
    """An address did not answer, however often it was asked."""


class Place:
    """The folder at `url`, to read from and to write to.

    Raises DataError for an address that cannot be one, Unsupported where a package is missing.
    """

    def __init__(self, url: str) -> None:
        if not url.strip():
            raise DataError("an empty address", fix="a folder, s3://… or https://…")
        short = url.rstrip("/")
        self.url = url if not short or short.endswith(":") else short  # the root of all files
        self._refuse()
        import fsspec

        protocol = fsspec.utils.get_protocol(self.url)
        self._forbidden = is_offline() and protocol not in _HERE
        try:
            self._files, self._root = fsspec.url_to_fs(self.url, **_options(protocol))
        except ImportError as error:
            raise Unsupported(
                f"cannot read {protocol}:// here: {error}", fix="pip install 'surefoot[remote]'"
            ) from None
        except ValueError as error:
            raise DataError(f"no address: {error}", where=self.url, fix="check it") from None

    def _refuse(self) -> None:
        """An address with a secret in it would end up in the run's record and in reports."""
        if re.search(r"://[^/]*@", self.url) or "?" in self.url:
            raise DataError(
                "an address may hold no user, password or signature: it is written into the run",
                where=self.url.partition("://")[0] + "://…",
                fix="give them to fsspec: FSSPEC_S3_KEY and FSSPEC_S3_SECRET, AWS_PROFILE, ~/.netrc",
            )

    def pull(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes [start, stop) of file `name`; all of it without them.

        May return fewer when the connection ends early. A server that knows no ranges sends the
        whole file, of which the rest from `start` on is returned.
        """
        if stop is None:
            return self._tried(name, lambda: bytes(self._files.cat_file(self._path(name))))

        def ask() -> bytes:
            found: bytes = self._files.cat_file(self._path(name), start=start, end=stop)
            return found if len(found) <= stop - start else found[start:]

        return self._tried(name, ask)

    def push(self, name: str, content: bytes) -> None:
        """Write file `name`, which readers see whole or not at all where the place allows it.

        Raises DataError where nothing may be written, OutOfResources where a disk here is full.
        """
        if not hasattr(self._files, "local_file"):
            self._tried(name, lambda: self._files.pipe_file(self._path(name), content))
            return
        try:
            self._files.makedirs(self._root, exist_ok=True)
            _replace(Path(self._path(name)), content)
        except OSError as error:
            what, where = f"cannot write {name}: {error.strerror or error}", self.url
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfResources(what, where=where, fix="free some space") from None
            raise DataError(what, where=where, fix="a folder that you may write to") from None

    def size(self, name: str) -> int | None:
        """Return how many bytes file `name` has, or None where there is none."""

        def ask() -> int | None:
            try:
                self._files.invalidate_cache()
                found = self._files.info(self._path(name)).get("size")
            except FileNotFoundError:
                return None
            return None if found is None else int(found)

        return self._tried(name, ask)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _tried(self, name: str, call: Callable[[], T]) -> T:
        if self._forbidden:
            raise Silent(
                "SUREFOOT_OFFLINE forbids to ask for it",
                where=f"{self.url}/{name}", fix="unset it, or give a folder of this machine",
            )  # fmt: skip
        for pause in (*PAUSES, None):
            try:
                return call()
            except Exception as error:  # each way of transport has errors of its own
                self._hopeless(name, error)
                if pause is None:
                    raise Silent(
                        f"no answer after {len(PAUSES) + 1} tries: {_phrase(error)}",
                        where=f"{self.url}/{name}",
                        fix="check the network, then give the command again; nothing is lost",
                    ) from None
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _hopeless(self, name: str, error: Exception) -> None:
        """Raise what a person must read where trying again cannot help."""
        where, status = f"{self.url}/{name}", getattr(error, "status", None)
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            fix = "check the address; `surefoot data shard --to` writes shards to one"
            raise DataError("there is no such file", where=where, fix=fix) from None
        denied = isinstance(error, PermissionError) or "Credentials" in type(error).__name__
        if denied or status in (401, 403):
            fix = "give fsspec what it needs: FSSPEC_S3_KEY and FSSPEC_S3_SECRET, AWS_PROFILE, …"
            what = f"the address does not let us: {_phrase(error)}"
            raise DataError(what, where=where, fix=fix) from None
        if status is not None and 400 <= status < 500 and status not in _BUSY:
            raise DataError(f"the server refuses: {_phrase(error)}", where=where) from None


def _replace(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staged.write_bytes(content)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _options(protocol: str) -> dict[str, Any]:
    """Return time limits for a network that falls silent, unless fsspec's environment has some."""
    from fsspec.config import conf

    if protocol in ("http", "https") and "client_kwargs" not in conf.get(protocol, {}):
        try:
            from aiohttp import ClientTimeout
        except ImportError:  # said with the right name by fsspec
            return {}
        limits = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        return {"client_kwargs": {"timeout": limits}}
    if protocol in ("s3", "s3a") and "config_kwargs" not in conf.get("s3", {}):
        limit = {"connect_timeout": _SILENCE, "read_timeout": _SILENCE}
        return {"config_kwargs": {**limit, "retries": {"max_attempts": 1}}}
    return {}


def _phrase(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) < 200 else said[:197] + "..."

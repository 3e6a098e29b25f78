"""What a file must be, whether it is that, and whether there is room for it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: How files of these endings begin.
BEGINNINGS = {
    "HDF5": (b"\x89HDF\r\n\x1a\n", (".h5ad", ".h5mu", ".h5", ".hdf5", ".loom")),
    "zip": (b"PK", (".zip", ".npz")),
    "gzip": (b"\x1f\x8b", (".gz", ".tgz")),
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_digests: dict[tuple, dict[str, str]] = {}  # by what identifies a file's content, which a rename keeps


class FetchError(RuntimeError):
    """A file could not be had; the message is one sentence."""


class DiskFull(FetchError):
    """There is no room for the file; another address would not help."""


@dataclass(frozen=True)
class Expected:
    """What a file must be: its size, and checksums with the words for who says so."""

    bytes: int | None = None
    about_mb: float | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    def problem(self, path: Path, name: str) -> str:
        """Say how a file differs from what is expected; empty if it does not.

        Parameters
        ----------
        path
            The file.
        name
            What it will be called: the ending says how it must begin.
        """
        with open(path, "rb") as file:
            if wrong := wrong_beginning(name, file.read(512)):
                return wrong
        size = path.stat().st_size
        if self.bytes is not None and size != self.bytes:
            return f"it has {size} bytes, expected {self.bytes}"
        if not self.hashes:
            return ""  # without reading it
        found = digests(path, *{known.partition(":")[0] for known in self.hashes})
        for known, who in self.hashes.items():
            algorithm, _, digest = known.partition(":")
            if found[algorithm] != digest:
                return f"{algorithm} is {found[algorithm]} ({day(path)}), expected {digest} ({who})"
        return ""


def day(path: Path | None = None) -> str:
    """Return today's date, or that of a file, as YYYY-MM-DD in UTC."""
    seconds = time.time() if path is None else path.stat().st_mtime
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def digests(path: Path, *algorithms: str) -> dict[str, str]:
    """Return hex digests of a file, sha256 among them. Bytes are read once, whatever the file is called."""
    facts = path.stat()
    known = _digests.setdefault((facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns), {})
    if missing := {"sha256", *algorithms} - known.keys():
        hashes = {name: hashlib.new(name) for name in missing}
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                for each in hashes.values():
                    each.update(chunk)
        known |= {name: each.hexdigest() for name, each in hashes.items()}
    return known


def wrong_beginning(name: str, start: bytes, content_type: str = "") -> str:
    """Say what a file begins with if that does not fit its name; empty if it fits.

    Parameters
    ----------
    name
        Name of the file.
    start
        Its first bytes.
    content_type
        What the host calls it.
    """
    page = start.lstrip().lower()
    is_page = page.startswith((b"<!doctype html", b"<html")) or content_type.startswith("text/html")
    if is_page and not name.endswith((".html", ".htm")):
        title = re.search(r"<title[^>]*>(.*?)</title>", start.decode("utf-8", "replace"), re.S | re.I)
        says = f" titled {' '.join(title[1].split())!r}" if title and title[1].strip() else ""
        return f"found a web page{says} instead of the file"
    for kind, (beginning, endings) in BEGINNINGS.items():
        if name.lower().endswith(endings) and not start.startswith(beginning):
            return f"found no {kind} file: it begins with {start[:8]!r}"
    return ""


def say(text: str) -> None:
    """Tell the user something on the error stream."""
    print(f"[fetch] {text}", file=sys.stderr, flush=True)


def gigabytes(size: float) -> str:
    """Write a number of bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


def check_space(folder: Path, needed: float, what: str) -> None:
    """Raise unless a folder's disk has room.

    Raises
    ------
    DiskFull
        With what is needed, what is free and what to do.
    """
    folder = next(f for f in (folder, *folder.parents) if f.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFull(
            f"{what} needs {gigabytes(needed)} more and the disk of {folder} has {gigabytes(free)} free; "
            "make room, or name another folder by `downloads:` in the configuration or SCMAMBA2_DOWNLOADS"
        )


@contextlib.contextmanager
def explained_when_full(path: Path, kept: str) -> Iterator[None]:
    """Turn the error of a full disk into one sentence.

    Parameters
    ----------
    path
        What is being written.
    kept
        What becomes of what was written, for the sentence.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"the disk became full while {path} was written; {kept}; make room, or name another folder "
            "by `downloads:` in the configuration or SCMAMBA2_DOWNLOADS"
        ) from error

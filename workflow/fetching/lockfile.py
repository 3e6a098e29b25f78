"""datasets.lock: checksums of files for which none is declared, as their first download showed them.

One line per file, so that a difference reads well; the user who trusts the files commits it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from workflow.declarations import WORKFLOW
from workflow.fetching.verification import FetchError, say
from workflow.files import write_text

LOCKFILE = WORKFLOW / "datasets.lock"
BY_HAND = "found on disk"  #: the address of a file that this checkout did not bring
_HEAD = """\
# Checksums of downloads that have none in datasets.yaml, recorded when they first came. Commit this file if
# you trust them. If a publisher replaced a file and you trust the new one, delete its line.
# file, sha256, bytes, date, address (between tabs)
"""


@dataclass(frozen=True)
class Seen:
    """What a file was when it first came."""

    sha256: str
    bytes: int
    date: str
    url: str


def read(path: Path = LOCKFILE) -> dict[str, Seen]:
    """Return what is recorded, by the place of the file among the downloads (``dataset/file``).

    Raises
    ------
    FetchError
        If a line is not one of ours, for instance after a merge.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    entries = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            parts = line.split("\t")
            if len(parts) != 5 or not parts[2].isdigit():
                raise FetchError(f"{path}: line {number}: expected 5 words between tabs, found {line!r}")
            entries[parts[0]] = Seen(parts[1], int(parts[2]), parts[3], parts[4])
    return entries


def guard_of(downloads: Path) -> Path:
    """Return the file that processes lock while one of them writes."""
    return downloads / ".locks" / "datasets.lock"


def _write(entries: dict[str, Seen], path: Path) -> None:
    lines = [f"{name}\t{e.sha256}\t{e.bytes}\t{e.date}\t{e.url}\n" for name, e in sorted(entries.items())]
    write_text(path, _HEAD + "".join(lines))


def forget(keys: Iterable[str], guard: Path, path: Path = LOCKFILE) -> None:
    """Take lines back, for files that proved to be wrong right after they were recorded."""
    with contextlib.suppress(OSError), FileLock(guard):
        entries = read(path)
        if set(keys) & set(entries):
            _write({key: seen for key, seen in entries.items() if key not in set(keys)}, path)


def record(key: str, seen: Seen, guard: Path, path: Path = LOCKFILE) -> bool:
    """Add a line, whoever else does so at the same time.

    Parameters
    ----------
    key
        Place of the file among the downloads.
    seen
        What it is.
    guard
        File that processes lock while they write.
    path
        The lock file.

    Returns
    -------
    bool
        Whether it stands there now; a folder that cannot be written to earns a warning.
    """
    try:
        guard.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(guard):
            entries = read(path)
            known = entries.get(key)
            # of an archive that several wait for, one process knows the address and the others find the file
            if known is None or (known.url == BY_HAND and known.sha256 == seen.sha256):
                entries[key] = seen
            _write(entries, path)
    except OSError as error:
        say(f"{path} cannot be written ({error.strerror}): the checksum of {key} is not recorded")
        return False
    return True

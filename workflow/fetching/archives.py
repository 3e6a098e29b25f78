"""Take one file out of a zip, tar, tar.gz or gz, which may lie inside another archive.

No name that stands in an archive is ever used on disk: the caller says which member it wants and where
it goes. Nothing is unpickled, run or linked.
"""

from __future__ import annotations

import difflib
import gzip
import lzma
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from workflow.fetching.verification import FetchError, check_space, explained_when_full

MAX_BYTES = 100_000_000_000  #: no member is larger, unless its size is declared
MAX_RATIO = 250  #: nor does it grow so much; deflate cannot do more than 1032
ALWAYS_FINE = 1 << 26  #: bytes below which the ratio does not count

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)
_UNREADABLE = (NotImplementedError, RuntimeError, struct.error)  # rare methods of packing, passwords


class ArchiveError(FetchError):
    """An archive does not give what is asked of it; the message is one sentence."""


class DamagedArchive(ArchiveError):
    """An archive is cut off or damaged."""


def extract(archive: Path, member: str, path: Path, size: int | None = None, shown: str = "") -> None:
    """Write one member of an archive to a path.

    Parameters
    ----------
    archive
        A zip, tar, tar.gz or gz file, whatever it is called.
    member
        Path inside it; ``outer.zip!inner/path`` goes into an archive inside it. A gz file that is no
        tar holds one file without a name, so any member means that file.
    path
        Where the bytes go. If this fails, nothing is left there.
    size
        Bytes of the member, if known: it must have them.
    shown
        What to call the archive in an error.

    Raises
    ------
    DamagedArchive
        If it is cut off or damaged.
    ArchiveError
        If it holds no such file, or one that must not be taken.
    DiskFull
        If there is no room.
    """
    shown = shown or str(archive)
    outer, _, inner = member.partition("!")
    if outer.startswith("/") or "\\" in outer or ".." in PurePosixPath(outer).parts:
        raise ArchiveError(f"{shown}: {outer!r} leads out of the archive")
    if inner:
        between = path.with_name(f"{path.name}.{member.count('!')}")
        try:
            extract(archive, outer, between, shown=shown)
            extract(between, inner, path, size, f"{shown}!{outer}")
        finally:
            between.unlink(missing_ok=True)
        return
    try:
        _extract(archive, outer, path, size, shown)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, _DAMAGE):
            raise DamagedArchive(f"{shown}: the archive is cut off or damaged ({_line(error)})") from error
        if isinstance(error, _UNREADABLE) and not isinstance(error, FetchError):
            raise ArchiveError(f"{shown}: {outer!r} cannot be read ({_line(error)})") from error
        raise


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _extract(archive: Path, member: str, path: Path, size: int | None, shown: str) -> None:
    packed = archive.stat().st_size
    with open(archive, "rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(archive) as unzipped:
            info = _one_of(member, {i.filename: i for i in unzipped.infolist()}, shown)
            mode = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or mode not in (0, stat.S_IFREG):
                raise ArchiveError(f"{shown}: {member!r} is no file but a folder, link or device")
            with unzipped.open(info) as stream:
                _copy(stream, path, info.file_size, size, info.compress_size, f"{shown}: {member!r}")
    elif start.startswith(b"\x1f\x8b"):
        with gzip.open(archive) as unzipped:
            is_tar = _is_tar(unzipped.read(512))
        with gzip.open(archive) as unzipped:
            if is_tar:
                _from_tar(unzipped, member, path, size, packed, shown)
            else:
                _copy(unzipped, path, None, size, packed, shown)
    elif _is_tar(start):
        with open(archive, "rb") as file:
            _from_tar(file, member, path, size, packed, shown)
    else:
        raise DamagedArchive(f"{shown}: found no zip, tar or gzip file: it begins with {start[:8]!r}")


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar"


def _from_tar(file: Any, member: str, path: Path, size: int | None, packed: int, shown: str) -> None:
    names = []
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for info in tar:
            names.append(info.name)
            if posixpath.normpath(info.name) != posixpath.normpath(member):
                continue
            stream = tar.extractfile(info) if info.isreg() else None
            if stream is None:
                raise ArchiveError(f"{shown}: {member!r} is no file but a folder, link or device")
            _copy(stream, path, info.size, size, packed, f"{shown}: {member!r}")
            return
    _one_of(member, dict.fromkeys(names), shown)


def _one_of(member: str, found: dict[str, Any], shown: str) -> Any:
    """Return the entry called ``member``, or say what there is."""
    if member in found:
        return found[member]
    raise ArchiveError(f"{shown}: holds no {member!r}, but {_some(member, found)}")


def _some(member: str, found: Iterable[str], at_most: int = 8) -> str:
    """List names, those like the wanted one first."""
    names = [name for name in found if not name.endswith("/")]
    close = difflib.get_close_matches(member, names, n=at_most, cutoff=0.5)
    listed = (close + [name for name in names if name not in close])[:at_most]
    more = f" and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
    return (", ".join(map(repr, listed)) or "nothing") + more


def _copy(stream: Any, path: Path, listed: int | None, size: int | None, packed: int, shown: str) -> None:
    """Write a stream, but no more than may be.

    Parameters
    ----------
    stream, path
        From where, and where to.
    listed
        Bytes that the archive says it has.
    size
        Bytes that the declaration says it has; without it the general bounds hold.
    packed
        Bytes that it comes from.
    shown
        What to call it.
    """
    if size is None:
        most = min(MAX_BYTES, max(ALWAYS_FINE, MAX_RATIO * packed))
        bound = (
            f"the {most} that {packed} packed bytes may become; declare its size as 'bytes' if it is right"
        )
    else:
        most, bound = size, f"the {size} expected"
    if listed is not None:
        if listed > most:
            raise ArchiveError(f"{shown} has {listed} bytes, more than {bound}")
        check_space(path.parent, listed, shown)
    written = 0
    with explained_when_full(path, "what was unpacked is deleted"), open(path, "wb") as file:
        while chunk := stream.read(1 << 20):
            written += len(chunk)
            if written > most:
                raise ArchiveError(f"{shown} has more bytes than {bound}")
            file.write(chunk)
    right = listed if size is None else size
    if right is not None and written != right:
        raise DamagedArchive(f"{shown} has {written} bytes, expected {right}")

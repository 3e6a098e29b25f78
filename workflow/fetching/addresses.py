"""Where the files of a dataset come from, and where they lie on disk.

Standard library only: the declarations are checked with it before anything else is installed.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Folder of the downloads that holds archives; several datasets may take their files from one.
ARCHIVES = "archives"
_PLAIN_NAME = re.compile(r"[^./\\][^/\\]*")


@dataclass(frozen=True)
class Address:
    """One place that serves a file.

    Attributes
    ----------
    url
        ``https:``, ``http:``, ``gdrive:``, ``figshare:``, ``zenodo:``, ``file:`` or ``package:``.
    member
        Path inside the archive that the url serves; ``!`` goes into an archive inside it.
    hash, bytes, about_mb
        Of what the url itself serves: of the archive, where there is a member.
    file
        Name of the archive on disk; without one, the last part of the url.
    """

    url: str
    member: str | None = None
    hash: str | None = None
    bytes: int | None = None
    about_mb: float | None = None
    file: str | None = None

    @property
    def local(self) -> bool:
        """Whether the file is on this machine already."""
        return self.url.startswith(("file:", "package:"))

    @property
    def archive(self) -> str | None:
        """Name of the archive among the downloads, if there is a member to take from one."""
        return None if self.member is None else self.file or last_part(self.url)


def last_part(url: str) -> str:
    """Return the name at the end of an address, without a query."""
    path = urlsplit(url).path if url.startswith(("http:", "https:")) else url.partition(":")[2]
    return unquote(posixpath.basename(path.rstrip("/")))


def addresses(source: Mapping) -> list[Address]:
    """Return the addresses of a source, in the order in which they are tried.

    Parameters
    ----------
    source
        As in datasets.yaml: ``urls`` (each a string or a mapping), ``hash``, ``bytes``, ``about_mb``.

    Returns
    -------
    list of Address
        The source's own ``hash`` and ``bytes`` stand in each address that serves the file itself, unless
        the address has its own.
    """
    whole = {key: source[key] for key in ("hash", "bytes", "about_mb") if key in source}
    found = []
    for item in source["urls"]:
        given = {"url": item} if isinstance(item, str) else dict(item)
        found.append(Address(**(given if "member" in given else whole | given)))
    return found


def file_name(source: Mapping) -> str:
    """Return the name of a source's file on disk: ``file``, else the end of the first member or url."""
    first = addresses(source)[0]
    inside = (first.member or "").rpartition("!")[2]
    return source.get("file") or posixpath.basename(inside) or last_part(first.url)


def place(downloads: Path, dataset: str, source: Mapping) -> Path:
    """Return where the file of a source lies among the downloads."""
    return downloads / dataset / file_name(source)


def archive_place(downloads: Path, address: Address) -> Path:
    """Return where the archive of an address lies among the downloads.

    Raises
    ------
    ValueError
        If the address serves no archive.
    """
    if address.archive is None:
        raise ValueError(f"{address.url}: serves a file, not an archive")
    return downloads / ARCHIVES / address.archive


def check_places(datasets: Mapping[str, Mapping]) -> None:
    """Raise unless every file and every archive has a place of its own.

    Parameters
    ----------
    datasets
        Every entry of datasets.yaml.

    Raises
    ------
    ValueError
        With the key and what to do.
    """
    archives: dict[str, tuple[str, str]] = {}
    for dataset, entry in datasets.items():
        if dataset == ARCHIVES:
            raise ValueError(f"{dataset}: this name is taken by the folder of archives; choose another")
        files: dict[str, str] = {}
        for name, source in entry["sources"].items():
            key = f"{dataset}.sources.{name}"
            if all(address.local and not address.member for address in addresses(source)):
                continue  # used where it is
            file = file_name(source)
            if not _PLAIN_NAME.fullmatch(file):
                raise ValueError(f"{key}: {file!r} is no name of a file; give one as 'file'")
            if file in files:
                raise ValueError(
                    f"{key}: its file is called {file!r} like that of {files[file]!r}; name one by 'file'"
                )
            files[file] = name
            for address in addresses(source):
                if address.archive is None or address.local:
                    continue
                if not _PLAIN_NAME.fullmatch(address.archive):
                    raise ValueError(f"{key}: {address.archive!r} is no name of a file; give one as 'file'")
                url, other = archives.setdefault(address.archive, (address.url, key))
                if url != address.url and address.file is None:
                    raise ValueError(
                        f"{key}: the archive of {address.url} is called {address.archive!r} like that of "
                        f"{other} ({url}); give it another name by 'file', or the same one in both places "
                        "where the two are copies of one archive"
                    )

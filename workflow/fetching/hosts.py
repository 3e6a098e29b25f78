"""Find where a host keeps the bytes of an address right now, and what it publishes about them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import requests

from workflow.fetching import downloads
from workflow.fetching.downloads import Remote, Transient, get
from workflow.fetching.verification import FetchError

FIGSHARE = "https://api.figshare.com/v2"
ZENODO = "https://zenodo.org/api"
DRIVE = "https://drive.google.com"


def locate(session: requests.Session, url: str) -> Remote:
    """Return where the bytes of an address are.

    Parameters
    ----------
    session
        What the bytes will be asked with; Google hands it a cookie.
    url
        ``https:``, ``http:``, ``figshare:<article>/<name>``, ``zenodo:<record>/<name>``,
        ``gdrive:<file id>`` or ``gdrive:<folder id>/<name>``.

    Raises
    ------
    FetchError
        If the host has no such file; the message lists what it has.
    Transient
        If it is worth asking again.
    """
    scheme, _, rest = url.partition(":")
    owner, _, name = rest.partition("/")
    if scheme in ("http", "https"):
        return Remote(url)
    if scheme == "gdrive":
        return _drive(session, _in_folder(owner, name) if name else owner)
    if scheme not in ("figshare", "zenodo"):
        raise FetchError(f"no way to fetch from {scheme!r}")
    try:
        return (_figshare if scheme == "figshare" else _zenodo)(session, owner, name)
    except (KeyError, TypeError, AttributeError) as error:
        raise FetchError(f"the list of files has an unexpected form ({error})") from error


def _json(session: requests.Session, url: str) -> Any:
    with get(session, url) as response:
        try:
            return response.json()
        except requests.exceptions.JSONDecodeError:
            raise FetchError(f"{url} answered something that is no JSON") from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            raise Transient(f"the answer of {url} was cut") from None


def _pick(name: str, found: Iterable[str], where: str) -> None:
    """Raise unless a name is among those found."""
    found = sorted(found)
    if name not in found:
        raise FetchError(f"{where} holds no {name!r}, but {', '.join(map(repr, found)) or 'nothing'}")


def _figshare(session: requests.Session, article: str, name: str) -> Remote:
    # Without page_size the listing ends after ten files.
    listed = _json(session, f"{FIGSHARE}/articles/{article}/files?page_size=1000")
    files = {file["name"]: file for file in listed if not file.get("is_link_only")}
    _pick(name, files, f"figshare article {article}")
    md5 = files[name].get("computed_md5") or files[name].get("supplied_md5")
    return Remote(files[name]["download_url"], files[name].get("size"), f"md5:{md5}" if md5 else None)


def _zenodo(session: requests.Session, record: str, name: str) -> Remote:
    listed = _json(session, f"{ZENODO}/records/{record}")
    files = {file["key"]: file for file in listed.get("files") or []}
    _pick(name, files, f"Zenodo record {record}")
    return Remote(files[name]["links"]["self"], files[name].get("size"), files[name].get("checksum"))


def _in_folder(folder: str, name: str) -> str:
    """Return the id of a file in a Google Drive folder, by its path or, where that is unique, its name."""
    import gdown

    try:
        found = gdown.download_folder(
            id=folder, quiet=True, skip_download=True, use_cookies=False, timeout=downloads.TIMEOUT
        )
    except gdown.DownloadError as error:
        text = " ".join(str(error).split())
        if re.search(r"status code (429|5\d\d)", text):
            raise Transient(text) from error
        raise FetchError(text) from error
    except requests.RequestException as error:
        raise Transient(f"Google Drive's list of the folder {folder} did not come ({error})") from error
    ids = {file.path: file.id for file in found if not isinstance(file, str)}
    for path in list(ids):
        ids.setdefault(PurePosixPath(path).name, ids[path])
    _pick(name, ids, f"Google Drive folder {folder}")
    return ids[name]


def _drive(session: requests.Session, file: str) -> Remote:
    """Follow Google's pages to the file: large ones come behind a form about viruses.

    gdown reads the pages, which change from time to time. The bytes go our way: gdown cannot tell
    whether the file changed since the first half came.
    """
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    url = f"{DRIVE}/uc?id={file}&export=download"
    for _ in range(3):
        with get(session, url) as response:
            if "Content-Disposition" in response.headers:
                return Remote(url)
            try:
                page = response.text
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                raise Transient("the page of Google Drive was cut") from None
        try:
            url = get_url_from_gdrive_confirmation(page)
        except FileURLRetrievalError as error:
            raise FetchError(f"Google Drive says: {' '.join(str(error).split())}") from error
    raise FetchError(f"Google Drive asks again and again to confirm the download of {file}")

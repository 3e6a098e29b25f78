"""Bring one file here over HTTP: whole, verified and under its name, or not at all.

requests moves the bytes and gdown reads Google's pages (``hosts``). The rules are ours, because pooch
downloads into a random temporary file: it cannot go on with half a file, asks again after a 404 and knows
neither sizes nor locks. Its cache folder is used.

A download grows as ``<name>.part``, beside ``<name>.part.json`` that says of which version of which
address it is. After a kill the next attempt goes on from there; a finished file is verified, then renamed.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from workflow.fetching.verification import (
    BEGINNINGS,
    Expected,
    FetchError,
    check_space,
    explained_when_full,
    gigabytes,
    say,
    wrong_beginning,
)
from workflow.files import read_json, write_json

TIMEOUT = (15.0, 60.0)  #: seconds to connect, and between two pieces
RETRIES = 4  #: attempts after one that brought nothing
PAUSE = 1.0  #: seconds before the first of them; twice as long before each next one
LONGEST_PAUSE = 120.0  #: a host that asks for more is given up
CHUNK = 1 << 16  #: bytes; at most so much is lost when a connection is cut

_HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; scmamba2)", "Accept-Encoding": "identity"}
_unreachable: set[str] = set()  # hosts that this process could not connect to after all its attempts


class Transient(Exception):
    """An attempt failed in a way that may pass.

    Parameters
    ----------
    reason
        What happened.
    wait
        Seconds that the host asks to wait.
    unreachable
        Whether no connection came about.
    """

    def __init__(self, reason: str, wait: float | None = None, unreachable: bool = False):
        super().__init__(reason)
        self.wait = wait
        self.unreachable = unreachable


@dataclass(frozen=True)
class Remote:
    """Where the bytes are right now, and what the host says of them."""

    url: str
    bytes: int | None = None
    hash: str | None = None


def get(session: requests.Session, url: str, headers: Mapping[str, str] | None = None) -> requests.Response:
    """Ask for an address; its body is not read yet.

    Returns
    -------
    requests.Response
        With status 200, 206 or 416; the last two only if a ``Range`` was asked for.

    Raises
    ------
    Transient
        If it is worth asking again.
    FetchError
        If it is not.
    """
    try:
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.exceptions.SSLError as error:
        raise FetchError(f"no secure connection ({_reason(error)})") from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _broken(error) from error
    except requests.RequestException as error:
        raise FetchError(_reason(error)) from error
    status = response.status_code
    if status == 200 or (status in (206, 416) and headers and "Range" in headers):
        return response
    response.close()
    answer = f"HTTP {status} {response.reason or ''}".strip()
    if status == 202:
        answer += " without a file (the host holds scripts off, or is still preparing it)"
    elif status in (401, 403):
        answer += " (the host refuses scripts, or wants a log-in)"
    if status in (202, 408, 429) or status >= 500:
        raise Transient(answer, wait=_retry_after(response))
    raise FetchError(answer)


def _retry_after(response: requests.Response) -> float | None:
    """Return the seconds that a host asks to wait, which it may give as a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    with contextlib.suppress(TypeError, ValueError):
        when = email.utils.parsedate_to_datetime(text)
        return max(0.0, when.timestamp() - time.time())
    return None


def _reason(error: BaseException) -> str:
    """Return the innermost reason of an error of requests, in one line."""
    inner: BaseException = error
    while True:
        below = getattr(inner, "reason", None) or next(iter(inner.args), None)
        if not isinstance(below, BaseException):
            break
        inner = below
    text = " ".join(str(inner).split())
    who = r"^<?[\w.]*(Connection|Pool)(\([^)]*\))?\S*( object at \w+>)?: "
    return re.sub(who, "", text) or type(inner).__name__


def _broken(error: requests.RequestException) -> Transient:
    """Put an error of the connection into words."""
    if isinstance(error, requests.ConnectTimeout):
        return Transient(f"no connection within {TIMEOUT[0]:g} s", unreachable=True)
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return Transient(f"nothing came for {TIMEOUT[1]:g} s")
    text = str(error)
    unreachable = any(word in text for word in ("NameResolution", "NewConnection", "ProxyError"))
    return Transient(f"connection failed: {_reason(error)}", unreachable=unreachable)


def download(
    url: str,
    target: Path,
    expected: Expected,
    locate: Callable[[requests.Session, str], Remote] = lambda session, url: Remote(url),
) -> None:
    """Bring a file here.

    Parameters
    ----------
    url
        Its address, for messages and for knowing a half file again.
    target
        Where it goes. Nothing but the whole, verified file ever stands under this name.
    expected
        What it must be.
    locate
        Finds where the bytes of ``url`` are right now.

    Raises
    ------
    FetchError
        In one sentence. What has arrived stays as ``<name>.part`` if it can be gone on with.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, url)
    failures, furthest = 0, part.size
    with requests.Session() as session:
        session.headers.update(_HEADERS)
        while True:
            try:
                remote = locate(session, url)
                with explained_when_full(target, "what has arrived stays and is gone on with next time"):
                    _attempt(session, remote, part, expected)
                return
            except Transient as error:
                # An attempt that got further than any before shows that going on is worth while.
                failures = 1 if part.size > furthest else failures + 1
                furthest = max(furthest, part.size)
                host = urlsplit(url).netloc or url.partition(":")[0]
                wait = PAUSE * 2 ** (failures - 1) if error.wait is None else error.wait
                # a name that is not found hardly is within seconds, unless it was there a moment ago
                most = min(RETRIES, 1) if error.unreachable and not part.size else RETRIES
                if failures > most or (error.unreachable and host in _unreachable):
                    if error.unreachable:
                        _unreachable.add(host)
                    times = f" ({failures} times)" if failures > 1 else ""
                    raise FetchError(f"{error}{times}") from error
                if wait > LONGEST_PAUSE:
                    raise FetchError(f"{error}; the host asks to wait {wait:.0f} s") from error
                say(f"{url}: {error}; again in {wait:.0f} s")
                time.sleep(wait)


class _Part:
    """A file on its way: ``<name>.part`` and the note beside it."""

    def __init__(self, target: Path, url: str):
        self.target = target
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that are here and belong to this address."""
        return self.path.stat().st_size if self.path.is_file() and self.state else 0

    @property
    def state(self) -> dict:
        """What the note says: ``url``, ``validator`` (ETag or date) and ``bytes`` (of the whole file)."""
        try:
            state = read_json(self.note)
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) and state.get("url") == self.url else {}

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _validator(response: requests.Response) -> str | None:
    """Return what tells one version of a file from another; a weak ETag does not."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _attempt(session: requests.Session, remote: Remote, part: _Part, expected: Expected) -> None:
    """Ask once for what is still missing, verify the whole and rename it."""
    published = {remote.hash: f"published by {part.url.partition(':')[0]}"} if remote.hash else {}
    size = remote.bytes if expected.bytes is None else expected.bytes
    if remote.bytes is not None and remote.bytes != size:
        raise FetchError(f"the host lists {remote.bytes} bytes, expected {size}")
    expected = Expected(size, expected.about_mb, {**published, **expected.hashes})

    # Without anything that tells versions apart, only a checksum makes it safe to join two pieces.
    state, here = part.state, part.size
    if here and not (state.get("validator") or expected.hashes):
        part.drop()
        here = 0
    if here == 0 or here != state.get("bytes"):
        rough = (expected.about_mb or 0) * 1e6 if size is None else size
        check_space(part.path.parent, max(0, rough - here), part.target.name)
        _receive(session, remote, part, expected, here)
    if wrong := expected.problem(part.path, part.target.name):
        part.drop()
        if here:
            raise Transient(f"{wrong}, after it was put together from pieces")
        raise FetchError(wrong)
    os.replace(part.path, part.target)
    part.note.unlink(missing_ok=True)


def _receive(session: requests.Session, remote: Remote, part: _Part, expected: Expected, here: int) -> None:
    """Append what is missing to the part."""
    headers = {}
    if here:
        headers["Range"] = f"bytes={here}-"
        if validator := part.state.get("validator"):
            headers["If-Range"] = validator
    with get(session, remote.url, headers) as response:
        if response.status_code == 416:
            if response.headers.get("Content-Range") == f"bytes */{here}":
                return  # it was all here
            part.drop()
            raise Transient("the host has no bytes after those that are here; it is fetched from its start")
        coded = response.headers.get("Content-Encoding", "identity") != "identity"
        if coded and part.target.name.lower().endswith(BEGINNINGS["gzip"][1]):
            # some hosts take the packing of the file itself for one of the transport
            response.raw.headers.pop("Content-Encoding")
            coded = False
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() and not coded else None
        if response.status_code == 206:
            span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            noted = part.state.get("bytes")
            whole = int(span[2]) if span and span[2] != "*" else noted
            if span is None or int(span[1]) != here or noted not in (None, whole):
                part.drop()
                raise Transient("the host answered another range than was asked for")
            total = whole
        else:
            here = 0

        pieces = _pieces(response)
        first = next(pieces, b"")
        if here == 0:
            content_type = response.headers.get("Content-Type", "")
            if wrong := wrong_beginning(part.target.name, first, content_type):
                raise FetchError(wrong)
            if not first:
                raise Transient("the answer was empty")
            if total is not None and expected.bytes is not None and total != expected.bytes:
                raise FetchError(f"the host offers {total} bytes, expected {expected.bytes}")
            part.drop()
            check_space(part.path.parent, total or 0, part.target.name)
            validator = None if coded else _validator(response)
            write_json(part.note, {"url": part.url, "validator": validator, "bytes": total})
        with open(part.path, "ab") as file, _progress(part.target, total, here) as moved:
            while first:
                file.write(first)
                moved(len(first))
                first = next(pieces, b"")
            file.flush()
            os.fsync(file.fileno())
    size = part.path.stat().st_size
    whole = expected.bytes if total is None else total
    if whole is not None and size < whole:
        raise Transient(f"the connection ended after {size} of {whole} bytes")


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """Yield the body; what breaks in the middle may pass."""
    try:
        yield from response.iter_content(CHUNK)
    except requests.exceptions.ContentDecodingError as error:
        raise FetchError(f"the answer cannot be decoded ({_reason(error)})") from error
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _broken(error) from error


@contextlib.contextmanager
def _progress(target: Path, total: int | None, here: int) -> Iterator[Callable[[int], None]]:
    """Give a function that is told of bytes as they come: a bar in a terminal, a line a minute in a log."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        with tqdm(total=total, initial=here, unit="B", unit_scale=True, desc=target.name) as bar:
            yield bar.update
        return
    start = told = time.monotonic()
    size = here
    say(f"{target.name}: {gigabytes(total - here) if total else 'unknown size'} to fetch")

    def moved(count: int) -> None:
        nonlocal size, told
        size += count
        if (now := time.monotonic()) - told >= 60:
            told = now
            meter = tqdm.format_meter(
                size, total, now - start, initial=here, unit="B", unit_scale=True, ncols=0
            )
            say(f"{target.name}: {meter}")

    yield moved

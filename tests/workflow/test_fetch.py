"""Fetching from hosts that misbehave: the right file, or one clear sentence, and never junk on disk."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile

import h5py
import numpy as np
import pytest
from loopback import CONTENT, MD5, SHA, cut, file, in_turn, page, redirect_all, serving
from support import ROOT, entry

from workflow.fetching import downloads, hosts, lockfile, verification
from workflow.fetching.addresses import addresses, check_places, file_name
from workflow.fetching.verification import FetchError
from workflow.steps.fetch import Fetcher, fetch, locate

HTML = b"<!DOCTYPE html><html><head><title>Are you a robot?</title></head><body></body></html>"
GOOD = SHA.removeprefix("sha256:")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture
def fetcher(tmp_path, monkeypatch):
    """Fetches into a folder of its own, and does not wait long."""
    monkeypatch.setattr(downloads, "PAUSE", 0.01)
    monkeypatch.setattr(downloads, "_unreachable", set())
    return Fetcher(tmp_path / "downloads", tmp_path / "datasets.lock")


def files(fetcher) -> list[str]:
    """Everything on disk but the locks, which are empty."""
    found = [p for p in fetcher.downloads.rglob("*") if p.is_file() and ".locks" not in p.parts]
    return sorted(p.relative_to(fetcher.downloads).as_posix() for p in found)


def get(fetcher, *urls, name="cells", **source) -> dict:
    return fetcher.source("set", name, {"urls": list(urls), **source})


def refused(fetcher, *urls, **source) -> str:
    """Fetch, expect that it fails, and return the sentence."""
    with pytest.raises(FetchError) as caught:
        get(fetcher, *urls, **source)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


# One file, one host.


def test_a_download_is_verified_and_kept(server, fetcher):
    url = server.url("/cells.bin", file())
    record = get(fetcher, url, hash=SHA, bytes=len(CONTENT))
    assert record == {
        "path": str(fetcher.downloads / "set/cells.bin"),
        "url": url,
        "sha256": GOOD,
        "bytes": len(CONTENT),
        "hash": "verified",
    }
    assert get(fetcher, url, hash=SHA) == record
    assert server.paths == ["/cells.bin"]  # the second time it was here
    assert files(fetcher) == ["set/cells.bin"]
    assert not fetcher.lock.exists()  # a declared checksum needs no record


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_asked_again(server, fetcher, status):
    message = refused(fetcher, server.url("/cells.bin", page(status)))
    assert f"/cells.bin: HTTP {status}" in message
    assert f"by hand and put it at {fetcher.downloads}/set/cells.bin, because: " in message
    assert len(server.asked) == 1 and files(fetcher) == []


@pytest.mark.parametrize("status", [202, 429, 500, 503])
def test_what_may_pass_is_asked_again(server, fetcher, status):
    record = get(fetcher, server.url("/cells.bin", in_turn(page(status), page(status), file())), hash=SHA)
    assert record["hash"] == "verified"
    assert len(server.asked) == 3


def test_a_wall_against_bots_is_told_apart_from_a_file(server, fetcher):
    message = refused(fetcher, server.url("/datafile/6154020", page(202)), file="norman.zip")
    assert "HTTP 202" in message and "holds scripts off" in message
    assert f"put it at {fetcher.downloads}/set/norman.zip" in message
    assert len(server.asked) == 1 + downloads.RETRIES and files(fetcher) == []


@pytest.mark.parametrize("length", ["0", ""])
def test_an_empty_file_is_none(server, fetcher, length):
    headers = {"Content_Length": length} if length else {"Connection": "close"}
    message = refused(fetcher, server.url("/cells.bin", lambda handler: handler.head(200, **headers)))
    assert "the answer was empty" in message and files(fetcher) == []


def test_a_host_says_how_long_to_wait(server, fetcher, monkeypatch):
    slept = []
    monkeypatch.setattr(downloads.time, "sleep", slept.append)
    busy = [page(429, Retry_After="7"), page(503, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"), page(503)]
    get(fetcher, server.url("/cells.bin", in_turn(*busy, file())))
    assert slept == [7.0, 0.0, downloads.PAUSE * 4]
    slept.clear()
    message = refused(fetcher, server.url("/later.bin", page(429, Retry_After="86400")))
    assert "asks to wait 86400 s" in message and slept == []


@pytest.mark.parametrize("name", ["cells.zip", "genes.csv"])
@pytest.mark.parametrize(
    ("start", "content_type"),
    [(b"", "application/zip"), (b"\n", "text/html"), (b"<!-- a remark -->", "text/html; charset=utf-8")],
)
def test_a_page_is_no_file(server, fetcher, name, start, content_type):
    message = refused(fetcher, server.url(f"/{name}", page(200, start + HTML, Content_Type=content_type)))
    assert "found a web page titled 'Are you a robot?' instead of the file" in message
    assert len(server.asked) == 1 and files(fetcher) == []


def test_a_page_is_refused_at_its_first_bytes(server, fetcher):
    """Not after as many bytes as the file should have."""
    assert "found a web page" in refused(fetcher, server.url("/cells.bin", cut(HTML + CONTENT)))
    assert len(server.asked) == 1 and files(fetcher) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cells.h5ad", "HDF5"), ("cells.zip", "zip"), ("cells.npz", "zip"), ("c.h5ad.gz", "gzip")],
)
def test_a_file_must_begin_as_its_ending_says(server, fetcher, name, kind):
    assert f"found no {kind} file" in refused(fetcher, server.url(f"/{name}", file()))
    assert files(fetcher) == []
    beginning, _ = verification.BEGINNINGS[kind]
    content = hdf5() if kind == "HDF5" else beginning + CONTENT
    get(fetcher, server.url(f"/{name}", file(content)))


def hdf5() -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as opened:
        opened["x"] = np.arange(1000)
    return content.getvalue()


def test_an_hdf5_file_that_the_host_cut_is_no_success(server, fetcher):
    """The host gives its length as that of the half file; the file itself says what is missing."""
    whole = hdf5()
    url = server.url("/cells.h5ad", file(whole[:5000]))
    assert f"the file is cut: it has 5000 of {len(whole)} bytes" in refused(fetcher, url)
    assert files(fetcher) == [] and not fetcher.lock.exists()
    assert "packed by gzip" in refused(fetcher, server.url("/b.h5ad", file(b"\x1f\x8b" + CONTENT)))


def test_a_redirect_is_followed(server, fetcher):
    server.answers["/there"] = file()
    url = server.url("/cells.bin", page(302, Location="/there"))
    assert get(fetcher, url, hash=SHA)["url"] == url
    assert files(fetcher) == ["set/cells.bin"]


def test_a_slow_first_byte(server, fetcher, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", (1.0, 0.05))
    monkeypatch.setattr(downloads, "RETRIES", 1)
    stop = threading.Event()
    try:
        message = refused(fetcher, server.url("/cells.bin", lambda handler: stop.wait(10)))
    finally:
        stop.set()
    assert "nothing came for 0.05 s (2 times)" in message and files(fetcher) == []


def test_a_host_that_is_not_there_is_asked_once_more_only_for_the_first_file(server, fetcher, monkeypatch):
    slept = []
    monkeypatch.setattr(downloads.time, "sleep", slept.append)
    server.server_close()
    assert "Connection refused" in refused(fetcher, server.url("/a.bin"))
    assert len(slept) == 1
    assert "Connection refused" in refused(fetcher, server.url("/b.bin"))
    assert len(slept) == 1


def test_a_wrong_size_is_seen_before_the_bytes_come(server, fetcher):
    message = refused(fetcher, server.url("/cells.bin", file()), bytes=7)
    assert "the host offers 400000 bytes, expected 7" in message and files(fetcher) == []


def test_a_body_shorter_than_declared_without_a_length(server, fetcher):
    def no_length(handler):
        handler.head(200)
        handler.wfile.write(CONTENT[:1000])

    message = refused(fetcher, server.url("/cells.bin", no_length), bytes=len(CONTENT))
    assert "the connection ended after 1000 of 400000 bytes" in message


# Half a file.


def test_a_cut_connection_is_gone_on_with(server, fetcher):
    record = get(fetcher, server.url("/cells.bin", in_turn(cut(), file())), hash=SHA)
    assert record["sha256"] == GOOD
    (_, nothing), (_, span) = server.asked
    start = int(span.removeprefix("bytes=").rstrip("-"))
    assert nothing is None
    assert 0.6 * len(CONTENT) - downloads.CHUNK <= start <= 0.6 * len(CONTENT)
    assert server.sent["/cells.bin"] == len(CONTENT) - start  # the second answer: only the rest
    assert files(fetcher) == ["set/cells.bin"]


def test_the_next_process_goes_on_with_half_a_file(server, fetcher, monkeypatch):
    monkeypatch.setattr(downloads, "RETRIES", 0)
    url = server.url("/cells.bin", cut())
    assert "connection" in refused(fetcher, url)
    assert files(fetcher) == ["set/cells.bin.part", "set/cells.bin.part.json"]
    server.answers["/cells.bin"] = file()
    get(fetcher, url, hash=SHA)
    assert server.asked[-1][1].startswith("bytes=") and files(fetcher) == ["set/cells.bin"]


def test_as_long_as_more_comes_it_goes_on(server, fetcher):
    """More cuts than attempts, but each got further."""

    def sixth(handler):
        start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
        span = {"Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
        length = str(len(CONTENT) - start)
        handler.head(206 if start else 200, Content_Length=length, ETag='"1"', **span)
        handler.wfile.write(CONTENT[start : start + downloads.CHUNK])

    assert get(fetcher, server.url("/cells.bin", sixth), hash=SHA)["sha256"] == GOOD
    assert len(server.asked) > 1 + downloads.RETRIES


def test_a_host_without_ranges_starts_again(server, fetcher):
    get(fetcher, server.url("/cells.bin", in_turn(cut(), file(ranges=False))), hash=SHA)
    assert server.sent["/cells.bin"] == len(CONTENT)
    assert files(fetcher) == ["set/cells.bin"]


def test_a_file_that_changed_meanwhile_is_not_joined(server, fetcher):
    """Half of one version, then another: If-Range makes the host send the new one whole."""
    new = CONTENT[::-1]
    record = get(fetcher, server.url("/cells.bin", in_turn(cut(), file(new, etag='"2"'))))
    assert record["sha256"] == hashlib.sha256(new).hexdigest()
    assert server.asked[1][1] is not None


def test_without_a_version_and_a_checksum_pieces_are_not_joined(server, fetcher):
    new = CONTENT[::-1]
    answer = in_turn(cut(etag=None), file(new, etag=None))
    assert get(fetcher, server.url("/cells.bin", answer))["sha256"] == hashlib.sha256(new).hexdigest()
    assert server.asked[1][1] is None


def test_a_checksum_finds_pieces_joined_wrongly(server, fetcher):
    """No ETag, so the pieces are joined; the checksum is wrong; the whole file comes again."""
    answer = in_turn(cut(CONTENT[::-1], etag=None), file(etag=None))
    assert get(fetcher, server.url("/cells.bin", answer), hash=SHA)["sha256"] == GOOD
    assert [span is None for _, span in server.asked] == [True, False, True]


def test_half_a_file_of_another_address_is_not_gone_on_with(server, fetcher, monkeypatch):
    monkeypatch.setattr(downloads, "RETRIES", 0)
    first, second = server.url("/one/cells.bin", cut()), server.url("/two/cells.bin", file(etag='"1"'))
    refused(fetcher, first)
    get(fetcher, second, hash=SHA)
    assert server.asked[-1] == ("/two/cells.bin", None) and files(fetcher) == ["set/cells.bin"]


@pytest.mark.parametrize("extra", [0, 5])
def test_nothing_is_left_to_send(server, fetcher, extra):
    """All bytes are here (416 says so), or more than the host has: the file comes again."""
    fetcher.downloads.joinpath("set").mkdir(parents=True)
    url = server.url("/cells.bin", file())
    part = fetcher.downloads / "set/cells.bin.part"
    part.write_bytes(CONTENT + b"x" * extra)
    note = {"url": url, "validator": '"1"', "bytes": None}
    part.with_name("cells.bin.part.json").write_text(json.dumps(note))
    assert get(fetcher, url)["sha256"] == GOOD
    assert server.sent["/cells.bin"] == (len(CONTENT) if extra else 0)
    assert files(fetcher) == ["set/cells.bin"]


def test_another_range_than_was_asked_for_is_not_taken(server, fetcher):
    def shifted(handler):
        body = CONTENT[100:]
        handler.reply(206, body, Content_Range=f"bytes 100-{len(CONTENT) - 1}/{len(CONTENT)}", ETag='"1"')

    record = get(fetcher, server.url("/cells.bin", in_turn(cut(), shifted, file())))
    assert record["sha256"] == GOOD  # though no checksum told
    assert [span is None for _, span in server.asked] == [True, False, True]


def test_a_body_that_the_host_packs_is_unpacked(server, fetcher):
    import gzip

    packed = gzip.compress(CONTENT)
    url = server.url("/genes.csv", page(200, packed, Content_Encoding="gzip", ETag='"1"'))
    assert get(fetcher, url, hash=SHA)["bytes"] == len(CONTENT)


def test_a_packed_file_stays_as_it_is_whatever_the_host_calls_its_packing(server, fetcher):
    import gzip

    packed = gzip.compress(CONTENT)
    known = "md5:" + hashlib.md5(packed).hexdigest()
    answer = in_turn(cut(packed), file(packed, Content_Encoding="x-gzip"))
    more = server.url("/more.csv.gz", file(packed, Content_Encoding="gzip"))
    for url in (server.url("/genes.csv.gz", answer), more):
        assert get(fetcher, url, hash=known)["bytes"] == len(packed)


# Several addresses.


@pytest.mark.parametrize("first", [page(404), page(200, b"junk"), page(200, HTML), cut(share=0.0), page(202)])
def test_the_next_address_is_tried(server, fetcher, first):
    urls = [server.url("/one/cells.bin", first), server.url("/two/other.bin", file())]
    record = get(fetcher, *urls, hash=SHA)
    assert record["url"] == urls[1]
    assert files(fetcher) == ["set/cells.bin"], "the name comes from the first address; no junk is left"


def test_half_a_file_of_an_address_that_gave_up_goes(server, fetcher, monkeypatch):
    monkeypatch.setattr(downloads, "RETRIES", 0)
    get(fetcher, server.url("/one/cells.bin", cut()), server.url("/two", file()), hash=SHA)
    assert files(fetcher) == ["set/cells.bin"]


def test_when_nothing_serves_each_answer_is_told(server, fetcher):
    urls = [server.url("/absent"), server.url("/bad", page(200, b"junk")), "file:no/such.h5ad"]
    message = refused(fetcher, *urls, hash=SHA)
    assert "source 'cells'" in message
    assert f"{urls[0]}: HTTP 404" in message
    assert f"{urls[1]}: sha256 is {hashlib.sha256(b'junk').hexdigest()}" in message
    assert f"expected {GOOD} (declared in workflow/datasets.yaml)" in message
    assert "no/such.h5ad: no such file" in message
    assert files(fetcher) == []


def test_an_address_may_know_its_own_checksum(server, fetcher):
    wrong = {"url": server.url("/a/cells.bin", page(200, b"junk")), "hash": SHA}
    right = {"url": server.url("/b/cells.bin", file()), "hash": MD5, "bytes": len(CONTENT)}
    for _ in range(2):  # from the host, then from disk
        record = get(fetcher, wrong, right)
        assert record["hash"] == "verified" and record["sha256"] == GOOD
    assert server.paths == ["/a/cells.bin", "/b/cells.bin"] and not fetcher.lock.exists()


# By hand, and what is recorded.


def place(fetcher, name: str, content: bytes = CONTENT):
    path = fetcher.downloads / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_put_there_by_hand_is_taken(server, fetcher):
    path = place(fetcher, "set/cells.bin")
    assert get(fetcher, server.url("/cells.bin"), hash=SHA)["hash"] == "verified"
    unknown = get(fetcher, server.url("/cells.bin"))
    assert unknown["hash"] == "recorded" and unknown["path"] == str(path)
    assert lockfile.read(fetcher.lock)["set/cells.bin"].url == lockfile.BY_HAND
    assert get(fetcher, server.url("/cells.bin"))["hash"] == "locked"
    assert server.asked == []


def test_a_file_by_hand_ends_half_a_download(server, fetcher):
    place(fetcher, "set/cells.bin.part", b"half")
    place(fetcher, "set/cells.bin")
    get(fetcher, server.url("/cells.bin"), hash=SHA)
    assert files(fetcher) == ["set/cells.bin"]


def test_a_wrong_file_by_hand_is_replaced_by_the_right_one_only(server, fetcher):
    path = place(fetcher, "set/cells.bin", b"another version")
    url = server.url("/cells.bin", page(404))
    message = refused(fetcher, url, hash=SHA)
    assert f"{path}: sha256 is" in message and "HTTP 404" in message
    assert path.read_bytes() == b"another version"  # it is the user's
    server.answers["/cells.bin"] = file()
    get(fetcher, url, hash=SHA)
    assert path.read_bytes() == CONTENT


def test_a_page_saved_by_hand_is_no_file(server, fetcher):
    place(fetcher, "set/cells.h5ad", HTML)
    assert "found a web page" in refused(fetcher, server.url("/cells.h5ad"))
    assert not fetcher.lock.exists()


def test_an_unknown_checksum_is_recorded_once(server, fetcher):
    url = server.url("/cells.bin", file())
    assert get(fetcher, url)["hash"] == "recorded"
    line = fetcher.lock.read_text().splitlines()[-1]
    assert line == f"set/cells.bin\t{GOOD}\t400000\t{verification.day()}\t{url}"
    before = fetcher.lock.read_text()
    assert get(fetcher, url)["hash"] == "locked"
    assert get(fetcher, url)["url"] == url
    assert fetcher.lock.read_text() == before


def test_the_record_is_sorted(server, fetcher):
    for name in ("b.bin", "c.bin", "a.bin"):
        get(fetcher, server.url(f"/{name}", file()))
    lines = fetcher.lock.read_text().splitlines()
    assert [line.split("\t")[0] for line in lines if line[0] != "#"] == [
        "set/a.bin",
        "set/b.bin",
        "set/c.bin",
    ]


OLD = "0" * 64


@pytest.mark.parametrize("here", [False, True])
def test_a_file_that_differs_from_the_record(server, fetcher, here):
    """Fetched anew, or on disk already: both values, both dates and what to do."""
    fetcher.lock.write_text(f"# by hand\nset/cells.bin\t{OLD}\t5\t2025-01-31\thttp://first\n")
    path = fetcher.downloads / "set/cells.bin"
    if here:
        os.utime(place(fetcher, "set/cells.bin"), (1_750_000_000, 1_750_000_000))
    message = refused(fetcher, server.url("/cells.bin", file()))
    today = "2025-06-15" if here else verification.day()
    assert f"sha256 is {GOOD} ({today}), expected {OLD} (recorded on 2025-01-31, from http://first" in message
    assert "by hand" not in message  # the same file again would not help
    assert f"delete the line of set/cells.bin in {fetcher.lock}" in message
    assert path.exists() == here and files(fetcher) == (["set/cells.bin"] if here else [])
    fetcher.lock.unlink()
    assert get(fetcher, server.url("/cells.bin"))["hash"] == "recorded"


def test_a_record_that_was_merged_badly(server, fetcher):
    fetcher.lock.write_text("<<<<<<< HEAD\n")
    assert "line 1: expected 5 words between tabs" in refused(fetcher, server.url("/cells.bin", file()))


def test_a_checkout_that_cannot_be_written_to_costs_a_warning(server, fetcher, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lockfile, "write_text", refuse)
    assert get(fetcher, server.url("/cells.bin", file()))["hash"] == "not recorded"
    assert "cannot be written (Read-only file system)" in capsys.readouterr().err


def test_what_is_recorded_first_stays(fetcher, tmp_path):
    for sha256 in ("1" * 64, "2" * 64):
        lockfile.record("set/a", lockfile.Seen(sha256, 1, "d", "u"), tmp_path / "guard", fetcher.lock)
    assert lockfile.read(fetcher.lock)["set/a"].sha256 == "1" * 64


def test_an_address_that_becomes_known_is_recorded(server, fetcher):
    """As for an archive that one process fetched, and another one, which waited for it, recorded first."""
    archive = {"url": server.url("/all.zip", file(zipped(cells=CONTENT))), "member": "cells"}
    get(fetcher, archive, hash=SHA)
    fetcher.lock.unlink()
    (fetcher.downloads / "set/cells").unlink()
    get(fetcher, archive, hash=SHA)
    seen = lockfile.read(fetcher.lock)["archives/all.zip"]
    assert seen.url == lockfile.BY_HAND
    for sha256, url in (("2" * 64, "another"), (seen.sha256, "address"), (seen.sha256, "a later one")):
        known = lockfile.Seen(sha256, 1, "d", url)
        lockfile.record("archives/all.zip", known, fetcher.downloads / "guard", fetcher.lock)
    assert lockfile.read(fetcher.lock)["archives/all.zip"].url == "address"


def test_a_copy_of_a_file_by_hand_tells_its_address(server, fetcher):
    path = place(fetcher, "set/cells.bin")
    get(fetcher, server.url("/cells.bin"))
    path.unlink()
    url = server.url("/cells.bin", file())
    assert get(fetcher, url)["hash"] == "locked"
    assert lockfile.read(fetcher.lock)["set/cells.bin"].url == url


def test_many_processes_record_at_once(tmp_path):
    script = (
        "import sys; from pathlib import Path; from workflow.fetching.lockfile import *\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for i in range(60): record(f'{sys.argv[1]}/{i}', Seen('0' * 64, 1, 'd', 'u'), "
        "Path('guard/lock'), Path('datasets.lock'))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, name],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert len(lockfile.read(tmp_path / "datasets.lock")) == 120


# Processes.


def environment() -> dict:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def start(fetcher, url: str, **source) -> subprocess.Popen:
    """Fetch in another process; it prints its record."""
    script = (
        "import json, sys; from pathlib import Path; from workflow.steps.fetch import Fetcher\n"
        "fetcher = Fetcher(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(json.dumps(fetcher.source('set', 'cells', json.loads(sys.argv[3]))))"
    )
    source = json.dumps({"urls": [url], **source})
    return subprocess.Popen(
        [sys.executable, "-c", script, str(fetcher.downloads), str(fetcher.lock), source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def test_two_processes_at_once_fetch_once(server, fetcher):
    arrived, go_on = threading.Event(), threading.Event()

    def slow(handler):
        handler.head(200, Content_Length=str(len(CONTENT)))
        handler.wfile.write(CONTENT[:100_000])
        arrived.set()
        go_on.wait(60)
        handler.wfile.write(CONTENT[100_000:])

    url = server.url("/cells.bin", slow)
    try:
        first = start(fetcher, url)
        assert arrived.wait(60)
        second = start(fetcher, url)
        line = second.stderr.readline()  # comes when it has met the first one's lock
        assert "waiting for another process" in line
    finally:
        go_on.set()
    records = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
    assert [record["sha256"] for record in records] == [GOOD, GOOD]
    assert server.paths == ["/cells.bin"] and files(fetcher) == ["set/cells.bin"]


def test_after_a_kill_it_goes_on(server, fetcher):
    go_on = threading.Event()
    url = server.url("/cells.bin", in_turn(cut(then=lambda: go_on.wait(60)), file()))
    part = fetcher.downloads / "set/cells.bin.part"
    process = start(fetcher, url)
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size >= 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        go_on.set()
    here = part.stat().st_size
    assert files(fetcher) == ["set/cells.bin.part", "set/cells.bin.part.json"]
    assert get(fetcher, url)["sha256"] == GOOD
    assert server.asked[-1] == ("/cells.bin", f"bytes={here}-")
    assert server.sent["/cells.bin"] == len(CONTENT) - here
    assert files(fetcher) == ["set/cells.bin"]


# Room on the disk.


def test_there_must_be_room(server, fetcher, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(verification.shutil, "disk_usage", lambda folder: usage(2_000_000, 0, 100_000))
    url = server.url("/cells.bin", file())
    for known in ({"bytes": len(CONTENT)}, {"about_mb": 0.4}, {}):  # declared, roughly, or as the host says
        message = refused(fetcher, url, **known)
        assert "cells.bin needs 400.0 kB more" in message and "100.0 kB free" in message
        assert "SCMAMBA2_DOWNLOADS" in message
        assert files(fetcher) == []
    assert len(server.asked) == 1  # the first two were known beforehand
    place(fetcher, "set/cells.bin.part", CONTENT[:390_000])
    place(
        fetcher,
        "set/cells.bin.part.json",
        json.dumps({"url": url, "validator": '"1"', "bytes": 400_000}).encode(),
    )
    get(fetcher, url, bytes=len(CONTENT))  # what is here counts


class FullDisk(io.BufferedWriter):
    """A file on a disk with room for 100 kB."""

    def write(self, data):
        if self.tell() + len(data) > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_disk_that_becomes_full(server, fetcher, monkeypatch):
    def full(path, mode="r"):
        return FullDisk(io.FileIO(path, mode.replace("b", ""))) if "a" in mode else open(path, mode)

    monkeypatch.setattr(downloads, "open", full, raising=False)
    urls = server.url("/cells.bin", file()), server.url("/mirror.bin", file())
    message = refused(fetcher, *urls, hash=SHA)
    assert "the disk became full while" in message and "what has arrived stays" in message
    assert server.paths == ["/cells.bin"]  # another address would not help
    assert files(fetcher) == ["set/cells.bin.part", "set/cells.bin.part.json"]
    monkeypatch.delattr(downloads, "open")
    get(fetcher, *urls, hash=SHA)
    assert server.asked[-1][1] is not None and files(fetcher) == ["set/cells.bin"]


def test_a_real_disk_that_becomes_full(server, fetcher):
    """A file system of 200 kB, and a host that does not say how long the file is."""
    folder = fetcher.downloads
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")

    def no_length(handler):
        handler.head(200, ETag='"1"')
        handler.wfile.write(CONTENT)

    try:
        url = server.url("/cells.bin", in_turn(no_length, file()))
        assert "the disk became full while" in refused(fetcher, url, hash=SHA)
        assert files(fetcher) == ["set/cells.bin.part", "set/cells.bin.part.json"]
        subprocess.run(["mount", "-o", "remount,size=2m", str(folder)], check=True)
        assert get(fetcher, url, hash=SHA)["sha256"] == GOOD
        assert server.asked[-1][1] is not None and files(fetcher) == ["set/cells.bin"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_cannot_be_made(server, fetcher):
    fetcher.downloads.write_text("a file stands where the folder should be")
    message = refused(fetcher, server.url("/cells.bin", file()))
    assert f"files cannot be made or locked in {fetcher.downloads} (" in message and server.asked == []


def test_whatever_is_wrong_with_an_address_the_next_one_is_tried(server, fetcher, monkeypatch):
    def broken(session, url):
        if url.startswith("gdrive:"):
            raise AttributeError("the page of the host\nlooks different today")
        return downloads.Remote(url)

    monkeypatch.setattr(hosts, "locate", broken)
    assert get(fetcher, "gdrive:1abc", server.url("/a", file()), file="a.bin")["sha256"] == GOOD
    message = refused(fetcher, "gdrive:1abc", file="b.bin")
    assert "gdrive:1abc: AttributeError: the page of the host looks different today" in message


# Archives.


def zipped(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return packed.getvalue()


def test_a_nested_archive_serves_two_datasets_with_one_request(server, fetcher):
    inner = zipped(ms__reference=CONTENT, ms__query=b"query")
    outer = zipped(top__inner=inner)
    url = server.url("/files/43939560", file(outer))
    first = {"url": url, "member": "top/inner!ms/reference", "file": "scgpt.zip"}
    second = {"url": url, "member": "top/inner!ms/query", "file": "scgpt.zip"}
    assert fetcher.source("ms", "reference", {"urls": [first], "hash": SHA})["hash"] == "verified"
    assert fetcher.source("other", "query", {"urls": [second]})["hash"] == "recorded"
    assert server.paths == ["/files/43939560"]
    assert files(fetcher) == ["archives/scgpt.zip", "ms/reference", "other/query"]
    seen = lockfile.read(fetcher.lock)
    assert sorted(seen) == ["archives/scgpt.zip", "other/query"]
    assert seen["archives/scgpt.zip"].sha256 == hashlib.sha256(outer).hexdigest()


def test_an_archive_put_there_by_hand_is_taken(server, fetcher):
    packed = zipped(cells=CONTENT)
    own = "md5:" + hashlib.md5(packed).hexdigest()
    address = {"url": server.url("/norman.zip"), "member": "cells", "hash": own}
    message = refused(fetcher, address)
    archive = fetcher.downloads / "archives/norman.zip"
    assert f"put it at {fetcher.downloads}/set/cells (or the archive to {archive}), because: " in message
    place(fetcher, "archives/norman.zip", b"PK but another")
    assert f"{archive}: md5 is" in refused(fetcher, address)
    place(fetcher, "archives/norman.zip", packed)
    assert get(fetcher, address, hash=SHA)["hash"] == "verified"
    assert files(fetcher) == ["archives/norman.zip", "set/cells"]


def test_a_member_that_is_not_what_was_declared(server, fetcher):
    address = {"url": server.url("/cells.zip", file(zipped(cells=b"others"))), "member": "cells"}
    assert "'cells' in" in refused(fetcher, address, hash=SHA)
    assert "expected 400000" in refused(fetcher, address, bytes=400_000)
    assert files(fetcher) == ["archives/cells.zip"]


def test_a_wrong_archive_is_replaced_by_the_one_that_is_declared(server, fetcher):
    """A copy without a checksum came first and held another file; the original is there again later."""
    packed = zipped(cells=CONTENT)
    first = {"url": server.url("/a.zip", page(403)), "member": "cells", "file": "norman.zip"}
    first["hash"] = "md5:" + hashlib.md5(packed).hexdigest()
    copy = {"url": server.url("/b", file(zipped(cells=b"others"))), "member": "cells", "file": "norman.zip"}
    assert "'cells' in" in refused(fetcher, first, copy, hash=SHA)
    archive = fetcher.downloads / "archives/norman.zip"
    message = refused(fetcher, first, hash=SHA)
    assert f"{archive}: md5 is" in message and "HTTP 403" in message and archive.is_file()
    server.answers["/a.zip"] = file(packed)
    assert get(fetcher, first, copy, hash=SHA)["url"] == first["url"]
    assert archive.read_bytes() == packed


def test_where_an_archive_finds_no_room_the_file_itself_may(server, fetcher, monkeypatch):
    big = {"url": server.url("/all.zip", file(zipped(cells=CONTENT))), "member": "cells", "bytes": 10**18}
    assert "/all.zip" not in get(fetcher, big, server.url("/copy", file()), hash=SHA)["url"]
    (fetcher.downloads / "set/cells").unlink()
    assert "needs 1000000000.0 GB more" in refused(fetcher, big, hash=SHA)


def test_a_damaged_archive_goes_unless_someone_vouches_for_it(server, fetcher):
    packed = zipped(cells=CONTENT)[:-200]
    address = {"url": server.url("/cells.zip", file(packed)), "member": "cells"}
    assert "is cut off or damaged" in refused(fetcher, address)
    assert files(fetcher) == [] and not fetcher.lock.exists()
    known = address | {"hash": "md5:" + hashlib.md5(packed).hexdigest()}
    assert "is cut off or damaged" in refused(fetcher, known)
    assert files(fetcher) == ["archives/cells.zip"]  # so it is not fetched again and again


def test_the_archive_is_replaced_and_the_record_says_so(server, fetcher):
    address = {"url": server.url("/cells.zip", file(zipped(cells=CONTENT))), "member": "cells"}
    get(fetcher, address)
    (fetcher.downloads / "archives/cells.zip").unlink()
    (fetcher.downloads / "set/cells").unlink()
    server.answers["/cells.zip"] = file(zipped(cells=CONTENT[::-1]))
    message = refused(fetcher, address)
    assert "delete the line of archives/cells.zip" in message and files(fetcher) == []


def test_a_member_falls_back_to_the_file_itself(server, fetcher):
    archive = {"url": server.url("/all.zip", file(zipped(other=b"x"))), "member": "deep/cells.bin"}
    record = get(fetcher, archive, server.url("/copy", file()), hash=SHA)
    assert record["path"].endswith("set/cells.bin") and record["url"] == server.url("/copy")


def test_a_local_archive_is_used_where_it_is(fetcher, tmp_path):
    (tmp_path / "cells.zip").write_bytes(zipped(cells=CONTENT))
    address = {"url": f"file:{tmp_path}/cells.zip", "member": "cells"}
    assert get(fetcher, address, hash=SHA)["hash"] == "verified"
    assert files(fetcher) == ["set/cells"]


# Repositories.


def test_figshare(server, fetcher, monkeypatch):
    monkeypatch.setattr(hosts, "FIGSHARE", f"{server.address}/figshare")
    listed = {
        "id": 1, "name": "demo_train.h5ad.txt", "size": len(CONTENT), "is_link_only": False,
        "supplied_md5": "", "computed_md5": MD5.removeprefix("md5:"),
        "download_url": server.url("/ndownloader/files/1", file()), "mimetype": "application/x-hdf",
    }  # fmt: skip
    listing = [listed, listed | {"name": "link", "is_link_only": True}]
    answer = lambda: page(200, json.dumps(listing).encode(), Content_Type="application/json")  # noqa: E731
    server.answers["/figshare/articles/21981011/files"] = in_turn(page(503), answer())
    record = get(fetcher, "figshare:21981011/demo_train.h5ad.txt")
    assert record["sha256"] == GOOD and record["hash"] == "recorded"  # published there, not declared here
    assert record["url"] == "figshare:21981011/demo_train.h5ad.txt"
    assert "page_size=1000" in server.paths[0]  # the listing stops at ten files otherwise
    message = refused(fetcher, "figshare:21981011/demo_test.h5ad")
    assert "figshare article 21981011 holds no 'demo_test.h5ad', but 'demo_train.h5ad.txt'" in message

    (fetcher.downloads / "set/demo_train.h5ad.txt").unlink()
    listing[0] = listed | {"computed_md5": "", "supplied_md5": "0" * 32}
    server.answers["/figshare/articles/21981011/files"] = answer()
    assert "(published by figshare)" in refused(fetcher, "figshare:21981011/demo_train.h5ad.txt")
    assert "lists 400000 bytes, expected 5" in refused(
        fetcher, "figshare:21981011/demo_train.h5ad.txt", bytes=5
    )
    server.answers["/figshare/articles/21981011/files"] = page(200, HTML)
    assert "no JSON" in refused(fetcher, "figshare:21981011/demo_train.h5ad.txt")
    assert files(fetcher) == []


def test_zenodo(server, fetcher, monkeypatch):
    monkeypatch.setattr(hosts, "ZENODO", f"{server.address}/zenodo")
    content = server.url("/zenodo/records/14404063/files/best_model.pt/content", file())
    record = {
        "id": 14404063,
        "files": [
            {"key": "best_model.pt", "size": len(CONTENT), "checksum": MD5, "links": {"self": content}},
            {"key": "args.json", "size": 2, "checksum": "md5:0", "links": {"self": "http://x"}},
        ],
    }
    server.answers["/zenodo/records/14404063"] = page(200, json.dumps(record).encode())
    assert get(fetcher, "zenodo:14404063/best_model.pt")["sha256"] == GOOD
    message = refused(fetcher, "zenodo:14404063/vocab.json")
    assert "Zenodo record 14404063 holds no 'vocab.json', but 'args.json', 'best_model.pt'" in message
    server.answers["/zenodo/records/1"] = page(200, b'{"id": 1, "message": "restricted"}')
    assert "holds no 'x', but nothing" in refused(fetcher, "zenodo:1/x")
    server.answers["/zenodo/records/2"] = page(200, b"[1]")
    assert "unexpected" in refused(fetcher, "zenodo:2/x")


FILE_ID, FOLDER_ID, INNER_ID = ("1" + letter * 32 for letter in "abc")
WARNING = f"""\
<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body><div class="uc-main">
<div id="uc-text"><p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<p class="uc-warning-subcaption"><span class="uc-name-size"><a href="/open?id={FILE_ID}">covid.h5ad</a> (37M)
</span> is too large for Google to scan for viruses. Would you still like to download this file?</p>\
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">\
<input type="submit" id="uc-download-link" value="Download anyway"/>\
<input type="hidden" name="id" value="{FILE_ID}"><input type="hidden" name="export" value="download">\
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="token"></form>
</div></div></body></html>""".encode()
QUOTA = b"""\
<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body><div class="uc-main">
<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try \
accessing the file again later.</p></div></body></html>"""
LOG_IN = b"<!DOCTYPE html><html><head><title>Sign in - Google Accounts</title></head><body></body></html>"
ATTACHED = {"Content_Disposition": 'attachment; filename="covid.h5ad"'}


def folder_page(title: str, *entries: tuple[str, str, str]) -> bytes:
    """An embedded folder view of Google Drive, reduced to what is read of it."""
    rows = "".join(
        f'<div class="flip-entry" id="entry-{key}"><div class="flip-entry-info">'
        f'<a href="https://drive.google.com/{kind % key}" target="_blank">'
        f'<div class="flip-entry-title">{name}</div></a></div></div>'
        for kind, key, name in entries
    )
    head = f"<!DOCTYPE html><html><head><title>{title}</title></head>"
    return f'{head}<body><div class="flip-entries">{rows}</div></body></html>'.encode()


@pytest.fixture
def drive(server, monkeypatch):
    """The loopback server in the place of Google."""
    pytest.importorskip("gdown")
    redirect_all(monkeypatch, server)
    server.answers["/drive.google.com/uc"] = page(
        303, Location=f"https://drive.usercontent.google.com/download?id={FILE_ID}&export=download"
    )
    return server


def test_a_small_file_of_google_drive(drive, fetcher):
    drive.answers["/drive.usercontent.google.com/download"] = file(**ATTACHED)
    record = get(fetcher, f"gdrive:{FILE_ID}", file="covid.bin", hash=SHA)
    assert record["path"].endswith("set/covid.bin") and record["url"] == f"gdrive:{FILE_ID}"


def test_a_large_file_of_google_drive_comes_behind_a_form(drive, fetcher):
    """And a cut connection is gone on with, as anywhere."""
    big = "/drive.usercontent.google.com/download"
    drive.answers[big] = page(200, WARNING, Content_Type="text/html; charset=utf-8")
    confirmed = f"{big}?id={FILE_ID}&export=download&confirm=t&uuid=token"
    confirmed_answers = [file(**ATTACHED), cut(), file(**ATTACHED), file(**ATTACHED)]
    drive.answers[confirmed] = in_turn(*confirmed_answers)
    assert get(fetcher, f"gdrive:{FILE_ID}", file="covid.bin", hash=SHA)["sha256"] == GOOD
    spans = [span for path, span in drive.asked if path == confirmed]
    assert spans[-1] is not None and spans[-1].startswith("bytes=")
    assert files(fetcher) == ["set/covid.bin"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (page(200, QUOTA), "Google Drive says: Too many users have viewed or downloaded this file recently"),
        (page(200, LOG_IN), "Cannot retrieve the public link of the file"),
        (page(404, LOG_IN), "HTTP 404"),
    ],
)
def test_google_drive_refuses(drive, fetcher, answer, says):
    drive.answers["/drive.usercontent.google.com/download"] = answer
    message = refused(fetcher, f"gdrive:{FILE_ID}", file="covid.h5ad")
    assert f"gdrive:{FILE_ID}: " in message and says in message
    assert f"put it at {fetcher.downloads}/set/covid.h5ad" in message
    assert len(drive.asked) == 2 and files(fetcher) == []


def test_a_folder_of_google_drive(drive, fetcher):
    a_file, a_folder = "file/d/%s/view?usp=drive_web", "drive/folders/%s"
    listing = folder_page("ms", (a_folder, INNER_ID, "inner"), (a_file, "1" + "d" * 32, "c_data.bin"))
    inner = folder_page("inner", (a_file, FILE_ID, "query.bin"))
    view = "/drive.google.com/embeddedfolderview"
    drive.answers[f"{view}?id={FOLDER_ID}"] = page(200, listing)
    drive.answers[f"{view}?id={INNER_ID}"] = page(200, inner)
    drive.answers["/drive.usercontent.google.com/download"] = file(**ATTACHED)
    for name in ("query.bin", "inner/query.bin"):
        record = get(fetcher, f"gdrive:{FOLDER_ID}/{name}", hash=SHA)
        assert record["path"].endswith("set/query.bin")
        (fetcher.downloads / "set/query.bin").unlink()
    assert f"/drive.google.com/uc?id={FILE_ID}&export=download" in drive.paths
    message = refused(fetcher, f"gdrive:{FOLDER_ID}/gone.h5ad")
    assert (
        f"folder {FOLDER_ID} holds no 'gone.h5ad', but 'c_data.bin', 'inner/query.bin', 'query.bin'"
        in message
    )
    assert files(fetcher) == []


def test_a_folder_of_google_drive_that_is_not_there(drive, fetcher, monkeypatch):
    message = refused(fetcher, f"gdrive:{FOLDER_ID}/x.bin")
    assert "status code 404" in message and len(drive.asked) == 1
    view = f"/drive.google.com/embeddedfolderview?id={FOLDER_ID}"
    drive.answers[view] = page(503)
    refused(fetcher, f"gdrive:{FOLDER_ID}/x.bin")
    assert len(drive.asked) == 2 + downloads.RETRIES


# Files of this machine.


def test_files_of_packages_and_of_the_repository_are_found():
    assert locate("package:scanpy/datasets/10x_pbmc68k_reduced.h5ad").is_file()
    assert locate("file:workflow/demo_data/pbmc_cite.h5ad").is_file()
    with pytest.raises(FetchError, match="the package 'nowhere' is not installed"):
        locate("package:nowhere/data.h5ad")


def test_a_local_file_that_changed_is_refused(fetcher):
    url = "file:workflow/demo_data/pbmc_cite.h5ad"
    message = refused(fetcher, url, hash="sha256:" + "0" * 64)
    assert f"{url}: sha256 is " in message and "expected 0000" in message and "by hand" not in message


def test_a_local_file_is_not_recorded(fetcher):
    assert get(fetcher, "file:workflow/demo_data/pbmc_cite.h5ad")["hash"] == "local"
    assert not fetcher.lock.exists()


# A dataset.


def test_every_source_is_tried_and_every_reason_told(server, fetcher):
    sources = {
        "one": {"urls": [server.url("/one")]},
        "two": {"urls": [server.url("/two", file())]},
        "three": {"urls": [server.url("/three")]},
        "extra": {"urls": [server.url("/extra")], "optional": True},
    }
    record = fetch("set", {"sources": sources}, fetcher)
    assert record["status"] == "no_data" and list(record["files"]) == ["two"]
    assert "source 'one'" in record["reason"] and "source 'three'" in record["reason"]
    assert list(record["absent"]) == ["extra"] and "HTTP 404" in record["absent"]["extra"]
    assert "extra" not in record["reason"]
    record = fetch("set", {"sources": {name: sources[name] for name in ("two", "extra")}}, fetcher)
    assert record["status"] == "ok" and record["reason"] == "" and list(record["absent"]) == ["extra"]


def test_addresses_and_names():
    whole, packed = addresses(
        {
            "urls": ["https://x/a.h5ad?v=1", {"url": "gdrive:1abc", "member": "in/b.h5ad", "bytes": 5}],
            "hash": MD5,
        }
    )
    assert (whole.hash, whole.member, whole.archive) == (MD5, None, None)
    assert (packed.hash, packed.bytes, packed.archive) == (None, 5, "1abc")
    (own,) = addresses({"urls": [{"url": "https://x/a", "hash": MD5}], "hash": SHA, "bytes": 7})
    assert (own.hash, own.bytes) == (MD5, 7)
    for url, name in {
        "https://x/a%20b.h5ad?v=1": "a b.h5ad",
        "gdrive:1abc/ms/c_data.h5ad": "c_data.h5ad",
        "figshare:12/demo.h5ad": "demo.h5ad",
        "package:scanpy/datasets/x.h5ad": "x.h5ad",
    }.items():
        assert file_name({"urls": [url]}) == name
    assert file_name({"urls": [{"url": "http://x/y.zip", "member": "a/in.zip!ms/c.h5ad"}]}) == "c.h5ad"
    assert file_name({"urls": ["http://x/y"], "file": "z.h5ad"}) == "z.h5ad"


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (
            {"a": ["http://x/m.h5ad"], "b": ["http://y/m.h5ad"]},
            "set.sources.b: its file is called 'm.h5ad' like",
        ),
        ({"a": ["http://x/"]}, "set.sources.a: '' is no name of a file"),
        ({"a": ["http://x/a%09b"]}, r"set.sources.a: 'a\\tb' is no name of a file"),
        ({"a": ["http://x/%2e%2e"]}, "set.sources.a: '..' is no name"),
        (
            {
                "a": [{"url": "http://x/m.zip", "member": "a"}],
                "b": [{"url": "http://y/m.zip", "member": "b"}],
            },
            "set.sources.b: the archive of http://y/m.zip is called 'm.zip' like that of set.sources.a",
        ),
    ],
)
def test_every_file_has_a_place_of_its_own(sources, says):
    declared = {name: {"urls": urls} for name, urls in sources.items()}
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        check_places({"set": {"sources": declared}})


def test_copies_of_one_archive_share_a_place():
    copies = [
        {"url": "http://x/m.zip", "member": "a"},
        {"url": "gdrive:1abc", "member": "a", "file": "m.zip"},
    ]
    check_places({"set": {"sources": {"a": {"urls": copies}}}})  # raises where places clash
    assert {address.archive for address in addresses({"urls": copies})} == {"m.zip"}
    local = {"a": {"urls": ["file:one/m.h5ad"]}, "b": {"urls": ["file:two/m.h5ad"]}}
    check_places({"set": {"sources": local}})


def test_a_dead_link_costs_one_dataset_and_not_the_run(bench, server, cells, monkeypatch):
    """Two datasets, one of them gone: the other is scored, and the row of the first says why."""
    cells.write_h5ad(bench.folder / "cells.h5ad")
    served = server.url("/cells.h5ad", file((bench.folder / "cells.h5ad").read_bytes()))
    bench.declare("datasets", alive=entry(served), dead=entry(f"{server.address}/gone"))
    bench.config(["alive", "dead"], {"integration": ["pca"]}, [0], downloads=None)
    monkeypatch.setenv("SCMAMBA2_DOWNLOADS", str(bench.folder / "named by the environment"))
    ended = bench.run("out/claims.csv", "out/tables/summary.txt")
    assert ended.returncode == 0, ended.stderr
    summary = (bench.folder / "out/tables/summary.txt").read_text()
    assert "1 of 2 runs ok" in summary
    assert "  dead: no_data: " in summary
    assert "404" in summary
    record = json.loads((bench.folder / "out/data/alive/fetch.json").read_text())
    assert record["files"]["cells"]["hash"] == "recorded"
    assert record["files"]["cells"]["path"] == str(bench.folder / "named by the environment/alive/cells.h5ad")
    assert "alive/cells.h5ad\t" in (bench.folder / "workflow/datasets.lock").read_text()

"""Fetching: addresses in order, checksums, and one clear sentence when nothing serves."""

from __future__ import annotations

import hashlib
import http.server
import threading

import pytest
from support import entry

from workflow.steps.fetch import FetchError, fetch_source, locate

CONTENT = b"counts" * 1000
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A web server on this machine: /good serves the file, /bad another one, the rest is 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        asked: list[str] = []

        def do_GET(self):
            self.asked.append(self.path)
            body = {"/good": CONTENT, "/bad": b"junk"}.get(self.path)
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    httpd.address = f"http://127.0.0.1:{httpd.server_port}"
    httpd.asked = Handler.asked
    yield httpd
    httpd.shutdown()
    Handler.asked.clear()


def test_a_download_is_verified_and_kept(server, tmp_path):
    source = {"urls": [f"{server.address}/good"], "hash": SHA}
    record = fetch_source("cells", source, tmp_path)
    assert record["hash"] == "verified"
    assert record["sha256"] == SHA.removeprefix("sha256:")
    assert record["bytes"] == len(CONTENT)
    fetch_source("cells", source, tmp_path)
    assert server.asked == ["/good"]  # the second time it was here


def test_an_unknown_checksum_is_recorded_as_such(server, tmp_path):
    record = fetch_source("cells", {"urls": [f"{server.address}/good"]}, tmp_path)
    assert record["hash"] == "not known"
    assert record["sha256"] == SHA.removeprefix("sha256:")


@pytest.mark.parametrize("first", ["/bad", "/absent"])
def test_the_next_address_is_tried(server, tmp_path, first):
    urls = [server.address + first, f"{server.address}/good"]
    record = fetch_source("cells", {"urls": urls, "hash": SHA}, tmp_path)
    assert record["url"] == urls[1]
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ["cells-good"], "junk was left on disk"


def test_when_nothing_serves_each_answer_is_told(server, tmp_path):
    urls = [f"{server.address}/absent", f"{server.address}/bad", "file:no/such.h5ad"]
    with pytest.raises(FetchError) as caught:
        fetch_source("cells", {"urls": urls, "hash": SHA}, tmp_path)
    message = str(caught.value)
    assert "source 'cells'" in message
    assert "404" in message
    assert "no/such.h5ad: no such file" in message
    assert "does not match" in message or "expected" in message


def test_files_of_packages_and_of_the_repository_are_found():
    assert locate("package:scanpy/datasets/10x_pbmc68k_reduced.h5ad").is_file()
    assert locate("file:workflow/demo_data/pbmc_cite.h5ad").is_file()
    with pytest.raises(FetchError, match="the package 'nowhere' is not installed"):
        locate("package:nowhere/data.h5ad")


def test_a_local_file_that_changed_is_refused():
    with pytest.raises(FetchError, match="sha256 is .*, expected 0000"):
        fetch_source(
            "cells",
            {"urls": ["file:workflow/demo_data/pbmc_cite.h5ad"], "hash": "sha256:" + "0" * 64},
            None,
        )


def test_a_dead_link_costs_one_dataset_and_not_the_run(bench, server, cells):
    """Two datasets, one of them gone: the other is scored, and the row of the first says why."""
    cells.write_h5ad(bench.folder / "cells.h5ad")
    bench.declare("datasets", alive=entry("file:cells.h5ad"), dead=entry(f"{server.address}/gone"))
    bench.config(["alive", "dead"], {"integration": ["pca"]}, [0], downloads="downloads")
    ended = bench.run("out/claims.csv", "out/tables/summary.txt")
    assert ended.returncode == 0, ended.stderr
    summary = (bench.folder / "out/tables/summary.txt").read_text()
    assert "1 of 2 runs ok" in summary
    assert "  dead: no_data: " in summary
    assert "404" in summary

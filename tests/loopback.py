"""A web server on this machine that can misbehave the way real hosts do."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import requests

#: Synthetic bytes that do not compress and hold no repeats, so that pieces put together wrongly show.
CONTENT = np.random.default_rng(0).bytes(400_000)
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Looks up the path in the server's ``answers``; what is not there is a 404."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        answer = self.server.answers.get(self.path) or self.server.answers.get(urlsplit(self.path).path)
        try:
            (answer or page(404, b"<html>gone</html>"))(self)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client went away

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; ``Content_Type`` stands for Content-Type."""
        self.server.sent[self.path] = self.server.sent.get(self.path, 0) + len(body)
        self.head(status, **({"Content_Length": str(len(body))} | headers))
        self.wfile.write(body)

    def head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Knows what was asked of it and how much it sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.sent: dict[str, int] = {}
        self.address = f"http://127.0.0.1:{self.server_port}"

    def url(self, path: str, answer: Answer | None = None) -> str:
        """Return the address of a path, which gets an answer if one is given."""
        if answer:
            self.answers[path] = answer
        return self.address + path

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def page(status: int, body: bytes = b"", **headers: str) -> Answer:
    """The same whole answer every time."""
    return lambda handler: handler.reply(status, body, **headers)


def in_turn(*answers: Answer) -> Answer:
    """One answer after another; the last one from then on."""
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def file(content: bytes = CONTENT, etag: str | None = '"1"', ranges: bool = True, **headers: str) -> Answer:
    """A file as a good host serves it: with a length and an ETag, and parts of it on demand."""
    own = {"ETag": etag} if etag else {}

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        same = handler.headers.get("If-Range", etag) == etag
        if not (asked and ranges and same):
            return handler.reply(200, content, **own, **headers)
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            return handler.reply(416, Content_Range=f"bytes */{len(content)}")
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.reply(206, content[start:], Content_Range=span, **own, **headers)

    return answer


def cut(
    content: bytes = CONTENT, share: float = 0.6, etag: str | None = '"1"', then: Callable | None = None
) -> Answer:
    """Promise the whole file, send a part of it, call ``then`` and close the connection."""

    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=str(len(content)), **({"ETag": etag} if etag else {}))
        handler.wfile.write(content[: int(share * len(content))])
        handler.wfile.flush()
        if then:
            then()

    return answer


def redirect_all(monkeypatch, server: Server) -> None:
    """Send what requests asks of any https host to the server, as ``/<host>/<path>``."""
    send = requests.adapters.HTTPAdapter.send

    def here(self, request, **options):
        asked = request.url
        if asked.startswith("https://"):
            request.url = f"{server.address}/{asked.removeprefix('https://')}"
        response = send(self, request, **options)
        request.url = response.url = asked
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", here)

"""Servers on loopback that tests start: a web server with ranges over a folder, and a proxy that misbehaves."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import struct
import threading
import time
import unittest.mock
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Request:
    """What came in."""

    method: str
    path: str
    start: int
    """First byte that is asked for."""


@dataclass
class Faults:
    """What goes wrong: `plan(request)` names it, or returns "" for nothing.

    reset: no answer; stall: an answer that stops, for as long as `stalls` says; cut: it ends in the middle; lie: a byte
    is another; short: fewer bytes than announced at first, as a smaller object; a number: that status instead.
    """

    plan: Callable[[Request], str] = lambda request: ""
    requests: list[Request] = field(default_factory=list)
    stalls: float = 3.0
    sent: int = 0
    """Bytes of bodies that went out."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # clients go away; that is what is tested


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on a free port; gives its address."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = headers or {}
        for name, value in given.items():
            self.send_header(name, value)
        if "Content-Length" not in given:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def web_server(folder: Path, *, ranges: bool = True, etags: bool = True) -> Iterator[str]:
    """Files of a folder, with ranges and ETags as nginx has them."""

    class Handler(_Handler):
        def do_GET(self):
            path = folder / unquote(self.path.lstrip("/"))
            if not path.is_file():
                self.answer(404, b"no such file")
                return
            data = path.read_bytes()
            tag = f'"{hashlib.md5(data).hexdigest()}"'
            headers = {"ETag": tag} if etags else {}
            wanted = self.headers.get("If-Match")
            if wanted and wanted != tag:
                self.answer(412, b"")
                return
            found = _RANGE.fullmatch(self.headers.get("Range", "")) if ranges else None
            if not found:
                self.answer(200, data, headers)
                return
            start, end = int(found[1]), int(found[2] or len(data) - 1) + 1
            if start >= len(data):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            end = min(end, len(data))
            self.answer(206, data[start:end], {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

        do_HEAD = do_GET

    with serving(Handler) as address:
        yield address


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A store that speaks S3, with an empty bucket `bucket`; its credentials are in the environment meanwhile."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    with unittest.mock.patch.dict(os.environ, given):
        connection = http.client.HTTPConnection(host, port)
        connection.request("PUT", "/bucket")
        assert connection.getresponse().status == 200
        yield given["AWS_ENDPOINT_URL"]
    server.stop()


@contextlib.contextmanager
def proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """What a server answers, but for faults; the bodies of answers pass whole, so that it is for small objects."""
    host = upstream.removeprefix("http://")

    class Handler(_Handler):
        def _forward(self):
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length) if length else None
            found = _RANGE.fullmatch(self.headers.get("Range", ""))
            request = Request(self.command, self.path, int(found[1]) if found else 0)
            faults.requests.append(request)
            fault = faults.plan(request)
            if fault == "reset":
                # No farewell: the client gets a reset.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            if fault.isdigit():
                self.answer(int(fault), b"not now", {"Retry-After": "1"})
                return
            connection = http.client.HTTPConnection(host)
            # The upstream's signature check, where it has one, is of the headers that the client signed.
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            headers = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in {"connection", "transfer-encoding", "date", "server"}
            }
            connection.close()
            if self.command == "HEAD":
                self.answer(answer.status, data, headers)
                return
            if fault == "short":
                headers = {n: v for n, v in headers.items() if n.lower() not in {"content-length", "content-range"}}
                data = data[: len(data) // 2]
            if fault == "lie" and data:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            if fault in {"cut", "stall"} and len(data) > 1:
                self.answer(answer.status, data[: len(data) // 2], {**headers, "Content-Length": str(len(data))})
                self.wfile.flush()
                faults.sent += len(data) // 2
                if fault == "stall":
                    time.sleep(faults.stalls)
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            faults.sent += len(data)
            self.answer(answer.status, data, headers)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    with serving(Handler) as address:
        yield address

"""Storage elsewhere, for tests: a server on loopback that speaks HTTP with ranges, and enough S3.

Everything lies in a dictionary, so that a test can damage it; `faults` say what goes wrong with the
next answers. Listening starts with the constructor and ends with `close`.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections import Counter, deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["Storage"]


class Storage:
    """Files by path without the first slash: `bucket/name/train-00000.bin`.

    `faults` holds words for the next answers to GET: `cut` ends the connection in the middle,
    `mute` falls silent there until the client has left, `busy` answers 503, `ok` is none. `ranges=False` sends whole files only. `asked` counts bytes
    sent by path.
    """

    def __init__(self, ranges: bool = True) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: deque[str] = deque()
        self.asked: Counter[str] = Counter()
        self.ranges, self.closed = ranges, False
        self.connections: set[socket.socket] = set()
        handler = type("Handler", (_Handler,), {"storage": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening; requests in flight end first."""
        if not self.closed:
            self.closed = True
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            for connection in list(self.connections):
                with suppress(OSError):  # the client may have left
                    connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that leave in the middle, on a stream that a test may be reading."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    storage: Storage
    protocol_version = "HTTP/1.1"
    timeout = 5  # seconds; a client that keeps its connection must not keep a thread

    def log_message(self, *_: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.storage.connections.add(self.connection)

    def finish(self) -> None:
        self.storage.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    @property
    def key(self) -> str:
        return self.path.partition("?")[0].lstrip("/")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            content = _unchunked(content)
        self.storage.files[self.key] = content
        self._answer(200, b"", {"ETag": '"0"'})

    def do_HEAD(self) -> None:
        found = self.storage.files.get(self.key)
        self._answer(404 if found is None else 200, found or b"", {"ETag": '"0"'})

    def do_GET(self) -> None:
        if "list-type" in self.path:
            self._list()
            return
        found = self.storage.files.get(self.key)
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        fault = self.storage.faults.popleft() if self.storage.faults else "ok"
        if fault == "busy":
            self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, more = 200, {"ETag": '"0"', "Accept-Ranges": "bytes"}
        if asked and self.storage.ranges:
            start, stop = int(asked[1]), int(asked[2] or len(found) - 1) + 1
            more["Content-Range"] = f"bytes {start}-{min(stop, len(found)) - 1}/{len(found)}"
            status, found = 206, found[start:stop]
        self.storage.asked[self.key] += len(found)
        self._answer(status, found, more, fault)

    def _list(self) -> None:
        """Answer ListObjectsV2, as flat as it can be."""
        bucket = self.key.rstrip("/")
        prefix = re.search(r"prefix=([^&]*)", self.path)
        start = f"{bucket}/{prefix[1].replace('%2F', '/') if prefix else ''}"
        rows = "".join(
            f"<Contents><Key>{escape(name[len(bucket) + 1 :])}</Key><Size>{len(content)}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag></Contents>"
            for name, content in sorted(self.storage.files.items())
            if name.startswith(start)
        )
        head = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        tail = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
        self._answer(200, f"{head}{rows}{tail}".encode(), {"Content-Type": "application/xml"})

    def _answer(
        self, status: int, content: bytes, more: dict[str, str] | None = None, fault: str = "ok"
    ) -> None:
        self.send_response(status)
        for name, value in {**(more or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content if fault == "ok" else content[: len(content) // 2])
        if fault == "mute":
            with suppress(OSError):
                self.rfile.read(1)  # nothing comes, until it is gone
        self.close_connection = self.close_connection or fault != "ok"


def _unchunked(content: bytes) -> bytes:
    """Return what `aws-chunked` wraps: lines with sizes in hexadecimal between the pieces."""
    found, at = b"", 0
    while at < len(content):
        end = content.index(b"\r\n", at)
        size = int(content[at:end].partition(b";")[0], 16)
        if not size:
            break
        found, at = found + content[end + 2 : end + 2 + size], end + 4 + size
    return found

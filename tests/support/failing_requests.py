"""A proxy in front of a vendor's stand-in, at which chosen requests fail."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Literal, final

from tests.support.stand_in import StandInServer

How = Literal["refused", "unanswered", "page", "redirected"]
"""A proxy's 502; processed, but without an answer; a login page instead of an answer; sent to one."""
PAGE = b"<html>Log in to this network</html>"


@final
@dataclass
class FailingRequests:
    """The requests so far, and how the ones of these numbers fail."""

    service: int
    failures: dict[int, How] = field(default_factory=dict)
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> How | None:
        """The failure of the request that has just arrived."""
        with self.lock:
            self.count += 1
            return self.failures.get(self.count)


@contextlib.contextmanager
def failing_requests(service: int) -> Iterator[tuple[FailingRequests, str]]:
    """Forward to the port `service` of this machine; return what fails, and the proxy's address."""
    failing = FailingRequests(service)
    server = StandInServer(failing, 0, _Handler)
    server.start()
    try:
        yield failing, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandInServer[FailingRequests]

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        how = None if self.path == "/login" else self.server.cloud.next()
        if self.path == "/login" or how == "page":
            self._send(200, PAGE)
        elif how == "redirected":
            self._send(302, b"", ("Location", "/login"))
        elif how == "refused":
            self._send(502, b"<html>Bad Gateway</html>")
        else:
            status, answer = self._forwarded(body)
            if how == "unanswered":
                self.close_connection = True
            else:
                self._send(status, answer)

    do_GET = do_POST = do_PUT = _any

    def _forwarded(self, body: bytes) -> tuple[int, bytes]:
        service = http.client.HTTPConnection("127.0.0.1", self.server.cloud.service)
        with contextlib.closing(service):
            service.request(self.command, self.path, body, dict(self.headers.items()))
            answer = service.getresponse()
            return answer.status, answer.read()

    def _send(self, status: int, answer: bytes, header: tuple[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        if header is not None:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""

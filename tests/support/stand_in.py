"""A web server that stands in for a vendor's cloud, on a free port of this machine. It stops at once on
request, with all its connections."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Generic, TypeVar

Cloud = TypeVar("Cloud")


class StandInServer(ThreadingHTTPServer, Generic[Cloud]):
    """Answers with what `handler` finds in `cloud`."""

    daemon_threads = True

    def __init__(self, cloud: Cloud, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.cloud = cloud
        self._connections: set[socket.socket] = set()

    def start(self) -> None:
        """Start answering, in threads of its own."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Stop listening, and close every connection."""
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # the client has already gone
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Track a client's connection until it ends."""
        # An answer is two writes, and the second would wait 40 ms for the client to acknowledge the first.
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect, which is part of the tests; print all other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

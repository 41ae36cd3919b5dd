"""A proxy that loses an answer: the service has done what it was asked, and the client does not know it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.support.aim_servers import free_port


@contextlib.contextmanager
def losing_answer(to: bytes, port: int) -> Iterator[int]:
    """Forward a free port of this machine to `port`. The first connection with a request that contains `to`
    is closed once it is answered, without the answer."""
    lost = threading.Event()

    def forward(client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as service:
            loses = False

            def answers() -> None:
                while data := service.recv(1 << 16):
                    if loses:
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    client.sendall(data)
                client.shutdown(socket.SHUT_RDWR)

            back = threading.Thread(target=quietly, args=(answers,), daemon=True)
            back.start()
            while data := client.recv(1 << 16):
                if to in data and not lost.is_set():
                    lost.set()
                    loses = True
                service.sendall(data)
            service.shutdown(socket.SHUT_WR)
            back.join()

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=quietly, args=(forward, client), daemon=True).start()

    with socket.create_server(("127.0.0.1", chosen := free_port())) as listener:
        threading.Thread(target=quietly, args=(accept,), daemon=True).start()
        yield chosen
    assert lost.is_set(), f"nothing was asked for {to!r}"


def quietly(work: object, *arguments: object) -> None:
    """Call it; either side may have closed its connection."""
    assert callable(work)
    with contextlib.suppress(OSError):
        work(*arguments)

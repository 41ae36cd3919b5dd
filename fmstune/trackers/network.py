"""Readable causes of failed requests: SDKs wrap the cause in layers, and print some as tuples."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import requests

_Found = TypeVar("_Found")

CLOSED = "the server closed the connection without an answer"

_ABORTED = re.compile(r"\('Connection aborted\.', \w+\((?:[^()']|'[^']*')*\)\)")
"""How urllib3 2 reports, in messages of requests and MLflow, that a server disconnected mid-request."""


class NotTheService(OSError):
    """Something other than the service answers: a network's login page, a proxy, or another address."""


def refuse_pages(answer: requests.Response, *_: Any, **__: Any) -> None:
    """A response hook for `requests`. Raises `NotTheService` for a web page, with which a network's login or
    a proxy may answer any request with success, and for a redirect that turns an upload into a download."""
    address = str(answer.url).partition("?")[0]
    if answer.is_redirect and answer.status_code < 304 and answer.request.method not in ("GET", "HEAD"):
        there = answer.headers["location"].partition("?")[0]
        raise NotTheService(f"{address} redirects to {there} instead of taking data")
    if answer.ok and not answer.is_redirect and answer.content.lstrip()[:1] == b"<":
        raise NotTheService(f"{address} answers with a web page; is it a proxy's or a network's login?")


def root_cause(error: BaseException) -> str:
    """The innermost cause of a network error in one line, without a capital letter or full stop."""
    root, seen = error, {id(error)}
    while (inner := _inner(root)) is not None and id(inner) not in seen:
        root = inner
        seen.add(id(inner))
    # On Linux a dying server closes its connections in one of these ways, depending on what it had read.
    if isinstance(root, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
        return CLOSED
    text = getattr(root, "strerror", None) or next(iter(str(root).splitlines()), "") or type(root).__name__
    return f"{text[:1].lower()}{text[1:]}".rstrip(".")


def within(seconds: float, ask: Callable[[], _Found]) -> _Found:
    """Return or raise what `ask` does. Raises `TimeoutError` if it takes longer, and abandons it: the time
    limit of requests applies to each piece of a response, and a server may send one byte at a time."""
    found: list[_Found] = []
    raised: list[BaseException] = []

    def answer() -> None:
        try:
            found.append(ask())
        except BaseException as error:  # raised below
            raised.append(error)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return found[0]


def in_words(text: str) -> str:
    """An error's message, with Python tuples in it replaced by words."""
    return _ABORTED.sub(CLOSED, text)


def _inner(error: BaseException) -> BaseException | None:
    wrapped = [each for each in error.args if isinstance(each, BaseException)]
    return error.__cause__ or error.__context__ or (wrapped[-1] if wrapped else None)

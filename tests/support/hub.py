"""A stand-in for the Hugging Face Hub on 127.0.0.1, because there is no network: it serves folders.

    with Hub(folder) as hub:                    # folder/models/org/tiny/…, folder/datasets/org/chats/…
        os.environ["HF_ENDPOINT"] = hub.url
        AutoModel.from_pretrained("org/tiny")

It answers what huggingface_hub, transformers and datasets request, with the headers and error codes that
huggingface_hub looks for (its utils/_http.py), and misbehaves on request: set `answer` at any time. The files
of a folder are one commit, `main`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final
from urllib.parse import unquote, urlsplit

Answer = Literal["ok", "stall", "cut"] | int
"""The answer to each request: the normal one, none while the server is open, files that are truncated in the
middle, or this HTTP status."""
_OF_HUB = ("HF_", "HUGGINGFACE_", "ENDPOINT", "HUB_")
"""The names of what the clients have read from the environment, or derived from it."""


@dataclass(frozen=True)
class _Repository:
    kind: str
    name: str
    folder: Path

    @property
    def commit(self) -> str:
        return hashlib.sha1(f"{self.kind}/{self.name}".encode()).hexdigest()

    def files(self, under: str = "") -> list[dict[str, Any]]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        entries = [
            {
                "type": "file",
                "oid": _digest(path),
                "size": path.stat().st_size,
                "path": str(path.relative_to(self.folder)),
            }
            for path in found
        ]
        return [entry for entry in entries if not under or str(entry["path"]).startswith(f"{under}/")]


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@final
class Hub:
    """The server; a context manager that listens on a free port while it is open.

    `private` repositories, as `org/name`, are not found without `token`; `gated` ones are refused without it.
    """

    token = "hf_" + "Q7w2" * 8

    def __init__(self, folder: Path, *, private: tuple[str, ...] = (), gated: tuple[str, ...] = ()) -> None:
        self.folder, self.private, self.gated = folder, private, gated
        self.answer: Answer = "ok"
        self.asked: list[str] = []
        self._closed = threading.Event()

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def commit(self, kind: str, name: str) -> str:
        """The commit of a repository's folder."""
        return _Repository(kind, name, self.folder).commit

    def downloads(self, ending: str) -> int:
        """The number of downloads of files with this ending."""
        return sum(
            line.startswith("GET") and "/resolve/" in line and line.endswith(ending) for line in self.asked
        )

    def wait(self) -> None:
        self._closed.wait(60)


def read_again(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Have huggingface_hub read the environment again, as at import; `put` sets the new values."""
    for client in ("huggingface_hub.constants", "datasets.config"):
        module = importlib.import_module(client)
        assert module.__spec__ is not None
        assert module.__spec__.loader is not None
        new = importlib.util.module_from_spec(module.__spec__)
        module.__spec__.loader.exec_module(new)
        for name, value in vars(new).items():
            if name.startswith(_OF_HUB) and value != getattr(module, name):
                put(module, name, value)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # see tests/support/stand_in.py

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.answer == "stall":
            self.hub.wait()
            self.close_connection = True
            return
        if isinstance(self.hub.answer, int):
            self._error(self.hub.answer, "", "the hub has trouble")
            return
        parts = path.split("/")
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts and parts[0] in ("models", "datasets") else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = _Repository(kind, name, self.hub.folder / kind / name)
        if not self._may_see(repository, of_files=bool({"resolve", "auth-check"} & set(rest))):
            return
        if api:
            self._api(repository, rest, body)
        elif len(rest) > 2 and rest[0] == "resolve":
            self._file(repository, rest[1], "/".join(rest[2:]))
        else:
            self._error(404, "", "no such page")

    def _may_see(self, repository: _Repository, *, of_files: bool) -> bool:
        knows = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if self.headers.get("Authorization") and not knows:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif not repository.folder.is_dir() or (repository.name in self.hub.private and not knows):
            self._error(404 if knows else 401, "RepoNotFound", "Repository not found")
        elif of_files and repository.name in self.hub.gated and not knows:
            self._error(401, "GatedRepo", f"Access to model {repository.name} is restricted.")
        else:
            return True
        return False

    def _api(self, repository: _Repository, rest: list[str], body: bytes) -> None:
        what, revision = [*rest, "", "main"][:2] if not rest else [*rest, "main"][:2]
        if what in ("tree", "paths-info", "revision") and not self._has(repository, revision):
            return
        if what in ("", "revision"):
            self._json(
                {
                    "id": repository.name,
                    "sha": repository.commit,
                    "private": False,
                    "gated": repository.name in self.hub.gated and "manual",
                    "disabled": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "lastModified": "2026-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": entry["path"]} for entry in repository.files()],
                }
            )
        elif what == "auth-check":
            self._json({})
        elif what == "tree":
            under = "/".join(rest[2:])
            entries = repository.files(under)
            if under and not entries:
                self._error(404, "EntryNotFound", "no such folder")
            else:
                self._json(entries)
        elif what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else []
            folders = [path for path in wanted if (repository.folder / path).is_dir()]
            self._json(
                [entry for entry in repository.files() if entry["path"] in wanted]
                + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders]
            )
        else:
            self._error(404, "", "no such call")

    def _has(self, repository: _Repository, revision: str) -> bool:
        if revision in ("main", repository.commit):
            return True
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _file(self, repository: _Repository, revision: str, name: str) -> None:
        if not self._has(repository, revision):
            return
        path = repository.folder / name
        if not path.is_file():
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        status, wanted = 200, self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first or 0), min(int(last or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            status, content = 206, content[begin : end + 1]
        self._send(status, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json", **(more or {})}
        if code:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.answer == "cut" and status in (200, 206) and "ETag" in headers:
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)


if (
    __name__ == "__main__"
):  # URL CACHE ARGUMENTS: runs the command in a process that has already imported the client
    from fmstune.cli.main import main

    os.environ["HF_ENDPOINT"], os.environ["HF_HOME"] = sys.argv[1:3]
    os.environ.pop("HF_HUB_OFFLINE", None)
    del sys.argv[1:3]
    read_again()
    main()

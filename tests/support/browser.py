"""A page in headless Chromium: its final DOM, its console messages, and its network requests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_OWN = re.compile(r"^https?://[\w.-]*(google|googleapis|gstatic|gvt1)\.com/")
"""Requests that the browser makes by itself, whatever the page."""


@dataclass(frozen=True)
class Seen:
    """The page after its scripts have run."""

    dom: str
    console: list[str]
    requests: list[str]


def open_page(page: Path, folder: Path) -> Seen:
    """Open a page, and wait for its scripts."""
    log = folder / "net.json"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-component-update", "--virtual-time-budget=8000", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--window-size=1200,12000",
            "--dump-dom", page.resolve().as_uri(),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    console = [line.partition("CONSOLE")[2] for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = json.loads(log.read_text())["events"]
    asked = [event.get("params", {}).get("url", "") for event in events]
    requests = [url for url in asked if url.startswith(("http:", "https:", "ws:")) and not _OWN.search(url)]
    return Seen(done.stdout, console, requests)

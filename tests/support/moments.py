"""Choose the moment at which another process, or a signal handler, acts on code that is running."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any


@contextmanager
def acting(moment: int, act: Callable[[], None], *modules: ModuleType) -> Iterator[list[str]]:
    """Call `act` once, before the line of the modules' code that is the `moment`-th to run in the block.
    Yields the name of the function that it is in; nothing if fewer lines run.

    Not before a `with`: where a block is left, CPython handles no signal.
    """
    files = {module.__file__ for module in modules}
    acted: list[str] = []
    count = 0

    def before_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        code = frame.f_code
        if (
            event != "line"
            or acted
            or linecache.getline(code.co_filename, frame.f_lineno).split()[0] == "with"
        ):
            return before_line
        count += 1
        if count == moment:
            acted.append(code.co_name)
            act()
        return before_line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: before_line if frame.f_code.co_filename in files else None)
    try:
        yield acted
    finally:
        sys.settrace(before)

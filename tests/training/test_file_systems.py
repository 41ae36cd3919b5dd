"""A run trains, saves and resumes on file systems that lack what FAT and mounted object stores lack."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fmstune.delivery.journal.reader import JournalReader
from fmstune.models.checkpoints import obstacle
from tests.support.journals import journal_path
from tests.support.tuned import tune, weights, weights_of

SETS = ["training.lr_scheduler_type=constant", "training.eval_strategy=no", "training.save_steps=1"]
LACKS = ["links", "permissions", "fsync", "free space", "total space", "folder renames", "gcsfuse"]


@contextlib.contextmanager
def lacking(what: set[str], below: Path) -> Iterator[None]:
    """Let calls fail as on a file system without these. Mocks, as no such file system can be mounted without
    a package of its own, and root's rights."""

    def failing(call: Any, number: int, only: Any = lambda path: True) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if only(args[0]):
                raise OSError(number, os.strerror(number))
            return call(*args, **kwargs)

        return called

    def is_filled_folder(path: Any) -> bool:
        return Path(path).is_dir() and any(Path(path).iterdir()) and Path(path).is_relative_to(below)

    nothing = os.statvfs_result((4096, 4096, *[0] * 8))
    calls = {
        "links": ("link", failing(os.link, errno.EPERM)),
        "permissions": ("chmod", failing(os.chmod, errno.EPERM)),
        "fsync": ("fsync", failing(os.fsync, errno.EINVAL)),
        "free space": ("statvfs", failing(os.statvfs, errno.ENOSYS)),
        "total space": ("statvfs", lambda path: nothing),
        "folder renames": ("rename", failing(os.rename, errno.ENOTSUP, is_filled_folder)),
        "gcsfuse": ("rename", failing(os.rename, errno.EMFILE, is_filled_folder)),
    }
    with contextlib.ExitStack() as patched:
        for each in what:
            name, replacement = calls[each]
            patched.enter_context(mock.patch.object(os, name, replacement))
        yield


@pytest.fixture(scope="module")
def whole() -> str:
    return weights_of(*SETS)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(what=st.sets(st.sampled_from(LACKS)), stop=st.integers(1, 3))
@example(what={"links", "permissions", "fsync", "free space", "gcsfuse"}, stop=1)
@example(what={"links", "total space", "folder renames"}, stop=2)
def test_a_run_trains_and_resumes_without(what: set[str], stop: int, whole: str) -> None:
    with tempfile.TemporaryDirectory() as folder, lacking(what, Path(folder)):
        out = Path(folder, "out")
        tune(str(out), *SETS, "training.save_total_limit=1", f"training.max_steps={stop}")
        (checkpoint,) = out.glob("checkpoint-*")
        assert obstacle(checkpoint) is None
        tune(str(out), *SETS, "tracking.artifacts=checkpoints", resume=str(out))
        assert weights(out) == whole
        events = JournalReader(journal_path(out))
        assert list(events)[-1].kind == "status"
        assert events.damaged == 0

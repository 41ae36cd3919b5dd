"""Keep tracker SDKs out of the training process: TRL and transformers import all those that they find.

transformers' `is_wandb_available()` imports wandb, and TRL calls it on import: an SDK that hangs, exits or
raises there would stop a training that does not even use it, and the 236 modules of wandb cost 0.4 s of
every start.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

SDKS = (
    "aim", "azureml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flytekit", "mlflow",
    "neptune", "sigopt", "swanlab", "tensorboard", "tensorboardX", "trackio", "wandb", "weave",
)  # fmt: skip
"""The packages that TRL, transformers and accelerate import, now or later, if they are installed."""

_lock = threading.RLock()
_importing: dict[int, int] = {}
"""The threads that import libraries, with the depth to which `sdks_deferred` is nested in each."""


@contextlib.contextmanager
def sdks_deferred() -> Iterator[None]:
    """In this context and thread, an `import` of a tracker's SDK returns a stand-in, which imports the SDK
    when it is first used afterwards. Use it only around imports of TRL and the like.

    The SDK still counts as installed, as it would not with `None` in `sys.modules`: what TRL and transformers
    determine on import also applies to a Trainer that the user builds later, and so do the names that they
    bind then. Code that imports the SDK outside of this gets the SDK itself; one that is already imported
    stays.
    """
    thread = threading.get_ident()
    with _lock:
        _importing[thread] = _importing.get(thread, 0) + 1
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
    try:
        yield
    finally:
        with _lock:
            _importing[thread] -= 1
            if not _importing[thread]:
                del _importing[thread]
            if not _importing:
                sys.meta_path.remove(_finder)
                _forget(SDKS)


class _StandIn(ModuleType):
    """A stand-in for a module of an SDK, or an attribute of one, by its dotted name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # Code that scans all modules, like `inspect` and `warnings`, must not import any.
            raise AttributeError(f"{self.__name__} is not imported")
        if threading.get_ident() in _importing:
            return _StandIn(f"{self.__name__}.{name}")
        return getattr(_real(self.__name__), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() in _importing:  # as `comet_ml.config.get_config` by transformers
            return _StandIn(f"{self.__name__}()")
        return _real(self.__name__)(*args, **kwargs)


def _real(name: str) -> Any:
    """The real module or attribute called `name`, with the SDK imported."""
    with _lock:  # another thread may be importing TRL, which needs the stand-in
        _forget([name.partition(".")[0]])
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            with contextlib.suppress(ModuleNotFoundError):  # then it is not a module: `getattr` decides
                importlib.import_module(".".join(parts[:end]))
        found = getattr(found, part)
    return found


def _forget(packages: Sequence[str]) -> None:
    """Remove the stand-ins of these packages from `sys.modules`."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn) and name.partition(".")[0] in packages:
            del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of the SDKs that are installed, and loads stand-ins for them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a stand-in; `None` for all other modules, and in other threads."""
        package = name.partition(".")[0]
        if package not in SDKS or threading.get_ident() not in _importing:
            return None
        there = isinstance(sys.modules.get(package), _StandIn)
        if name != package:
            return importlib.machinery.ModuleSpec(name, self, is_package=True) if there else None
        specs = (each.find_spec(name, path, target) for each in sys.meta_path if each is not self)
        real = next((spec for spec in specs if spec is not None), None)
        return real and importlib.machinery.ModuleSpec(name, self, origin=real.origin, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The stand-in."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Deliberately execute nothing."""


_finder = _Finder()

"""End the worker processes of a trainer's data loaders with the run."""

from __future__ import annotations

import gc
from typing import Any

# The class whose instances hold the workers: a loader that keeps them has a name for one, others have none.
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from fmstune.training.tuned_trainer import as_trainer


class EndsWorkers:
    """A mixin for a Trainer, before it."""

    _loaders: tuple[Any, ...] = ()

    def get_train_dataloader(self) -> Any:
        """The Trainer's."""
        return self._noted(as_trainer(super()).get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The Trainer's."""
        trainer: Any = super()
        return self._noted(trainer.get_eval_dataloader(eval_dataset))

    def _noted(self, loader: Any) -> Any:
        if as_trainer(self).args.dataloader_num_workers:
            self._loaders = (*self._loaders, loader)
        return loader

    def end_workers(self) -> None:
        """End those that are left. They would end when Python finds that nothing needs their iterator, which
        is part of cycles, and of the traceback where a run has failed."""
        rows = [loader.dataset for loader in self._loaders]
        if not rows:
            return
        for each in gc.get_objects():
            # Not `isinstance`, which asks proxies among all the objects for what they stand for.
            if type(each) is _MultiProcessingDataLoaderIter and any(each._dataset is one for one in rows):
                each._shutdown_workers()
        for loader in self._loaders:
            loader.base_dataloader._iterator = None  # or it would be used again
        self._loaders = ()

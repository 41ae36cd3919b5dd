"""Stop the worker processes of a trainer's data loaders at the end of the run."""

from __future__ import annotations

import gc
from typing import Any

# Its instances hold the workers. Only a loader with persistent workers keeps a reference to one.
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from fmstune.training.tuned_trainer import as_trainer


class EndsWorkers:
    """A mixin for a Trainer, before it."""

    _loaders: tuple[Any, ...] = ()

    def get_train_dataloader(self) -> Any:
        """The Trainer's, recorded."""
        return self._recorded(as_trainer(super()).get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The Trainer's, recorded."""
        trainer: Any = super()
        return self._recorded(trainer.get_eval_dataloader(eval_dataset))

    def _recorded(self, loader: Any) -> Any:
        if as_trainer(self).args.dataloader_num_workers:
            self._loaders = (*self._loaders, loader)
        return loader

    def end_workers(self) -> None:
        """Stop the remaining workers. Otherwise they run until Python collects their iterator, which is part
        of reference cycles and, if a run failed, of the traceback."""
        rows = [loader.dataset for loader in self._loaders]
        if not rows:
            return
        for each in gc.get_objects():
            # Not `isinstance`, which would resolve the proxies among all these objects.
            if type(each) is _MultiProcessingDataLoaderIter and any(each._dataset is one for one in rows):
                each._shutdown_workers()
        for loader in self._loaders:
            loader.base_dataloader._iterator = None  # otherwise it would be reused
        self._loaders = ()

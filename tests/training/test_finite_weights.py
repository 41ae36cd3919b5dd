"""Non-finite weights are detected in the shards of a sharded model, by all processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fmstune.errors import RunError
from fmstune.training.trainers.finite_weights import broken_anywhere
from fmstune.training.trainers.nonfinite import NonFiniteGuard

NAN = float("nan")


def partitioned(*shards: list[float]) -> torch.nn.Module:
    """Stands in for a model at ZeRO 3, as DeepSpeed is not installed for the tests: outside the forward and
    backward passes its parameters are empty, and `ds_tensor` holds this process's shard."""
    model = torch.nn.Module()
    for number, shard in enumerate(shards):
        weight = torch.nn.Parameter(torch.empty(0))
        weight.ds_tensor = torch.tensor(shard)
        model.register_parameter(f"weight_{number}", weight)
    return model


def test_a_broken_shard_of_deepspeed_is_not_saved() -> None:
    guard = NonFiniteGuard("stop", print)
    guard.weights(partitioned([1.0, 2.0], [3.0]), 5)
    with pytest.raises(RunError, match=r"after step 5 \(weight_1, for example\), and are not saved"):
        guard.weights(partitioned([1.0, 2.0], [NAN, 3.0]), 5)


def test_only_trained_shards_are_checked() -> None:
    model = partitioned([NAN])
    model.requires_grad_(False)
    assert broken_anywhere(model) is None


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2
    )
    deepspeed = partitioned([1.0], [NAN if rank == 1 else 2.0])
    fsdp = torch.nn.Linear(4, 4, bias=False)
    fully_shard(fsdp, mesh=init_device_mesh("cpu", (2,)))
    with torch.no_grad():
        fsdp.weight.to_local().fill_(NAN if rank == 1 else 2.0)
    found = [broken_anywhere(each) for each in (deepspeed, fsdp, partitioned([1.0]))]
    Path(folder, f"found-{rank}").write_text(str(found))
    torch.distributed.destroy_process_group()


def test_all_ranks_refuse_a_model_that_is_broken_in_the_shard_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    found = [(tmp_path / f"found-{rank}").read_text() for rank in range(2)]
    assert found == ["['weight_1', 'weight', None]"] * 2

"""What TRL refuses is a settings error with TRL's sentence; a bug in the program is not."""

from __future__ import annotations

import pytest
import torch
import trl

from fmstune.errors import ConfigError
from fmstune.training.trainers.preferences import refused_by_trl


def test_trls_refusal_is_reported_as_its_first_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^\[training\] is refused by TRL: ") as caught, refused_by_trl():
        trl.DPOConfig("out", loss_type=["sigmoid"], loss_weights=[1.0, 2.0])
    assert isinstance(caught.value.__cause__, (ValueError, NotImplementedError))


def test_what_torch_or_fmstune_raises_there_is_no_settings_error() -> None:
    with pytest.raises(ValueError, match="Default process group"), refused_by_trl():
        torch.distributed.broadcast_object_list([1])
    with pytest.raises(ValueError, match="own"), refused_by_trl():
        raise ValueError("own")

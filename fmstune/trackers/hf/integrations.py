"""The callbacks that transformers integrates, by the names of its `report_to`: found without importing
any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PREFIX = "hf:"


@dataclass(frozen=True, slots=True)
class Integration:
    """A callback of transformers: the package that it needs, the distribution that provides it, the variables
    that make it send what it does not have here (the model, checkpoints, files), variables that accept only a
    few values: with any other, it does nothing and only logs so, and those without which it does nothing."""

    package: str
    distribution: str
    uploads: tuple[str, ...] = ()
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


INTEGRATIONS: dict[str, Integration] = {
    "azure_ml": Integration("azureml.core", "azureml-core"),
    "clearml": Integration("clearml", "clearml", ("CLEARML_LOG_MODEL",)),
    "codecarbon": Integration("codecarbon", "codecarbon"),
    "comet_ml": Integration(
        "comet_ml", "comet-ml", ("COMET_LOG_ASSETS",), {"COMET_MODE": ("get", "get_or_create", "create")}
    ),
    "dagshub": Integration("dagshub", "dagshub", ("HF_DAGSHUB_LOG_ARTIFACTS",)),
    "dvclive": Integration("dvclive", "dvclive", ("HF_DVCLIVE_LOG_MODEL",)),
    "flyte": Integration("flytekit", "flytekit"),
    "kubeflow": Integration(
        "transformers",
        "transformers",
        needs=("KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_TOKEN"),
    ),
    "mlflow": Integration("mlflow", "mlflow", ("HF_MLFLOW_LOG_ARTIFACTS",)),
    "neptune": Integration("neptune", "neptune"),
    "swanlab": Integration("swanlab", "swanlab"),
    "tensorboard": Integration("tensorboard", "tensorboard"),
    "trackio": Integration("trackio", "trackio"),
    "wandb": Integration("wandb", "wandb", ("WANDB_LOG_MODEL", "WANDB_WATCH")),
}


def integration_names() -> list[str]:
    """The names that `--tracker` accepts."""
    return [PREFIX + name for name in INTEGRATIONS]

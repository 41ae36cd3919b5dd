"""The modules that an interpreter imports so that forked processes find trackers' SDKs already imported, and
the environment variables that these read at import.

An SDK imports more when it is used: W&B for another half second when a run begins, and pandas at the first
table.
"""

from __future__ import annotations

import re

MODULES: dict[str, tuple[str, ...]] = {
    "aim": (
        "aim", "sqlalchemy.dialects.sqlite", "tests.support.aim_database",
        "fmstune.trackers.aimstack_tracker", "tests.support.mapped",
    ),
    "wandb": ("wandb", "wandb.sdk.launch", "fmstune.trackers.wandb_tracker"),
    "mlflow": (
        "mlflow.tracking", "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.tracking.sqlalchemy_workspace_store", "alembic.command", "sqlalchemy.dialects.sqlite",
        "fmstune.trackers.mlflow_tracker", "tests.support.mapped",
    ),
    "tensorboard": (
        "tensorboard.summary.writer.record_writer", "tensorboard.compat.proto.event_pb2",
        "tensorboard.plugins.hparams.plugin_data_pb2", "tensorboard.plugins.text.metadata",
        "fmstune.trackers.tensorboard_tracker",
    ),
    "trackio": ("trackio", "trackio.sqlite_storage", "fmstune.trackers.trackio_tracker"),
    "dvclive": ("dvclive", "fmstune.trackers.dvclive_tracker"),
    "swanlab": ("swanlab.sdk", "fmstune.trackers.swanlab_tracker"),
    "comet": ("comet_ml", "fmstune.trackers.comet_tracker"),
    "clearml": ("tests.support.clearml_warm", "fmstune.trackers.clearml_tracker"),
}  # fmt: skip
"""The modules that each tracker with an SDK uses."""
COMMON = (
    "numpy", "pandas", "requests", "yaml", "pydantic", "httpx", "sqlalchemy", "psutil", "PIL.Image",
    "google.protobuf.message", "jinja2", "rich.console",
)  # fmt: skip
"""The modules that several of them import."""
BESIDE: dict[str, tuple[str, ...]] = {
    "aim": ("aim.sdk.index_manager", "pandas", "pyarrow.pandas_compat"),
    "wandb": ("wandb.proto.wandb_internal_pb2", "pandas"),
    "mlflow": ("mlflow.utils.search_logged_model_utils",),
    "tensorboard": ("tensorboard.backend.event_processing.event_accumulator",),
    "swanlab": ("pyroaring", "swanlab.sdk.internal.core_python.store"),
    "comet": ("encodings.cp437",),
}  # fmt: skip
"""What each uses for tables, and what reads its storage."""
AT_IMPORT = re.compile(
    "AIM_|MLFLOW_(?!TRACKING_URI$|DISABLE_TELEMETRY$|HTTP_REQUEST_|SUPPRESS_PRINTING_)|TRACKIO_DIR"
    "|SWANLAB_(CONFIG_DIR|DEBUG|REQUIRE|SECRETS_DIR)|COMET_(CONFIG|INI|LOGGING|DISABLE)|WANDB_(DISABLE_CACHE|HTTP_TIMEOUT|INSECURE)"
    "|DVCLIVE_LOGLEVEL"
)
"""Variables that one of them reads at import, in addition to those that Python and libraries read."""

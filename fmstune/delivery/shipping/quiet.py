"""The environment of a shipper: it keeps SDKs from reporting their usage, from sending the shipper's own
data, and from prompting or retrying for too long."""

from __future__ import annotations

import os

QUIET = {
    # comet_ml/config/config_map.py (3.58): it would be the code, machine and output of the shipper.
    "COMET_AUTO_LOG_CODE": "false",
    "COMET_AUTO_LOG_ENV_DETAILS": "false",
    "COMET_AUTO_LOG_GIT_METADATA": "false",
    "COMET_AUTO_LOG_GIT_PATCH": "false",
    "COMET_AUTO_LOG_GRAPH": "false",
    "COMET_AUTO_LOG_OUTPUT_LOGGER": "",  # any other text that is no logger's is taken for the default
    # comet_ml/error_tracking/api.py: some processes report their errors to Sentry.
    "COMET_ERROR_TRACKING_ENABLE": "false",
    # dvc/env.py (3.67)
    "DVC_NO_ANALYTICS": "true",
    # huggingface_hub/utils/_telemetry.py: trackio's client of older servers reports that it is used.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # for which `set_terminated` asks the server
    # By default MLflow tries for four minutes (seen with 3.17); the journal waits longer, and at no cost.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # swanlab/sdk/internal/settings (0.10): it would be the machine, packages, Git and output of the shipper;
    # and it would ask for a key at a terminal.
    "SWANLAB_INTERACTIVE": "false",
    "SWANLAB_PROBE_GIT": "false",
    "SWANLAB_PROBE_HARDWARE": "false",
    "SWANLAB_PROBE_MONITOR": "false",
    "SWANLAB_PROBE_REQUIREMENTS": "false",
    "SWANLAB_PROBE_RUNTIME": "false",
    "SWANLAB_PROBE_SWANLAB": "false",
    "SWANLAB_TERMINAL_PROXY_TYPE": "none",
    # It reports its own errors to a server.
    "WANDB_ERROR_REPORTING": "false",
}
"""Values of the SDKs' own variables in a shipper, unless the user has set them."""


def environment() -> dict[str, str]:
    """The variables of a shipper. It computes nothing: an OpenMP pool in it would only take cores from the
    training."""
    return {**QUIET, **os.environ, "OMP_NUM_THREADS": "1"}

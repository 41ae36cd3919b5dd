"""Has MLflow create the tables of a new store at the address in the argument."""

from __future__ import annotations

import sys

from mlflow.tracking import MlflowClient

if __name__ == "__main__":
    MlflowClient(sys.argv[1]).get_experiment("0")

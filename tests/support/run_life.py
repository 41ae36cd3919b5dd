"""Runs one life of a shipper for `tests.support.nurseries`; the request is its argument."""

from __future__ import annotations

import json
import os
import sys

from fmstune.testing.fork_server import run_request

if __name__ == "__main__":
    answers = os.dup(1)
    os.dup2(2, 1)  # what SDKs print is not part of the answer
    run_request(json.loads(sys.argv[1]), answers)

#!/usr/bin/env bash
# Two machines with eight GPUs each. Run this on both, with NODE=0 on the first and NODE=1 on the second:
#   NODE=0 FIRST=node-0.example.org examples/cluster/several-nodes.sh
# The output directory is on a shared file system. --resume starts the run, or continues it.
set -euo pipefail
torchrun --nnodes 2 --node-rank "$NODE" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-endpoint "$FIRST:29500" --rdzv-id tune \
  -m fmstune train --model "$MODEL" --data "$DATA" --output-dir "$RUNS/tune" --tracker aim --resume

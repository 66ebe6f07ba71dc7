#!/bin/bash
# GAR on several nodes under Slurm: one torchrun a node, one process a GPU, weights spread over all of them (FSDP2).
# What follows the script's name goes to `gar train finetune`:
#
#     sbatch --nodes 4 launch/slurm.sh --data DATA --model HaochenWang/GAR-1B --recipe gar_1b --out RUN
#
# RUN lies on a disk that all nodes see. A job that was stopped goes on where it was, with the same line again.

#SBATCH --job-name=gar
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --output=%x-%j.log

set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-backend c10d \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-endpoint "${nodes[0]}:29500" \
    -m gar.cli train finetune --shard "$@"

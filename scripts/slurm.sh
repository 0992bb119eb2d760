#!/usr/bin/env bash
# Train on several nodes of a SLURM cluster, across time limits.
#
# usage: sbatch scripts/slurm.sh configs/digits.yaml
#
# SLURM sends SIGTERM two minutes before the time limit. Training then writes a checkpoint and ends
# with exit code 143, and the job is queued again under the same number. The run is named after this
# number, so the job resumes it.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
config=$1
run="slurm_$SLURM_JOB_ID"

if [[ -f lightning_logs/$run/checkpoints/last.ckpt ]]; then
    arguments=(fit --resume "$run")
else
    rm -rf "lightning_logs/$run" # a run without a checkpoint cannot be resumed
    arguments=(
        fit --config "$config" --name "$run" --trainer.num_nodes "$SLURM_NNODES"
        --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp
        --trainer.enable_progress_bar false
    )
fi

srun --kill-on-bad-exit=0 --wait=60 python -m proj "${arguments[@]}"
code=$?
if ((code == 143)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

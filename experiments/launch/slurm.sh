#!/bin/bash
# Train on several GPU nodes under Slurm, one process a GPU. From the clone:
#
#   OUT=/shared/runs/vae sbatch experiments/launch/slurm.sh vae --data mnist --data-dir /shared/tfds
#
# OUT must be on a file system that all nodes share. A process that dies ends the job step;
# two minutes before the time limit all are told to save. In both cases the job is put back
# into the queue, at most MAX_RESTARTS times, and goes on from the last checkpoint.
#SBATCH --job-name=jaxgen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxgen-%j.log
set -uo pipefail

srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" python -m jaxgen train "$@" --out "$OUT"
status=$?
case $status in
0) exit 0 ;;
2) exit 2 ;; # a mistake in the command: trying again would not help
esac
restarts=${SLURM_RESTART_COUNT:-0}
if [ "$restarts" -lt "${MAX_RESTARTS:-10}" ]; then
    echo "status $status: back into the queue (restart $((restarts + 1)))"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status

#!/bin/bash
# Runs an evolution on all GPUs of a Slurm job: `sbatch populations/slurm.sh my_recipe.yaml`.
# The recipe says `evaluator: {name: ray, workers: auto, gpus_per_worker: 1}`. Submitted again, it goes on.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
set -eu

recipe=$1
run=${2:-runs/$(basename "$recipe" .yaml)}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_ADDRESS=$head:6379

srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --port=6379 --block &
sleep 20
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
        ray start --address="$RAY_ADDRESS" --block &
    sleep 20
fi

# On the head node, where the run's folder is written.
if [ -e "$run/manifest.json" ]; then
    evomerge resume "$run"
else
    evomerge run "$recipe" --output "$run"
fi

#!/usr/bin/env bash
# A grid on Slurm: a Dask scheduler, a worker for each task, and the usual batch command.
#
#     sbatch --ntasks=4 --gpus-per-task=1 --cpus-per-task=8 benchmarks/slurm.sh grid.yaml
#     sbatch --ntasks=2 --export=ALL,RESOURCES= benchmarks/slurm.sh --methods js kl    (no GPU)
#
# Submit it from the checkout, in a folder that all nodes share, with the environment in .venv or
# in BIN. What a job's time limit cuts off goes on with the next job of the same command.
#SBATCH --job-name=distilwhisper
#SBATCH --output=outputs/slurm-%j.log
#SBATCH --signal=B:TERM@90
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
BIN=${BIN:-$PWD/.venv/bin}
RESOURCES=${RESOURCES-GPU=1} # what a worker offers; empty on nodes without GPUs
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # workers run this checkout's code, too
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

mkdir -p outputs
address=outputs/dask-${SLURM_JOB_ID:-0}.json
log=outputs/dask-${SLURM_JOB_ID:-0}.log
rm -f "$address"
"$BIN/dask" scheduler --host "$(hostname -i | cut -d' ' -f1)" --port 0 --no-dashboard \
	--scheduler-file "$address" >>"$log" 2>&1 &
scheduler=$!
srun "$BIN/dask" worker --scheduler-file "$address" --nthreads 1 --no-dashboard \
	--death-timeout 120 ${RESOURCES:+--resources "$RESOURCES"} >>"$log" 2>&1 &
workers=$!
batch=
finish() {
	kill "$workers" "$scheduler" 2>/dev/null || true
	rm -f "$address"
}
trap finish EXIT
trap '[ -z "$batch" ] || kill -TERM "$batch"' TERM INT

for _ in $(seq 120); do
	[ -s "$address" ] && break
	sleep 1
done
where=$("$BIN/python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$address")
"$BIN/python" -m distilwhisper_lib batch run "$@" --scheduler "$where" &
batch=$!
# Once more after a signal, which ends the first wait before the batch has ended.
wait "$batch" || wait "$batch"

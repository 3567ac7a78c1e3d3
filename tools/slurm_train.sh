#!/usr/bin/env bash
# Train on a Slurm cluster:
#     tools/slurm_train.sh PARTITION JOB_NAME mmseg|mmdet|classifier CONFIG [arguments of its training script]
# As in mmseg and mmdet: GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), SRUN_ARGS. PYTHON names the interpreter.
set -euo pipefail
if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB_NAME mmseg|mmdet|classifier CONFIG [arguments of its training script]" >&2
    exit 2
fi
PYTHON=${PYTHON:-python}
if ! command -v "$PYTHON" > /dev/null; then
    echo "mmtok: the Python '$PYTHON' is not there: name one with PYTHON=/path/to/python" >&2
    exit 1
fi
TRAIN=$("$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/find_train.py" "$3" "$4")
if ! command -v srun > /dev/null; then
    echo "mmtok: srun is not here: run this on a login node of the Slurm cluster" >&2
    exit 1
fi
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun -p "$1" --job-name="$2" --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$PYTHON" -u "$TRAIN" "$4" --launcher slurm "${@:5}"

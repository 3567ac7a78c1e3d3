#!/usr/bin/env bash
# Train on N processes of this machine, GPUs where there are any, else CPU processes (gloo):
#     tools/dist_train.sh mmseg|mmdet|classifier CONFIG N [arguments of its training script]
# PYTHON names the interpreter. Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in mmseg and mmdet.
set -euo pipefail
if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 mmseg|mmdet|classifier CONFIG N [arguments of its training script]; N is a number of processes, one for each GPU" >&2
    exit 2
fi
PYTHON=${PYTHON:-python}
if ! command -v "$PYTHON" > /dev/null; then
    echo "mmtok: the Python '$PYTHON' is not there: name one with PYTHON=/path/to/python" >&2
    exit 1
fi
TRAIN=$("$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/find_train.py" "$1" "$2")
if [[ ${NNODES:-1} == 1 ]]; then
    WHERE=(--standalone)  # picks a free port, so that two trainings fit on one machine
else
    WHERE=(--nnodes="$NNODES" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}"
           --master_port="${PORT:-29500}")
fi
exec "$PYTHON" "$(dirname "${BASH_SOURCE[0]}")/launch.py" "${WHERE[@]}" --nproc_per_node="$3" "$TRAIN" "$2" --launcher pytorch "${@:4}"

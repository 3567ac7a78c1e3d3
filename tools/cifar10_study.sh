#!/usr/bin/env bash
# Train the README's CIFAR-10 table: plain and MoTo in each placement, without and with TokenProp, several seeds each.
#     CIFAR10_ROOT=/path/to/image/folder tools/cifar10_study.sh [EPOCHS [SEEDS [JOBS]]]
# JOBS trainings at a time, one CPU thread each. Run it again after an interruption: it goes on where it was.
# PYTHON names the interpreter, OUT another folder for the results.
set -euo pipefail
epochs=${1:-12} seeds=${2:-3} jobs=${3:-$(nproc)}
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-python} OMP_NUM_THREADS=1 EPOCHS=$epochs
# The C library keeps freed pages instead of asking the kernel for new ones: a sixth of the time of a step on a CPU
export MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=4294967296
export OUT=${OUT:-work_dirs/cifar10-study-${epochs}e}
export CIFAR10_ROOT=${CIFAR10_ROOT:-data/cifar10}
mkdir -p "$OUT"

train() {
    local config=$1 seed=$2 name
    name=$(basename "${config%.py}")-seed$seed
    grep -qs "\"epoch\": $EPOCHS," "$OUT/$name/results.json" && return
    echo "$(date +%T) $name"
    if ! "$PYTHON" tools/train_classifier.py "$config" --work-dir "$OUT/$name" --resume --cfg-options \
            randomness.seed="$seed" train_cfg.max_epochs="$EPOCHS" param_scheduler.epochs="$EPOCHS" \
            train_dataloader.num_workers=1 default_hooks.checkpoint.interval=1 \
            default_hooks.checkpoint.max_keep_ckpts=1 > "$OUT/$name.log" 2>&1; then
        echo "$name failed: see $OUT/$name.log" >&2
        return 255  # xargs starts no more
    fi
}
export -f train

for seed in $(seq 0 $((seeds - 1))); do
    for config in configs/cifar10/deit-nano*.py; do echo "$config $seed"; done
done | xargs -P "$jobs" -L 1 bash -c 'train "$@"' train

"$PYTHON" tools/summarize.py "$OUT"/*-seed*/ --out "$OUT/table.md" --json "$OUT/summary.json" --plot "$OUT/curves.png"

#!/usr/bin/env bash
# The recipe of segagent-nano, from nothing to $OUT/nano (RELEASE=segagent/nano replaces the embedded one), on two CPU cores.
# Every stage resumes: run it again after an interruption. OUT, MINUTES and the counts below make it smaller or larger.
set -euo pipefail
OUT=${OUT:-runs/nano} SCENES=${SCENES:-400} WIDTH=${WIDTH:-192} LAYERS=${LAYERS:-4} MINUTES=${MINUTES:-150}
TRAJECTORIES=${TRAJECTORIES:-4000} STEPS=${STEPS:-700} BATCH=${BATCH:-32} ROUNDS=${ROUNDS:-1} RUNS=${RUNS:-2000} COUNT=${COUNT:-300}
SHARD=${SHARD:-250} WORKERS=${WORKERS:-2}
# Keeps glibc from giving memory back to the system after every batch: up to three times faster.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=536870912

# A processor's configuration is the last file of a model that is written.
[ -e "$OUT/untrained/processor_config.json" ] || python -m train.nano --out "$OUT/untrained" --scenes "$SCENES" --width "$WIDTH" --layers "$LAYERS"
[ -e "$OUT/vision/processor_config.json" ] || python -m train.pretrain --model "$OUT/untrained" --out "$OUT/vision" --minutes "$MINUTES" --batch "$BATCH"

# D_0: what comes after a click, and how good a segmenter's masks are, on the segmenter that nano is to click with.
python -m train.generate --out "$OUT/trajectories" --samples "$TRAJECTORIES" --steps 6 \
    --initial 0.5 0.1 0.2 0.2 --shard "$SHARD" --workers "$WORKERS"
# And single decisions, which cost no segmenter: above all where to click first, on many more scenes.
python -m train.generate --decisions --out "$OUT/decisions" --samples "$((5 * TRAJECTORIES))" --size 192 --seed 1 \
    --absent 0.06 --initial 0.55 0.15 0.15 0.15 --shard "$((4 * SHARD))" --workers "$WORKERS"

tune=(--prompt "{expression}" --freeze-vision --batch "$BATCH" --weight-decay 0.05 --steps "$STEPS" --likeliest)
[ -e "$OUT/sft/segagent.json" ] || python -m train.sft --model "$OUT/vision" --out "$OUT/sft" --rate 5e-4 --data "$OUT/trajectories" "$OUT/decisions" "${tune[@]}"

star() { # METHOD: rounds of StaR+, and of StaR with as many batches to compare with
    python -m train.star --method "$1" --model "$OUT/sft" --data "$OUT/trajectories" "$OUT/decisions" --out "$OUT/$1" --rounds "$ROUNDS" \
        --samples "$RUNS" --absent 0.06 --count "$COUNT" --shard "$SHARD" --workers "$WORKERS" "${@:2}" -- --rate 3e-4 "${tune[@]}"
}
star star+
[ -n "${BASELINE:-}" ] && star star --stop 0.8

# The best by the validation split.
python -m train.release --best "$OUT/star+" --out "${RELEASE:-$OUT/nano}"

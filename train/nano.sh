#!/usr/bin/env bash
# The recipe of segagent-nano, from nothing to $OUT/nano (RELEASE=segagent/nano replaces the embedded one), on two CPU cores.
# Every stage resumes: run it again after an interruption. OUT, MINUTES and the counts below make it smaller or larger.
set -euo pipefail
OUT=${OUT:-runs/nano} MINUTES=${MINUTES:-50} EASY=${EASY:-20000} MEDIUM=${MEDIUM:-9000} HARD=${HARD:-5000} REAL=${REAL:-1600}
FIRST=${FIRST:-1000} STEPS=${STEPS:-1800} BATCH=${BATCH:-32} SCENES=${SCENES:-400}
# Keeps glibc from giving memory back to the system after every batch: up to three times faster.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=536870912

[ -e "$OUT/untrained/config.json" ] || python -m train.nano --out "$OUT/untrained" --scenes "$SCENES"
[ -e "$OUT/vision/config.json" ] || python -m train.pretrain --model "$OUT/untrained" --out "$OUT/vision" --minutes "$MINUTES"

# Where to click first and how good a mask is: single decisions, easy scenes first. What comes after a click: real runs.
generate() { python -m train.generate --size 168 --initial 0.55 0.15 0.15 0.15 "$@"; }
generate --decisions --out "$OUT/decide-easy" --source hres-synth:easy --samples "$EASY" --shard 1000
generate --decisions --out "$OUT/decide-medium" --source hres-synth:medium --samples "$MEDIUM" --shard 1000
generate --decisions --out "$OUT/decide-hard" --source hres-synth:hard --samples "$HARD" --shard 1000
generate --out "$OUT/trajectories" --source hres-synth --samples "$REAL" --steps 4 --shard 200

sft() { python -m train.sft --prompt "{expression}" --freeze-vision --batch "$BATCH" --rate 1e-3 --weight-decay 0.05 "$@"; }
[ -e "$OUT/sft-easy/segagent.json" ] || sft --model "$OUT/vision" --out "$OUT/sft-easy" --steps "$FIRST" --data "$OUT/decide-easy"
[ -e "$OUT/sft/segagent.json" ] || sft --model "$OUT/sft-easy" --out "$OUT/sft" --steps "$STEPS" \
    --data "$OUT/decide-easy" "$OUT/decide-medium" "$OUT/decide-hard" "$OUT/trajectories"

python -m train.release --model "$OUT/sft" --out "${RELEASE:-$OUT/nano}"

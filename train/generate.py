"""D_traj: the simulated annotator's trajectories with a segmenter, as shards of parquet (paper, Algorithm 3).

    python -m train.generate --out runs/nano/trajectories --samples 40000 --workers 2

Three rules: at most `--steps` actions; stop at an IoU of `--stop`; cut a trajectory before an action that gains less than
`--gain`. Not all start from the empty mask: some from the segmenter's mask of the target's box, of random points in that
box, or of a point beside the target, as the paper does for diversity and for refinement. With `--decisions` no segmenter is
asked at all: one decision of F_sim on a mask that was made wrong, hundreds a second, for where to click first and for the PRM
(rule three, which needs the segmenter, does not apply to these). Each shard depends on the seed and
its own number alone, and is written whole or not at all: after an interruption the same command makes the rest.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segagent.annotator import SimulatedAnnotator
from segagent.data.corruptions import corrupt
from segagent.environment import Environment, reward
from segagent.errors import DataError
from segagent.evaluate import First
from segagent.masks import box_of
from segagent.policy import Observation, seed_for
from segagent.rollout import rollout
from segagent.segmenters import load_segmenter
from segagent.trajectories import to_row
from segagent.types import Action, Box, Click, Sample, State, Trajectory, Transition
from train.shards import write_shard

INITIAL = ("empty", "box", "points", "beside")
log = logging.getLogger(__name__)


def initial_actions(kind: str, sample: Sample, rng: np.random.Generator) -> list[Action]:
    """The actions whose mask a trajectory starts from; none for the empty mask."""
    height, width = sample.size
    inside = np.argwhere(sample.target)
    if kind == "empty" or not len(inside):
        return []
    x0, y0, x1, y1 = box_of(sample.target)
    if kind == "box":
        jitter = rng.uniform(-0.1, 0.1, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        corners = np.rint(np.array([x0, y0, x1, y1]) + jitter).astype(int)
        corners = np.clip(corners, 0, [width - 1, height - 1, width - 1, height - 1])
        return [Box(*(int(v) for v in corners))]
    if kind == "points":
        # The paper's off-policy masks: points anywhere in the target's box, so some of them beside the target.
        count = rng.integers(1, 4)
        xs, ys = rng.integers(x0, x1 + 1, count), rng.integers(y0, y1 + 1, count)
        return [Click(int(x), int(y)) for x, y in zip(xs, ys, strict=True)]
    outside = np.argwhere(~sample.target)
    if kind != "beside":
        raise DataError(f"Unknown initial state {kind!r}: use one of {', '.join(INITIAL)}.")
    if not len(outside):
        return []
    y, x = outside[rng.integers(len(outside))]
    return [Click(int(x), int(y))]


def simulate(
    environment: Environment, sample: Sample, *, kind: str, steps: int, stop: float, gain: float, seed: int
) -> Trajectory | None:
    """F_sim's trajectory of one sample under the three rules; None where not even its first action gains enough."""
    rng = np.random.default_rng(seed_for(seed, sample.id, INITIAL.index(kind)))
    state: State = environment.reset(sample)
    for action in initial_actions(kind, sample, rng):
        state = environment.step(state, action)
    # The policy is Markov in the mask: a trajectory that starts from a mask knows nothing of how it was made.
    start = environment.reset(sample, state.mask)
    kept = []
    annotator = SimulatedAnnotator(sample.target, sample.ignore, stop_iou=stop)
    for transition in rollout(environment, annotator, sample, steps=steps, start=start):
        if transition.action is not None and transition.reward - transition.iou < gain:
            break
        kept.append(transition)
    return Trajectory(sample, tuple(kept)) if kept else None


def decide(sample: Sample, *, stop: float, empty: float, seed: int) -> Trajectory:
    """One decision of F_sim on a mask made wrong without a segmenter; on the empty mask in a share `empty` of all."""
    rng = np.random.default_rng(seed_for(seed, sample.id, len(INITIAL) + 1))
    kind = "empty" if rng.random() < empty else None
    mask, kind = corrupt(sample.target, rng, kind, sample.meta.get("others", ()))
    state = State(sample.image, mask)
    annotator = SimulatedAnnotator(sample.target, sample.ignore, stop_iou=stop)
    action = annotator.read([Observation(state, sample.expression, sample.id)])[0].propose()[0].action
    value = reward(state, sample.target, sample.ignore)
    transition = Transition(
        state, action, state, iou=value, reward=value if action is None else None, origin="simulated",
        end="stop" if action is None else None, details=kind,
    )  # fmt: skip
    return Trajectory(sample, (transition,))


def make_shard(
    number: int, *, samples: Sequence[Sample], out: Path, size: int, segmenter: str, source: str, seed: int, **rules
) -> dict[str, int]:
    """Writes shard `number` and returns its counts; a sample that cannot be read is skipped and counted."""
    import cv2

    cv2.setNumThreads(1)
    shares, decisions = rules.pop("shares"), rules.pop("decisions")
    rules.pop("scenes")
    environment = None if decisions else Environment(load_segmenter(segmenter))
    counts = {"trajectories": 0, "actions": 0, "stops": 0, "discarded": 0, "unreadable": 0}
    rows = []
    for index in range(number * size, min((number + 1) * size, len(samples))):
        try:
            sample = samples[index]
        except (DataError, OSError) as error:
            log.warning("Sample %d is skipped: %s", index, error)
            counts["unreadable"] += 1
            continue
        if decisions:
            trajectory = decide(sample, stop=rules["stop"], empty=shares[0], seed=seed)
            kind = trajectory.transitions[0].details
        else:
            kind = str(np.random.default_rng(seed_for(seed, sample.id, len(INITIAL))).choice(INITIAL, p=shares))
            trajectory = simulate(environment, sample, kind=kind, seed=seed, **rules)
        if trajectory is None:
            counts["discarded"] += 1
            continue
        rows.append(to_row(trajectory, segmenter="" if decisions else segmenter, source=source, initial=kind))
        counts["trajectories"] += 1
        counts["actions"] += len(trajectory.steps)
        counts["stops"] += trajectory.end == "stop"
    write_shard(rows, out / f"train-{number:05d}.parquet")
    return counts


class SynthExpressions(Sequence):
    """HRES-Synth's train split with several expressions for each scene, one sample each: scenes cost more than words."""

    def __init__(self, level: str | None, count: int, size: int | None, each: int) -> None:
        from segagent.data import hres_synth

        self.scenes, self.count, self.each = hres_synth("train", level, -(-count // each), size), count, each
        self._last: tuple[int, tuple] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        number, nth = divmod(index, self.each)
        if self._last is None or self._last[0] != number:
            self._last = number, self.scenes.scene(number)
        scene, found = self._last[1]
        found = [item for item in found if item[1]]
        if not found:
            raise DataError(f"Scene {number} of HRES-Synth {scene.level} has no expression that denotes an object.")
        text, (target, *_), kind = found[np.random.default_rng([number, nth]).integers(len(found))]
        others = [item.mask for i, item in enumerate(scene.objects) if i != target]
        meta = {"level": scene.level, "kind": kind, "others": others}
        return Sample(
            scene.image, text, scene.objects[target].mask, f"hres-synth/{scene.level}/{number}/{nth}", meta=meta
        )


def open_source(name: str, count: int, size: int | None, each: int) -> Sequence[Sample]:
    """`count` samples of HRES-Synth ("hres-synth[:LEVEL]", several expressions for each scene), or any other data by one string."""
    kind, _, level = name.partition(":")
    if kind == "hres-synth":
        return SynthExpressions(level or None, count, size, each)
    from segagent.data import sources

    return First(sources.open_source(name), count)


def generate(out: Path, samples: Sequence[Sample], *, workers: int, size: int, settings: dict) -> dict[str, int]:
    """All shards that are not there yet. Raises DataError where `out` holds shards of other settings."""
    out.mkdir(parents=True, exist_ok=True)
    record = out / "settings.json"
    text = json.dumps({**settings, "shard": size}, indent=1)
    if record.exists() and record.read_text() != text:
        raise DataError(f"{out} holds trajectories made with other settings (settings.json): choose another --out.")
    record.write_text(text)
    numbers = [n for n in range(-(-len(samples) // size)) if not (out / f"train-{n:05d}.parquet").exists()]
    work = functools.partial(make_shard, samples=samples, out=out, size=size, **settings)
    total: dict[str, int] = {}
    # spawn, not fork: a child of a process that has started OpenCV's or torch's threads can hang
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for counts in tqdm(pool.imap_unordered(work, numbers), total=len(numbers), unit="shard"):
            total = {key: total.get(key, 0) + value for key, value in counts.items()}
    return total


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", default="hres-synth")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--size", type=int, default=None, help="px, longest side of HRES-Synth's scenes")
    parser.add_argument("--each", type=int, default=3, help="expressions for each scene of HRES-Synth")
    parser.add_argument("--segmenter", default="grabcut")
    parser.add_argument("--steps", type=int, default=7, help="T, the most actions of a trajectory")
    parser.add_argument("--stop", type=float, default=0.9, help="tau_stop, an IoU")
    parser.add_argument("--gain", type=float, default=0.0, help="tau_diff, the least gain of IoU")
    parser.add_argument(
        "--initial", type=float, nargs=4, default=(0.7, 0.1, 0.1, 0.1), metavar=("EMPTY", "BOX", "POINTS", "BESIDE")
    )
    parser.add_argument("--decisions", action="store_true", help="single decisions on made masks, without a segmenter")
    parser.add_argument("--shard", type=int, default=500, help="samples a file")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    shares = np.array(args.initial) / sum(args.initial)
    settings = {
        "segmenter": args.segmenter, "source": args.source, "seed": args.seed, "steps": args.steps,
        "stop": args.stop, "gain": args.gain, "shares": shares.tolist(), "scenes": [args.size, args.each],
        "decisions": args.decisions,
    }  # fmt: skip
    samples = open_source(args.source, args.samples, args.size, args.each)
    counts = generate(args.out, samples, workers=args.workers, size=args.shard, settings=settings)
    print(f"{args.out}: " + ", ".join(f"{value} {key}" for key, value in counts.items()))


if __name__ == "__main__":
    main()

"""D_traj: the simulated annotator's trajectories with a segmenter, as shards of parquet (paper, Algorithm 3).

    python -m train.generate --out runs/nano/trajectories --samples 40000 --workers 2

Three rules: at most `--steps` actions; stop at an IoU of `--stop`; cut a trajectory before an action that gains less than
`--gain`. Not all start from the empty mask: some from the segmenter's mask of the target's box, of random points in that
box, or of a point on another object (beside the target where no other is known), as the paper does for diversity and for
refinement. With `--decisions` no segmenter is asked at all: one decision of F_sim on a mask that was made wrong, hundreds a
second, for where to click first and for the PRM (rule three, which needs the segmenter, does not apply to these). Each shard
depends on the seed and its own number alone, and is written whole or not at all: after an interruption the same command makes
the rest. What is skipped is logged, and counted in the shard's own file. `--ray` makes the shards on all machines of a Ray cluster that share the folder `--out`.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from segagent.environment import Environment
from segagent.errors import DataError, MissingDependencyError, SegAgentError
from segagent.evaluate import First
from segagent.export import write_file
from segagent.grammar import check_expression
from segagent.policy import seed_for
from segagent.segmenters import load_segmenter
from segagent.segmenters.base import content_key
from segagent.trajectories import encode_image, to_row
from segagent.types import Sample, Trajectory
from train.command import as_command
from train.shards import counted, write_shard
from train.simulation import INITIAL, decide, simulate, simulate_many

__all__ = ["INITIAL", "decide", "generate", "make_shard", "open_source", "simulate"]

GROUP = 16  # samples of one image in lock step
_process: dict[str, Callable] = {}  # what a process of the pool was given once
log = logging.getLogger(__name__)


def make_shard(
    number: int, *, samples: Sequence[Sample], out: Path, size: int, segmenter: str, source: str, seed: int, **rules
) -> dict[str, int]:
    """Writes shard `number` and returns its counts; a sample that cannot be read, or has no target, is skipped and counted."""
    shares, decisions = rules.pop("shares"), rules.pop("decisions")
    for name in ("scenes", "absent"):  # what the samples are is settled
        rules.pop(name, None)
    counts = dict.fromkeys(("trajectories", "actions", "stops", "discarded", "unreadable", "without target"), 0)
    rows = []
    for group in by_image(readable(samples, number * size, (number + 1) * size, counts)):
        if decisions:
            made = [decide(sample, stop=rules["stop"], empty=shares[0], seed=seed) for sample in group]
            kinds = [trajectory.transitions[0].details for trajectory in made]
        else:
            kinds = [draw_kind(sample, shares, seed) for sample in group]
            made = simulate_many(_environment(segmenter), group, kinds=kinds, seed=seed, **rules)
        picture = encode_image(group[0])  # once for all expressions of a scene
        for trajectory, kind in zip(made, kinds, strict=True):
            if trajectory is None:
                counts["discarded"] += 1
                continue
            named = "" if decisions else segmenter
            rows.append(to_row(trajectory, segmenter=named, source=source, initial=kind, image=picture))
            counts["trajectories"] += 1
            counts["actions"] += len(trajectory.steps)
            counts["stops"] += trajectory.end == "stop"
    write_shard(rows, out / f"train-{number:05d}.parquet", counts)
    return counts


def draw_kind(sample: Sample, shares: Sequence[float], seed: int) -> str:
    """Which of INITIAL the sample's trajectory starts from; of an empty target there is no box, and only the empty mask."""
    kind = np.random.default_rng(seed_for(seed, sample.id, len(INITIAL))).choice(INITIAL, p=shares)
    return str(kind) if sample.target.any() else "empty"


def readable(samples: Sequence[Sample], first: int, end: int, counts: dict[str, int]) -> Iterator[Sample]:
    """The samples from `first` to before `end`, without those that cannot be read or have no target, which are counted."""
    for index in range(first, min(end, len(samples))):
        try:
            sample = samples[index]
            if isinstance(sample, Trajectory):  # of data that was made with another segmenter
                sample = sample.sample
            check_expression(sample.expression)
        except (SegAgentError, OSError) as error:
            log.warning("Sample %d is skipped: %s", index, error)
            counts["unreadable"] += 1
            continue
        if sample.target is None:
            log.warning("Sample %d, %s, is skipped: it has no target mask.", index, sample.id)
            counts["without target"] += 1
            continue
        yield sample


def by_image(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    """Neighbours of one image and different ids together, at most GROUP of them."""
    group: list[Sample] = []
    for sample in samples:
        alike = group and content_key(sample.image) == content_key(group[0].image)
        if group and (not alike or len(group) == GROUP or sample.id in {other.id for other in group}):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


@functools.cache
def _environment(segmenter: str) -> Environment:
    return Environment(load_segmenter(segmenter))


class SynthExpressions(Sequence):
    """HRES-Synth's train split with several expressions for each scene, one sample each: scenes cost more than words.

    A share `absent` of them denotes nothing: the target is empty, and nothing is to be clicked.
    """

    def __init__(self, level: str | None, count: int, size: int | None, each: int, absent: float = 0.0) -> None:
        from segagent.data import hres_synth

        self.scenes, self.count, self.each = hres_synth("train", level, -(-count // each), size), count, each
        self.absent = absent
        self._last: tuple[int, tuple] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"There are {self.count} expressions; there is no number {index}.")
        number, nth = divmod(index, self.each)
        last = self._last
        if last is None or last[0] != number:
            self._last = last = number, self.scenes.scene(number)
        scene, found = last[1]
        empty = [item for item in found if not item[1]]
        if not empty or np.random.default_rng([number, nth, 1]).random() >= self.absent:
            found = [item for item in found if item[1]]
            if not found:
                raise DataError(f"Scene {number} of HRES-Synth {scene.level} has no expression that denotes an object.")
        else:
            found = empty
        text, targets, kind = found[np.random.default_rng([number, nth]).integers(len(found))]
        mask = scene.objects[targets[0]].mask if targets else np.zeros(scene.size, bool)
        others = [item.mask for i, item in enumerate(scene.objects) if i not in targets]
        meta = {"level": scene.level, "kind": kind, "others": others}
        return Sample(scene.image, text, mask, f"hres-synth/{scene.level}/{number}/{nth}", meta=meta)


def open_source(name: str, count: int, size: int | None, each: int, absent: float = 0.0) -> Sequence[Sample]:
    """`count` samples of HRES-Synth ("hres-synth[:LEVEL]", several expressions for each scene), or any other data by one string.

    Raises DataError.
    """
    kind, _, level = name.partition(":")
    if kind == "hres-synth":
        if "=" in level or "," in level:
            raise DataError(f"{name}: this is HRES-Synth's train split, written hres-synth or hres-synth:LEVEL alone.")
        return SynthExpressions(level or None, count, size, each, absent)
    from segagent.data import sources

    if size is not None or absent:
        raise DataError(f"--size and --absent are HRES-Synth's: leave them out for {name}.")
    found = sources.open_source(name)
    if not isinstance(found, Sequence):
        raise DataError(f"{name} is a stream, whose samples have no numbers to go on from: leave out streaming=true.")
    if count < len(found):
        log.warning("Of %d samples of %s the first %d are used: --samples says how many.", len(found), name, count)
    return First(found, count)


def generate(
    out: Path, samples: Sequence[Sample], *, workers: int, size: int, settings: dict, ray: bool = False
) -> dict[str, int]:
    """Makes all shards that are not there yet; → the counts of all, those of former runs of the command too.

    Raises DataError where `out` holds shards of other settings, or cannot be written.
    """
    record, own = out / "settings.json", {**settings, "shard": size, "samples": len(samples)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{out} cannot be used: {error}. Choose another --out, or remove it.") from error
    other = any(held.get(key, value) != value for key, value in own.items())
    if other and any(out.glob("train-*.parquet")):
        raise DataError(f"{out} holds trajectories made with other settings (settings.json): choose another --out.")
    write_file(record, json.dumps(own, indent=1).encode())
    numbers = [n for n in range(-(-len(samples) // size)) if not (out / f"train-{n:05d}.parquet").exists()]
    work = functools.partial(make_shard, samples=samples, out=out, size=size, **settings)
    make = _with_ray if ray else _with_processes
    for _ in tqdm(make(work, numbers, workers), total=len(numbers), unit="shard"):
        pass
    for half in out.glob(".train-*.tmp"):  # of processes that were killed
        half.unlink(missing_ok=True)
    return counted(out)


def _with_processes(
    work: Callable[[int], dict[str, int]], numbers: Sequence[int], workers: int
) -> Iterator[dict[str, int]]:
    """The counts of each shard, from as many processes as asked for; a single one is this process."""
    workers = min(workers, len(numbers))
    if workers <= 1:
        yield from map(work, numbers)
        return
    # spawn, not fork: a child of a process that has started OpenCV's or torch's threads can hang
    with multiprocessing.get_context("spawn").Pool(workers, _begin, (work,)) as pool:
        yield from pool.imap_unordered(_go_on, numbers)


def _begin(work: Callable[[int], dict[str, int]]) -> None:
    """In each process, once: what it does for every shard, on one thread (the processes share the cores out)."""
    import cv2

    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, with a neural segmenter
    _process["work"] = work


def _go_on(number: int) -> dict[str, int]:
    return _process["work"](number)


def _with_ray(work: Callable[[int], dict[str, int]], numbers: Sequence[int], _: int) -> Iterator[dict[str, int]]:
    """The same under Ray Data, on all machines of a cluster that share the folder `--out`. Raises MissingDependencyError."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError("--ray needs Ray Data: pip install 'ray[data]==2.60.0'") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    if numbers:
        tasks = ray.data.from_items([{"number": n} for n in numbers], override_num_blocks=len(numbers))
        yield from tasks.map(lambda row: work(row["number"])).iter_rows()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--source", default="hres-synth")
    parser.add_argument("--samples", type=int, default=1000, help="how many, the first of the source")
    parser.add_argument("--size", type=int, default=None, help="px, longest side of HRES-Synth's scenes")
    parser.add_argument("--each", type=int, default=3, help="expressions for each scene of HRES-Synth")
    parser.add_argument(
        "--absent", type=float, default=0.0, help="share of expressions of HRES-Synth that denote nothing"
    )
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
    parser.add_argument("--ray", action="store_true", help="with Ray Data, on all machines of its cluster")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    _check(parser, args)
    shares = np.array(args.initial) / sum(args.initial)
    settings = {
        "segmenter": args.segmenter, "source": args.source, "seed": args.seed, "steps": args.steps,
        "stop": args.stop, "gain": args.gain, "shares": shares.tolist(), "scenes": [args.size, args.each],
        "decisions": args.decisions, "absent": args.absent,
    }  # fmt: skip
    samples = open_source(args.source, args.samples, args.size, args.each, args.absent)
    counts = generate(args.out, samples, workers=args.workers, size=args.shard, settings=settings, ray=args.ray)
    if not counts.get("trajectories", 1):
        raise DataError(
            f"Not one of the samples of {args.source} gave a trajectory ("
            + ", ".join(f"{value} {key}" for key, value in counts.items() if value)
            + "): see the warnings above, or lower --gain."
        )
    print(f"{args.out}: " + ", ".join(f"{value} {key}" for key, value in counts.items()))


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if min(args.samples, args.each, args.steps, args.shard, args.workers) < 1 or args.seed < 0:
        parser.error("--samples, --each, --steps, --shard and --workers count from 1, --seed from 0.")
    if not (0 <= args.stop <= 1 and 0 <= args.absent <= 1 and -1 <= args.gain <= 1):
        parser.error("--stop and --absent lie in [0, 1], --gain in [-1, 1].")
    if not (min(args.initial) >= 0 and 0 < sum(args.initial) < float("inf")):
        parser.error("--initial is four shares of at least 0, not all of them 0.")


if __name__ == "__main__":
    as_command(main)

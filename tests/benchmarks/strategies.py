"""Strategies at equal budgets where the truth is known, by how wrong the PRM is: `python -m tests.benchmarks.strategies`

A world without models: targets of three discs, a brush as segmenter, a policy that clicks into the error half of the time and
anywhere else otherwise, and a PRM that is the true IoU plus noise (the same for the same mask). Each run may expand T states
of K candidates, a beam of width B thus 1 + (T - 1) / B steps. Mean true IoU of the state of highest predicted IoU, in percent.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence

import numpy as np

from segagent import Click, Environment
from segagent.masks import iou
from segagent.policy import Observation, Proposal
from segagent.rollout import collect, rollout
from segagent.search import MCTS, Beam, BestFirst, Greedy, Strategy, TreeSearch
from segagent.types import Sample
from tests.fakes import BrushSegmenter, disc

SIZE = (40, 50)
SKILL = 0.5  # how often a click goes into the error


def scattered(seed: int) -> Sample:
    rng = np.random.default_rng(seed)
    discs = [disc(SIZE, rng.integers(8, 42), rng.integers(8, 32), rng.integers(4, 9)) for _ in range(3)]
    return Sample(np.full((*SIZE, 3), 9, np.uint8), "discs", np.any(discs, axis=0), id=str(seed))


class Noisy:
    """The policy and its PRM."""

    def __init__(self, samples: Sequence[Sample], noise: float) -> None:
        self.targets, self.noise = {s.id: s.target for s in samples}, noise

    def read(self, observations: Sequence[Observation]) -> list[_NoisyReading]:
        return [_NoisyReading(o.mask, self.targets[o.id], self.noise) for o in observations]


class _NoisyReading:
    def __init__(self, mask: np.ndarray, target: np.ndarray, noise: float) -> None:
        self.mask, self.target = mask, target
        rng = np.random.default_rng(zlib.crc32(mask.tobytes()))
        self.predicted_iou = float(np.clip(iou(mask, target) + noise * rng.normal(), 0, 1))

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        rng = np.random.default_rng(seed)
        return [Proposal(self._click(rng)) for _ in range(candidates)]

    def _click(self, rng: np.random.Generator) -> Click:
        missing, extra = np.argwhere(self.target & ~self.mask), np.argwhere(~self.target & self.mask)
        errors = missing if len(missing) >= len(extra) else extra
        if rng.random() < SKILL and len(errors):
            y, x = errors[rng.integers(len(errors))]
            return Click(int(x), int(y), positive=errors is missing)
        return Click(int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0])), positive=bool(rng.random() < 0.6))


def quality(samples: Sequence[Sample], noise: float, strategy: Strategy, candidates: int, steps: int) -> float:
    environment, policy = Environment(BrushSegmenter(5)), Noisy(samples, noise)
    found = []
    for sample in samples:
        search = TreeSearch(policy, environment, strategy, candidates)
        run = collect(sample, rollout(environment, search, sample, steps=steps))
        found.append(run.ious[run.best()])
    return 100 * float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9, help="states that a run may expand")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    args = parser.parse_args()
    samples = [scattered(i) for i in range(args.samples)]
    rows: list[tuple[str, Strategy, int]] = [("greedy", Greedy(), args.steps)]
    rows += [(f"beam, width {b}", Beam(b), 1 + (args.steps - 1) // b) for b in (2, 3)]
    rows += [("best-first", BestFirst(), args.steps)]
    rows += [(f"mcts, exploration {c}", MCTS(c), args.steps) for c in (0.0, 0.05, 0.2, 0.5)]
    print(f"| K = {args.candidates}, T = {args.steps} | " + " | ".join(f"noise {n}" for n in args.noise) + " |")
    print("|---" * (1 + len(args.noise)) + "|")
    for name, strategy, steps in rows:
        cells = [f"{quality(samples, noise, strategy, args.candidates, steps):.1f}" for noise in args.noise]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

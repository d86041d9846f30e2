"""Who judges the masks: a policy whose predicted IoU is another's, or both of theirs; and the judge that knows the truth.

Any policy can judge, for its readings have a predicted IoU: the model itself (the paper's PRM), another one of the grammar, a
`verifier.Verifier`, or `TrueIoU`, which shows how much of a search's loss is due to the PRM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from segagent.errors import DataError, SegAgentError
from segagent.masks import iou
from segagent.policy import FixedReading, Observation, Policy, Proposal, Reading, propose_many
from segagent.types import Sample

COMBINE: dict[str, Callable[[float, float], float]] = {
    "mean": lambda own, other: (own + other) / 2,
    "min": min,
    "product": lambda own, other: own * other,
    "other": lambda own, other: other,
}


def check_combine(how: str) -> str:
    """A name of COMBINE. Raises SegAgentError."""
    if how not in COMBINE:
        raise SegAgentError(f"Unknown way to combine two opinions {how!r}: use {', '.join(COMBINE)}.")
    return how


class SecondOpinion:
    """One policy's actions; its predicted IoU combined with another's. Where one of the two says none, the other's stands."""

    def __init__(self, policy: Policy, judge: Policy, combine: str = "mean") -> None:
        """`combine` is one of COMBINE. Raises SegAgentError."""
        self.policy, self.judge, self.combine = policy, judge, check_combine(combine)

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        """Two batches, one for each model; with "other", the policy's own number is read as well but does not count."""
        readings, opinions = self.policy.read(observations), self.judge.read(observations)
        return [
            _Judged(reading, self._agree(reading.predicted_iou, opinion.predicted_iou))
            for reading, opinion in zip(readings, opinions, strict=True)
        ]

    def _agree(self, own: float | None, other: float | None) -> float | None:
        if own is None or other is None:
            return own if other is None else other
        return COMBINE[self.combine](own, other)


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    reading: Reading
    predicted_iou: float | None

    @property
    def text(self) -> str:
        return getattr(self.reading, "text", "")

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        return self.reading.propose(candidates, temperature, seed)

    @classmethod
    def propose_many(
        cls, readings: Sequence[_Judged], candidates: int, temperature: float, seeds: Sequence[int | None]
    ) -> list[list[Proposal]]:
        return propose_many([r.reading for r in readings], candidates, temperature, seeds)


class TrueIoU:
    """The perfect PRM: says the IoU with the target of each observation's sample, told apart by id. Proposes nothing."""

    def __init__(self, truth: dict[str, tuple[np.ndarray, np.ndarray | None]]) -> None:
        self._truth = truth  # (target, ignore), (H, W) bool each

    @classmethod
    def for_samples(cls, samples: Iterable[Sample]) -> TrueIoU:
        """Raises DataError: no target, or two samples of one id."""
        truth: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for sample in samples:
            if sample.target is None:
                raise DataError(f"Sample {sample.id!r} has no target mask: the true IoU is not known.")
            if truth.setdefault(sample.id, (sample.target, sample.ignore))[0] is not sample.target:
                raise DataError(f"Two samples have the id {sample.id!r}: give each its own.")
        return cls(truth)

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        return [FixedReading((), self._iou(observation)) for observation in observations]

    def _iou(self, observation: Observation) -> float:
        if observation.id not in self._truth:
            raise DataError(f"The true IoU of sample {observation.id!r} is not known: it has no target here.")
        target, ignore = self._truth[observation.id]
        return iou(observation.mask, target, ignore)

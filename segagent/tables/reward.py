"""The process reward model's own tables: 3 (calibration; each way of reading an IoU), and the gain of refining wrong masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segagent.calibration import calibration
from segagent.errors import CheckpointError, DataError, SegAgentError
from segagent.masks import box_of
from segagent.metrics import RESMetrics
from segagent.players import Player
from segagent.policy import Observation, Policy, seed_for
from segagent.refinement import chosen
from segagent.runs import BASELINES, Run, recolored, said
from segagent.tables import plots
from segagent.tables.study import Cell, Study, Table, by_truth, last
from segagent.types import Click, Sample, State

POINTS = 3  # at most, in a mask's making
SAMPLED = 8  # IoU texts a mask
GOOD = 0.8  # an IoU, of a mask that filtering should keep
_MAKING = 10_009  # a step's number that no run has, for the seed of the points
READINGS = {
    "greedy": "the greedy text",
    "expected": "the expected value over the digits",
    "sampled": f"the mean of {SAMPLED} sampled texts",
}


@dataclass
class Reader(Player):
    """Reads one mask of each sample, made as the paper does for Table 3: 1 to 3 random points in the target's box."""

    def __call__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        samples: dict[int, Sample] = {}
        for number in numbers:
            try:
                samples[number] = self._sample(number)
                if not samples[number].target.any():
                    raise DataError(f"Sample {samples[number].id!r} has no target: there is no box to click in.")
            except SegAgentError as error:
                samples.pop(number, None)
                found[number] = {"id": f"number {number}", "error": str(error)}
        states = self._states(list(samples.values()))
        observations = [Observation(s, x.expression, x.id) for s, x in zip(states, samples.values(), strict=True)]
        read = readings(self.policy, observations, self.setup.seed) if observations else {}
        for i, (number, sample) in enumerate(samples.items()):
            found[number] = {
                "id": sample.id,
                "group": str(sample.meta.get("level", "")),
                "points": len(states[i].actions),
                "iou": self._iou(states[i], sample),
                **{name: values[i] for name, values in read.items()},
            }
        return [found[number] for number in numbers]

    def _states(self, samples: Sequence[Sample]) -> list[State]:
        """The states after each sample's points, all clicked in lock step."""
        points = [random_points(sample, self.setup.seed) for sample in samples]
        states = [self.environment.reset(sample) for sample in samples]
        for step in range(POINTS):
            rows = [i for i, clicks in enumerate(points) if len(clicks) > step]
            stepped = self.environment.step_many([states[i] for i in rows], [points[i][step] for i in rows])
            for i, state in zip(rows, stepped, strict=True):
                states[i] = state
        return states

    @staticmethod
    def _iou(state: State, sample: Sample) -> float:
        from segagent.environment import reward

        return reward(state, sample.target, sample.ignore)


def random_points(sample: Sample, seed: int) -> list[Click]:
    """1 to POINTS positive clicks anywhere in the target's box, so some of them beside it; the same whenever asked for."""
    rng = np.random.default_rng(seed_for(seed, sample.id, _MAKING))
    x0, y0, x1, y1 = box_of(sample.target)
    count = int(rng.integers(1, POINTS + 1))
    places = zip(rng.integers(x0, x1 + 1, count), rng.integers(y0, y1 + 1, count), strict=True)
    return [Click(int(x), int(y)) for x, y in places]


def readings(policy: Policy, observations: Sequence[Observation], seed: int) -> dict[str, list[float | None]]:
    """Each way of reading, those that the policy knows: {"greedy", "expected", "sampled", "spread"}: a value a mask.

    "sampled" is the mean, and "spread" the standard deviation, of SAMPLED texts at temperature 1; None where none was valid.
    """
    if not hasattr(policy, "sample_ious"):
        return {"greedy": [r.predicted_iou for r in policy.read(observations)]}
    found = {"greedy": [r.predicted_iou for r in recolored(policy, iou_reading="greedy").read(observations)]}
    try:
        expecting = recolored(policy, iou_reading="expected")
    except CheckpointError:  # a tokenizer that merges digits
        expecting = None
    if expecting is not None:
        found["expected"] = [r.predicted_iou for r in expecting.read(observations)]
    seeds = [seed_for(seed, observation.id, _MAKING + 1) for observation in observations]
    sampled = policy.sample_ious(observations, SAMPLED, seeds=seeds)
    found["sampled"] = [float(np.mean(values)) if values else None for values in sampled]
    found["spread"] = [float(np.std(values)) if values else None for values in sampled]
    return found


def table3(study: Study) -> Table:
    """Predicted against true IoU of masks from random points, by each way of reading the prediction."""
    if any(policy in BASELINES for policy in study.policies.values()):
        raise SegAgentError("Table 3 is of checkpoints: a baseline predicts no IoU.")
    rows, panels, notes = [], {}, []
    for label, policy in study.policies.items():
        for data in study.data:
            records = [r for r in study.records(Reader, study.setup(policy, steps=0), data) if not r.get("error")]
            if not records:
                raise DataError(f"No sample of {data} has a target: there is nothing to read.")
            for name, words in READINGS.items():
                pairs = [(r[name], r["iou"]) for r in records if said(r.get(name))]
                if not pairs:
                    continue
                figures = calibration(*zip(*pairs, strict=True))
                who = f"{label}, {data}: " if len(study.policies) * len(study.data) > 1 else ""
                panels[f"{who}{name}"] = figures
                facts = (data, len(pairs), study.checkpoint(policy))
                tells = Cell(separation(pairs, GOOD), *facts, f"AUC of telling IoU ≥ {GOOD} from less", 3)
                rows.append((f"{who}{words}", (*_cells(figures, facts), tells)))
            notes += _notes(records, data)
    heads = ("reading", "MAE", "MSE", "Pearson", "Spearman", "ECE", "masks", f"AUC of IoU ≥ {GOOD}")
    plot = plots.reliability("Predicted and true IoU of masks from random points", dict(list(panels.items())[:6]))
    return Table(
        "table-3",
        "Table 3: calibration of the process reward model",
        heads,
        tuple(rows),
        study.facts(),
        tuple(notes),
        plot,
    )


def separation(pairs: Sequence[tuple[float, float]], good: float) -> float:
    """How often a mask of a true IoU ≥ `good` is predicted to be better than one below it (the area under the ROC curve), ties half.

    It is what filtering lives on, whatever its threshold; nan where all masks are of one kind. `pairs`: (predicted, true).
    """
    predicted, true = np.array(pairs).T
    above, below = predicted[true >= good][:, None], predicted[true < good]
    return float(((above > below) + 0.5 * (above == below)).mean()) if above.size and below.size else math.nan


def _cells(figures: dict[str, Any], facts: tuple[str, int, str]) -> tuple[Cell, ...]:
    return (
        Cell(figures["mae"], *facts, "MAE, points of IoU", 2),
        Cell(figures["mse"], *facts, "MSE, squared points", 2),
        Cell(figures["pearson"], *facts, "Pearson", 3),
        Cell(figures["spearman"], *facts, "Spearman", 3),
        Cell(figures["ece"], *facts, "ECE, points of IoU", 2),
        Cell(float(figures["count"]), *facts, "masks", 0),
    )


def _notes(records: Sequence[dict[str, Any]], data: str) -> list[str]:
    ious = np.array([r["iou"] for r in records])
    constant = 100 * float(np.mean(abs(ious - np.median(ious))))
    notes = [
        f"{data}: masks of 1 to {POINTS} random points in the target's box, IoU {ious.mean():.2f} ± {ious.std():.2f}; one constant "
        f"for all of them would have an MAE of {constant:.2f}."
    ]
    spread = [(r["spread"], abs(r["sampled"] - r["iou"])) for r in records if r.get("spread") is not None]
    if len(spread) > 1:
        rank = calibration(*zip(*spread, strict=True))["spearman"]
        notes.append(f"The spread of the sampled texts and the error of their mean: Spearman {rank:.2f}.")
    return notes


def refinement(study: Study) -> Table:
    """The gain over masks that were made wrong, by the kind of wrong; the given mask is always a candidate."""
    rows = []
    for label, policy in study.policies.items():
        for data in study.data:
            runs = [r for r in study.good_runs(study.setup(policy, start="corrupted"), data) if r.has_target]
            kinds = sorted({run.start for run in runs})
            for kind in ["all", *kinds]:
                part = [run for run in runs if kind in ("all", run.start)]
                who = ", ".join([label] * (len(study.policies) > 1) + [data] * (len(study.data) > 1))
                rows.append((f"{who} {kind}".strip(), _gains(study, part, data, policy)))
    heads = (
        "given mask",
        "masks",
        "IoU given",
        "IoU returned",
        "gain",
        "gain of the last mask",
        "gain with a perfect PRM",
    )
    heads = (*heads, "cIoU gain", "worse, %", "PRM MAE of the given")
    plot = plots.bars(
        "Mean gain of IoU, points", [label for label, _ in rows],
        {"returned": [c[3].value for _, c in rows], "last mask": [c[4].value for _, c in rows],
         "perfect PRM": [c[5].value for _, c in rows]}, "points",
    )  # fmt: skip
    notes = (
        "IoU and gains in points. Returned: the mask of the highest predicted IoU, the given one unless another is predicted to be "
        "better. Worse: returned masks over 1 point of IoU under the given one.",
    )
    return Table(
        "refinement", "Refinement of masks that were made wrong", heads, tuple(rows), study.facts(), notes, plot
    )


def _gains(study: Study, runs: Sequence[Run], data: str, policy: str | None) -> tuple[Cell, ...]:
    given = np.array([run.ious[0] for run in runs])
    choices: tuple[Callable[[Run], int], ...] = (lambda run: chosen(run.predicted), last, by_truth)
    after = [np.array([run.ious[choose(run)] for run in runs]) for choose in choices]
    errors = [abs(run.predicted[0] - run.ious[0]) for run in runs if said(run.predicted[0])]
    overall = []
    for choose in (lambda run: 0, choices[0]):
        metrics = RESMetrics(convention=study.convention)
        for run in runs:
            metrics.update(run.masks[choose(run)], run.target, run.ignore)
        overall.append(100 * metrics.compute()["ciou"])
    facts = (data, len(runs), study.checkpoint(policy))
    return (
        Cell(float(len(runs)), *facts, "masks", 0),
        Cell(100 * float(given.mean()), *facts, "mean IoU given, points"),
        Cell(100 * float(after[0].mean()), *facts, "mean IoU returned, points"),
        *(
            Cell(100 * float((one - given).mean()), *facts, f"mean gain, points, {words}")
            for one, words in zip(after, ("returned", "last mask", "perfect PRM"), strict=True)
        ),
        Cell(overall[1] - overall[0], *facts, f"gain of cIoU, points, {study.convention}"),
        Cell(100 * float((after[0] < given - 0.01).mean()), *facts, "returned over 1 point under the given, %"),
        Cell(100 * float(np.mean(errors)) if errors else None, *facts, "MAE of the given mask's predicted IoU, points"),
    )


TABLES: dict[str, Callable[[Study], Table]] = {"table 3": table3, "refinement": refinement}

"""Plays runs: in batches, on several processes where asked, kept on disk and shared by all tables that need them.

After an interruption it goes on where it was (see `ledger`). A sample that cannot be used is a record that says why.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from segagent.annotator import SimulatedAnnotator
from segagent.clickers import BoxFirst, Insistent
from segagent.data.corruptions import corrupt
from segagent.data.sources import open_source
from segagent.environment import Environment
from segagent.errors import DataError, SegAgentError
from segagent.judges import SecondOpinion, TrueIoU
from segagent.ledger import Ledger
from segagent.masks import box_of
from segagent.policy import Policy, seed_for
from segagent.rollout import rollout_many
from segagent.runs import Run, Setup
from segagent.search import TreeSearch
from segagent.segmenters.base import Holding
from segagent.types import Box, Sample, Trajectory

_CORRUPTION = 10_007  # a step's number that no run has, for the seed of a corrupted start


def play(environment: Environment, policy: Policy | str, samples: Sequence[Sample], setup: Setup) -> list[Trajectory]:
    """One run of each sample, all in lock step; "simulated" is F_sim, which gets the samples' targets."""
    environment = Environment(Holding(environment.segmenter, len(samples)))
    clicker: Policy = SimulatedAnnotator.for_samples(samples) if policy == "simulated" else policy
    if setup.judge == "truth":
        clicker = SecondOpinion(clicker, TrueIoU.for_samples(samples), "other")
    if setup.candidates > 1:
        clicker = TreeSearch(clicker, environment, setup.strategy, setup.candidates)
    if setup.insist:
        clicker = Insistent(clicker)
    if setup.first != "click":
        boxes = {s.id: box_of(s.target) for s in samples} if setup.first == "given box" else None
        clicker = BoxFirst(clicker, boxes and (lambda key: Box(*boxes[key]) if boxes[key] else None))
    starts = [corrupted(s, setup.seed)[0] for s in samples] if setup.start == "corrupted" else None
    runs: list[list] = [[] for _ in samples]
    for i, transition in rollout_many(
        environment, clicker, samples, steps=setup.steps, starts=starts, temperature=setup.temperature, seed=setup.seed
    ):
        runs[i].append(transition)
    return [Trajectory(sample, tuple(run)) for sample, run in zip(samples, runs, strict=True)]


def corrupted(sample: Sample, seed: int) -> tuple[np.ndarray, str]:
    """A wrong mask of the sample's target, and its kind; the same whenever it is asked for."""
    rng = np.random.default_rng(seed_for(seed, sample.id, _CORRUPTION))
    return corrupt(sample.target, rng, others=sample.meta.get("others", ()))


@dataclass
class Player:
    """Plays samples by their numbers; one a process."""

    setup: Setup
    data: str | Sequence[Sample]
    policy: Policy | str = field(init=False)
    environment: Environment = field(init=False)

    def __post_init__(self) -> None:
        self.policy, self.environment = self.setup.build()
        self.samples = open_source(self.data) if isinstance(self.data, str) else self.data

    def __call__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Records of these samples; one that cannot be used gives a record with the reason, and costs no other."""
        found: dict[int, dict[str, Any]] = {}
        usable: dict[int, Sample] = {}
        for number in numbers:
            try:
                usable[number] = self._sample(number)
            except SegAgentError as error:
                found[number] = asdict(Run(f"number {number}", error=str(error)))
        try:
            runs = play(self.environment, self.policy, list(usable.values()), self.setup) if usable else []
        except SegAgentError as error:
            if len(usable) == 1:
                found.update({number: asdict(Run(sample.id, error=str(error))) for number, sample in usable.items()})
            else:  # one odd sample must not cost the others: each is played alone
                found.update({number: self([number])[0] for number in usable})
        else:
            for number, run in zip(usable, runs, strict=True):
                start = corrupted(run.sample, self.setup.seed)[1] if self.setup.start == "corrupted" else "empty"
                found[number] = asdict(Run.of(run, start=start))
        return [found[number] for number in numbers]

    def _sample(self, number: int) -> Sample:
        sample = self.samples[number]
        if sample.target is None:
            raise DataError(f"Sample {sample.id!r} has no target mask: nothing to measure against.")
        if self.setup.start == "corrupted" and hasattr(self.samples, "scene"):
            scene = self.samples.scene(number)[0]
            others = [item.mask for item in scene.objects if not np.array_equal(item.mask, sample.target)]
            sample = replace(sample, meta={**sample.meta, "others": others})
        return sample


def runs_of(
    setup: Setup, data: str, *, count: int, batch: int = 16, workers: int = 1, folder: Path | None = None
) -> list[Run]:
    """The runs of the first `count` samples, from `folder` where they are there already. Raises SegAgentError."""
    # A longer run begins with the shorter one, but for a search, which may go back.
    longest = None
    if folder is not None and setup.candidates == 1:
        stem = _name(Player, setup, data, batch)
        known = [int(path.stem.rpartition("-")[2]) for path in folder.glob(f"{stem}-*.jsonl")]
        longest = min((steps for steps in known if steps >= setup.steps), default=None)
    played = setup if longest is None else replace(setup, steps=longest)
    records = records_of(Player, played, data, count=count, batch=batch, workers=workers, folder=folder)
    runs = [Run.from_json(record) for record in records]
    # A search's way back counts as no step, so its run may have more actions than steps.
    return runs if setup.candidates > 1 else [run.until(setup.steps) for run in runs]


def records_of(
    kind: type[Player],
    setup: Setup,
    data: str,
    *,
    count: int,
    batch: int = 16,
    workers: int = 1,
    folder: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """What `kind` finds for each of the first `count` samples, a record each. Raises SegAgentError."""
    total = min(count, len(open_source(data)))
    path = None if folder is None else folder / f"{_name(kind, setup, data, batch)}-{setup.steps:03d}.jsonl"
    ledger = Ledger(path, {**setup.key(data, batch), "kind": kind.__name__, "steps": setup.steps}, batch)
    done = ledger.resume(total)
    parts = [range(i, min(i + batch, total)) for i in range(done, total, batch)]
    with tqdm(total=total, initial=done, unit="sample", desc=setup.policy or "nano") as progress:
        for records in _worked(kind, setup, data, parts, workers):
            ledger.append(records)
            progress.update(len(records))
    return ledger.read(total)


def _name(kind: type[Player], setup: Setup, data: str, batch: int) -> str:
    """Of the file of records, the number of steps left out."""
    key = json.dumps([kind.__name__, setup.key(data, batch)], sort_keys=True)
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def _worked(
    kind: type[Player], setup: Setup, data: str, parts: Sequence[Sequence[int]], workers: int
) -> Iterator[list[dict[str, Any]]]:
    if not parts:
        return
    if workers < 2:
        yield from map(kind(setup, data), parts)
        return
    # spawn, not fork: a child of a process that has started OpenCV's or torch's threads can hang
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(parts)), _begin, (kind, setup, data)) as pool:
        yield from pool.imap(_work, parts)


_player: Player | tuple[type[Player], Setup, str] | None = None  # of a worker process


def _begin(*what: Any) -> None:
    """Only notes what to build: a pool starts a process that failed here again and again."""
    global _player
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the processes are the threads
    _player = what


def _work(numbers: Sequence[int]) -> list[dict[str, Any]]:
    global _player
    if not isinstance(_player, Player):
        import cv2

        cv2.setNumThreads(1)
        kind, setup, data = _player
        _player = kind(setup, data)
    return _player(numbers)

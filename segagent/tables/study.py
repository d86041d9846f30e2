"""What a table is made of: the policies and data that were asked for, their runs, and a table of numbers that say where they are from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from segagent.checkpoint import AgentConfig, find_checkpoint, read_config
from segagent.errors import DataError, SegAgentError
from segagent.export import png, write_file
from segagent.ledger import fingerprint, machine
from segagent.metrics import RESMetrics
from segagent.players import Player, records_of, runs_of
from segagent.runs import BASELINES, Run, Setup
from segagent.settings import READINGS


@dataclass(frozen=True)
class Cell:
    """One number, or a word, and all that must be said with it."""

    value: float | str | None
    data: str = ""
    count: int = 0
    checkpoint: str = ""
    what: str = ""  # e.g. "cIoU, %"
    digits: int = 1

    def __str__(self) -> str:
        if self.value is None or (isinstance(self.value, float) and math.isnan(self.value)):
            return "–"
        return self.value if isinstance(self.value, str) else f"{self.value:.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    name: str  # of its files, e.g. "table-2"
    title: str
    columns: tuple[str, ...]  # the first is that of the rows' labels
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    plot: np.ndarray | None = field(default=None, repr=False)  # (h, w, 3) uint8

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", ", ".join(f"{key} {value}" for key, value in self.facts.items()), ""]
        lines += [f"| {' | '.join(self.columns)} |", "|---" * len(self.columns) + "|"]
        lines += [f"| {' | '.join([label, *map(str, cells)])} |" for label, cells in self.rows]
        return "\n".join([*lines, *[f"\n{note}" for note in self.notes]])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; a number that is not known is None."""
        rows = [{"label": label, "cells": [_known(asdict(cell)) for cell in cells]} for label, cells in self.rows]
        return {
            "name": self.name,
            "title": self.title,
            **self.facts,
            "columns": self.columns,
            "rows": rows,
            "notes": self.notes,
        }

    def write(self, folder: Path) -> None:
        """NAME.md, NAME.json and NAME.png. Raises SegAgentError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SegAgentError(f"The folder {str(folder)!r} cannot be made: {error.strerror}.") from error
        picture = f"\n\n![{self.title}]({self.name}.png)" if self.plot is not None else ""
        write_file(folder / f"{self.name}.md", (self.markdown() + picture + "\n").encode())
        write_file(
            folder / f"{self.name}.json", (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode()
        )
        if self.plot is not None:
            write_file(folder / f"{self.name}.png", png(self.plot))


def _known(cell: dict[str, Any]) -> dict[str, Any]:
    value = cell["value"]
    return {**cell, "value": None} if isinstance(value, float) and math.isnan(value) else cell


@dataclass(frozen=True)
class Study:
    """What a table is asked of. `policies`: {label: checkpoint, None for the embedded one, or a baseline's name}."""

    policies: dict[str, str | None]
    data: Sequence[str]
    segmenter: str | None = None
    count: int = 500
    steps: int = 7
    batch: int = 16
    workers: int = 1
    convention: str = "plain"
    seed: int = 0
    candidates: int = 1
    strategy: str = "greedy"
    judge: str = "own"
    iou_reading: str | None = None
    click_reading: str | None = None
    verifier: str | None = None
    combine: str = "mean"
    out: Path | None = None

    def setup(self, policy: str | None, **changes: Any) -> Setup:
        names = () if policy in BASELINES else (*READINGS, "verifier", "combine")
        own = {name: getattr(self, name) for name in names}
        return replace(Setup(policy, self.segmenter, self.steps, seed=self.seed, **own), **changes)

    def search(self, policy: str | None, candidates: int) -> Setup:
        """The setup of a search, or, with one candidate, of the policy alone."""
        return self.setup(policy, candidates=candidates, strategy=self.strategy, judge=self.judge)

    def fixed(self, policy: str | None, **changes: Any) -> Setup:
        """The setup whose runs most tables share: greedy, going on where the policy would stop, which is noted."""
        return self.setup(policy, insist=policy not in BASELINES, **changes)

    def runs(self, setup: Setup, data: str) -> list[Run]:
        """All runs, those that hold an error too."""
        return runs_of(setup, data, **self._how())

    def _how(self) -> dict[str, Any]:
        folder = self.out / "runs" if self.out else None
        return {"count": self.count, "batch": self.batch, "workers": self.workers, "folder": folder}

    def records(self, kind: type[Player], setup: Setup, data: str) -> list[dict[str, Any]]:
        """What another kind of player finds for each sample."""
        return list(records_of(kind, setup, data, **self._how()))

    def good_runs(self, setup: Setup, data: str) -> list[Run]:
        """Those without an error. Raises DataError where there is none."""
        runs = self.runs(setup, data)
        good = [run for run in runs if not run.error]
        if not good:
            raise DataError(
                f"None of {len(runs)} samples of {data} can be used: {runs[0].error if runs else 'it is empty'}"
            )
        return good

    def facts(self, data: str | None = None, count: int | None = None) -> dict[str, Any]:
        """What is said above every table."""
        return {
            "data": data or ", ".join(self.data),
            "count": self.count if count is None else count,
            "steps": self.steps,
            "convention": self.convention,
            "segmenter": self.segmenter or ", ".join(sorted(self._segmenters())),
            **{name: getattr(self, name) for name in READINGS if getattr(self, name)},
            **({"verifier": f"{self.verifier} ({self.combine})"} if self.verifier else {}),
            "seed": self.seed,
            "machine": machine(),
            "date": date.today().isoformat(),
        }

    def _segmenters(self) -> set[str]:
        return {"grabcut" if p in BASELINES else self.config(p).segmenter for p in self.policies.values()}

    def checkpoint(self, policy: str | None) -> str:
        return policy if policy in BASELINES else fingerprint(policy)

    def config(self, policy: str | None) -> AgentConfig:
        """What the checkpoint's segagent.json holds. Raises CheckpointError."""
        from segagent.agent import NANO

        return read_config(NANO if policy is None else find_checkpoint(policy))

    def ciou(
        self,
        runs: Iterable[Run],
        choose: Callable[[Run], int | dict[str, Any]],
        data: str,
        policy: str | None,
        key: str = "ciou",
    ) -> Cell:
        """cIoU (or another figure of RESMetrics) of the states, or masks (COCO RLE), chosen, in percent."""
        metrics = RESMetrics(convention=self.convention)
        for run in runs:
            mask = choose(run)
            metrics.update(run.masks[mask] if isinstance(mask, int) else mask, run.target, run.ignore)
        figures = metrics.compute()
        what = f"{ {'ciou': 'cIoU', 'giou': 'gIoU'}.get(key, key) }, %, {self.convention}"
        return Cell(100 * figures[key], data, figures["count"], self.checkpoint(policy), what)


def last(run: Run) -> int:
    return len(run.masks) - 1


def by_prm(run: Run) -> int:
    """With the PRM: the state of the highest predicted IoU up to where the policy stops."""
    return run.heeding_stop().best()


def by_truth(run: Run) -> int:
    """With a perfect PRM over the same states: the ceiling."""
    return max(range(len(run.ious)), key=lambda i: (run.ious[i], -i))

"""Who plays and how: runs by the names that the page knows them by, wherever their models are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segagent.agent import Result
from segagent.filtering import filter_annotations
from segagent.page.models import Models, gpu
from segagent.page.session import Session, play
from segagent.search import TreeSearch

STRATEGIES = [
    ("Its first thought (greedy decoding)", "none"),
    ("Best of K (the paper's search)", "greedy"),
    ("Beam: several masks at once", "beam"),
    ("Best-first: may go back", "best-first"),
    ("MCTS: may go back, explores", "mcts"),
]


class Runs:
    """All that computes with the shared models; on a ZeroGPU Space each call has the GPU while it lasts.

    What comes in and goes out is plain data, for a GPU in another process. All raise what SegAgent raises.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self.walk, self.filter = gpu(self._walk), gpu(self._filter)
        self.segment, self.refine, self.score = gpu(self._segment), gpu(self._refine), gpu(self._score)

    def _walk(
        self,
        session: Session,
        who: str,
        strategy: str = "none",
        candidates: int = 3,
        steps: int = 7,
        policy: str = "",
        segmenter: str = "",
    ) -> Iterator[Session]:
        """The session after each step of a run from its shown state; `who` is "agent" or "annotator"."""
        chooser = self._models.policy(who, session.sample, policy)
        environment = self._models.environment(segmenter, policy)
        if who == "agent" and strategy != "none":
            chooser = TreeSearch(chooser, environment, strategy, candidates)
        yield from play(session, environment, chooser, steps=steps)

    def _segment(self, image: np.ndarray, expression: str, **options: Any) -> Result:
        return self._models.agent().segment(image, expression, **options)

    def _refine(self, image: np.ndarray, expression: str, mask: Any, steps: int) -> Result:
        return self._models.agent().refine(image, expression, mask, steps=steps)

    def _score(self, image: np.ndarray, expression: str, mask: Any) -> float:
        return self._models.agent().score(image, expression, mask)

    def _filter(self, annotations: Path, images: Path, out: Path, threshold: float, worst: int) -> dict[str, Any]:
        return filter_annotations(
            self._models.agent().policy, annotations, images, out, threshold=threshold, worst=worst
        )

"""Who plays and how: runs by the names that the page knows them by, wherever their models are."""

from __future__ import annotations

from collections.abc import Iterator

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
    """Starts runs on the shared models; on a ZeroGPU Space each has the GPU while it lasts."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.walk = gpu(self._walk)

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
        """The session after each step of a run from its shown state; `who` is "agent" or "annotator".

        What comes in and goes out is plain data, for a GPU in another process. Raises SegAgentError.
        """
        chooser = self._models.policy(who, session.sample, policy)
        environment = self._models.environment(segmenter, policy)
        if who == "agent" and strategy != "none":
            chooser = TreeSearch(chooser, environment, strategy, candidates)
        yield from play(session, environment, chooser, steps=steps)

"""The tab that lets two play side by side on the picture of the main tab."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from segagent.errors import SegAgentError
from segagent.grammar import check_expression
from segagent.page import film
from segagent.page.desk import COLORS, Desk
from segagent.page.events import LONG, told
from segagent.page.runs import STRATEGIES, Runs
from segagent.page.session import Session

PLAYERS = [*STRATEGIES, ("Simulated annotator (the ceiling)", "annotator")]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its run so far, and the seconds that its steps took."""

    session: Session
    run: Iterator[Session]
    seconds: float = 0.0
    over: bool = False

    def step(self) -> Side:
        began = time.perf_counter()
        session = next(self.run, None)
        if session is None:
            return replace(self, over=True)
        seconds = self.seconds + time.perf_counter() - began
        return replace(self, session=session, seconds=seconds, over=session.shown.closing is not None)


class CompareTab:
    """Runs begin at the empty mask and take their steps in turn; the main tab's session is not touched."""

    def __init__(self, runs: Runs, desk: gr.State) -> None:
        self.runs, self.desk = runs, desk

    def fail(self, _: Desk, sentence: str) -> dict:
        return {
            self.note: film.note(sentence, "bad"),
            self.run: gr.update(visible=True),
            self.stop: gr.update(visible=False),
        }

    @told
    def on_run(
        self, desk: Desk, left: str, right: str, left_policy: str, right_policy: str, candidates: int, steps: int
    ) -> Iterator[dict]:
        sample = desk.session.sample
        check_expression(sample.expression)
        if sample.target is None and "annotator" in (left, right):
            raise SegAgentError(
                "The simulated annotator needs a target mask: give one on the first tab, or pick an example."
            )
        desk.comparison = this = object()
        sides = []
        for player, policy in ((left, left_policy), (right, right_policy)):
            who, strategy = ("annotator", "none") if player == "annotator" else ("agent", player)
            session = Session.begin(sample)
            run = self.runs.walk(session, who, strategy, int(candidates), int(steps), policy.strip(), desk.segmenter)
            sides.append(Side(session, run))
        yield self._view(sides, f"Looking for “{sample.expression}” …")
        while not all(side.over for side in sides):
            for i, side in enumerate(sides):
                if desk.comparison is not this:
                    yield self._view(sides, "Stopped.", over=True)
                    return
                if not side.over:
                    sides[i] = side.step()
                    yield self._view(sides, f"Looking for “{sample.expression}” …")
        yield self._view(sides, _verdict(sides), over=True)

    def on_stop(self, desk: Desk) -> None:
        desk.comparison = None

    def _view(self, sides: list[Side], note: str, over: bool = False) -> dict:
        shown = [film.side(s.session, COLORS[i], s.seconds) for i, s in enumerate(sides)]
        return {
            **dict(zip(self.sides, shown, strict=True)),
            self.note: film.note(note),
            self.run: gr.update(visible=over),
            self.stop: gr.update(visible=not over),
        }

    def layout(self) -> None:
        gr.HTML(
            '<p class="help">Two ways to segment the picture and the words of the first tab, from nothing, side by side: '
            "greedy and search, two checkpoints, or the simulated annotator as the ceiling where the target is known.</p>"
        )
        self.players, self.policies, self.sides = [], [], []
        with gr.Row():
            for name, chosen in (("left", "none"), ("right", "annotator")):
                with gr.Column(min_width=300):
                    self.players.append(
                        gr.Dropdown(PLAYERS, value=chosen, label=f"Who plays on the {name}", elem_id=f"{name}-player")
                    )
                    self.policies.append(
                        gr.Textbox("", label="Checkpoint", placeholder="segagent-nano (embedded), or owner/name of the Hub",
                                   max_lines=1, elem_id=f"{name}-policy")
                    )  # fmt: skip
        with gr.Row():
            self.candidates = gr.Slider(1, 8, 3, step=1, label="Candidates a step (K)", min_width=200)
            self.steps = gr.Slider(
                1, 20, 7, step=1, label="Most steps of a run (T)", min_width=200, elem_id="compare-steps"
            )
        with gr.Row(elem_classes="files"):
            self.run = gr.Button("Compare", variant="primary", elem_id="compare-run")
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="compare-stop")
        self.note = gr.HTML(film.note(""), elem_id="compare-note")
        with gr.Row():
            for name in ("left", "right"):
                with gr.Column(min_width=300):
                    self.sides.append(gr.HTML("", elem_id=f"{name}-side"))

    def events(self) -> None:
        inputs: list[Any] = [self.desk, *self.players, *self.policies, self.candidates, self.steps]
        self.run.click(self.on_run, inputs, [*self.sides, self.note, self.run, self.stop], **LONG)
        self.stop.click(self.on_stop, self.desk, None, **{**LONG, "concurrency_limit": None, "concurrency_id": None})


def _verdict(sides: list[Side]) -> str:
    """Which of the two ended better, by true IoU where that is known."""
    true = [side.session.shown.iou for side in sides]
    if None in true:
        return "Both are done; without a target mask only the predicted IoU can be told."
    if abs(true[0] - true[1]) < 0.005:
        return f"Both are done, and equally good: true IoU {true[0]:.2f}."
    better = "left" if true[0] > true[1] else "right"
    return f"Both are done. The {better} one is better: true IoU {max(true):.2f} against {min(true):.2f}."

"""The main tab: watch the agent, search, take over, save."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from segagent.errors import SegAgentError
from segagent.examples import example, examples
from segagent.images import load_image, load_mask
from segagent.page import film, markup, scripts
from segagent.page.desk import Board, Desk
from segagent.page.events import LONG, PRIVATE, QUICK, read, saved, told
from segagent.page.files import checked, file_of, restore
from segagent.page.layout import SegmentLayout
from segagent.page.models import Models
from segagent.page.runs import Runs
from segagent.page.session import Session, act
from segagent.types import Action, Box, Click, Sample


class SegmentTab(SegmentLayout):
    """The components and what their events do. Everything of a user is on his desk, a gr.State; the models are everyone's."""

    def __init__(self, models: Models, runs: Runs) -> None:
        self.models, self.runs = models, runs

    def view(self, desk: Desk, *, running: bool = False, note: str = "", tone: str = "", **more: Any) -> dict:
        """Updates of everything that shows the desk."""
        board = desk.board
        session = board.session
        return {
            self.canvas: markup.canvas(board),
            self.objects: markup.objects(board),
            self.timeline: film.timeline(board),
            self.status: markup.status(session, note, tone),
            self.log: markup.log(session),
            self.tree: film.tree_view(session.tree, board.thing.color, session.state),
            self.undo: gr.update(interactive=session.can_undo),
            self.redo: gr.update(interactive=session.can_redo),
            self.run: gr.update(visible=not running),
            self.stop: gr.update(visible=running),
            **{getattr(self, name): value for name, value in more.items()},
        }

    def fail(self, desk: Desk, sentence: str) -> dict:
        return self.view(desk, note=sentence, tone="bad")

    def fresh(self, desk: Desk, note: str = "", key: str = "") -> dict:
        """The view of a board that has just come onto the desk."""
        board = desk.board
        return self.view(
            desk,
            note=note,
            picture=markup.picture(board),
            expression=board.session.sample.expression,
            picker=markup.picker(examples(), key),
        )

    @told
    def on_pick(self, desk: Desk, event: gr.EventData) -> Iterator[dict]:
        desk.arrange(lambda _: Board.begin(example(event.key).load()))
        yield self.fresh(desk, key=event.key)

    @told
    def on_upload(self, desk: Desk, path: str) -> Iterator[dict]:
        image = checked(read(load_image, path))
        desk.arrange(lambda _: Board.begin(Sample(image, "", id=Path(path).stem[:80])))
        yield self.fresh(desk, "Say what to segment and press Run, or click on the picture.")

    @told
    def on_open(self, desk: Desk, path: str) -> Iterator[dict]:
        board = restore(Path(path).read_bytes())
        desk.arrange(lambda _: board)
        yield self.fresh(desk, "The session is back as it was saved.")

    @told
    def on_mask(self, desk: Desk, path: str) -> Iterator[dict]:
        desk.change(lambda s: Session.begin(s.sample, read(load_mask, path, s.sample.size)))
        yield self.view(desk, note="The run starts from your mask.")

    @told
    def on_target(self, desk: Desk, path: str) -> Iterator[dict]:
        desk.change(lambda s: s.aim(read(load_mask, path, s.sample.size)))
        yield self.view(desk, note="The target is known: the annotator can click, and the true IoU is shown.")

    @told
    def on_object(self, desk: Desk, expression: str, event: gr.EventData) -> Iterator[dict]:
        """Select, add, remove, rename or paint an object."""
        what, _, index = event.key.partition(":")
        if what in ("rename", "paint"):
            desk.arrange(lambda b: getattr(b, what)(event.value))
            yield {self.objects: markup.objects(desk.board), self.canvas: markup.canvas(desk.board)}
            return
        change = {"select": lambda b: b.select(int(index)), "remove": lambda b: b.remove(int(index)), "add": Board.add}[
            what
        ]
        desk.arrange(
            lambda b: change(b.put(b.session.ask(expression)) if expression != b.session.sample.expression else b)
        )
        note = "One more object: say what it is and press Run, or click on it." if what == "add" else ""
        yield self.view(desk, note=note, expression=desk.session.sample.expression)

    @told
    def on_run(
        self, desk: Desk, expression: str, who: str, strategy: str, candidates: int, steps: int, pause: float
    ) -> Iterator[dict]:
        """Streams a rollout from the shown state, until its person does anything else."""
        session = desk.change(lambda s: s.ask(expression)).session
        desk.run = this = object()
        if who == "you":
            yield self.view(desk, note="It is your turn: click on the picture. The right button removes.")
            return
        waits = who == "agent" and not self.models.loaded(desk.policy)
        yield self.view(desk, running=True, note="The model is being loaded …" if waits else "Looking …")
        run = self.runs.walk(session, who, strategy, int(candidates), int(steps), desk.policy, desk.segmenter)
        for after in run:
            if not desk.follow(session, after):
                # Its last picture may have overtaken, on the way, that of what the person did: show the latest once more.
                if desk.run is this:
                    yield self.view(desk, note=desk.note)
                return
            session, ended = after, after.shown.closing is not None
            yield self.view(desk, running=not ended)
            if not ended:
                time.sleep(pause)

    def on_step(self, desk: Desk, *inputs: Any) -> Iterator[dict]:
        *inputs, _, _ = inputs
        yield from self.on_run(desk, *inputs, 1, 0.0)

    @told
    def on_click(self, desk: Desk, expression: str, sign: str, event: gr.EventData) -> Iterator[dict]:
        environment = self.models.environment(desk.segmenter, desk.policy)

        def do(session: Session) -> Session:
            action = _action(event._data, session.sample.size, sign == "remove")
            return act(session.ask(expression), environment, action, self.models.judge(desk.policy))

        desk.change(do)
        yield self.view(desk)

    @told
    def on_stop(self, desk: Desk) -> Iterator[dict]:
        desk.change(Session.copy, "Stopped: click on the picture to take over, or press Run to hand back.")
        yield self.view(desk, note=desk.note)

    @told
    def on_undo(self, desk: Desk) -> Iterator[dict]:
        desk.change(Session.undo)
        yield self.view(desk)

    @told
    def on_redo(self, desk: Desk) -> Iterator[dict]:
        desk.change(Session.redo)
        yield self.view(desk)

    @told
    def on_restart(self, desk: Desk) -> Iterator[dict]:
        desk.change(Session.restart)
        yield self.view(desk)

    @told
    def on_row(self, desk: Desk, event: gr.EventData) -> Iterator[dict]:
        desk.change(lambda s: s.go(int(event.key)))
        yield self.view(desk)

    @told
    def on_candidate(self, desk: Desk, event: gr.EventData) -> Iterator[dict]:
        desk.change(lambda s: s.branch(int(event.key)))
        yield self.view(desk, note="You went to this candidate: press Run to go on from here, or click yourself.")

    @told
    def on_load(self, desk: Desk, policy: str, segmenter: str) -> Iterator[dict]:
        """Loads the models of those names, for everyone; from now on this person's desk uses them."""
        yield {self.status: markup.status(desk.session, "The models are being loaded …")}
        self.models.agent(policy.strip())
        environment = self.models.environment(segmenter.strip(), policy.strip())
        desk.policy, desk.segmenter = policy.strip(), segmenter.strip()
        name = policy.strip() or "segagent-nano"
        yield self.view(desk, note=f"In use: {name} with {environment.segmenter.reference}.")

    def on_export(self, desk: Desk, expression: str, kind: str) -> dict[str, str] | None:
        board = desk.board.put(desk.session.ask(expression))
        try:
            return saved(
                *file_of(board, kind, self.models.environment(desk.segmenter, desk.policy).segmenter.reference)
            )
        except SegAgentError as error:
            gr.Warning(str(error))
            return None

    def events(self) -> None:
        shows = [
            self.canvas, self.picture, self.objects, self.timeline, self.status, self.log, self.tree, self.undo, self.redo,
            self.run, self.stop, self.expression, self.picker,
        ]  # fmt: skip
        asked = [self.desk, self.expression, self.who, self.strategy, self.candidates, self.steps, self.pause]
        self.run.click(self.on_run, asked, shows, **LONG)
        self.expression.submit(self.on_run, asked, shows, **LONG)
        self.step.click(self.on_step, asked, shows, **LONG)
        self.canvas.select(
            self.on_click, [self.desk, self.expression, self.sign], shows, trigger_mode="multiple", **QUICK
        )
        for button, handler in (
            (self.stop, self.on_stop),
            (self.undo, self.on_undo),
            (self.redo, self.on_redo),
            (self.restart, self.on_restart),
        ):
            button.click(handler, self.desk, shows, trigger_mode="multiple", **QUICK)
        for component, handler in (
            (self.picker, self.on_pick),
            (self.log, self.on_row),
            (self.timeline, self.on_row),
            (self.tree, self.on_candidate),
        ):
            component.select(handler, self.desk, shows, **QUICK)
        self.load.click(self.on_load, [self.desk, self.policy, self.segmenter], shows, **LONG)
        self.objects.select(self.on_object, [self.desk, self.expression], shows, **QUICK)
        for button, handler in (
            (self.upload, self.on_upload),
            (self.mask, self.on_mask),
            (self.target, self.on_target),
            (self.open, self.on_open),
        ):
            button.upload(handler, [self.desk, button], shows, **QUICK)
        for kind, button in self.exports.items():
            made = button.click(partial(self.on_export, kind=kind), [self.desk, self.expression], self.file, **QUICK)
            made.then(None, self.file, js=scripts.DOWNLOAD_JS, **PRIVATE)


def _action(place: dict[str, Any], size: tuple[int, int], remove: bool) -> Action:
    """The action at shares of the picture's width and height, kept inside it."""
    height, width = size

    def px(share: float, length: int) -> float:
        return min(max(float(share) * length - 0.5, -0.5), length - 0.501)

    x, y = px(place["x"], width), px(place["y"], height)
    if "x1" in place:
        return Box(x, y, px(place["x1"], width), px(place["y1"], height))
    return Click(x, y, positive=remove == bool(place.get("right")))

"""The Gradio Space: events of the page → sessions that rollout extends → pictures. `python app.py` starts it."""

from __future__ import annotations

import argparse
import base64
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import: the server asks no outside host

import gradio as gr

from segagent import markup
from segagent.endpoints import Endpoints
from segagent.errors import ImageError, SegAgentError
from segagent.examples import example, examples
from segagent.images import load_image, load_mask
from segagent.segmenters import Segmenter
from segagent.space import EXPORTS, Desk, Models, Session, click, file_of, play
from segagent.types import Click, Sample

if TYPE_CHECKING:
    from segagent.agent import SegAgent

SHOWN = 1024  # px, the longest side of the picture on the page; masks and exports have the original's size
MOST_PIXELS = 16_000_000  # of an uploaded picture: every session keeps a mask of its size for every click


def told(handler: Callable[..., Iterator[dict]]) -> Callable[..., Iterator[dict]]:
    """A handler whose errors become one sentence on the page, which stays as it was."""

    @wraps(handler)
    def safe(page: Page, desk: Desk, *rest: Any) -> Iterator[dict]:
        try:
            yield from handler(page, desk, *rest)
        except SegAgentError as error:
            gr.Warning(str(error))
            yield page.view(desk.session, note=str(error), tone="bad")

    return safe


def answered(call: Callable[..., Any]) -> Callable[..., Any]:
    """A named endpoint: its errors reach the program that called as one sentence."""

    @wraps(call)
    def safe(*inputs: Any) -> Any:
        try:
            return call(*inputs)
        except SegAgentError as error:
            raise gr.Error(said(error, *inputs), print_exception=False) from error

    return safe


def read(loader: Callable[..., Any], path: str, *rest: Any) -> Any:
    """What `loader` makes of an uploaded file."""
    try:
        return loader(path, *rest)
    except SegAgentError as error:
        raise type(error)(said(error, path)) from error


def said(error: SegAgentError, *inputs: Any) -> str:
    """The error's sentence, with each uploaded file under the name that its owner knows."""
    sentence = str(error)
    for path in inputs:
        if isinstance(path, str) and os.path.isabs(path):
            sentence = sentence.replace(path, Path(path).name)
    return sentence


class Page:
    """The components and what their events do. Everything of a user is on his desk, a gr.State; the models are everyone's."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def view(self, session: Session, *, running: bool = False, note: str = "", tone: str = "", **more: Any) -> dict:
        """Updates of everything that shows the session."""
        return {
            self.canvas: markup.canvas(session, SHOWN),
            self.status: markup.status(session, note, tone),
            self.log: markup.log(session),
            self.undo: gr.update(interactive=session.can_undo),
            self.redo: gr.update(interactive=session.can_redo),
            self.run: gr.update(visible=not running),
            self.stop: gr.update(visible=running),
            **{getattr(self, name): value for name, value in more.items()},
        }

    @told
    def on_pick(self, desk: Desk, event: gr.EventData) -> Iterator[dict]:
        session = desk.change(lambda _: Session.begin(example(event.key).load()))
        chosen = markup.picker(examples(), event.key)
        yield self.view(session, expression=session.sample.expression, picker=chosen)

    @told
    def on_upload(self, desk: Desk, path: str) -> Iterator[dict]:
        image = read(load_image, path)
        if image.shape[0] * image.shape[1] > MOST_PIXELS:
            raise ImageError(
                f"The picture is {image.shape[1]}×{image.shape[0]} px, over {MOST_PIXELS // 10**6} million: scale it down, "
                "or use the command line."
            )
        session = desk.change(lambda _: Session.begin(Sample(image, "", id=Path(path).stem[:80])))
        note = "Say what to segment and press Run, or click on the picture."
        yield self.view(session, note=note, expression="", picker=markup.picker(examples()))

    @told
    def on_mask(self, desk: Desk, path: str) -> Iterator[dict]:
        session = desk.change(lambda s: Session.begin(s.sample, read(load_mask, path, s.sample.size)))
        yield self.view(session, note="The run starts from your mask.")

    @told
    def on_target(self, desk: Desk, path: str) -> Iterator[dict]:
        session = desk.change(lambda s: s.aim(read(load_mask, path, s.sample.size)))
        yield self.view(session, note="The target is known: the annotator can click, and the true IoU is shown.")

    @told
    def on_run(self, desk: Desk, expression: str, who: str, steps: int, pause: float) -> Iterator[dict]:
        """Streams a rollout from the shown state, until its person does anything else."""
        session = desk.change(lambda s: s.ask(expression))
        desk.run = this = object()
        if who == "you":
            yield self.view(session, note="It is your turn: click on the picture. The right button removes.")
            return
        waits = who == "agent" and not self.models.loaded
        yield self.view(session, running=True, note="The model is being loaded …" if waits else "Looking …")
        policy = self.models.policy(who, session.sample)
        for after in play(session, self.models.environment, policy, steps=int(steps)):
            if not desk.follow(session, after):
                # Its last picture may have overtaken, on the way, that of what the person did: show the latest once more.
                if desk.run is this:
                    yield self.view(desk.session, note=desk.note)
                return
            session, ended = after, after.shown.closing is not None
            yield self.view(session, running=not ended)
            if not ended:
                time.sleep(pause)

    def on_step(self, desk: Desk, expression: str, who: str) -> Iterator[dict]:
        yield from self.on_run(desk, expression, who, 1, 0.0)

    @told
    def on_click(self, desk: Desk, expression: str, sign: str, event: gr.EventData) -> Iterator[dict]:
        def act(session: Session) -> Session:
            height, width = session.sample.size
            action = Click(event.x * width - 0.5, event.y * height - 0.5, positive=(sign == "add") != event.right)
            return click(session.ask(expression), self.models.environment, action, self.models.judge)

        yield self.view(desk.change(act))

    @told
    def on_stop(self, desk: Desk) -> Iterator[dict]:
        session = desk.change(Session.copy, "Stopped: click on the picture to take over, or press Run to hand back.")
        yield self.view(session, note=desk.note)

    @told
    def on_undo(self, desk: Desk) -> Iterator[dict]:
        yield self.view(desk.change(Session.undo))

    @told
    def on_redo(self, desk: Desk) -> Iterator[dict]:
        yield self.view(desk.change(Session.redo))

    @told
    def on_restart(self, desk: Desk) -> Iterator[dict]:
        yield self.view(desk.change(Session.restart))

    @told
    def on_row(self, desk: Desk, event: gr.EventData) -> Iterator[dict]:
        yield self.view(desk.change(lambda s: s.go(int(event.key))))

    def on_export(self, desk: Desk, expression: str, kind: str) -> dict[str, str] | None:
        """One file as {name, type, base64}, for the browser to save; nothing is left on the server."""
        session = desk.session.ask(expression)
        try:
            data = file_of(session, kind, self.models.environment.segmenter.reference)
        except SegAgentError as error:
            gr.Warning(str(error))
            return None
        name = re.sub(r"[^\w.-]+", "-", f"{session.sample.id or 'picture'}-{EXPORTS[kind]}")
        mime = "image/png" if name.endswith("png") else "application/json"
        return {"name": name, "type": mime, "base64": base64.b64encode(data).decode("ascii")}

    def endpoints(self) -> None:
        """What programs call by name, as the methods of SegAgent; their inputs are checked as those of the page are."""
        with gr.Row(visible=False):
            image, mask = gr.File(label="image"), gr.File(label="mask")
            expression, steps = gr.Textbox(label="expression"), gr.Number(7, label="steps", precision=0)
            answer, iou, button = gr.JSON(label="result"), gr.Number(label="predicted_iou"), gr.Button()
        calls = Endpoints(self.models)
        for call, inputs, output in (
            (calls.segment, [image, expression, steps], answer),
            (calls.refine, [image, expression, mask, steps], answer),
            (calls.score, [image, expression, mask], iou),
        ):
            button.click(
                answered(call), inputs, output, api_name=call.__name__, concurrency_limit=2, concurrency_id="api"
            )

    def layout(self) -> None:
        first = Session.begin(examples()[0].load())
        self.desk = gr.State(Desk(first))
        gr.HTML(markup.HEADER, elem_id="header")
        with gr.Row(elem_id="examples"):
            self.upload = gr.UploadButton("＋ Your picture", file_types=["image"], scale=0, elem_id="upload")
            chosen = markup.picker(examples(), examples()[0].key)
            self.picker = gr.HTML(chosen, js_on_load=markup.BUTTONS_JS, elem_id="picker")
        with gr.Row(elem_id="bar"):
            self.expression = gr.Textbox(
                first.sample.expression, label="What to segment", placeholder="e.g. the red cup", max_lines=1,
                scale=5, min_width=220, elem_id="expression",
            )  # fmt: skip
            self.who = gr.Radio(
                [("Agent", "agent"), ("Simulated annotator", "annotator"), ("You", "you")], value="agent",
                label="Who clicks", scale=4, min_width=330, elem_id="who",
            )  # fmt: skip
            self.run = gr.Button("Run", variant="primary", scale=2, min_width=120, elem_id="run")
            self.stop = gr.Button("Stop", variant="stop", scale=2, min_width=120, elem_id="stop", visible=False)
        with gr.Row(elem_id="main"):
            with gr.Column(scale=7, min_width=340):
                self._picture(first)
            with gr.Column(scale=4, min_width=340):
                self._side(first)

    def _picture(self, first: Session) -> None:
        self.canvas = gr.HTML(
            markup.canvas(first, SHOWN), html_template=markup.CANVAS, js_on_load=markup.CANVAS_JS, elem_id="canvas"
        )
        with gr.Row(elem_id="tools"):
            self.sign = gr.Radio(
                [("+ Add", "add"), ("− Remove", "remove")], value="add", show_label=False, container=False,
                label="What a click does", min_width=180, elem_id="sign",
            )  # fmt: skip
            self.undo = gr.Button("Undo", size="sm", interactive=False, elem_id="undo")
            self.redo = gr.Button("Redo", size="sm", interactive=False, elem_id="redo")
            self.restart = gr.Button("Restart", size="sm", elem_id="restart")
            self.step = gr.Button("One step", size="sm", elem_id="step")

    def _side(self, first: Session) -> None:
        self.status = gr.HTML(markup.status(first), elem_id="status")
        self.log = gr.HTML(markup.log(first), js_on_load=markup.BUTTONS_JS, elem_id="log")
        with gr.Row(elem_id="exports"):
            self.exports = {
                kind: gr.Button(f"↓ {kind}", size="sm", elem_id=f"export-{file.split('.')[0]}")
                for kind, file in EXPORTS.items()
            }
        self.file = gr.JSON(visible=False)
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.steps = gr.Slider(1, 20, 7, step=1, label="Most clicks of a run")
            self.pause = gr.Slider(0, 2, 0.4, step=0.1, label="Seconds between clicks")
        with gr.Accordion("Masks of your own", open=False), gr.Row(elem_id="masks"):
            masks = {"file_types": ["image", ".json"], "size": "sm"}
            self.mask = gr.UploadButton("Start from a mask", elem_id="start-mask", **masks)
            self.target = gr.UploadButton("Give the target mask", elem_id="target-mask", **masks)
        with gr.Accordion("About the photographs", open=False):
            gr.HTML(markup.sources(examples()))

    def events(self) -> None:
        shows = [
            self.canvas, self.status, self.log, self.undo, self.redo, self.run, self.stop, self.expression, self.picker,
        ]  # fmt: skip
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # "multiple": a run that was taken over may still be in its last step when the next one is asked for.
        long = {"concurrency_limit": 16, "concurrency_id": "run", "trigger_mode": "multiple", **private}
        quick = {"concurrency_limit": None, **private}
        asked = [self.desk, self.expression, self.who]
        self.run.click(self.on_run, [*asked, self.steps, self.pause], shows, **long)
        self.expression.submit(self.on_run, [*asked, self.steps, self.pause], shows, **long)
        self.step.click(self.on_step, asked, shows, **long)
        clicked = [self.desk, self.expression, self.sign]
        self.canvas.select(self.on_click, clicked, shows, trigger_mode="multiple", **quick)
        for button, handler in (
            (self.stop, self.on_stop),
            (self.undo, self.on_undo),
            (self.redo, self.on_redo),
            (self.restart, self.on_restart),
        ):
            button.click(handler, self.desk, shows, trigger_mode="multiple", **quick)
        self.picker.select(self.on_pick, self.desk, shows, **quick)
        self.log.select(self.on_row, self.desk, shows, **quick)
        for button, handler in (
            (self.upload, self.on_upload),
            (self.mask, self.on_mask),
            (self.target, self.on_target),
        ):
            button.upload(handler, [self.desk, button], shows, **quick)
        for kind, button in self.exports.items():
            saved = button.click(partial(self.on_export, kind=kind), [self.desk, self.expression], self.file, **quick)
            saved.then(None, self.file, js=markup.DOWNLOAD_JS, **private)


def build(agent: SegAgent | None = None, segmenter: Segmenter | None = None, models: Models | None = None) -> gr.Blocks:
    """The page. Without an agent the embedded one is loaded when it is first needed."""
    page = Page(models or Models(agent, segmenter))
    with gr.Blocks(title="SegAgent", analytics_enabled=False, fill_width=True, delete_cache=(1800, 3600)) as demo:
        page.layout()
        page.events()
        page.endpoints()
    return demo


def look() -> dict[str, Any]:
    """What launch() needs for the page to look as it should: system fonts, so that no font is fetched."""
    theme = gr.themes.Default(primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    return {"theme": theme, "css": markup.CSS, "footer_links": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="7860 or the next free one, or $GRADIO_SERVER_PORT")
    parser.add_argument("--host", help="127.0.0.1, on a Space 0.0.0.0, or $GRADIO_SERVER_NAME")
    arguments = parser.parse_args()
    models = Models()
    demo = build(models=models)
    host = arguments.host or os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if "SPACE_ID" in os.environ else None)
    demo.launch(server_name=host, server_port=arguments.port, max_file_size="60mb", prevent_thread_lock=True, **look())
    models.warm()  # after the page is up, so that it does not wait for torch
    demo.block_thread()


if __name__ == "__main__":
    main()

"""What the main tab looks like: its components, in their places."""

from __future__ import annotations

import gradio as gr

from segagent.examples import examples
from segagent.page import markup, scripts
from segagent.page.desk import Board, Desk
from segagent.page.files import EXPORTS
from segagent.page.runs import STRATEGIES

HELP = "".join(
    f"<kbd>{key}</kbd> {what} &nbsp; "
    for key, what in (
        ("R", "run / stop"), ("N", "one step"), ("Z", "undo"), ("Y", "redo"), ("X", "add / remove"), ("B", "box"),
        ("E", "save PNG"), ("+", "zoom in"), ("−", "out"), ("0", "fit"),
    )
)  # fmt: skip


class SegmentLayout:
    """The components; what their events do is SegmentTab's."""

    def layout(self) -> gr.State:
        """Draws the tab; → the desk that the other tabs work on, too."""
        first = Desk(Board.begin(examples()[0].load()))
        self.desk = gr.State(first, time_to_live=7200)
        with gr.Row(elem_id="examples"):
            with gr.Column(elem_id="upload-slot", scale=0):
                self.upload = gr.UploadButton("＋ Your picture", file_types=["image"], elem_id="upload")
            chosen = markup.picker(examples(), examples()[0].key)
            self.picker = gr.HTML(chosen, js_on_load=scripts.BUTTONS_JS, elem_id="picker")
        with gr.Row(elem_id="bar"):
            self.expression = gr.Textbox(
                first.session.sample.expression, label="What to segment", placeholder="e.g. the red cup", max_lines=1,
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
                self._picture(first.board)
            with gr.Column(scale=4, min_width=340):
                self._side(first.board)
        self.picture = gr.HTML(
            markup.picture(first.board),
            html_template="",
            js_on_load=scripts.PICTURE,
            visible="hidden",
            elem_id="picture",
        )
        return self.desk

    def _picture(self, board: Board) -> None:
        self.objects = gr.HTML(markup.objects(board), js_on_load=scripts.BUTTONS_JS, elem_id="objects")
        self.canvas = gr.HTML(
            markup.canvas(board), html_template=scripts.CANVAS, js_on_load=scripts.CANVAS_JS, elem_id="canvas"
        )
        self.timeline = gr.HTML("", js_on_load=scripts.TIMELINE_JS, elem_id="timeline")
        with gr.Row(elem_id="tools"):
            self.sign = gr.Radio(
                [("+ Add", "add"), ("− Remove", "remove"), ("▭ Box", "box")], value="add", show_label=False, container=False,
                label="What a click does", min_width=180, elem_id="sign",
            )  # fmt: skip
            self.undo = gr.Button("Undo", size="sm", interactive=False, elem_id="undo")
            self.redo = gr.Button("Redo", size="sm", interactive=False, elem_id="redo")
            self.restart = gr.Button("Restart", size="sm", elem_id="restart")
            self.step = gr.Button("One step", size="sm", elem_id="step")
        self.tree = gr.HTML("", js_on_load=scripts.BUTTONS_JS, elem_id="tree")
        gr.HTML(
            f'<p class="help">Left click adds, right click removes, a drag draws a box; drop or paste a picture. {HELP}</p>'
        )

    def _side(self, board: Board) -> None:
        self.status = gr.HTML(markup.status(board.session), elem_id="status")
        self.log = gr.HTML(markup.log(board.session), js_on_load=scripts.LOG_JS, elem_id="log")
        with gr.Accordion("Search and speed", open=False, elem_id="settings"):
            self.strategy = gr.Dropdown(
                STRATEGIES, value="none", label="How the agent chooses its clicks", elem_id="strategy",
                info="A search tries several clicks at each step and keeps the mask that it rates best.",
            )  # fmt: skip
            self.candidates = gr.Slider(1, 8, 3, step=1, label="Candidates a step (K)", elem_id="candidates")
            self.steps = gr.Slider(1, 20, 7, step=1, label="Most steps of a run (T)", elem_id="steps")
            self.pause = gr.Slider(0, 2, 0.4, step=0.1, label="Speed: seconds between clicks", elem_id="pause")
        with gr.Accordion("Save", open=False, elem_id="save"), gr.Row(elem_classes="files"):
            self.exports = {
                kind: gr.Button(f"↓ {kind}", size="sm", min_width=90, elem_id=f"export-{file.split('.')[0]}")
                for kind, file in EXPORTS.items()
            }
        self.file = gr.JSON(visible=False)
        with gr.Accordion("Open a mask or a session", open=False, elem_id="open"), gr.Row(elem_classes="files"):
            masks = {"file_types": ["image", ".json"], "size": "sm"}
            self.mask = gr.UploadButton("Start from a mask", elem_id="start-mask", **masks)
            self.target = gr.UploadButton("Give the target mask", elem_id="target-mask", **masks)
            self.open = gr.UploadButton("Open a session", file_types=[".zip"], size="sm", elem_id="open-session")
        with gr.Accordion("Models", open=False, elem_id="models"):
            self.policy = gr.Textbox(
                "", label="Policy", placeholder="segagent-nano (embedded)", max_lines=1, elem_id="policy",
                info="A SegAgent checkpoint: owner/name on the Hub, or a folder where the page runs on your own machine.",
            )  # fmt: skip
            self.segmenter = gr.Textbox(
                "", label="Segmenter", placeholder="the policy's own (grabcut)", max_lines=1, elem_id="segmenter",
                info="e.g. grabcut, clicknet, sam:facebook/sam-vit-base, simpleclick:owner/name.",
            )  # fmt: skip
            self.load = gr.Button("Use these", size="sm", elem_id="load")
        with gr.Accordion("About the photographs", open=False):
            gr.HTML(markup.sources(examples()))

"""The Gradio Space: events of the page → sessions that rollout extends → pictures. `python app.py` starts it."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import: the server asks no outside host

import gradio as gr

from segagent.page import markup
from segagent.page.compare import CompareTab
from segagent.page.endpoints import Endpoints
from segagent.page.events import answered
from segagent.page.masks import FilterTab, RefineTab
from segagent.page.models import Models
from segagent.page.runs import Runs
from segagent.page.segment import SegmentTab
from segagent.page.style import CSS
from segagent.segmenters import Segmenter

if TYPE_CHECKING:
    from segagent.agent import SegAgent


def build(agent: SegAgent | None = None, segmenter: Segmenter | None = None, models: Models | None = None) -> gr.Blocks:
    """The page. Without an agent the embedded one is loaded when it is first needed."""
    models = models or Models(agent, segmenter)
    with gr.Blocks(title="SegAgent", analytics_enabled=False, fill_width=True, delete_cache=(1800, 3600)) as demo:
        gr.HTML(markup.HEADER, elem_id="header")
        runs = Runs(models)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Segment", elem_id="segment"):
                segment = SegmentTab(models, runs)
                desk = segment.layout()
            with gr.Tab("Compare", elem_id="compare"):
                compare = CompareTab(runs, desk)
                compare.layout()
            with gr.Tab("Refine a mask", elem_id="refine"):
                refine = RefineTab(runs)
                refine.layout()
            with gr.Tab("Filter a data set", elem_id="filter"):
                filtering = FilterTab(runs)
                filtering.layout()
        for tab in (segment, compare, refine, filtering):
            tab.events()
        endpoints(runs)
    return demo


def endpoints(runs: Runs) -> None:
    """What programs call by name, as the methods of SegAgent; their inputs are checked as those of the page are."""
    with gr.Row(visible=False):
        image, mask = gr.File(label="image"), gr.File(label="mask")
        expression = gr.Textbox(label="expression")
        steps = gr.Number(7, label="steps", precision=0)
        candidates = gr.Number(1, label="candidates", precision=0)
        answer, iou, button = gr.JSON(label="result"), gr.Number(label="predicted_iou"), gr.Button()
    calls = Endpoints(runs)
    for call, inputs, output in (
        (calls.segment, [image, expression, steps, candidates], answer),
        (calls.refine, [image, expression, mask, steps], answer),
        (calls.score, [image, expression, mask], iou),
    ):
        button.click(answered(call), inputs, output, api_name=call.__name__, concurrency_limit=2, concurrency_id="api")


def look() -> dict[str, Any]:
    """What launch() needs for the page to be as it should: system fonts, so that none is fetched, and the MCP tools."""
    theme = gr.themes.Default(primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
    return {"theme": theme, "css": CSS, "footer_links": [], "mcp_server": True, "state_session_capacity": 100}


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

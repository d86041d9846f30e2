"""What the page's browser tests share: the page served from this process, a Chromium, and what a person does and sees."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fakes import FunctionPolicy
from PIL import Image

from segagent.agent import SegAgent
from segagent.examples import example
from segagent.masks import from_polygons, from_rle, iou
from segagent.types import Click

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = os.environ.get("SEGAGENT_CHROMIUM") or shutil.which("chromium")


class Paced:
    """A policy that takes a moment, so that there is a middle of a run to take over in; `gate` holds it where a test says."""

    def __init__(self, policy):
        self.policy, self.gate = policy, threading.Event()
        self.gate.set()

    def read(self, observations):
        assert self.gate.wait(60)
        return self.policy.read(observations)


# By the number of clicks so far: the predicted IoU, and the clicks that come to mind, the first first.
REPLIES = (
    (0.02, [Click(240, 160), Click(60, 60)]),
    (0.61, [Click(235, 270), Click(60, 270)]),
    (0.83, [Click(90, 30, False)]),
    (0.93, [None]),
)


def decide(observation):
    return REPLIES[min(len(observation.state.actions), 3)]


@pytest.fixture(scope="module")
def policy():
    return Paced(FunctionPolicy(decide))


@pytest.fixture(scope="module")
def address(policy):
    """The page, served from this process on a free port."""
    app = pytest.importorskip("app")
    demo = app.build(agent=SegAgent(policy))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.look())
    yield url
    demo.close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "No chromium on this machine: install Debian's chromium, or set SEGAGENT_CHROMIUM."
        if os.environ.get("SEGAGENT_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield chromium
    chromium.close()
    playwright.stop()


@pytest.fixture(scope="module")
def context(browser):
    """One for all tests of a module, so that the page's scripts are fetched once; each test has a tab, and thus a session, of its own."""
    made = browser.new_context(accept_downloads=True)
    made.set_default_timeout(90_000)
    yield made
    made.close()


@pytest.fixture
def page(context, address, policy):
    """A fresh tab on the page. Afterwards: no outside host was asked, and no script failed."""
    policy.gate.set()
    tab, asked, failures = context.new_page(), [], []
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failures.append(str(error)))
    tab.goto(address)
    tab.locator("#canvas img").wait_for()
    pick(tab, "coffee-cup")  # the replies were made for this picture
    yield tab
    tab.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failures == []


def steps(page) -> list[str]:
    """The rows of the log, without the first state's."""
    return page.locator("#log button.entry").all_inner_texts()[1:]


def settle(page, count: int) -> None:
    """Waits until the log has `count` clicks and no run is under way."""
    page.wait_for_function(
        "n => document.querySelectorAll('#log button.entry').length == n + 1 && document.querySelector('#run')",
        arg=count,
    )


def click_picture(page, x: float, y: float, button: str = "left") -> None:
    """Clicks at shares of the picture's width and height."""
    box = page.locator("#canvas img").bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"], button=button)


def download(page, kind: str) -> bytes:
    with page.expect_download() as saved:
        page.click(f"#export-{kind}")
    return Path(saved.value.path()).read_bytes()


def exported(page) -> np.ndarray:
    """The shown mask, after checking that PNG, RLE and polygons hold the same one."""
    opened(page, "save")
    mask = np.asarray(Image.open(io.BytesIO(download(page, "mask")))) > 0
    assert (from_rle(json.loads(download(page, "coco"))["annotations"][0]["segmentation"]) == mask).all()
    polygons = json.loads(download(page, "polygons"))
    assert polygons["size"] == list(mask.shape)
    filled = from_polygons(polygons["objects"][0]["segmentation"], mask.shape)  # outer contours: holes are filled
    assert not mask.any() or iou(filled, mask) > 0.8
    return mask


def opened(page, accordion: str) -> None:
    """Opens an accordion that is closed."""
    if not page.locator(f"#{accordion} button.label-wrap.open").count():
        page.click(f"#{accordion} button.label-wrap")


def write(page, field: str, words: str) -> None:
    """Types into a field, again where it was drawn a moment ago: Gradio then sets its first value once more."""
    place = f"#{field} textarea, #{field} input"
    for _ in range(10):
        page.fill(place, words)
        page.wait_for_timeout(300)
        if page.input_value(place) == words:
            return
    raise AssertionError(f"{field} does not keep what is typed.")


def figure(page, name: str) -> str:
    return page.locator(f"#status .figures div:has(dt:text-is('{name}')) dd").inner_text()


def pick(page, key: str) -> None:
    page.click(f"#picker [data-key='{key}']")
    page.wait_for_function(
        "words => document.querySelector('#expression textarea, #expression input').value == words",
        arg=example(key).expression,
    )


def note(page, words: str) -> None:
    page.locator("#status .note", has_text=words).wait_for()


def settle_running(page, least: int) -> None:
    page.wait_for_function("n => document.querySelectorAll('#log button.entry').length >= n + 1", arg=least)


def upload(page, button: str, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(path)


def example_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(example("chelsea-eye").load().image).save(file, "png")
    return file.getvalue()


def check_layout(page, width: int, height: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = {
        k: page.locator(f"#{k}").bounding_box() for k in ("header", "picker", "expression", "who", "run", "canvas")
    }
    assert all(b["x"] >= 0 and b["x"] + b["width"] <= width for b in boxes.values())
    assert boxes["run"]["y"] + boxes["run"]["height"] <= height  # the one obvious button is on the first screen
    assert boxes["canvas"]["y"] + 200 <= height
    for a, b in combinations(boxes, 2):
        assert not overlap(boxes[a], boxes[b]), (a, b)
    cut = "es => es.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"
    assert page.locator("button:visible:not(#picker button, .label-wrap)").evaluate_all(cut) == []


def overlap(a: dict, b: dict) -> bool:
    return (
        min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"]) > 1
        and min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"]) > 1
    )

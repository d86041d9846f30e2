"""The page in a real Chromium: agent, annotator and person on a photograph and a scene, undo, take over, export, bad input."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fakes import scripted
from PIL import Image

from segagent.agent import NANO, SegAgent
from segagent.examples import example
from segagent.export import replay
from segagent.masks import from_polygons, from_rle, iou
from segagent.types import Click

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("SEGAGENT_CHROMIUM") or shutil.which("chromium")


class Paced:
    """A policy that takes a moment, so that there is a middle of a run to take over in; `gate` holds it where a test says."""

    def __init__(self, policy):
        self.policy, self.gate = policy, threading.Event()
        self.gate.set()

    def read(self, observations):
        assert self.gate.wait(60)
        return self.policy.read(observations)


@pytest.fixture(scope="module")
def policy():
    return Paced(scripted((0.02, Click(240, 160)), (0.61, Click(235, 270)), (0.83, Click(90, 30, False)), (0.93, None)))


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
    chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield chromium
    chromium.close()
    playwright.stop()


@pytest.fixture
def page(browser, address, policy):
    """A fresh tab on the page. Afterwards: no outside host was asked, and no script failed."""
    policy.gate.set()
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(60_000)
    tab, asked, failures = context.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: failures.append(str(error)))
    tab.goto(address)
    tab.locator("#canvas img").wait_for()
    yield tab
    context.close()
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


def test_the_agent_on_a_photograph_then_undo_redo_rows_and_exports(page):
    page.click("#run")
    note(page, "The agent is content")
    settle(page, 3)
    assert ["Agent" in row for row in steps(page)] == [True] * 3
    assert "+ (240, 160)" in steps(page)[0]
    assert (figure(page, "Predicted IoU"), figure(page, "Clicks")) == ("0.93", "3")
    after = exported(page)
    sample = example("coffee-cup").load()
    assert figure(page, "True IoU") == f"{iou(after, sample.target):.2f}"
    saved = json.loads(download(page, "trajectory"))
    assert (replay(saved, sample.image).states[-1].mask == after).all()
    page.click("#undo")
    page.wait_for_function(
        "() => document.querySelector('#status dd:last-of-type') && document.querySelector('#redo:not([disabled])')"
    )
    assert len(steps(page)) == 3  # they can be redone
    before = exported(page)
    assert (before == replay(saved, sample.image).states[2].mask).all()
    page.click("#redo")
    page.locator("#redo[disabled]").wait_for()
    assert (exported(page) == after).all()
    page.click("#log button[data-key='1']")
    page.locator("#log button.current[data-key='1']").wait_for()
    assert figure(page, "Clicks") == "1"
    page.click("#restart")
    settle(page, 0)
    assert not exported(page).any()


def test_the_annotator_on_a_scene_and_on_a_photograph(page):
    for key in ("scene-1", "rocket-rocket"):
        pick(page, key)
        page.get_by_label("Simulated annotator").check()
        page.click("#run")
        page.locator("#stop").wait_for()
        page.locator("#run").wait_for()
        rows = steps(page)
        assert 1 <= len(rows) <= 7
        assert all("Annotator" in row for row in rows)
        mask, target = exported(page), example(key).load().target
        assert mask.shape == target.shape
        assert figure(page, "True IoU") == f"{iou(mask, target):.2f}"
        assert iou(mask, target) > 0.2


def test_a_person_adds_and_removes_on_a_scene(page):
    pick(page, "scene-1")
    target = example("scene-1").load().target
    y, x = (np.median(axis) for axis in np.nonzero(target))
    height, width = target.shape
    nearest = np.stack(np.nonzero(target))[:, np.hypot(*(np.stack(np.nonzero(target)) - [[y], [x]])).argmin()]
    click_picture(page, (nearest[1] + 0.5) / width, (nearest[0] + 0.5) / height)
    settle(page, 1)
    row = steps(page)[0]
    assert "You +" in row
    placed = [int(v) for v in row.split("(")[1].split(")")[0].split(",")]
    assert np.abs(np.array(placed) - nearest[::-1]).max() <= 1  # the picture is shown at another scale
    assert exported(page)[nearest[0], nearest[1]]
    click_picture(page, 0.02, 0.02, button="right")
    settle(page, 2)
    assert "You −" in steps(page)[1]
    page.get_by_label("− Remove").check()
    click_picture(page, 0.97, 0.03)
    settle(page, 3)
    assert "You −" in steps(page)[2]
    saved = json.loads(download(page, "trajectory"))
    assert [s["origin"] for s in saved["steps"][:3]] == ["person"] * 3


def test_take_over_from_the_agent_in_the_middle_and_hand_back(page, policy):
    page.click("#run")
    settle_running(page, 1)
    policy.gate.clear()
    settle_running(page, len(steps(page)))
    page.click("#stop")
    note(page, "Stopped")
    policy.gate.set()
    done = len(steps(page))
    assert done < 3
    click_picture(page, 0.5, 0.5)
    settle(page, done + 1)
    assert "You +" in steps(page)[-1]
    page.click("#run")
    note(page, "content")
    rows = steps(page)
    assert "You +" in rows[done]
    assert all("Agent" in row for row in rows[:done] + rows[done + 1 :])
    page.click("#restart")
    settle(page, 0)
    page.click("#step")
    settle(page, 1)
    assert "Agent" in steps(page)[0]


def settle_running(page, least: int) -> None:
    page.wait_for_function("n => document.querySelectorAll('#log button.entry').length >= n + 1", arg=least)


def test_a_click_while_the_agent_runs_takes_over(page, policy):
    page.click("#run")
    settle_running(page, 1)
    click_picture(page, 0.9, 0.9, button="right")
    page.wait_for_function("() => document.querySelector('#log').innerText.includes('You −')")
    count = len(steps(page))
    time.sleep(1.5)
    assert len(steps(page)) == count
    assert "You −" in steps(page)[-1]


def upload(page, button: str, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(path)


def test_bad_uploads_and_words_get_one_sentence_and_the_page_goes_on(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(example_png()[:900])
    upload(page, "#upload", broken)
    note(page, "broken.png")
    assert str(tmp_path) not in page.locator("#status").inner_text()
    noise = tmp_path / "words.jpg"
    noise.write_text("not a picture")
    upload(page, "#upload", noise)
    note(page, "no picture that can be read")
    opened(page, "open")
    small = tmp_path / "small.png"
    Image.new("1", (20, 10)).save(small)
    upload(page, "#start-mask", small)
    note(page, "20×10")
    grey = tmp_path / "grey.png"
    Image.linear_gradient("L").resize((600, 400)).save(grey)
    upload(page, "#target-mask", grey)
    note(page, "threshold")
    page.fill("#expression textarea, #expression input", "   ")
    page.click("#run")
    note(page, "The expression is empty")
    page.fill("#expression textarea, #expression input", "x" * 1001)
    page.click("#run")
    note(page, "1000 are the most")
    opened(page, "save")
    page.click("#export-trajectory")
    page.get_by_text("nothing to store").wait_for()
    page.fill("#expression textarea, #expression input", "the coffee cup")
    page.click("#run")
    note(page, "content")


def example_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(example("chelsea-eye").load().image).save(file, "png")
    return file.getvalue()


def test_a_picture_of_ones_own_with_a_start_mask_and_a_target(page, tmp_path):
    picture, mask = tmp_path / "mine.png", tmp_path / "mask.png"
    sample = example("rocket-rocket").load()
    Image.fromarray(sample.image).save(picture)
    start = sample.target.copy()
    start[250:] = False
    Image.fromarray(start).save(mask)
    upload(page, "#upload", picture)
    note(page, "Say what to segment")
    assert figure(page, "True IoU") == "–"
    page.get_by_label("Simulated annotator").check()
    page.click("#run")
    note(page, "needs a target mask")
    opened(page, "open")
    upload(page, "#start-mask", mask)
    note(page, "starts from your mask")
    assert (exported(page) == start).all()
    Image.fromarray(sample.target).save(mask)
    upload(page, "#target-mask", mask)
    note(page, "The target is known")
    assert figure(page, "True IoU") == f"{iou(start, sample.target):.2f}"
    page.click("#run")
    page.locator("#stop").wait_for()
    page.locator("#run").wait_for()
    assert all("Annotator" in row for row in steps(page))
    assert float(figure(page, "True IoU")) > iou(start, sample.target)


def test_two_tabs_do_not_see_each_other(page, browser, address):
    other = browser.new_page()
    other.goto(address)
    other.locator("#canvas img").wait_for()
    pick(other, "scene-2")
    page.click("#run")
    note(page, "content")
    click_picture(other, 0.5, 0.5)
    settle(other, 1)
    assert (len(steps(page)), len(steps(other))) == (3, 1)
    other.close()


def test_nothing_is_cut_off_or_overlaps(page):
    for width, height in ((1440, 900), (1024, 768), (390, 844)):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(300)
            check_layout(page, width, height)


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


@pytest.mark.skipif(not NANO.is_dir(), reason="this checkout has no embedded model")
def test_the_embedded_agent_clicks_on_a_scene(browser):
    import app

    demo = app.build()
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.look())
    tab = browser.new_page()
    tab.goto(url)
    tab.locator("#canvas img").wait_for()
    pick(tab, "scene-1")
    tab.click("#run")
    tab.wait_for_function("() => document.querySelector('#log').innerText.includes('Agent')", timeout=180_000)
    tab.locator("#run").wait_for(timeout=180_000)
    assert "Current mIoU" in tab.locator("#log").inner_text()
    assert figure(tab, "Predicted IoU") != "–"
    demo.close()

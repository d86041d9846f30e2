"""The page in a real Chromium: agent, annotator and person on a photograph and a scene, undo, take over, export, bad input."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from page_browser import (
    address,
    browser,
    check_layout,
    click_picture,
    context,
    download,
    example_png,
    exported,
    figure,
    note,
    opened,
    page,
    pick,
    policy,
    settle,
    settle_running,
    steps,
    upload,
    write,
)
from PIL import Image

from segagent.agent import NANO
from segagent.examples import example
from segagent.export import replay
from segagent.masks import iou

pytestmark = pytest.mark.browser
__all__ = ["address", "browser", "context", "page", "policy"]  # fixtures


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


def test_a_click_while_the_agent_runs_takes_over(page, policy):
    page.click("#run")
    settle_running(page, 1)
    click_picture(page, 0.9, 0.9, button="right")
    page.wait_for_function("() => document.querySelector('#log').innerText.includes('You −')")
    count = len(steps(page))
    time.sleep(1.5)
    assert len(steps(page)) == count
    assert "You −" in steps(page)[-1]


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
    write(page, "expression", "   ")
    page.click("#run")
    note(page, "The expression is empty")
    write(page, "expression", "x" * 1001)
    page.click("#run")
    note(page, "1000 are the most")
    opened(page, "save")
    page.click("#export-trajectory")
    page.get_by_text("nothing to store").wait_for()
    write(page, "expression", "the coffee cup")
    page.click("#run")
    note(page, "content")


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

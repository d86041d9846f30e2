"""The page's tools in a real Chromium: time line, search tree, boxes, keys, zoom, objects, session files, and the other tabs."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import cv2
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
    figure,
    note,
    opened,
    page,
    pick,
    policy,
    settle,
    steps,
    upload,
    write,
)
from PIL import Image

from segagent.examples import example
from segagent.export import png
from segagent.masks import to_rle

pytestmark = pytest.mark.browser
__all__ = ["address", "browser", "context", "page", "policy"]  # fixtures


def marks(page) -> list[str]:
    return page.locator("#canvas .mark b").all_inner_texts()


def placed(row: str) -> list[int]:
    """The (x, y) that a row of the log tells."""
    return [int(v) for v in row.split("(")[1].split(")")[0].split(",")]


def pixel(page, x: float, y: float) -> np.ndarray:
    """The colour on the screen at shares of the picture's width and height."""
    box = page.locator("#canvas img").bounding_box()
    clip = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "width": 1, "height": 1}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))[0, 0].astype(int)


def test_the_time_line_goes_back_and_forth_and_plays_again(page):
    page.click("#run")
    note(page, "The agent is content")
    settle(page, 3)
    assert page.locator("#timeline .frame").count() == 4
    slider = page.locator("#timeline input[type=range]")
    slider.evaluate("e => { e.value = 1; e.dispatchEvent(new Event('input', {bubbles: true})); }")
    assert page.locator("#canvas .coarse path").count() == 2  # shown at once, before any answer of the server
    assert marks(page) == ["1"]
    slider.evaluate("e => e.dispatchEvent(new Event('change', {bubbles: true}))")
    page.locator("#timeline .frame[data-key='1'][aria-current]").wait_for()
    assert (figure(page, "Clicks"), page.locator("#canvas .coarse path").count()) == ("1", 0)
    page.click("#timeline .frame[data-key='3']")
    page.locator("#timeline .frame[data-key='3'][aria-current]").wait_for()
    page.click("#timeline [data-do=play]")
    page.wait_for_function("() => document.querySelector('#timeline output').innerText.startsWith('0 /')")
    page.wait_for_function("() => document.querySelector('#timeline output').innerText.startsWith('3 /')")
    assert marks(page) == ["1", "2", "3"]


def test_search_shows_its_tree_and_any_candidate_can_be_taken(page):
    opened(page, "settings")
    page.click("#strategy input")
    page.get_by_role("option", name="Best-first").click()
    page.click("#run")
    note(page, "content")
    cards = page.locator("#tree .node")
    assert cards.count() >= 5
    assert page.locator("#tree path.chosen").count() >= 2
    assert page.locator("#tree .node b").first.inner_text() == "0.02"
    other = page.locator("#tree .node:not(.chosen):not(.stop)").first
    words = other.get_attribute("aria-label")
    other.click()
    note(page, "You went to this candidate")
    assert page.locator("#tree .node[aria-current]").get_attribute("aria-label") == words
    assert marks(page)
    before = len(steps(page))
    page.click("#run")
    note(page, "content")
    assert len(steps(page)) > before


def test_a_box_by_drag_and_the_keyboard_alone(page):
    box = page.locator("#canvas img").bounding_box()
    corners = [(box["x"] + s * box["width"], box["y"] + t * box["height"]) for s, t in ((0.9, 0.85), (0.3, 0.2))]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=4)
    page.mouse.up()
    settle(page, 1)
    assert "You box" in steps(page)[0]
    assert np.abs(np.array(placed(steps(page)[0])) - [180, 80]).max() <= 1
    assert page.locator("#canvas .mark.box").count() == 1
    page.locator("#canvas .stage").focus()
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Space")
    settle(page, 2)
    assert placed(steps(page)[1]) == [312, 208]  # 0.52 of 600 and 0.522 of 400
    page.keyboard.press("z")
    page.locator("#redo:not([disabled])").wait_for()
    assert figure(page, "Clicks") == "1"
    page.keyboard.press("y")
    page.locator("#redo[disabled]").wait_for()
    page.keyboard.press("x")
    assert page.locator("#sign input[value=remove]").is_checked()
    page.keyboard.press("b")
    assert page.locator("#sign input[value=box]").is_checked()
    page.keyboard.press("n")
    settle(page, 3)
    assert "Agent" in steps(page)[2]
    with page.expect_download() as saved:  # the accordion with its button was never opened
        page.keyboard.press("e")
    assert saved.value.suggested_filename == "coffee-cup-mask.png"
    page.locator("#expression textarea, #expression input").press("z")  # typing is no command
    assert len(steps(page)) == 3


def test_zoom_keeps_coordinates_and_colours_are_what_was_chosen(page):
    page.click("#canvas [data-do=in]")
    page.click("#canvas [data-do=in]")
    assert page.locator("#canvas .view output").inner_text() == "225 %"
    stage = page.locator("#canvas .stage").bounding_box()
    x, y = stage["x"] + stage["width"] / 2 + 40, stage["y"] + stage["height"] / 2
    expected = page.evaluate(
        "([x, y]) => { const b = document.querySelector('#canvas img').getBoundingClientRect();"
        " return [(x - b.left) / b.width * 600 - 0.5, (y - b.top) / b.height * 400 - 0.5]; }",
        [x, y],
    )
    page.mouse.click(x, y)
    settle(page, 1)
    assert np.abs(np.array(placed(steps(page)[0])) - expected).max() <= 1
    page.keyboard.press("0")
    assert page.locator("#canvas .view output").inner_text() == "100 %"
    page.locator("#objects input[type=color]").evaluate(
        "e => { e.value = '#0000ff'; e.dispatchEvent(new Event('change', {bubbles: true})); }"
    )
    page.locator("#canvas path.mask[fill='#0000ff']").wait_for()
    opened(page, "save")
    mask = np.asarray(Image.open(io.BytesIO(download(page, "mask")))) > 0
    inside = np.stack(np.nonzero(cv2.erode(mask.astype(np.uint8), np.ones((5, 5))))[::-1], axis=1)
    far = inside[np.hypot(*(inside - expected).T).argmax()] + 0.5  # from the click's mark
    half = pixel(page, *(far / [600, 400]))
    page.locator("#canvas .view input[type=range]").fill("100")
    assert (np.abs(pixel(page, *(far / [600, 400])) - [0, 0, 255]) < 12).all()
    assert np.abs(half - [0, 0, 255]).max() > 30  # at half opacity the picture shows through


def test_several_objects_each_with_a_history_and_a_session_that_comes_back(page, tmp_path):
    page.click("#run")
    note(page, "content")
    page.fill("#objects input[type=text]", "cup")
    page.keyboard.press("Enter")
    page.locator("#objects input[value=cup]").wait_for()  # drawn anew: a click in between would fall on the old button
    page.click("#objects [data-key=add]")
    note(page, "One more object")
    write(page, "expression", "the corner")
    click_picture(page, 0.05, 0.9)
    settle(page, 1)
    assert page.locator("#canvas path.mask").count() == 2
    page.click("#objects [data-key='select:0']")
    settle(page, 3)
    assert page.locator("#expression textarea, #expression input").input_value() == "the coffee cup"
    page.click("#undo")
    page.locator("#redo:not([disabled])").wait_for()
    opened(page, "save")
    coco = json.loads(download(page, "coco"))
    assert [c["name"] for c in coco["categories"]] == ["cup", "the corner"]
    assert len(zipfile.ZipFile(io.BytesIO(download(page, "mask"))).namelist()) == 2
    assert Image.open(io.BytesIO(download(page, "run"))).n_frames == 3
    saved = tmp_path / "mine.zip"
    saved.write_bytes(download(page, "session"))
    page.reload()
    page.locator("#canvas img").wait_for()
    settle(page, 0)
    opened(page, "open")
    upload(page, "#open-session", saved)
    note(page, "The session is back")
    settle(page, 3)
    assert figure(page, "Clicks") == "2"
    assert page.locator("#objects .thing").count() == 3
    page.click("#redo")
    page.locator("#redo[disabled]").wait_for()
    page.click("#objects [data-key='remove:0']")
    settle(page, 1)
    saved.write_bytes(b"no archive")
    upload(page, "#open-session", saved)
    note(page, "no session file")


def test_pictures_are_dropped_and_pasted(page):
    for kind, name in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        pick(page, "rocket-rocket")
        page.evaluate(
            "([data, kind, name]) => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));"
            " const held = new DataTransfer(); held.items.add(new File([bytes], 'cat.png', {type: 'image/png'}));"
            " const event = new Event(kind, {bubbles: true, cancelable: true}); event[name] = held;"
            " document.querySelector('#canvas .stage').dispatchEvent(event); }",
            [base64.b64encode(example_png()).decode(), kind, name],
        )
        note(page, "Say what to segment")
        assert page.evaluate("() => document.querySelector('#canvas .paint').getAttribute('viewBox')") == "0 0 451 300"


def test_reload_in_the_middle_of_a_run(page, policy):
    policy.gate.clear()
    page.click("#run")
    page.locator("#stop").wait_for()
    page.reload()
    page.locator("#run").wait_for()
    policy.gate.set()
    settle(page, 0)
    page.click("#run")
    note(page, "content")


def test_compare_two_on_one_picture_and_stop(page, policy):
    page.get_by_role("tab", name="Compare").click()
    page.click("#compare-run")
    page.locator("#compare-note", has_text="Both are done").wait_for()
    for side in ("left", "right"):
        assert page.locator(f"#{side}-side .figures dd").count() == 4
        assert page.locator(f"#{side}-side .still svg").bounding_box()["width"] > 200
    policy.gate.clear()
    page.click("#compare-run")
    page.locator("#compare-stop").wait_for()
    page.click("#compare-stop")
    policy.gate.set()
    page.locator("#compare-note", has_text="Stopped").wait_for()
    write(page, "left-policy", "no such place")
    page.click("#compare-run")
    page.locator("#compare-note", has_text="no such place").wait_for()
    page.locator("#compare-run").wait_for()


def give(page, name: str, path) -> None:
    page.locator(f"#{name} input[type=file]").set_input_files(path)
    page.locator(f"#{name}", has_text=path.stem).wait_for()


def test_a_mask_is_scored_and_repaired(page, tmp_path):
    sample = example("coffee-cup").load()
    picture, mask, other = tmp_path / "cup.png", tmp_path / "mask.png", tmp_path / "other.png"
    picture.write_bytes(png(sample.image))
    mask.write_bytes(png(sample.target))
    other.write_bytes(png(sample.target[1:]))
    page.get_by_role("tab", name="Refine").click()
    page.click("#refine-score")
    page.locator("#refine-note", has_text="Give a picture").wait_for()
    give(page, "refine-image", picture)
    give(page, "refine-mask", mask)
    page.click("#refine-score")
    page.locator("#refine-note", has_text="The expression is empty").wait_for()
    write(page, "refine-expression", "the cup")
    page.click("#refine-score")
    page.locator("#refine-note", has_text="gives your mask 0.02").wait_for()
    page.click("#refine-run")
    page.locator("#after", has_text="predicted IoU 0.93").wait_for()
    with page.expect_download() as saved:
        page.click("#refine-save")
    assert np.asarray(Image.open(saved.value.path())).shape == sample.target.shape
    page.locator(
        "#refine-mask button[aria-label='Clear'], #refine-mask button[aria-label='Remove this file']"
    ).first.click()
    give(page, "refine-mask", other)
    page.click("#refine-score")
    page.locator("#refine-note", has_text="they must be equal").wait_for()


def test_a_data_set_is_ranked_and_filtered(page, tmp_path):
    sample = example("coffee-cup").load()
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("cup.png", png(sample.image))
        archive.writestr("../outside.txt", "not a picture")
    height, width = sample.size
    value = {
        "images": [{"id": 1, "file_name": "cup.png", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": to_rle(sample.target)}
            for i, image in ((1, 1), (2, 9))
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(value))
    (tmp_path / "empty.zip").write_bytes(b"no")
    page.get_by_role("tab", name="Filter").click()
    give(page, "filter-file", tmp_path / "coco.json")
    give(page, "filter-images", tmp_path / "empty.zip")
    page.click("#filter-run")
    page.locator("#filter-note", has_text="no ZIP that can be read").wait_for()
    page.locator(
        "#filter-images button[aria-label='Clear'], #filter-images button[aria-label='Remove this file']"
    ).first.click()
    give(page, "filter-images", tmp_path / "pictures.zip")
    page.click("#filter-run")
    page.locator("#filter-note", has_text="0 of 2 annotations reach 0.80").wait_for()
    assert "could not be scored" in page.locator("#filter-note").inner_text()
    assert page.locator("#filter-gallery figure.remove").count() == 1
    with page.expect_download() as saved:
        page.click("#filter-save")
    assert json.loads(saved.value.path().read_bytes())["annotations"] == []


def test_models_that_cannot_be_had_are_told_and_others_are_used(page, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    opened(page, "models")
    write(page, "segmenter", "nonsense")
    page.click("#load")
    note(page, "no segmenter named 'nonsense'")
    write(page, "segmenter", "grabcut")
    page.click("#load")
    note(page, "In use: segagent-nano with grabcut")
    write(page, "policy", "no such folder")
    page.click("#load")
    note(page, "no such folder")


def test_nothing_is_cut_off_after_a_search_and_on_the_other_tabs(page):
    opened(page, "settings")
    page.click("#strategy input")
    page.get_by_role("option", name="Best of K").click()
    page.click("#run")
    note(page, "content")
    for width, height in ((1440, 900), (1024, 768), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(200)
        check_layout(page, width, height)
        for name in ("objects", "timeline", "tools", "tree", "status", "log"):
            box = page.locator(f"#{name}").bounding_box()
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= width, name

"""Pixels of the pictures that people see."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from segagent import drawing
from segagent.examples import example
from segagent.masks import iou, overlay
from segagent.types import Box, Click


@pytest.fixture
def image() -> np.ndarray:
    return np.full((60, 100, 3), 120, np.uint8)


def near(pixel: np.ndarray, color: tuple[int, int, int], tolerance: int = 25) -> bool:
    return bool(np.abs(pixel.astype(int) - color).max() <= tolerance)


def test_the_mask_is_painted_as_the_model_sees_it_and_nothing_else_changes(image):
    mask = np.zeros((60, 100), bool)
    mask[20:40, 30:70] = True
    shown = drawing.picture(image, mask)
    inside, outside = np.s_[25:35, 35:65], np.s_[:15, :]
    assert (shown[inside] == overlay(image, mask)[inside]).all()
    assert (shown[outside] == image[outside]).all()


@pytest.mark.parametrize("longest", [None, 50, 400])
def test_a_mark_sits_on_its_click_at_every_scale(image, longest):
    click = Click(80, 15, positive=False)
    shown = drawing.picture(image, actions=[click], longest=longest, numbers=False)
    scale = shown.shape[1] / 100
    changed = (shown != 120).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert rows.mean() == pytest.approx((click.y + 0.5) * scale - 0.5, abs=1.0)
    assert columns.mean() == pytest.approx((click.x + 0.5) * scale - 0.5, abs=1.0)
    assert near(shown[round((click.y + 0.5) * scale - 0.5), round((click.x + 0.5) * scale - 0.5)], drawing.NEGATIVE)


def test_positive_and_negative_differ_by_colour_and_by_shape(image):
    shown = [
        drawing.picture(image, actions=[Click(50, 30, positive=p)], longest=800, numbers=False) for p in (True, False)
    ]
    assert near(shown[0][244, 404], drawing.POSITIVE)
    assert near(shown[1][244, 404], drawing.NEGATIVE)
    areas = [(picture != 120).any(axis=2).sum() for picture in shown]
    assert areas[1] > 1.1 * areas[0]  # a square's corners


def test_the_latest_mark_alone_has_the_bright_ring(image):
    shown = drawing.picture(image, actions=[Click(20, 30), Click(80, 30)], longest=800, numbers=False)
    bright = (np.abs(shown.astype(int) - drawing.LATEST).max(axis=2) < 30).nonzero()[1]
    assert len(bright)
    assert bright.min() > 400


def test_numbers_are_written_into_the_marks(image):
    bare, numbered = (
        drawing.picture(image, actions=[Click(20, 30), Click(80, 30)], longest=800, numbers=n) for n in (False, True)
    )
    columns = (bare != numbered).any(axis=2).nonzero()[1]
    assert {bool(c > 400) for c in columns} == {False, True}


def test_a_box_and_a_click_on_the_border_stay_inside_the_picture(image):
    shown = drawing.picture(image, actions=[Box(0, 0, 99, 59), Click(99.4, 59.4), Click(-0.5, -0.5)])
    assert shown.shape == image.shape


def test_the_target_is_a_dashed_outline(image):
    target = np.zeros((60, 100), bool)
    target[10:50, 20:80] = True
    shown = drawing.picture(image, target=target, longest=800)
    edge = shown[80, 180:620]
    white = (edge > 240).all(axis=1)
    assert 0.2 < white.mean() < 0.9
    assert (shown[240, 300:500] == 120).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes(size):
    image = np.zeros((*size, 3), np.uint8)
    shown = drawing.picture(image, np.ones(size, bool), [Click(0, 0)], longest=1024)
    assert max(shown.shape[:2]) == 1024
    assert drawing.thumbnail(image, 32).shape == (32, 32, 3)


def test_a_strip_holds_every_picture(image):
    other = np.full((120, 60, 3), 30, np.uint8)
    sheet = drawing.strip([image, other], ["1 +", "2 −"], height=120)
    assert sheet.shape == (146, 200 + 6 + 60, 3)
    assert (sheet[:120, :200] == 120).all()
    assert (sheet[:120, 206:] == 30).all()
    assert (sheet[120:] < 200).any()


def test_the_curve_puts_iou_where_it_belongs():
    curve = drawing.curve([0.0, 1.0], [None, None], (280, 720))
    rows, columns = (
        (curve[..., 3] > 200) & (np.abs(curve[..., :3].astype(int) - drawing.TRUE_IOU).max(-1) < 8)
    ).nonzero()
    below = rows > 27  # without the legend
    rows, columns = rows[below], columns[below]
    assert rows[columns.argmin()] == pytest.approx(240, abs=6)
    assert rows[columns.argmax()] == pytest.approx(34, abs=6)
    orange = np.abs(curve[..., :3].astype(int) - drawing.PREDICTED_IOU).max(-1) < 8
    assert not (orange & (curve[..., 3] > 200)).any()
    assert (curve[100, 300:320, 3] == 0).all()  # a transparent ground


def test_one_value_and_none_at_all_can_be_drawn():
    assert drawing.curve([0.3], [None]).shape == (280, 720, 4)
    assert drawing.curve([], []).shape == (280, 720, 4)


@pytest.mark.parametrize(("channels", "kind"), [(3, "jpeg"), (4, "png"), (0, "png")])
def test_data_urls(channels, kind):
    pixels = np.zeros((4, 6), bool) if channels == 0 else np.zeros((4, 6, channels), np.uint8)
    head, body = drawing.data_url(pixels).split(",")
    assert head == f"data:image/{kind};base64"
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (6, 4)


def filled(path: str, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a grid of `size` whose centres an SVG path encloses, by the even-odd rule."""
    inside = np.zeros(size, bool)
    for part in path.split("M")[1:]:
        corners = np.array([[float(v) for v in pair.split()] for pair in part.rstrip("Z").split("L")])
        rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if y0 != y1:
                crossed = (rows > min(y0, y1)) & (rows < max(y0, y1))
                inside ^= crossed & (columns > x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
    return inside


@pytest.mark.parametrize("name", ["coffee-cup", "camera-tripod", "coins-coin"])
def test_an_outline_encloses_the_very_pixels_of_its_mask(name):
    mask = example(name).load().target.copy()
    mask[3, 3] = True  # one pixel alone
    assert (filled(drawing.outline(mask, tolerance=0), mask.shape) == mask).all()
    rough = filled(drawing.outline(mask.copy()), mask.shape)
    assert iou(rough, mask) > 0.95


def test_an_outline_is_drawn_in_the_grid_of_what_is_shown_and_remembered():
    mask = np.zeros((300, 200), bool)
    mask[100:200, 50:150] = True
    mask.flags.writeable = False
    small = drawing.outline(mask, 150)
    assert drawing.grid_size(mask.shape, 150) == (150, 100)
    assert filled(small, (150, 100)).sum() == 50 * 50
    assert drawing.outline(mask, 150) is small
    assert drawing.outline(np.zeros((5, 5), bool)) == ""
    assert drawing.outline(np.ones((5, 5), bool)).count("M") == 1


def test_an_animation_holds_each_frame_and_its_last_one_longer():
    frames = [np.full((40, 60, 3), shade, np.uint8) for shade in (0, 120, 240)]
    movie = Image.open(io.BytesIO(drawing.animation(frames, ["a", "b", "c"], 0.5)))
    assert (movie.n_frames, movie.size) == (3, (60, 68))
    assert movie.info["duration"] == 500
    assert np.asarray(movie.convert("RGB"))[20, 30].tolist() == [0, 0, 0]
    movie.seek(2)
    assert movie.info["duration"] == 2500
    assert near(np.asarray(movie.convert("RGB"))[20, 30], (240, 240, 240))

"""Mask arithmetic by hand, over leading axes, and through COCO's two formats."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import disc
from pycocotools import mask as coco
from scipy.ndimage import binary_fill_holes

from segagent.errors import MaskError
from segagent.masks import box_of, error_regions, from_polygons, from_rle, iou, overlay, to_polygons, to_rle


def random_masks(count: int, seed: int = 0) -> list[np.ndarray]:
    """Noise and discs, of any size from 1×1, empty and full among them."""
    rng, masks = np.random.default_rng(seed), []
    for i in range(count):
        size = tuple(int(n) for n in rng.integers(1, 50, 2))
        noise = rng.random(size) < rng.choice([0, 0.05, 0.5, 0.95, 1])
        shapes = [disc(size, rng.integers(size[1]), rng.integers(size[0]), rng.integers(1, 20)) for _ in range(3)]
        masks.append(noise if i % 3 == 0 else np.logical_xor.reduce(shapes))
    return masks


def test_iou_by_hand():
    a, b = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    assert iou(a, b) == 1
    a[:2], b[:, :2] = True, True  # 10 and 8 pixels, 4 in common
    assert iou(a, b) == 4 / 14
    assert isinstance(iou(a, b), float)
    ignore = np.zeros_like(a)
    ignore[0] = True  # hides 2 common pixels and 5 of the union
    assert iou(a, b, ignore) == 2 / 9
    assert iou(a, b, np.ones_like(a)) == 1


def test_a_leading_axis_is_a_loop():
    rng = np.random.default_rng(0)
    a, b, ignore = (rng.random((2, 3, 6, 7)) < 0.5 for _ in range(3))
    a[0, 0] = b[0, 0] = False
    values, with_ignore, regions = iou(a, b), iou(a, b, ignore), error_regions(a, b, ignore)
    assert values.shape == with_ignore.shape == (2, 3)
    for i in np.ndindex(2, 3):
        assert values[i] == iou(a[i], b[i])
        assert with_ignore[i] == iou(a[i], b[i], ignore[i])
        for whole, single in zip(regions, error_regions(a[i], b[i], ignore[i]), strict=True):
            assert (whole[i] == single).all()
    assert iou(a, b[0, 0]).shape == (2, 3)  # one target for many masks


def test_error_regions_by_hand():
    mask, target = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    missed, extra = error_regions(mask, target)
    assert missed.tolist() == [[False, False, True, False]]
    assert extra.tolist() == [[False, True, False, False]]
    with pytest.raises(MaskError, match=r"4×1 px and 1×4 px"):
        error_regions(mask, target.T)


def test_box_of_has_inclusive_corners():
    mask = np.zeros((6, 8), bool)
    assert box_of(mask) is None
    mask[1:4, 2:7] = True
    assert box_of(mask) == (2, 1, 6, 3)


def test_rle_round_trip_and_its_forms():
    for mask in random_masks(60):
        rle = to_rle(mask)
        assert isinstance(rle["counts"], str)
        assert rle["size"] == list(mask.shape)
        assert (from_rle(rle) == mask).all()
        assert (from_rle({**rle, "counts": rle["counts"].encode()}) == mask).all()
        column = mask.ravel(order="F")
        runs = np.diff(np.flatnonzero(np.diff(column, prepend=False, append=~column[-1:])), prepend=0)
        assert (from_rle({"size": rle["size"], "counts": [int(n) for n in runs]}) == mask).all()


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [2, 2]},
        {"size": [2, 2], "counts": [1, 2]},
        {"size": [2, 2], "counts": "é"},
        {"size": "ab", "counts": [4]},
        {"size": [2, 2], "counts": None},
        {"size": [4, 4], "counts": "0"},
        "text",
    ],
)
def test_what_is_no_rle_is_a_mask_error(rle):
    with pytest.raises(MaskError):
        from_rle(rle)


def test_polygons_give_the_mask_back_with_its_holes_filled():
    for mask in random_masks(200, seed=1):
        assert (from_polygons(to_polygons(mask), mask.shape) == binary_fill_holes(mask)).all()


def test_polygons_by_hand():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    assert to_polygons(mask) == [[2, 1, 2, 3, 5, 3, 5, 1]]  # pixel x covers [x, x + 1)
    assert coco.area(coco.frPyObjects(to_polygons(mask), 5, 6)).tolist() == [6]
    mask[:] = False
    mask[4, 5] = True
    assert to_polygons(mask) == [[5, 4, 5, 5, 6, 5, 6, 4]]
    assert to_polygons(np.zeros((5, 6), bool)) == []


def test_simpler_polygons_have_fewer_corners_and_nearly_the_same_mask():
    mask = disc((200, 200), 100, 100, 80)
    exact, simple = to_polygons(mask), to_polygons(mask, tolerance=1.5)
    assert len(simple[0]) < len(exact[0]) / 4
    assert iou(from_polygons(simple, mask.shape), mask) > 0.97
    dot = np.zeros((9, 9), bool)
    dot[4, 4] = True
    assert (from_polygons(to_polygons(dot, tolerance=50), dot.shape) == dot).all()


def test_overlapping_polygons_are_a_union():
    both = from_polygons([[0, 0, 0, 4, 4, 4, 4, 0], [2, 2, 2, 6, 6, 6, 6, 2]], (8, 8))
    assert both.sum() == 16 + 16 - 4
    assert not from_polygons([], (8, 8)).any()
    with pytest.raises(MaskError):
        from_polygons([["a"] * 6], (8, 8))


def test_overlay_blends_only_under_the_mask():
    image = np.array([[[10, 20, 31], [255, 255, 255]]], np.uint8)
    mask = np.array([[True, False]])
    assert overlay(image, mask).tolist() == [[[5, 138, 16], [255, 255, 255]]]  # halves round to even: 137.5 up, 15.5 up
    assert overlay(image, mask, "red", alpha=1).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert overlay(image, mask, (0, 0, 200), alpha=0.25).tolist()[0][0] == [8, 15, 73]  # 7.5, 15, 73.25
    assert image[0, 0].tolist() == [10, 20, 31]
    with pytest.raises(MaskError):
        overlay(image, mask.T)

"""The picture that a model sees: what is painted, and that shrinking large images before changes nothing that it can see."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models

from segagent.composite import Painter, size_seen
from segagent.masks import overlay
from segagent.policy import Observation
from segagent.types import State


def scene(height, width):
    """A smooth picture and a round mask, at any size."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    image = np.stack([127 + 120 * np.sin(7 * x + k) * np.cos(5 * y) for k in range(3)], -1).astype(np.uint8)
    return Observation(State(image, (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.1), "it")


def test_which_processors_make_every_picture_one_size():
    assert size_seen(tiny_models.fastvlm()[1].image_processor) == (64, 64)
    assert size_seen(tiny_models.qwen2_5_vl()[1].image_processor) is None


def test_small_pictures_are_painted_as_they_are():
    observed = scene(90, 130)
    for seen in (None, (64, 64)):
        painted = np.asarray(Painter("blue", 0.3, seen)(observed))
        assert (painted == overlay(observed.image, observed.mask, "blue", 0.3)).all()


def test_tiny_pictures_are_enlarged():
    assert Painter("green", 0.5, None)(scene(1, 20)).size == (160, 8)


@pytest.mark.parametrize("color", ["green", "red"])
def test_large_pictures_look_the_same_when_shrunk_before(color):
    observed, processor = scene(1201, 1607), tiny_models.fastvlm()[1].image_processor
    small, full = Painter(color, 0.5, (64, 64))(observed), Painter(color, 0.5, None)(observed)
    assert full.size == (1607, 1201)
    assert max(small.size) < 200
    seen = [processor(images=[picture], return_tensors="np")["pixel_values"] for picture in (small, full)]
    difference = np.abs(seen[0] - seen[1])  # in units of the processor: a grey value is 0.015
    assert difference.mean() < 0.01
    assert difference.max() < 0.15

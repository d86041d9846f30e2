"""next_click against its definition, two full-frame transforms, on whatever masks can look like; and the annotator as a policy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from fakes import BrushSegmenter, disc, disc_sample

from segagent import annotator
from segagent.annotator import SimulatedAnnotator, next_click
from segagent.environment import Environment
from segagent.errors import DataError, MaskError
from segagent.policy import Observation, Policy
from segagent.rollout import collect, rollout, rollout_many
from segagent.types import Click, Sample


def by_definition(mask, target, ignore, clicked) -> tuple[int, int, bool] | None:
    """(x, y, positive) as the released clicker finds it, distances as the squared integers that they stand for."""
    maps = []
    for region in (target & ~mask, mask & ~target):
        if ignore is not None:
            region = region & ~ignore
        distance = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 0)[1:-1, 1:-1]
        distance = np.rint(distance.astype(float) ** 2)
        for x, y in clicked:
            distance[y, x] = 0
        maps.append(distance)
    missed, extra = maps
    positive = missed.max() > extra.max()
    distance = missed if positive else extra
    if not distance.max():
        return None
    y, x = np.unravel_index(np.argmax(distance), distance.shape)
    return int(x), int(y), bool(positive)


def scribble(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: ellipses, rectangles, outlines and thin lines, added and removed, some over the frame's edge."""
    mask, (height, width) = np.zeros(size, np.uint8), size
    reach = max(2, int(max(size) * rng.choice([0.05, 0.2, 0.6])))
    for _ in range(rng.integers(1, 8)):
        a = int(rng.integers(-5, width + 5)), int(rng.integers(-5, height + 5))
        b = int(rng.integers(width)), int(rng.integers(height))
        axes, value = tuple(int(n) for n in rng.integers(1, reach, 2)), int(rng.integers(4) > 0)
        match rng.integers(4):
            case 0 | 1:
                cv2.ellipse(mask, a, axes, float(rng.integers(360)), 0, 360, value, -1)
            case 2:
                cv2.line(mask, a, b, value, int(rng.integers(1, 5)))
            case 3:
                cv2.rectangle(mask, a, b, value, int(rng.choice([-1, 1, 3])))
    return mask > 0


def any_mask(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    match rng.integers(7):
        case 0:
            return rng.random(size) < rng.random()
        case 1:
            return np.zeros(size, bool)
        case 2:
            return np.ones(size, bool)
        case 3:
            return scribble(rng, size) ^ (rng.random(size) < 0.02)
        case _:
            return scribble(rng, size)


def check(rng: np.random.Generator, size: tuple[int, int], clicks: int) -> None:
    """A mask, a target, perhaps pixels to ignore and pixels clicked before, then a few clicks in a row."""
    mask, target = any_mask(rng, size), any_mask(rng, size)
    ignore = any_mask(rng, size) if rng.random() < 0.3 else None
    count = int(rng.choice([0, 5, 15]))
    clicked = [(int(x), int(y)) for y, x in zip(*(rng.integers(0, n, count) for n in size), strict=True)]
    for _ in range(clicks):
        expected = by_definition(mask, target, ignore, clicked)
        click = next_click(mask, target, ignore, clicked)
        assert (click and (click.x, click.y, click.positive)) == expected
        if expected is None:
            return
        clicked.append(expected[:2])


def test_small_masks():
    rng = np.random.default_rng(0)
    for _ in range(500):
        check(rng, tuple(int(n) for n in rng.integers(1, 60, 2)), clicks=3)


def test_small_masks_the_way_large_ones_go(monkeypatch):
    monkeypatch.setattr(annotator, "_SMALL", 0)
    rng = np.random.default_rng(1)
    for _ in range(500):
        check(rng, tuple(int(n) for n in rng.integers(1, 90, 2)), clicks=3)


def test_large_masks():
    rng = np.random.default_rng(2)
    for _ in range(40):
        check(rng, tuple(int(n) for n in rng.integers(180, 420, 2)), clicks=2)
    for size in ((1024, 1024), (700, 1500), (3, 20_000)):
        check(rng, size, clicks=2)


@pytest.mark.parametrize("layout", ["rings", "equal discs", "stripes", "dots", "whole frame", "two far discs"])
def test_layouts_with_many_equal_maxima(layout: str):
    size = (300, 400)
    rows, columns = np.mgrid[: size[0], : size[1]]
    target = {
        "rings": abs(np.hypot(columns - 200, rows - 150) % 70 - 30) < 9,
        "equal discs": np.hypot(columns % 50 - 25, rows % 50 - 25) < 12,
        "stripes": columns % 12 < 3,
        "dots": (rows + columns) % 2 == 0,
        "whole frame": np.ones(size, bool),
        "two far discs": disc(size, 60, 60, 50) | disc(size, 340, 240, 50),
    }[layout]
    nothing, clicked = np.zeros(size, bool), []
    for mask, wanted in ((nothing, target), (target, nothing), (np.roll(target, 7, 1), target)):
        for _ in range(3):
            expected = by_definition(mask, wanted, None, clicked)
            click = next_click(mask, wanted, clicked=clicked)
            assert (click and (click.x, click.y, click.positive)) == expected
            clicked += [expected[:2]] if expected else []


def test_chamfer_bounds_hold_at_every_offset():
    """The two constants that the search rests on: chamfer over exact distance, over all directions."""
    frame = np.ones((401, 401), np.uint8)
    frame[0, 0] = 0
    chamfer = cv2.distanceTransform(frame, cv2.DIST_L2, 5)
    rows, columns = np.mgrid[:401, :401]
    ratio = chamfer.ravel()[1:] / np.hypot(rows, columns).ravel()[1:]
    assert annotator._CHAMFER_LOW < ratio.min() < ratio.max() < annotator._CHAMFER_HIGH


def test_a_click_by_hand():
    target = np.zeros((9, 9), bool)
    target[:, :5] = True  # cut by the frame's edge, which counts as background: the centre is (2, 2), not (0, 4)
    assert next_click(np.zeros((9, 9), bool), target) == Click(2, 2)
    mask = np.zeros((9, 9), bool)
    mask[2:5, 6:9] = True  # a smaller false positive
    assert next_click(mask, target) == Click(2, 2)
    assert next_click(mask | target, target) == Click(7, 3, positive=False)
    assert next_click(target, target) is None


def test_a_tie_goes_negative():
    target, mask = np.zeros((10, 20), bool), np.zeros((10, 20), bool)
    target[2:7, 2:7] = mask[2:7, 12:17] = True
    assert next_click(mask, target) == Click(14, 4, positive=False)


def test_clicked_pixels_are_excluded_and_rounded():
    target = disc((21, 21), 10, 10, 6)
    nothing = np.zeros_like(target)
    assert next_click(nothing, target) == Click(10, 10)
    for form in (Click(10, 10), Click(9.5, 10.49), (10, 10), (9.5, 10.4)):
        assert next_click(nothing, target, clicked=[form]) == Click(10, 9)
    assert next_click(nothing, target, clicked=[(-3, 50), (21, 0)]) == Click(10, 10)  # outside: nothing to exclude
    everywhere = [(x, y) for y, x in np.argwhere(target)]
    assert next_click(nothing, target, clicked=everywhere) is None


def test_ignored_pixels_are_no_error():
    target, ignore = disc((30, 40), 10, 15, 8), np.zeros((30, 40), bool)
    ignore[:, :10] = True
    nothing = np.zeros_like(target)
    click = next_click(nothing, target, ignore)
    assert click.x >= 10
    assert next_click(nothing, target, np.ones_like(target)) is None
    assert next_click(nothing.astype(np.uint8), target.astype(np.uint8), ignore.astype(np.uint8)) == click


def test_masks_of_other_sizes_are_refused():
    with pytest.raises(MaskError):
        next_click(np.zeros((4, 5), bool), np.zeros((5, 4), bool))
    with pytest.raises(MaskError):
        next_click(np.zeros((4, 5), bool), np.zeros((4, 5), bool), np.zeros((5, 4), bool))
    with pytest.raises(MaskError):
        next_click(np.zeros((2, 4, 5), bool), np.zeros((2, 4, 5), bool))


def test_the_annotator_is_a_policy_that_stops_when_nothing_is_wrong():
    sample = disc_sample(radius=5)
    policy = SimulatedAnnotator(sample.target)
    assert isinstance(policy, Policy)
    run = collect(sample, rollout(Environment(BrushSegmenter(radius=5)), policy, sample, steps=5))
    assert [t.action for t in run.steps] == [Click(20, 15)]
    assert run.steps[0].origin == "simulated"
    assert run.predicted_ious == (None, None)
    assert run.ious == (0, 1)
    assert run.end == "stop"


def test_stop_iou_ends_a_run_early():
    sample = disc_sample(radius=8)
    run = collect(
        sample, rollout(Environment(BrushSegmenter(6)), SimulatedAnnotator(sample.target, stop_iou=0.5), sample)
    )
    assert len(run.steps) == 1
    assert run.end == "stop"
    assert run.ious[-1] >= 0.5


def test_never_the_same_pixel_twice():
    class Stubborn(BrushSegmenter):
        def _painted(self, size, state, action):
            return np.zeros(size, bool)

    sample = disc_sample(radius=3)
    run = collect(sample, rollout(Environment(Stubborn()), SimulatedAnnotator(sample.target), sample, steps=40))
    clicks = [(t.action.x, t.action.y) for t in run.steps]
    assert len(set(clicks)) == len(clicks) == int(sample.target.sum())
    assert run.end == "stop"  # every wrong pixel has been clicked


def test_for_samples_tells_them_apart():
    samples = [disc_sample(f"disc {i}", x=10 + 5 * i, radius=5) for i in range(3)]
    masked = Sample(samples[0].image, "half", samples[0].target, "half", ignore=np.ones(samples[0].size, bool))
    policy = SimulatedAnnotator.for_samples([*samples, masked])
    ends = {}
    for i, transition in rollout_many(Environment(BrushSegmenter(5)), policy, [*samples, masked], steps=3):
        ends.setdefault(i, []).append(transition.action)
    assert ends == {0: [Click(10, 15), None], 1: [Click(15, 15), None], 2: [Click(20, 15), None], 3: [None]}


def test_for_samples_refuses_what_it_cannot_tell_apart():
    with pytest.raises(DataError, match="no target"):
        SimulatedAnnotator.for_samples([Sample(np.zeros((4, 5, 3), np.uint8), "x", id="a")])
    with pytest.raises(DataError, match="Two samples"):
        SimulatedAnnotator.for_samples([disc_sample("a"), disc_sample("a", x=30)])
    state = Environment(BrushSegmenter()).reset(disc_sample())
    with pytest.raises(DataError, match="no target for sample 'b'"):
        SimulatedAnnotator.for_samples([disc_sample("a")]).read([Observation(state, "b", "b")])

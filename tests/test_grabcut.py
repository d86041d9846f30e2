"""The classical segmenter: what a click, a box and a mask must do, on scenes, on photographs and on pictures of any size."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from segagent.environment import Environment
from segagent.masks import iou
from segagent.segmenters.classical.mincut import min_cut
from segagent.segmenters.classical.superpixels import FAR, Superpixels
from segagent.segmenters.classical.views import encode
from segagent.segmenters.grabcut import GrabCutSegmenter
from segagent.types import Box, Click, Sample, State

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def scene(size=(120, 160)):
    """A textured disc with a thin bar on a textured ground → (image, target)."""
    noise = np.random.default_rng(0).normal(0, 6, (*size, 3))
    target = np.zeros(size, np.uint8)
    cv2.circle(target, (60, 60), 30, 1, -1)
    cv2.line(target, (60, 60), (140, 30), 1, 3)
    image = np.where(target[..., None] > 0, (180, 60, 50), (90, 120, 90)) + noise
    return np.clip(image, 0, 255).astype(np.uint8), target > 0


@pytest.fixture(scope="module")
def environment():
    return Environment(GrabCutSegmenter())


def start(environment, image, mask=None):
    return environment.reset(Sample(image, "it"), mask)


def test_one_click_finds_an_object_and_its_thin_part(environment):
    image, target = scene()
    state = environment.step(start(environment, image), Click(60, 60))
    assert iou(state.mask, target) > 0.95
    assert state.mask[34, 128]


def test_a_negative_click_takes_a_part_away_and_leaves_the_rest(environment):
    image, target = scene()
    image = image.copy()
    image[70:110, 110:150] = image[45:85, 40:80]  # a second object of the same colours
    both = target.copy()
    both[70:110, 110:150] = True
    state = environment.step(start(environment, image, both), Click(130, 90, positive=False))
    assert iou(state.mask, target) > 0.95


def test_a_click_adds_a_part_of_another_colour(environment):
    image, target = scene()
    image = image.copy()
    image[60:110, 90:130] = (40, 60, 200)
    whole = target.copy()
    whole[60:110, 90:130] = True
    state = environment.step(start(environment, image), Click(55, 60))
    state = environment.step(state, Click(110, 85))
    assert iou(state.mask, whole) > 0.95


def test_a_box_finds_what_is_inside(environment):
    image, target = scene()
    state = environment.step(start(environment, image), Box(25, 20, 145, 95))
    assert iou(state.mask, target) > 0.9


def test_a_box_on_a_blank_picture_gives_something_inside_it(environment):
    state = environment.step(start(environment, np.full((60, 80, 3), 77, np.uint8)), Box(10, 10, 30, 40))
    assert state.mask[25, 20]
    assert not state.mask[:10].any()
    assert not state.mask[:, 31:].any()


def test_a_click_outside_the_box_calls_it_off(environment):
    image, _ = scene()
    state = environment.step(start(environment, image), Box(25, 25, 95, 95))
    assert not state.mask[:, 100:].any()
    state = environment.step(state, Click(128, 34))
    assert state.mask[34, 128]


def test_a_mask_to_refine_is_respected(environment):
    image, target = scene()
    given = np.zeros_like(target)
    given[5:25, 5:25] = True  # ground, but that is what the mask says
    state = environment.step(start(environment, image, given | target), Click(150, 110))
    assert state.mask[given].all()
    assert (state.mask & target).sum() == target.sum()


def test_a_negative_click_on_nothing_leaves_nothing(environment):
    image, _ = scene()
    assert not environment.step(start(environment, image), Click(3, 3, positive=False)).mask.any()


def random_actions(rng, size, count):
    for _ in range(count):
        yield Click(rng.uniform(-0.5, size[1] - 0.51), rng.uniform(-0.5, size[0] - 0.51), bool(rng.integers(2)))


def pixel(click):
    return int(click.y + 0.5), int(click.x + 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_every_click_is_honoured_by_all_later_masks(environment, seed):
    rng = np.random.default_rng(seed)
    image, target = scene()
    state = start(environment, image, target if seed % 2 else None)
    wanted = {}
    for click in random_actions(rng, image.shape, 10):
        state = environment.step(state, click)
        wanted[pixel(click)] = click.positive
        assert all(state.mask[at] == label for at, label in wanted.items())


def test_clicks_that_contradict_each_other_obey_the_last(environment):
    image, _ = scene()
    state = start(environment, image)
    for positive in (True, False, True, True, False):
        state = environment.step(state, Click(60, 60, positive))
        assert state.mask[60, 60] == positive


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 2), (2, 1), (3, 3), (1, 300), (300, 1), (7, 20_000), (20_000, 3), (300, 400)],
    ids=lambda size: f"{size[1]}x{size[0]}",
)
@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_any_size_at_the_corners(environment, size, kind):
    rng = np.random.default_rng(0)
    image = np.full((*size, 3), 200, np.uint8) if kind == "constant" else rng.integers(0, 256, (*size, 3), np.uint8)
    height, width = size
    state = start(environment, image)
    corners = [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1), (-0.5, -0.5), (width - 0.51, 0)]
    for i, (x, y) in enumerate(corners):
        state = environment.step(state, Click(x, y, positive=i % 2 == 0))
        assert state.mask.shape == size
        assert state.mask[pixel(state.actions[-1])] == (i % 2 == 0)
    box = environment.step(start(environment, image), Box(0, 0, width - 1, height - 1))
    assert box.mask.any()


def pairs(image, target):
    """(state, action) pairs of one image: fresh, corrections, a refinement, a box."""
    environment = Environment(GrabCutSegmenter())
    fresh, rng = start(environment, image), np.random.default_rng(1)
    one = environment.step(fresh, Click(60, 60))
    states = [fresh, fresh, one, one, start(environment, image, target)]
    return states, [Click(60, 60), Box(20, 20, 145, 95), *random_actions(rng, image.shape, 3)]


def test_a_batch_gives_what_one_by_one_gives_in_any_thread():
    image, target = scene()
    states, actions = pairs(image, target)
    segmenter = GrabCutSegmenter()
    embedding = segmenter.encode(states[0].image)
    batch = [p.mask for p in segmenter.predict(embedding, states, actions)]
    single = [segmenter.predict(embedding, [s], [a])[0].mask for s, a in zip(states, actions, strict=True)]
    cv2.setRNGSeed(7)  # the state of OpenCV's generator is of no account
    with ThreadPoolExecutor(4) as pool:
        again = GrabCutSegmenter()
        order = [4, 2, 0, 3, 1] * 2
        threads = list(pool.map(lambda i: again.predict(again.encode(image), [states[i]], [actions[i]])[0].mask, order))
    for i, mask in enumerate(batch):
        assert (mask == single[i]).all()
        assert all((mask == m).all() for j, m in zip(order, threads, strict=True) if j == i)


def test_nothing_given_is_changed():
    image, target = scene()
    states, actions = pairs(image, target)
    before = [pickle.dumps(s) for s in states]
    segmenter = GrabCutSegmenter()
    embedding = segmenter.encode(image)
    kept = pickle.dumps(embedding)
    segmenter.predict(embedding, states, actions)
    assert [pickle.dumps(s) for s in states] == before
    assert pickle.dumps(embedding) == kept
    assert segmenter.predict(embedding, [], []) == []


def test_an_image_is_encoded_once():
    image, _ = scene()
    segmenter = GrabCutSegmenter()
    assert segmenter.encode(image) is segmenter.encode(image.copy())


def test_a_small_error_in_a_large_picture_is_corrected_at_its_own_size(environment):
    """At the size of the coarse view the notch is half a pixel wide."""
    rng = np.random.default_rng(0)
    target = np.zeros((900, 1600), bool)
    target[200:700, 300:1200] = True
    target[196:200, 600:660] = True
    image = np.where(target[..., None], (200, 80, 60), (60, 90, 140)) + rng.normal(0, 5, (900, 1600, 3))
    image = np.clip(image, 0, 255).astype(np.uint8)
    given = target.copy()
    given[196:200] = False
    state = environment.step(start(environment, image, given), Click(630, 198))
    assert (state.mask != target).sum() < 0.1 * (given != target).sum()


def test_few_clicks_do_for_photographs(environment):
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent")
    scores = []
    for name in ("banana1", "flower", "llama"):
        image = cv2.cvtColor(cv2.imread(str(DATA / "grabcut" / "images" / f"{name}.jpg")), cv2.COLOR_BGR2RGB)
        target = cv2.imread(str(DATA / "grabcut" / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 127
        state = start(environment, image)
        for _ in range(5):
            wrong = [np.pad(w, 1).astype(np.uint8) for w in (target & ~state.mask, ~target & state.mask)]
            missed, extra = (cv2.distanceTransform(w, cv2.DIST_L2, 0)[1:-1, 1:-1] for w in wrong)
            farthest = missed if missed.max() > extra.max() else extra
            y, x = np.unravel_index(farthest.argmax(), farthest.shape)
            state = environment.step(state, Click(int(x), int(y), positive=farthest is missed))
        scores.append(iou(state.mask, target))
    assert np.mean(scores) > 0.9


class TestMinCut:
    def test_the_cut_follows_contrast_between_unsure_pixels(self):
        rng = np.random.default_rng(0)
        contrast = rng.integers(124, 132, (20, 30, 2), np.uint8)
        contrast[:, 13:] += 60
        unary, fixed = np.zeros((20, 30)), np.zeros((20, 30), np.int8)
        fixed[10, 2], fixed[10, 27] = 1, -1
        cut = min_cut(unary, contrast, fixed)
        assert cut[:, :13].all()
        assert not cut[:, 13:].any()

    def test_smoothness_outvotes_a_lonely_pixel_and_fixed_labels_outvote_all(self):
        contrast = np.random.default_rng(0).integers(98, 158, (9, 9, 2), np.uint8)
        unary, fixed = np.full((9, 9), -2.0), np.zeros((9, 9), np.int8)
        unary[4, 4] = 4
        assert not min_cut(unary, contrast, fixed).any()
        fixed[4, 4] = 1
        assert np.argwhere(min_cut(unary, contrast, fixed)).tolist() == [[4, 4]]
        fixed[:, 0] = -1
        cut = min_cut(np.full((9, 9), 8.0), contrast, fixed)
        assert not cut[:, 0].any()
        assert cut[:, 1:].all()


def test_superpixels_cover_the_picture_and_measure_ways():
    embedding = encode(scene()[0])
    superpixels = embedding.superpixels
    assert superpixels.labels.shape == embedding.whole.size
    assert np.array_equal(np.unique(superpixels.labels), np.arange(superpixels.count))
    at = superpixels.labels[[60, 75, 10], [60, 60, 10]]
    distance = superpixels.distance([at[0]])
    assert distance[at[0]] == 0 < distance[at[1]] < distance[at[2]] < FAR  # along the disc, then across its boundary
    assert (superpixels.distance([]) == FAR).all()
    assert isinstance(superpixels, Superpixels)


def test_the_state_of_a_run_pickles(environment):
    image, _ = scene()
    state = environment.step(start(environment, image), Click(60, 60))
    again = pickle.loads(pickle.dumps(state))
    assert isinstance(again, State)
    assert (again.mask == state.mask).all()

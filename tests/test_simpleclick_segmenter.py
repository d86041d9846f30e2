"""SimpleClick as a segmenter: clicks equal to the released evaluation's, zoom-in, flip, batches, and checkpoints."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from plain_simpleclick import released, save
from torch.nn import functional as F

from segagent.environment import Environment
from segagent.errors import SegmenterError
from segagent.segmenters import load_segmenter
from segagent.segmenters.base import Segmenter
from segagent.segmenters.simpleclick import Memory, SimpleClickSegmenter, _paste, _sample
from segagent.segmenters.simpleclick_model import SimpleClickConfig, SimpleClickModel
from segagent.types import Box, Click, State


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SimpleClickModel:
    return SimpleClickModel.from_pretrained(save(tmp_path_factory.mktemp("simpleclick"), released(depth=4)))


@pytest.fixture(scope="module")
def segmenter(model) -> SimpleClickSegmenter:
    return SimpleClickSegmenter(model)


def picture(height: int = 300, width: int = 420, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def start(image: np.ndarray, mask: np.ndarray | None = None) -> State:
    return State(image, np.zeros(image.shape[:2], bool) if mask is None else mask)


def test_candidates_share_one_call_and_equal_one_by_one(segmenter):
    image = picture()
    embedding = segmenter.encode(image)
    environment = Environment(segmenter)
    one = environment.step(start(image), Click(200, 100))
    two = environment.step(one, Click(30, 250, positive=False))
    mask = np.zeros((300, 420), bool)
    mask[100:150, 50:120] = True
    states = [start(image), one, two, start(image, mask), one, two]
    actions = [
        Click(5, 5),
        Click(400, 20),
        Click(210, 90),
        Click(80, 120, False),
        Click(1, 1, False),
        Box(60, 50, 200, 180),
    ]
    calls = []
    handle = segmenter.model.register_forward_hook(lambda *_: calls.append(1))
    together = segmenter.predict(embedding, states, actions)
    handle.remove()
    assert len(calls) == 1
    for state, action, prediction in zip(states, actions, together, strict=True):
        alone = segmenter.predict(embedding, [state], [action])[0]
        assert alone.memory.crop == prediction.memory.crop
        np.testing.assert_allclose(prediction.memory.probabilities, alone.memory.probabilities, atol=1e-5)
    assert segmenter.predict(embedding, [], []) == []
    assert isinstance(segmenter, Segmenter)


def test_the_images_part_of_the_first_layer_is_computed_once(segmenter):
    image = picture(seed=3)
    calls = []
    handle = segmenter.model.image_embedding.register_forward_hook(lambda *_: calls.append(1))
    environment = Environment(segmenter)
    environment.step_many([start(image)] * 3, [Click(10, 10), Click(50, 60), Click(90, 9)])
    assert len(calls) == 1
    environment.step(start(image.copy()), Click(70, 80))
    assert len(calls) == 1
    handle.remove()


@torch.inference_mode()
def test_a_click_without_zoom_or_flip_is_the_networks_own(model):
    image = picture(224, 224)
    segmenter = SimpleClickSegmenter(model, zoom=False, flip=False)
    environment = Environment(segmenter)
    first = environment.step(start(image), Click(40, 90))
    second = environment.step(first, Click(100, 7, positive=False))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    points = torch.tensor([[[90.0, 40, 0], [-1, -1, -1]]])
    expected = model(pixels, points).sigmoid()
    np.testing.assert_allclose(first.memory.probabilities, expected[0, 0], atol=1e-5)
    np.testing.assert_array_equal(first.mask, (torch.from_numpy(first.memory.probabilities) > 0.49).numpy())
    points[0, 1] = torch.tensor([7.0, 100, 1])
    expected = model(pixels, points, expected).sigmoid()
    np.testing.assert_allclose(second.memory.probabilities, expected[0, 0], atol=1e-5)


def test_the_flip_makes_it_symmetric(model):
    image = picture(224, 224)
    environment = Environment(SimpleClickSegmenter(model, zoom=False))
    plain_state = environment.step(start(image), Click(40, 90))
    mirrored = environment.step(start(image[:, ::-1].copy()), Click(183, 90))
    np.testing.assert_allclose(plain_state.memory.probabilities, mirrored.memory.probabilities[:, ::-1], atol=1e-5)


def full_frame(model, image, clicks, size) -> list[tuple[torch.Tensor, tuple[int, int, int, int]]]:
    """The released evaluation as it is described, all of it at the image's resolution: [(probabilities (H, W), crop)]."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    probabilities, crop, found = torch.zeros(1, 1, height, width), None, []
    for count in range(1, len(clicks) + 1):
        mask = (probabilities > 0.49)[0, 0].clone()
        wanted = (0, 0, width - 1, height - 1)
        if mask.any():
            for click in clicks[:count]:
                if click.positive:
                    mask[click.y, click.x] = True
            spans = []
            for line, length in ((mask.any(0), width), (mask.any(1), height)):
                first, last = line.nonzero()[0].item(), line.nonzero()[-1].item()
                half = max(1.4 * (last - first + 1), 200) / 2
                spans.append(
                    (max(0, round((first + last) / 2 - half)), min(length - 1, round((first + last) / 2 + half)))
                )
            wanted = (spans[0][0], spans[1][0], spans[0][1], spans[1][1])
        if crop is None or not _holds(crop, clicks[:count]) or _shared(crop, wanted) < 0.5:
            crop = wanted
        x0, y0, x1, y1 = crop
        seen = torch.cat([pixels, probabilities], 1)[..., y0 : y1 + 1, x0 : x1 + 1]
        seen = F.interpolate(seen, (size, size), mode="bilinear", align_corners=True)
        points = torch.full((2, 2 * count, 3), -1.0)
        taken = {True: 0, False: count}
        for order, click in enumerate(clicks[:count]):
            x, y = size * (click.x - x0) / (x1 - x0 + 1), size * (click.y - y0) / (y1 - y0 + 1)
            points[0, taken[click.positive]] = torch.tensor([y, x, order])
            points[1, taken[click.positive]] = torch.tensor([y, size - x - 1, order])
            taken[click.positive] += 1
        seen = torch.cat([seen, seen.flip(3)])
        logits = model(seen[:, :3], points, seen[:, 3:])
        part = ((logits[:1] + logits[1:].flip(3)) / 2).sigmoid()
        probabilities = torch.zeros(1, 1, height, width)
        probabilities[..., y0 : y1 + 1, x0 : x1 + 1] = F.interpolate(
            part, (y1 - y0 + 1, x1 - x0 + 1), mode="bilinear", align_corners=True
        )
        found.append((probabilities[0, 0], crop))
    return found


def _holds(crop, clicks) -> bool:
    return all(crop[0] <= c.x < crop[2] and crop[1] <= c.y < crop[3] for c in clicks if c.positive)


def _shared(a, b) -> float:
    shared = 1.0
    for i in (0, 1):
        inside = max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1)
        shared *= inside / (max(a[i + 2], b[i + 2]) - min(a[i], b[i]) + 1)
    return shared


class Spots(torch.nn.Module):
    """In place of the network: bright where positive clicks are and the previous mask was, with the image as noise."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config = SimpleClickConfig(image_size=size)

    def embed_image(self, pixels):
        return pixels

    def forward(self, pixels=None, points=None, previous=None, image_embeddings=None):
        pixels = image_embeddings if pixels is None else pixels
        maps = SimpleClickModel.click_maps(self, points, tuple(pixels.shape[-2:]))
        near = F.avg_pool2d(maps[:, :1] - maps[:, 1:], 41, 1, 20) * 60
        leaning = torch.linspace(0, 1, pixels.shape[-1])  # not the same when mirrored
        return near + 3 * previous + pixels.mean(1, keepdim=True) + leaning - 3


@torch.inference_mode()
def test_clicks_equal_the_released_evaluation():
    image, clicks = picture(500, 700), [Click(300, 200), Click(340, 260), Click(310, 190, False), Click(660, 30)]
    network = Spots(112)
    environment, state = Environment(SimpleClickSegmenter(network)), start(image)
    crops = set()
    for click, (probabilities, crop) in zip(clicks, full_frame(network, image, clicks, 112), strict=True):
        state = environment.step(state, click)
        assert state.memory.crop == crop
        crops.add(crop)
        sure = (probabilities - 0.49).abs() > 1e-4
        np.testing.assert_array_equal(state.mask[sure], (probabilities > 0.49)[sure].numpy())
        assert state.mask.any()
    assert len(crops) > 2


def test_zooms_in_on_the_mask_and_keeps_the_crop(segmenter):
    image = picture(600, 900)
    mask = np.zeros((600, 900), bool)
    mask[250:350, 400:650] = True
    crop = segmenter._crop(start(image, mask), Click(500, 300), [Click(500, 300)])
    assert crop == (350, 200, 700, 400)  # 250 px grown 1.4 times; 100 px to the least of 200
    outside = segmenter._crop(start(image, mask), Click(899, 10), [Click(899, 10)])
    assert outside[0] < 400
    assert outside[1] == 0
    assert outside[2] == 899
    assert segmenter._crop(start(image), Click(5, 5), [Click(5, 5)]) == (0, 0, 899, 599)
    memory = Memory(np.zeros((224, 224), np.float32), (340, 190, 720, 420))
    known = State(image, mask, (Click(500, 300),), memory)
    near, far = Click(600, 340), Click(730, 300)
    assert segmenter._crop(known, near, [*known.actions, near]) == memory.crop
    assert segmenter._crop(known, far, [*known.actions, far]) != memory.crop
    small = State(image, np.zeros_like(mask), (Click(500, 300),), memory)
    assert segmenter._crop(small, near, [*small.actions, near]) == (0, 0, 899, 599)
    assert segmenter._crop(start(image), Box(400, 250, 649, 349), []) == (350, 200, 700, 400)
    # With nothing found yet the whole image is wanted, and as any other it is not taken where the last crop is near it.
    wide = Memory(np.zeros((224, 224), np.float32), (0, 0, 899, 400))
    nothing = State(image, np.zeros_like(mask), (Click(500, 300),), wide)
    assert segmenter._crop(nothing, near, [*nothing.actions, near]) == wide.crop
    below = Click(500, 500)
    assert segmenter._crop(nothing, below, [*nothing.actions, below]) == (0, 0, 899, 599)


def test_the_last_probabilities_are_found_again_in_another_crop(segmenter):
    image = picture(400, 400)
    values = np.tile(np.linspace(0, 1, 224, dtype=np.float32), (224, 1))
    state = State(image, np.ones((400, 400), bool), (Click(1, 1),), Memory(values, (100, 50, 299, 249)))
    same = segmenter._previous(state, Click(9, 9), (100, 50, 299, 249))
    np.testing.assert_allclose(same, values, atol=1e-5)
    wide = segmenter._previous(state, Click(9, 9), (0, 0, 399, 399))
    columns, rows = np.linspace(0, 399, 224), np.linspace(0, 399, 224)
    inside = (rows > 49) & (rows < 250)
    assert not wide[~inside].any()
    within = (columns >= 100) & (columns <= 299)
    np.testing.assert_allclose(wide[100][within], (columns[within] - 100) / 199, atol=1e-5)
    mask = np.zeros((400, 400), bool)
    mask[:, 200:] = True
    refined = segmenter._previous(start(image, mask), Click(9, 9), (0, 0, 399, 399))
    assert set(np.unique(refined[:, columns <= 199])) == {0.0}
    assert set(np.unique(refined[:, columns >= 200])) == {1.0}
    box = segmenter._previous(start(image), Box(100, 200, 300, 399), (0, 0, 399, 399))
    np.testing.assert_allclose(box.mean(), 0.5 * 0.5, atol=0.01)


def test_sampling_equals_torch():
    image = picture(37, 53)
    for size in (8, 64):
        found = _sample(image, np.linspace(0, 36, size), np.linspace(0, 52, size))
        expected = F.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None].float(), (size, size), mode="bilinear", align_corners=True
        )
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0), atol=1e-2)
    probabilities = torch.rand(16, 16)
    mask = _paste(probabilities, (3, 4, 18, 19), (30, 40))
    np.testing.assert_array_equal(mask[4:20, 3:19], (probabilities > 0.49).numpy())
    assert mask.sum() == (probabilities > 0.49).sum()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (2000, 3), (224, 224)])
def test_any_size_of_picture(segmenter, size):
    image = picture(*size)
    environment = Environment(segmenter)
    state = environment.step(start(image, np.ones(size, bool)), Click(-0.5, -0.5))
    state = environment.step(state, Click(size[1] - 0.6, size[0] - 0.6, positive=False))
    assert state.mask.shape == size


def test_states_pickle_and_go_on_the_same(segmenter):
    environment = Environment(segmenter)
    state = environment.step(start(picture()), Click(100, 100))
    again = pickle.loads(pickle.dumps(state))
    following = [environment.step(s, Click(30, 200)).memory for s in (state, again)]
    np.testing.assert_array_equal(following[0].probabilities, following[1].probabilities)
    foreign = State(state.image, state.mask, state.actions, memory=np.zeros((256, 256), np.float32))
    assert environment.step(foreign, Click(30, 200)).memory.probabilities.shape == (224, 224)


def test_loads_by_path(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = SimpleClickSegmenter.from_pretrained(tmp_path, flip=False, size=112)
    assert loaded.reference == f"simpleclick:{tmp_path}"
    assert loaded.size == 112
    assert loaded.model.config.model_type == SimpleClickConfig.model_type == "simpleclick"
    assert Environment(loaded).step(start(picture()), Click(8, 8)).memory.probabilities.shape == (112, 112)


def test_a_segmenter_of_a_pth_travels_within_a_checkpoint(tmp_path):
    import tiny_models

    from segagent import MLLMPolicy, SegAgent

    loaded = load_segmenter(f"simpleclick:{save(tmp_path, released())}", size=64, flip=False)
    agent = SegAgent(MLLMPolicy(*tiny_models.speaker()), loaded)
    agent.save_pretrained(tmp_path / "agent")
    assert sorted(f.name for f in (tmp_path / "agent" / "segmenter").iterdir()) == ["config.json", "model.safetensors"]
    for file in tmp_path.glob("*.pth"):
        file.unlink()
    (tmp_path / "agent").rename(tmp_path / "moved")
    back = SegAgent.from_pretrained(tmp_path / "moved").segmenter
    assert (back.size, back.zoom, back.flip) == (64, True, False)
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    state = State(image, np.zeros((50, 70), bool))
    one, two = (s.predict(s.encode(image), [state], [Click(30, 20)])[0] for s in (loaded, back))
    np.testing.assert_array_equal(one.memory.probabilities, two.memory.probabilities)
    assert load_segmenter(str(tmp_path / "moved" / "segmenter"), size=32, zoom=False).zoom is False


def test_a_segmenter_that_cannot_be_saved_says_so(segmenter, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segmenter.model, "save_pretrained", full)
    with pytest.raises(SegmenterError, match=r"cannot be saved to .*: No space left"):
        segmenter.save_pretrained(tmp_path / "here")

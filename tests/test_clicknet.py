"""ClickNet: the network, the segmenter around it, and its training from scenes to a folder that load_segmenter takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from segagent.environment import Environment
from segagent.errors import CheckpointError
from segagent.segmenters import Segmenter, load_segmenter
from segagent.segmenters.clicknet import ClickNetSegmenter
from segagent.segmenters.clicknet_model import ClickNetConfig, ClickNetModel
from segagent.segmenters.simpleclick import Memory
from segagent.types import Box, Click, Sample
from tests.fakes import disc_sample
from train import clicknet, clicknet_scenes


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ClickNetModel(ClickNetConfig(image_size=64, widths=(4, 8, 8, 8), descriptor_size=4)).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("clicknet")
    model.save_pretrained(path)
    return path


def points(*clicks: tuple[float, float, int], room: int = 3) -> torch.Tensor:
    """(1, 2 · room, 3): y, x, +1 or −1, in order."""
    rows = torch.full((1, 2 * room, 3), -1.0)
    taken = {1: 0, -1: room}
    for order, (y, x, sign) in enumerate(clicks):
        rows[0, taken[sign]] = torch.tensor([y, x, order])
        taken[sign] += 1
    return rows


@torch.inference_mode()
def test_the_image_part_serves_all_clicks_and_padding_says_nothing(model):
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    previous = torch.rand(1, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    embedded = model.embed_image(image)
    some, other = points((10, 20, 1), (40, 70, -1)), points((30, 50, 1))
    whole = model(image, some, previous)
    assert whole.shape == (1, 1, 64, 96)
    together = model(
        points=torch.cat([some, other]),
        previous=previous.expand(2, -1, -1, -1),
        image_embeddings=embedded.expand(2, -1, -1, -1),
    )
    torch.testing.assert_close(together[:1], whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(image, points((10, 20, 1), (40, 70, -1), room=5), previous), whole)
    assert (together[1] - together[0]).abs().max() > 1e-3
    no_clicks = model(image, points(), previous)
    assert no_clicks.isfinite().all()


@torch.inference_mode()
def test_maps_tell_places_signs_and_likeness(model):
    image = torch.zeros(1, 3, 64, 64)
    image[..., :32], image[..., 32:] = 0.2, 0.9
    features = model.embed_image(image)[:, :8]
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    maps = model._maps(features, points((33.5, 17.5, 1), (33.5, 49.5, -1)), mask)[0]
    near, to_positive, to_negative, last = maps[0], maps[1], maps[2], maps[3]
    assert near[8, 4] == pytest.approx(1)
    assert near[8, 12] == pytest.approx(-1)
    assert to_positive.argmax() == to_positive.shape[1] * 8 + 4
    assert to_negative.argmax() == 16 * 8 + 12
    assert last.min() == pytest.approx(-1)
    assert last.max() <= 0
    like_positive, like_negative, like_inside = maps[6], maps[7], maps[9]
    assert like_positive[8, 4] == pytest.approx(1, abs=1e-5)
    assert like_negative[8, 12] == pytest.approx(1, abs=1e-5)
    assert like_inside[8, 2] > like_inside[8, 13]
    first = model._maps(features, points((33.5, 17.5, 1)), torch.zeros(1, 1, 64, 64))[0]
    assert not first[9:].any()
    assert not first[7].any()


def test_a_saved_model_is_a_segmenter_by_name(folder, model):
    for name in (f"clicknet:{folder}", str(folder)):
        segmenter = load_segmenter(name, device="cpu")
        assert isinstance(segmenter, ClickNetSegmenter)
        assert isinstance(segmenter, Segmenter)
        assert segmenter.reference == f"clicknet:{folder}"
    for name, weight in model.state_dict().items():
        assert torch.equal(segmenter.model.state_dict()[name], weight), name
    full = sum(v.numel() * v.element_size() for v in ClickNetModel(ClickNetConfig()).state_dict().values())
    assert full < 10_000_000
    with pytest.raises(CheckpointError, match="No model can be loaded"):
        load_segmenter(f"clicknet:{folder.parent / 'nothing'}")


def test_candidates_in_one_batch_are_as_one_by_one(folder):
    sample = disc_sample()
    segmenter = load_segmenter(f"clicknet:{folder}", device="cpu")
    environment = Environment(segmenter)
    height, width = sample.size
    state = environment.reset(sample)
    actions = [Click(width // 2, height // 2), Click(3, 4), Box(2, 2, width // 2, height // 2)]
    together = environment.step_many([state] * 3, actions)
    for action, batched in zip(actions, together, strict=True):
        alone = environment.step(state, action)
        assert isinstance(batched.memory, Memory)
        np.testing.assert_allclose(batched.memory.probabilities, alone.memory.probabilities, atol=1e-4)
        corrected = environment.step(batched, Click(5, 5, positive=False))
        assert corrected.mask.shape == sample.size


def test_the_first_click_is_looked_at_twice(folder, monkeypatch):
    segmenter = load_segmenter(f"clicknet:{folder}", device="cpu")

    def logits(points=None, previous=None, image_embeddings=None):
        """A square of 16 px of the input about each first click."""
        result = torch.full_like(previous, -9.0)
        for row, (y, x, _) in enumerate(points[:, 0].int().tolist()):
            result[row, :, max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = 9.0
        return result

    monkeypatch.setattr(segmenter.model, "forward", logits)
    image = np.zeros((1000, 1000, 3), np.uint8)
    environment = Environment(segmenter)
    state = environment.step(environment.reset(Sample(image, "it")), Click(500, 500))
    x0, y0, x1, y1 = state.memory.crop
    assert x1 - x0 < 500
    assert y1 - y0 < 500
    assert 0 < state.mask.sum() < 110**2  # a quarter of the crop's side, not of the image's


def test_scenes_are_seeded_and_examples_show_what_they_ask_for():
    first = clicknet_scenes.scene((0, 1))
    assert first.shape == (clicknet_scenes.SIDE, clicknet_scenes.SIDE, clicknet_scenes.CHANNELS)
    np.testing.assert_array_equal(first, clicknet_scenes.scene((0, 1)))
    assert (first != clicknet_scenes.scene((0, 2))).any()
    objects, parts = first[..., 3], first[..., 4]
    assert ((objects == 0) == (parts == 0)).all()
    assert objects.max() > 1
    assert all(len(np.unique(objects[parts == n])) == 1 for n in np.unique(parts))  # a part is of one object
    rng = np.random.default_rng(0)
    found = [clicknet_scenes.example(rng, first, 64) for _ in range(8)]
    shown = [pair for pair in found if pair is not None]
    assert len(shown) > 4
    for image, target in shown:
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert target.shape == (64, 64)
        assert np.count_nonzero(target) >= clicknet_scenes.LEAST_SHOWN


def test_clicks_go_where_the_masks_err():
    targets = np.zeros((2, 32, 32), bool)
    targets[:, 8:24, 8:24] = True
    clicks = clicknet.Clicks(targets, 2, None)
    clicks.add(np.zeros_like(targets))
    assert clicks.points[0, 0, 2] == 0
    assert targets[0][tuple(clicks.points[0, 0, :2].astype(int))]
    wrong = targets.copy()
    wrong[0, :, 26:] = True
    clicks.add(wrong)
    assert clicks.points[0, 2, 2] == 1
    assert clicks.points[0, 2, 1] >= 26
    assert len(clicks.clicks[1]) == 1  # nothing was wrong with the second mask


def test_training_learns_saves_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(clicknet_scenes, "SHARD", 4)
    monkeypatch.setattr(clicknet, "HELD_OUT", 4)
    monkeypatch.setattr(clicknet, "ClickNetConfig", lambda: ClickNetConfig(image_size=32, widths=(4, 8, 8, 8)))
    arguments = ["--out", str(tmp_path), "--scenes", "4", "--batch", "4", "--workers", "0"]
    clicknet.main([*arguments, "--minutes", "0.01"])
    clicknet.main([*arguments, "--minutes", "0.02"])
    first, second = (json.loads(line) for line in (tmp_path / "clicknet.jsonl").read_text().splitlines())
    assert second["steps"] > first["steps"]
    assert second["seconds"] >= first["seconds"]
    assert len(second["ious"]) == clicknet.HELD_OUT_ROUNDS
    segmenter = load_segmenter(str(tmp_path), device="cpu")
    sample = disc_sample()
    environment = Environment(segmenter)
    assert environment.step(environment.reset(sample), Click(5, 5)).mask.shape == sample.size

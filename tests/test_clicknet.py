"""ClickNet: the network around the classical segmenter, and its training from scenes to a folder that load_segmenter takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from segagent.environment import Environment
from segagent.errors import CheckpointError, SegmenterError
from segagent.segmenters import Segmenter, load_segmenter
from segagent.segmenters.classical.evidence import correct
from segagent.segmenters.classical.views import encode
from segagent.segmenters.clicknet import ClickNetSegmenter
from segagent.segmenters.clicknet_maps import MAPS, maps_of
from segagent.segmenters.clicknet_model import ClickNetConfig, ClickNetModel
from segagent.segmenters.grabcut import GrabCutSegmenter
from segagent.types import Box, Click, Sample
from tests.fakes import disc
from train import clicknet, clicknet_scenes, clicknet_states

ACTIONS = (Click(60, 50), Click(150, 40, positive=False), Click(100, 100), Click(20, 100, positive=False))


@pytest.fixture(scope="module")
def picture():
    """A scene (128, 192, 3) and one of its objects."""
    packed = clicknet_scenes.scene((0, 1))
    labels = packed[:128, :192, 3]
    target = labels == np.bincount(labels[labels > 0]).argmax()
    return np.ascontiguousarray(packed[:128, :192, :3]), target


@pytest.fixture(scope="module")
def model():
    """One that says something, unlike an untrained one."""
    torch.manual_seed(0)
    model = ClickNetModel(ClickNetConfig(widths=(4, 4, 8), strength=1.0))
    torch.nn.init.normal_(model.head.weight, std=2.0)
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("clicknet")
    model.save_pretrained(path)
    return path


def masks_of(segmenter, image, actions=ACTIONS) -> list[np.ndarray]:
    environment = Environment(segmenter)
    state, masks = environment.reset(Sample(image, "it")), []
    for action in actions:
        state = environment.step(state, action)
        masks.append(state.mask)
    return masks


def test_an_untrained_network_is_the_classical_segmenter(picture, model):
    untrained = ClickNetSegmenter(ClickNetModel(ClickNetConfig()), device="cpu")
    for actions in (ACTIONS, (Box(30, 20, 120, 100), *ACTIONS[2:])):
        classical = masks_of(GrabCutSegmenter(), picture[0], actions)
        for ours, theirs in zip(masks_of(untrained, picture[0], actions), classical, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    told = masks_of(ClickNetSegmenter(model, device="cpu"), picture[0])
    assert any((a != b).any() for a, b in zip(told, masks_of(GrabCutSegmenter(), picture[0]), strict=True))


def test_a_beginning_is_the_classical_segmenters(picture, model):
    for action in (ACTIONS[0], Box(30, 20, 120, 100)):
        told, classical = (
            masks_of(s, picture[0], [action]) for s in (ClickNetSegmenter(model, device="cpu"), GrabCutSegmenter())
        )
        np.testing.assert_array_equal(told[0], classical[0])


def test_clicked_pixels_keep_their_label_whatever_the_network_says(picture, model):
    masks = masks_of(ClickNetSegmenter(model, device="cpu"), picture[0])
    for count, mask in enumerate(masks, 1):
        for click in ACTIONS[:count]:
            assert mask[click.y, click.x] == click.positive


def test_the_unary_costs_trained_on_are_those_that_are_cut(picture, model):
    image, target = picture
    embedding = encode(image)
    segmenter = ClickNetSegmenter(model, device="cpu")
    mask = disc(target.shape, 60, 50, 30)
    evidence = correct(embedding, mask, ACTIONS[:1])
    view, maps = evidence.view, maps_of(embedding, evidence, mask, ACTIONS[:1])
    assert maps.shape == (len(MAPS), *view.size)
    assert np.abs(maps).max() <= 1
    learned = segmenter.corrected(evidence, maps).learned
    colour, kept = evidence.table[view.bins], evidence.kept(view, view.down(mask))
    expected = colour * (1 + learned[1]) + evidence.nearness + kept * (1 + learned[2]) + learned[0]
    with torch.inference_mode():
        np.testing.assert_allclose(model.unary(torch.from_numpy(maps)[None])[0], expected, atol=1e-3)


def test_the_strength_says_how_far_the_network_is_followed(picture, model):
    embedding, mask = encode(picture[0]), disc(picture[1].shape, 60, 50, 30)
    evidence = correct(embedding, mask, ACTIONS[:1])
    segmenter = ClickNetSegmenter(ClickNetModel(ClickNetConfig(widths=(4, 4, 8))), device="cpu")
    segmenter.model.load_state_dict(model.state_dict())
    whole = ClickNetSegmenter(model, device="cpu").adjust(embedding, evidence, mask, ACTIONS[:1])
    half = segmenter.adjust(embedding, evidence, mask, ACTIONS[:1])
    np.testing.assert_allclose(half.learned, whole.learned / 2, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (65, 65)])
def test_views_of_any_size(model, size):
    maps = torch.rand(2, len(MAPS), *size, generator=torch.Generator().manual_seed(0))
    said = model(maps)
    assert said.shape == (2, 3, *size)
    torch.testing.assert_close(said[1:], model(maps[1:]), rtol=1e-4, atol=1e-4)


def test_a_saved_model_is_a_segmenter_by_name(folder, model, picture, tmp_path):
    alike = masks_of(ClickNetSegmenter(model, device="cpu"), picture[0])
    for name in (f"clicknet:{folder}", str(folder)):
        segmenter = load_segmenter(name, device="cpu")
        assert isinstance(segmenter, ClickNetSegmenter)
        assert isinstance(segmenter, Segmenter)
        assert segmenter.reference == f"clicknet:{folder}"
        for ours, theirs in zip(masks_of(segmenter, picture[0]), alike, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for name, weight in model.state_dict().items():
        assert torch.equal(segmenter.model.state_dict()[name], weight), name
    segmenter.save_pretrained(tmp_path)
    again = load_segmenter(str(tmp_path), device="cpu")
    np.testing.assert_array_equal(masks_of(again, picture[0])[-1], alike[-1])
    full = ClickNetModel(ClickNetConfig())
    assert sum(p.numel() for p in full.parameters()) < 200_000
    with pytest.raises(CheckpointError, match="No model can be loaded"):
        load_segmenter(f"clicknet:{folder.parent / 'nothing'}")


def test_the_embedded_weights_are_had_by_the_name_alone(picture, tmp_path):
    segmenter = load_segmenter("clicknet", device="cpu")
    assert segmenter.reference == "clicknet"
    assert segmenter.model.head.weight.abs().max() > 0
    assert load_segmenter(segmenter.reference).reference == "clicknet"
    assert masks_of(segmenter, picture[0])[-1].any()
    with pytest.raises(SegmenterError, match=r"clicknet\[:<repository or folder>\]"):
        load_segmenter("clicknett")


def test_weights_for_other_maps_are_refused(tmp_path):
    ClickNetModel(ClickNetConfig(maps=["colour", "nearness", "keep"], widths=(4, 4, 8))).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="for other maps"):
        load_segmenter(f"clicknet:{tmp_path}")


def test_candidates_in_one_batch_are_as_one_by_one(folder, picture):
    environment = Environment(load_segmenter(f"clicknet:{folder}", device="cpu"))
    state = environment.reset(Sample(picture[0], "it"))
    actions = [Click(60, 50), Click(100, 100), Box(30, 20, 120, 100)]
    together = environment.step_many([state] * 3, actions)
    for action, batched in zip(actions, together, strict=True):
        np.testing.assert_array_equal(batched.mask, environment.step(state, action).mask)


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


def test_states_come_back_as_they_were_packed(picture):
    states = clicknet_states.roll_out(None, *picture, np.random.default_rng(3))
    assert 1 <= len(states) <= clicknet_states.CLICKS
    maps, target = clicknet_states.unpack(states[0])
    assert maps.shape == (len(MAPS), *target.shape)
    again = clicknet_states.pack(maps, target > 0)
    np.testing.assert_array_equal(again, states[0])
    first, second = (clicknet.augmented(states[0], np.random.default_rng(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[1].sum() == target.sum()


def test_training_lowers_the_loss(picture):
    torch.manual_seed(0)
    model = ClickNetModel(ClickNetConfig(widths=(4, 4, 8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = clicknet_states.roll_out(None, *picture, np.random.default_rng(3))[0]
    maps, target = (torch.from_numpy(a)[None] for a in clicknet_states.unpack(state))
    losses = []
    for _ in range(30):
        loss = clicknet.loss_of(model, maps, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_training_runs_round_by_round_and_resumes(tmp_path, monkeypatch, picture):
    monkeypatch.setattr(clicknet_scenes, "SHARD", 4)
    monkeypatch.setattr(clicknet_states, "SHARD", 2)
    monkeypatch.setattr(clicknet_states, "SIZE", 96)
    monkeypatch.setattr(clicknet, "HELD_OUT", 2)
    monkeypatch.setattr(clicknet, "ClickNetConfig", lambda: ClickNetConfig(widths=(4, 4, 8)))
    arguments = ["--out", str(tmp_path), "--scenes", "4", "--rollouts", "2", "--batch", "2", "--workers", "0"]
    clicknet.main([*arguments, "--minutes", "0.02", "--rounds", "1"])
    made = {path.name for path in (tmp_path / "states").iterdir()}
    clicknet.main([*arguments, "--minutes", "0.04"])
    assert made < {path.name for path in (tmp_path / "states").iterdir()}  # the second round's
    classical, first, second = (json.loads(line) for line in (tmp_path / "clicknet.jsonl").read_text().splitlines())
    assert classical["steps"] == 0
    assert 0 < first["steps"] < second["steps"]
    assert first["states"] < second["states"]
    assert len(second["ious"]) == clicknet.HELD_OUT_CLICKS
    segmenter = load_segmenter(str(tmp_path), device="cpu")
    assert masks_of(segmenter, picture[0])[-1].any()

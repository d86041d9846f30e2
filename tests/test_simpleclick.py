"""SimpleClick's network: equal to the reference's vectors, and to a plain recomputation at other sizes; and its weights."""

from __future__ import annotations

import math
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_simpleclick import plain, released, save

from segagent.errors import CheckpointError, SegmenterError
from segagent.segmenters.simpleclick import SimpleClickSegmenter
from segagent.segmenters.simpleclick_model import SimpleClickModel
from segagent.segmenters.simpleclick_released import read_released

VECTORS = Path(__file__).parents[1].parent / "shared" / "data" / "simpleclick_vectors"


def inputs(height: int, width: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    points = torch.full((batch, 6, 3), -1.0)
    points[0, 0] = torch.tensor([height / 2, 30.5, 0])
    points[0, 1] = torch.tensor([3.0, width - 2.0, 1])
    points[0, 4] = torch.tensor([height - 1.0, -1.0, 2])  # on the edge, half of it outside
    points[-1, 3] = torch.tensor([40.0, 70.25, 0])
    return (
        torch.rand(batch, 3, height, width, generator=generator),
        points,
        torch.rand(batch, 1, height, width, generator=generator),
    )


@pytest.fixture(scope="module")
def vectors() -> dict[str, torch.Tensor]:
    if not VECTORS.is_dir():
        pytest.skip("../shared/data is absent")
    with np.load(VECTORS / "vectors.npz") as held:
        return {name: torch.from_numpy(held[name]) for name in held.files}


@torch.inference_mode()
def test_equals_the_reference(vectors, tmp_path):
    model = SimpleClickModel.from_pretrained(VECTORS / "weights.pth")
    pixels = vectors["image"].permute(0, 3, 1, 2).float() / 255
    logits = model(pixels, vectors["points"], vectors["prev_mask"])
    assert (logits - vectors["logits"]).abs().max() < 1e-5
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    again = SimpleClickModel.from_pretrained(tmp_path)
    assert torch.equal(again(pixels, vectors["points"], vectors["prev_mask"]), logits)


@torch.inference_mode()
def test_the_plain_recomputation_equals_the_reference_too(vectors):
    weights = torch.load(VECTORS / "weights.pth", weights_only=True)["state_dict"]
    pixels = vectors["image"].permute(0, 3, 1, 2).float() / 255
    logits = plain(weights, 4, pixels, vectors["points"], vectors["prev_mask"])
    assert (logits - vectors["logits"]).abs().max() < 1e-5


CASES = {
    "small, one window": ({}, (224, 224)),
    "as the base: groups of six": ({"depth": 12, "width": 24}, (448, 224)),
    "as the huge: patch 14, groups of a quarter": ({"depth": 8, "patch": 14, "image": 448}, (224, 448)),
    "upsampling x2": ({"upsample": 2}, (224, 224)),
    "upsampling x4": ({"upsample": 4, "depth": 8}, (224, 224)),
    "no previous mask": ({"maps": 2}, (224, 224)),
    "larger than trained": ({"depth": 8}, (448, 448)),
    "smaller than a window": ({"depth": 8}, (96, 160)),
    "wider than narrow pyramids": ({"width": 64, "pyramid": (48, 4, 6, 200), "head": 4}, (224, 224)),
}


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_equals_the_plain_recomputation(case, tmp_path):
    sizes, shape = CASES[case]
    weights = released(**sizes)
    pixels, points, previous = inputs(*shape)
    expected = plain(weights, 4, pixels, points, previous, sizes.get("upsample", 1))
    model = SimpleClickModel.from_pretrained(save(tmp_path, weights))
    found = model(pixels, points, previous)
    assert expected.std() > 1e-3  # it depends on its input
    assert (found - expected).abs().max() < 1e-5
    halves = model(points=points, previous=previous, image_embeddings=model.embed_image(pixels))
    assert torch.equal(found, halves)


@pytest.mark.parametrize("grid", [(14, 28), (28, 7)])
@torch.inference_mode()
def test_trained_on_oblong_pictures_as_its_config_tells(grid, tmp_path):
    weights = released(depth=8)
    generator = torch.Generator().manual_seed(2)
    weights["backbone.pos_embed"] = torch.randn(1, math.prod(grid) + 1, 32, generator=generator)
    config = {"params": {"backbone_params": {"value": {"img_size": tuple(16 * n for n in grid), "num_heads": 4}}}}
    model = SimpleClickModel.from_pretrained(save(tmp_path, weights, config=config))
    assert model.config.image_size == [16 * n for n in grid]
    for shape in ((224, 448), (224, 224)):  # one of them with its position embeddings resized
        pixels, points, previous = inputs(*shape)
        expected = plain(weights, 4, pixels, points, previous, grid=grid)
        assert (model(pixels, points, previous) - expected).abs().max() < 1e-5
    segmenter = SimpleClickSegmenter.from_pretrained(save(tmp_path, weights, config=config))
    assert segmenter.size == 16 * max(grid)


def test_sizes_that_cannot_be_cut_into_windows_attend_globally(tmp_path):
    model = SimpleClickModel.from_pretrained(save(tmp_path, released(depth=8)))
    pixels, points, previous = inputs(16 * 29, 16 * 30)
    assert model(pixels, points, previous).shape == (2, 1, 16 * 29, 16 * 30)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1280, 16), (160, 4), (48, 4), (192, 3), (384, 6)])
def test_guesses_the_heads_of_known_widths(tmp_path, width, heads):
    weights = {name: torch.zeros(1).expand(w.shape) for name, w in released(depth=1, width=width).items()}
    assert read_released(str(save(tmp_path, weights)))[0]["num_attention_heads"] == heads


def test_takes_from_a_released_config_what_shapes_do_not_tell(tmp_path, monkeypatch):
    # A released config pickles the training's loss; neither its class nor its package is there when it is read.
    isegm = types.ModuleType("isegm.losses")

    class Loss(torch.nn.Module):
        pass

    def criterion():
        pass

    for name, held in (("Loss", Loss), ("criterion", criterion)):
        held.__module__, held.__qualname__ = "isegm.losses", name
        setattr(isegm, name, held)
    monkeypatch.setitem(sys.modules, "isegm", types.ModuleType("isegm"))
    monkeypatch.setitem(sys.modules, "isegm.losses", isegm)
    loss = Loss()
    loss.criterion = criterion
    config = {
        "class": "isegm.model.is_plainvit_model.PlainVitModel",
        "params": {
            "backbone_params": {"type": "builtin", "value": {"num_heads": 2, "img_size": (224, 224)}},
            "head_params": {"type": "builtin", "value": {"loss_decode": loss}},
            "norm_radius": {"type": "builtin", "value": 3},
            "norm_mean_std": {"type": "builtin", "value": ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25])},
        },
    }
    path = save(tmp_path, released(), config=config)
    monkeypatch.delitem(sys.modules, "isegm.losses")
    monkeypatch.delitem(sys.modules, "isegm")
    found = SimpleClickModel.from_pretrained(path).config
    assert (found.num_attention_heads, found.click_radius, found.image_mean) == (2, 3, [0.5, 0.5, 0.5])
    assert "isegm" not in sys.modules
    for plain_config in ({"num_heads": 2, "norm_radius": 3}, {"backbone_params": {"num_heads": 2}, "norm_radius": 3}):
        found = SimpleClickModel.from_pretrained(save(tmp_path, released(), config=plain_config)).config
        assert (found.num_attention_heads, found.click_radius) == (2, 3)
    given = SimpleClickModel.from_pretrained(path, num_attention_heads=8)
    assert given.config.num_attention_heads == 8


class Malicious:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_what_cannot_be_loaded_is_one_sentence(tmp_path):
    mark = tmp_path / "mark"
    for modern in (True, False):
        torch.save(
            {"state_dict": released(), "config": Malicious(mark)},
            tmp_path / "bad.pth",
            _use_new_zipfile_serialization=modern,
        )
        with pytest.raises(CheckpointError, match="holds more than weights"):
            SimpleClickSegmenter.from_pretrained(tmp_path / "bad.pth")
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="There is no weights file"):
        SimpleClickSegmenter.from_pretrained(tmp_path / "none.pth")
    weights = released()
    for held in ([], {}, {"state_dict": None}, {"state_dict": {"a": torch.zeros(1)}}):
        torch.save(held, tmp_path / "bad.pth")
        with pytest.raises(CheckpointError, match="holds no SimpleClick model"):
            SimpleClickSegmenter.from_pretrained(tmp_path / "bad.pth")
    for fault in (
        {k: v for k, v in weights.items() if k != "head.conv_seg.bias"},
        weights | {"neck.down_64.weight": torch.zeros(1)},
        weights | {"backbone.pos_embed": torch.zeros(1, 12, 32)},
        weights | {"head.convs.0.conv.weight": torch.zeros(8, 9, 1, 1)},
    ):
        with pytest.raises(CheckpointError, match="no SimpleClick model that this version knows"):
            SimpleClickSegmenter.from_pretrained(save(tmp_path, fault))
    with pytest.raises(CheckpointError, match="No model can be loaded from"):
        SimpleClickSegmenter.from_pretrained(tmp_path / "folder", local_files_only=True)
    model = SimpleClickModel.from_pretrained(save(tmp_path, weights))
    for size in (100, -16):
        with pytest.raises(SegmenterError, match="no multiple of the model's patch"):
            SimpleClickSegmenter(model, size=size)
    with pytest.raises(SegmenterError, match="takes num_attention_heads, size, zoom and flip, and not num_heads"):
        SimpleClickSegmenter.from_pretrained(save(tmp_path, weights), num_heads=4)
    with pytest.raises(CheckpointError, match="32 channels wide, which 5 attention heads cannot share: give num_att"):
        SimpleClickSegmenter.from_pretrained(save(tmp_path, weights), num_attention_heads=5)
    model.save_pretrained(tmp_path / "part", state_dict={"image_embedding.bias": torch.zeros(32)})
    with pytest.raises(CheckpointError, match=r"lacks .* of the weights"):
        SimpleClickSegmenter.from_pretrained(tmp_path / "part")

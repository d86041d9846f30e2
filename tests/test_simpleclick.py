"""SimpleClick: equal to the reference's vectors, to a plain recomputation at other sizes, and a proper segmenter around it."""

from __future__ import annotations

import math
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segagent.environment import Environment
from segagent.errors import CheckpointError, SegmenterError
from segagent.segmenters import load_segmenter
from segagent.segmenters.base import Segmenter
from segagent.segmenters.simpleclick import Memory, SimpleClickSegmenter, _paste, _sample
from segagent.segmenters.simpleclick_model import SimpleClickConfig, SimpleClickModel
from segagent.segmenters.simpleclick_released import read_released
from segagent.types import Box, Click, State

VECTORS = Path(__file__).parents[1].parent / "shared" / "data" / "simpleclick_vectors"


def released(
    width=32, depth=4, patch=16, image=224, pyramid=(8, 12, 16, 20), head=8, upsample=1, maps=3, seed=0
) -> dict[str, torch.Tensor]:
    """Random weights in the layout of the released files."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        transposed = name in {"neck.down_4.0", "neck.down_4.3", "neck.down_8.0", "head.up_conv1.0", "head.up_conv2.0"}
        shapes[f"{name}.bias"] = (shape[1] if transposed else shape[0],)

    def enlarge(name: str, first: int, source: int, out: int) -> None:
        layer(f"{name}.{first}", source, out, 2, 2)
        layer(f"{name}.{first + 1}", out)

    def project(name: str, first: int, source: int, out: int) -> None:
        layer(f"{name}.{first}", out, source, 1, 1)
        layer(f"{name}.{first + 1}", out)

    layer("patch_embed_coords.proj", width, maps, patch, patch)
    layer("backbone.patch_embed.proj", width, 3, patch, patch)
    shapes["backbone.cls_token"] = (1, 1, width)
    shapes["backbone.pos_embed"] = (1, (image // patch) ** 2 + 1, width)
    for i in range(depth):
        block = f"backbone.blocks.{i}"
        layer(f"{block}.norm1", width)
        layer(f"{block}.norm2", width)
        layer(f"{block}.attn.qkv", 3 * width, width)
        layer(f"{block}.attn.proj", width, width)
        layer(f"{block}.mlp.fc1", 4 * width, width)
        layer(f"{block}.mlp.fc2", width, 4 * width)
    layer("backbone.fc_norm", width)
    layer("backbone.head", 1000, width)
    quarter, eighth, last = max(pyramid[0] * 2, width // 2), max(pyramid[1], width // 2), max(pyramid[3], width * 2)
    enlarge("neck.down_4", 0, width, quarter)
    enlarge("neck.down_4", 3, quarter, quarter // 2)
    project("neck.down_4", 5, quarter // 2, pyramid[0])
    enlarge("neck.down_8", 0, width, eighth)
    project("neck.down_8", 2, eighth, pyramid[1])
    project("neck.down_16", 0, width, pyramid[2])
    layer("neck.down_32.0", last, width, 2, 2)
    layer("neck.down_32.1", last)
    project("neck.down_32", 2, last, pyramid[3])
    fused = head * upsample
    for i, size in enumerate(pyramid):
        layer(f"head.convs.{i}.conv", fused, size, 1, 1)
    layer("head.fusion_conv.conv", fused, 4 * fused, 1, 1)
    for n in (1, 2):
        enlarge(f"head.up_conv{n}", 0, fused >> (n - 1), fused >> n)
        project(f"head.up_conv{n}", 2, fused >> n, fused >> n)
    layer("head.conv_seg", 1, head, 1, 1)
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(max(1, math.prod(shape[1:]) / 2))
        for name, shape in shapes.items()
    }


def plain(weights, heads, pixels, points, previous, upsample=1, radius=5.0, grid=None) -> torch.Tensor:
    """The network as its description reads, window by window and head by head, on released keys."""

    def conv(x, name, stride=1):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride)

    def enlarge(x, name):
        return F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)

    def norm(x, name):
        return F.group_norm(x, 1, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def block(x, i):  # x (N, C)
        name, width = f"backbone.blocks.{i}", x.shape[-1]
        y = F.layer_norm(x, (width,), weights[f"{name}.norm1.weight"], weights[f"{name}.norm1.bias"], 1e-6)
        q, k, v = linear(y, f"{name}.attn.qkv").chunk(3, dim=-1)
        out = []
        for one in range(heads):
            part = slice(one * width // heads, (one + 1) * width // heads)
            scores = (q[:, part] @ k[:, part].T) / math.sqrt(width // heads)
            out.append(scores.softmax(-1) @ v[:, part])
        x = x + linear(torch.cat(out, -1), f"{name}.attn.proj")
        y = F.layer_norm(x, (width,), weights[f"{name}.norm2.weight"], weights[f"{name}.norm2.bias"], 1e-6)
        return x + linear(F.gelu(linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

    size = pixels.shape[-2:]
    maps = torch.zeros(len(points), 2, *size)
    yy, xx = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    for b, row in enumerate(points):
        for n, (y, x, _) in enumerate(row.tolist()):
            if max(y, x) >= 0:
                maps[b, 0 if n < len(row) // 2 else 1][(yy - y) ** 2 + (xx - x) ** 2 <= radius**2] = 1
    if weights["patch_embed_coords.proj.weight"].shape[1] == 3:
        maps = torch.cat([previous, maps], 1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    patch = weights["backbone.patch_embed.proj.weight"].shape[-1]
    x = conv((pixels - mean.view(3, 1, 1)) / deviation.view(3, 1, 1), "backbone.patch_embed.proj", patch)
    x = x + conv(maps, "patch_embed_coords.proj", patch)
    positions = weights["backbone.pos_embed"][0, 1:].T
    side = math.isqrt(positions.shape[1])
    positions = positions.reshape(1, -1, *(grid or (side, side)))
    if positions.shape[-2:] != x.shape[-2:]:
        positions = F.interpolate(positions, x.shape[-2:], mode="bicubic", align_corners=False)
    x = x + positions
    depth = len({k.split(".")[2] for k in weights if k.startswith("backbone.blocks.")})
    group = 6 if depth == 12 else depth // 4
    height, width = x.shape[-2:]
    for i in range(depth):
        rows = columns = 1
        if (i + 1) % group:
            rows, columns = max(1, height // (224 // patch)), max(1, width // (224 // patch))
        out = torch.empty_like(x)
        for r in range(rows):
            for c in range(columns):
                ys = slice(r * height // rows, (r + 1) * height // rows)
                xs = slice(c * width // columns, (c + 1) * width // columns)
                for b in range(len(x)):
                    cut = x[b, :, ys, xs]
                    out[b, :, ys, xs] = block(cut.flatten(1).T, i).T.reshape(cut.shape)
        x = out
    quarter = norm(enlarge(x, "neck.down_4.0"), "neck.down_4.1")
    quarter = norm(enlarge(F.gelu(quarter), "neck.down_4.3"), "neck.down_4.4")
    eighth = norm(enlarge(x, "neck.down_8.0"), "neck.down_8.1")
    last = norm(conv(x, "neck.down_32.0", 2), "neck.down_32.1")
    levels = [
        F.gelu(norm(conv(quarter, "neck.down_4.5"), "neck.down_4.6")),
        F.gelu(norm(conv(eighth, "neck.down_8.2"), "neck.down_8.3")),
        F.gelu(norm(conv(x, "neck.down_16.0"), "neck.down_16.1")),
        F.gelu(norm(conv(last, "neck.down_32.2"), "neck.down_32.3")),
    ]
    levels = [F.relu(conv(level, f"head.convs.{i}.conv")) for i, level in enumerate(levels)]
    levels = [F.interpolate(y, levels[0].shape[-2:], mode="bilinear", align_corners=False) for y in levels]
    y = F.relu(conv(torch.cat(levels, 1), "head.fusion_conv.conv"))
    for n in range(1, upsample.bit_length()):
        y = norm(enlarge(y, f"head.up_conv{n}.0"), f"head.up_conv{n}.1")
        y = F.gelu(norm(conv(y, f"head.up_conv{n}.2"), f"head.up_conv{n}.3"))
    return F.interpolate(conv(y, "head.conv_seg"), size, mode="bilinear", align_corners=True)


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


def save(tmp_path: Path, weights: dict, **more) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": weights, **more} if more else weights, path)
    return path


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


# The segmenter


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

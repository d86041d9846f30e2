"""SimpleClick's network (Liu et al., ICCV 2023): a plain ViT that clicks and the previous mask enter at the first layer.

The click maps (a disk at every positive click, another map for the negative ones) and the previous mask get a patch
embedding of their own, added to the image's. Attention runs within windows of 224 px except in the last block of a group.
A simple feature pyramid of four levels, made from the last block alone, and an MLP head give one logit a pixel.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from segagent import _torchvision
from segagent.segmenters.simpleclick_released import not_released, read_released

_torchvision.mend()
from transformers import PreTrainedConfig, PreTrainedModel  # noqa: E402 - imports torchvision, which is mended first

WINDOW = 224  # px: the size that the backbone was pre-trained at


class SimpleClickConfig(PreTrainedConfig):
    """The released base model by default."""

    model_type = "simpleclick"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    qkv_bias: bool = True
    patch_size: int = 16
    image_size: int | list[int] = 448  # px of the position embeddings: of both sides, or height and width
    previous_mask: bool = True
    click_radius: float = 5.0  # px of the network's input
    pyramid_inner: tuple[int, ...] | list[int] = (384, 192, 384, 1536)  # two widths inside 1/4, one in 1/8, one in 1/32
    pyramid_sizes: tuple[int, ...] | list[int] = (128, 256, 512, 1024)  # channels at 1/4, 1/8, 1/16, 1/32
    head_size: int = 256
    upsample: int = 1  # 1, 2 or 4: what the head enlarges the finest level by
    image_mean: tuple[float, ...] | list[float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] | list[float] = (0.229, 0.224, 0.225)
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    # How it is used: the side of its input (None: image_size), and whether it zooms in and averages over a flip.
    input_size: int | None = None
    zoom: bool = True
    flip: bool = True

    @property
    def group(self) -> int:
        """Blocks a group, of which the last attends globally: two groups at depth 12, else four."""
        return 6 if self.num_hidden_layers == 12 else max(1, self.num_hidden_layers // 4)


class _Attention(nn.Module):
    def __init__(self, config: SimpleClickConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, C) → (B, N, C)"""
        batch, count, channels = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, channels // self.heads)
        mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, channels))


class _Block(nn.Module):
    def __init__(self, config: SimpleClickConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = _Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(config.hidden_size, config.intermediate_size),
                "fc2": nn.Linear(config.intermediate_size, config.hidden_size),
            }
        )

    def forward(self, tokens: torch.Tensor, window: tuple[int, int] | None) -> torch.Tensor:
        """tokens (B, h, w, C); window (height, width) in tokens, None for global attention → (B, h, w, C)"""
        height, width = tokens.shape[1:3]
        rows, columns = window or (height, width)
        cut = tokens.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3)  # (B, down, across, r, c, C)
        flat = cut.flatten(3, 4).flatten(0, 2)
        flat = flat + self.attention(self.norm1(flat))
        flat = flat + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(flat))))
        return flat.view(cut.shape).transpose(2, 3).reshape(tokens.shape)


def _enlarge(width: int, out: int) -> list[nn.Module]:
    return [nn.ConvTranspose2d(width, out, 2, stride=2), nn.GroupNorm(1, out)]


def _project(width: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(width, out, 1), nn.GroupNorm(1, out), nn.GELU()]


class _Head(nn.Module):
    def __init__(self, config: SimpleClickConfig) -> None:
        super().__init__()
        width = config.head_size * config.upsample
        self.levels = nn.ModuleList([nn.Conv2d(size, width, 1) for size in config.pyramid_sizes])
        self.fuse = nn.Conv2d(width * len(config.pyramid_sizes), width, 1)
        stages = [width >> n for n in range(config.upsample.bit_length())]
        self.upsample = nn.Sequential(*(nn.Sequential(*_enlarge(a, b), *_project(b, b)) for a, b in pairwise(stages)))
        self.classify = nn.Conv2d(config.head_size, 1, 1)

    def forward(self, pyramid: list[torch.Tensor]) -> torch.Tensor:
        """Four levels, finest first → logits (B, 1, h, w) at the finest's size times the upsampling."""
        finest = pyramid[0].shape[-2:]
        levels = [level(x).relu() for level, x in zip(self.levels, pyramid, strict=True)]
        levels = [functional.interpolate(x, finest, mode="bilinear") for x in levels]
        return self.classify(self.upsample(self.fuse(torch.cat(levels, dim=1)).relu()))


class SimpleClickModel(PreTrainedModel):
    config_class = SimpleClickConfig
    base_model_prefix = "simpleclick"
    main_input_name = "pixel_values"
    _no_split_modules = ("_Block",)

    def __init__(self, config: SimpleClickConfig) -> None:
        super().__init__(config)
        width, patch, sides = config.hidden_size, config.patch_size, config.image_size
        grid = [n // patch for n in ([sides, sides] if isinstance(sides, int) else sides)]
        self.image_embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.map_embedding = nn.Conv2d(2 + config.previous_mask, width, patch, stride=patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, width, *grid))
        self.blocks = nn.ModuleList([_Block(config) for _ in range(config.num_hidden_layers)])
        quarter, half, eighth, last = config.pyramid_inner
        sizes = config.pyramid_sizes
        self.pyramid = nn.ModuleList(
            [
                nn.Sequential(
                    *_enlarge(width, quarter), nn.GELU(), *_enlarge(quarter, half), *_project(half, sizes[0])
                ),
                nn.Sequential(*_enlarge(width, eighth), *_project(eighth, sizes[1])),
                nn.Sequential(*_project(width, sizes[2])),
                nn.Sequential(nn.Conv2d(width, last, 2, stride=2), nn.GroupNorm(1, last), *_project(last, sizes[3])),
            ]
        )
        self.head = _Head(config)
        self.post_init()

    def embed_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The image's part of the first layer, the same for all clicks.

        pixel_values (B, 3, H, W) RGB in [0, 1], H and W multiples of the patch → (B, C, h, w), positions included.
        """
        mean, deviation = (
            pixel_values.new_tensor(v).view(3, 1, 1) for v in (self.config.image_mean, self.config.image_std)
        )
        embedded = self.image_embedding((pixel_values - mean) / deviation)
        positions = self.position_embedding
        if positions.shape[-2:] != embedded.shape[-2:]:
            positions = functional.interpolate(positions, embedded.shape[-2:], mode="bicubic")
        return embedded + positions

    def click_maps(self, points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """points (B, 2N, 2 or more): rows (y, x, …), the first N positive, the rest negative, (-1, -1) for none.

        → (B, 2, H, W), 1 within the radius of a click, else 0.
        """
        y, x = points[..., 0].unflatten(1, (2, -1)), points[..., 1].unflatten(1, (2, -1))  # (B, 2, N)
        given = torch.maximum(x, y) >= 0
        rows = torch.arange(size[0], device=points.device, dtype=points.dtype)
        columns = torch.arange(size[1], device=points.device, dtype=points.dtype)
        maps = points.new_zeros(*y.shape[:2], *size, dtype=torch.bool)
        for n in range(y.shape[2]):  # one at a time: distances to all clicks at once would fill the memory
            vertical, horizontal = rows - y[..., n, None], columns - x[..., n, None]
            near = vertical.square()[..., None] + horizontal.square()[..., None, :] <= self.config.click_radius**2
            maps |= near & given[..., n, None, None]
        return maps.to(points.dtype)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, 1, H, W).

        pixel_values (B, 3, H, W) in [0, 1], or what `embed_image` made of them; points as `click_maps` takes them; previous
        (B, 1, H, W), the last mask's probabilities, zeros where there is none.
        """
        if image_embeddings is None:
            image_embeddings = self.embed_image(pixel_values)
        size = tuple(n * self.config.patch_size for n in image_embeddings.shape[-2:])
        maps = self.click_maps(points, size)
        if self.config.previous_mask:
            previous = maps.new_zeros(len(maps), 1, *size) if previous is None else previous
            maps = torch.cat([previous, maps], dim=1)
        tokens = (image_embeddings + self.map_embedding(maps)).permute(0, 2, 3, 1)
        window = tuple(_window(n, WINDOW // self.config.patch_size) for n in tokens.shape[1:3])
        for i, block in enumerate(self.blocks, 1):
            tokens = block(tokens, window if i % self.config.group else None)
        features = tokens.permute(0, 3, 1, 2)
        logits = self.head([level(features) for level in self.pyramid])
        return functional.interpolate(logits, size, mode="bilinear", align_corners=True)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike, *args: Any, **options: Any) -> SimpleClickModel:
        """A released `.pth`, or a folder or repository that `save_pretrained` made. Raises CheckpointError for a `.pth`.

        A `.pth` takes `num_attention_heads`, which its shapes do not tell: only needed where it holds no config and its
        width is none of the released ones.
        """
        if str(name_or_path).endswith((".pth", ".pt")):
            settings, weights = read_released(str(name_or_path), **options)
            model = cls(SimpleClickConfig(**settings))
            with not_released(str(name_or_path)):
                model.load_state_dict(weights)
            return model.eval()
        return super().from_pretrained(name_or_path, *args, **options)


def _window(length: int, least: int) -> int:
    """Tokens a window along one axis: the axis cut into as many equal windows of at least `least` tokens as it allows."""
    count = max(1, length // least)
    while length % count:
        count -= 1
    return length // count

"""ClickNet: a small convolutional network that corrects the classical segmenter's evidence, trained by train/clicknet.py.

It gets the evidence of a click as maps (clicknet_maps.py) and says, for each pixel, how many nats are to be added for the
foreground, and by how much the colours and the label that the pixel has should count for more. Untrained it says 0
everywhere: it starts as the classical segmenter, and learns only what that gets wrong.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from segagent import _torchvision

_torchvision.mend()
from transformers import PreTrainedConfig, PreTrainedModel  # noqa: E402 - imports torchvision, which is mended first

from segagent.segmenters.clicknet_maps import LIMITS, MAPS  # noqa: E402


class ClickNetConfig(PreTrainedConfig):
    model_type = "clicknet"

    maps: tuple[str, ...] | list[str] = MAPS  # what it sees, in this order
    widths: tuple[int, ...] | list[int] = (24, 32, 48, 48)  # channels at strides 2, 4, 8, 16
    strength: float = 0.5  # how far the segmenter follows it: it learned from scenes, and photographs are others


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) → (B, C, h, w)"""
        return x + self.conv(x).relu()


class ClickNetModel(PreTrainedModel):
    config_class = ClickNetConfig
    base_model_prefix = "clicknet"
    main_input_name = "maps"

    def __init__(self, config: ClickNetConfig) -> None:
        super().__init__(config)
        widths = config.widths
        blocks = [1, *([1] * (len(widths) - 3)), 2, 2]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in pairwise((len(config.maps), *widths)))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(count))) for width, count in zip(widths, blocks, strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.join = nn.ModuleList(_Block(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 3 * 4, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """For rectified linear units, in place of transformers' small numbers; but the head says nothing at first."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
            if module is self.head:
                nn.init.zeros_(module.weight)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """maps (B, len(config.maps), h, w) in [-1, 1], of any size → (B, 3, h, w): nats for the foreground, and what is
        added to the factors, 1, of the colours' nats and of the present label's."""
        height, width = maps.shape[-2:]
        step = 2 ** len(self.config.widths)
        x = functional.pad(maps, (0, -width % step, 0, -height % step))
        passed = []
        for down, blocks in zip(self.down, self.blocks, strict=True):
            x = blocks(down(x).relu())
            passed.append(x)
        for up, join, fine in zip(self.up[::-1], self.join[::-1], passed[-2::-1], strict=True):
            x = join(fine + functional.interpolate(up(x), scale_factor=2, mode="bilinear", align_corners=False))
        return functional.pixel_shuffle(self.head(x), 2)[..., :height, :width]

    def unary(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, h, w) nats for the foreground, as the cut has them: the evidence in the maps with what the network says."""
        nats, of_colour, of_keep = self(maps).unbind(1)
        names = list(self.config.maps)
        colour, nearness, keep = (maps[:, names.index(name)] * limit for name, limit in LIMITS.items())
        return colour * (1 + of_colour) + nearness + keep * (1 + of_keep) + nats

"""ClickNet: a small convolutional click network, trained from nothing by train/clicknet.py.

The image goes through a few convolutions once. Each click then asks how like the clicked places, the previous mask and its
surroundings each place is, by learned descriptors (what colour models are to a graph cut), and a small U-Net turns these
maps, the places of the clicks and the previous mask into logits.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from segagent import _torchvision

_torchvision.mend()
from transformers import PreTrainedConfig, PreTrainedModel  # noqa: E402 - imports torchvision, which is mended first

STRIDE = 4  # px of the input for a cell of the image's features
MAPS = 11  # what `_maps` makes: places of clicks 5, previous mask 1, likenesses 5


class ClickNetConfig(PreTrainedConfig):
    model_type = "clicknet"

    image_size: int = 128  # px, square: what it is trained on
    patch_size: int = 16  # the input's sides are multiples of it
    widths: tuple[int, ...] | list[int] = (16, 48, 80, 112)  # channels at strides 2, 4, 8, 16
    descriptor_size: int = 16
    reaches: tuple[float, ...] | list[float] = (3.0, 20.0)  # px of the input: standard deviations of the click maps
    image_mean: tuple[float, ...] | list[float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] | list[float] = (0.229, 0.224, 0.225)
    # How it is used: the side of its input (None: image_size), and whether it zooms in and averages over a flip.
    input_size: int | None = None
    zoom: bool = True
    flip: bool = False


def _conv(source: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(source, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) → (B, C, h, w)"""
        return (x + self.norm(self.second(self.first(x)))).relu()


class ClickNetModel(PreTrainedModel):
    config_class = ClickNetConfig
    base_model_prefix = "clicknet"
    main_input_name = "pixel_values"

    def __init__(self, config: ClickNetConfig) -> None:
        super().__init__(config)
        half, quarter, eighth, last = config.widths
        self.stem = _conv(3, half, 2)
        self.image = nn.Sequential(_conv(half, quarter, 2), _Block(quarter))
        self.coarse_image = nn.Sequential(_conv(quarter, eighth, 2), _Block(eighth), nn.Conv2d(eighth, quarter, 1))
        self.descriptor = nn.Conv2d(quarter, config.descriptor_size, 1)
        self.mix = _conv(quarter + MAPS, quarter)
        self.down = nn.ModuleList([_conv(quarter, eighth, 2), _conv(eighth, last, 2)])
        self.middle = nn.ModuleList([_Block(eighth), _Block(last)])
        widths = config.widths[::-1]
        self.up = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in pairwise(widths)])
        self.join = nn.ModuleList([_Block(eighth), _Block(quarter)])
        self.finish = nn.Sequential(_conv(half + 2, half), nn.Conv2d(half, 1, 1))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """For rectified linear units, in place of transformers' small numbers, which are for transformers."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The image's part, the same for all clicks.

        pixel_values (B, 3, H, W) RGB in [0, 1], H and W multiples of `patch_size` → (B, C, H / 4, W / 4): features, and
        those of the stem, which are twice as fine, folded into channels.
        """
        mean, deviation = (
            pixel_values.new_tensor(v).view(3, 1, 1) for v in (self.config.image_mean, self.config.image_std)
        )
        fine = self.stem((pixel_values - mean) / deviation)
        features = self.image(fine)
        features = features + _double(self.coarse_image(features))
        return torch.cat([features, functional.pixel_unshuffle(fine, 2)], dim=1)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, 1, H, W).

        pixel_values (B, 3, H, W) in [0, 1], or what `embed_image` made of them. points (B, 2N, 3): rows (y, x, order) px of
        the input, the first N positive, the rest negative, (-1, -1, -1) for none, the last click of the highest order.
        previous (B, 1, H, W), the last mask's probabilities, zeros where there is none.
        """
        if image_embeddings is None:
            image_embeddings = self.embed_image(pixel_values)
        half, quarter = self.config.widths[:2]
        features, fine = image_embeddings.split([quarter, 4 * half], dim=1)
        if previous is None:
            height, width = features.shape[-2:]
            previous = features.new_zeros(len(features), 1, height * STRIDE, width * STRIDE)
        maps = self._maps(features, points, previous)
        quarters = self.mix(torch.cat([features, maps], dim=1))
        eighths = self.middle[0](self.down[0](quarters))
        last = self.middle[1](self.down[1](eighths))
        eighths = self.join[0](eighths + _double(self.up[0](last)))
        quarters = self.join[1](quarters + _double(self.up[1](eighths)))
        halves = functional.pixel_shuffle(fine, 2) + _double(self.up[2](quarters))
        sharp = [halves, functional.avg_pool2d(previous, 2), _double(maps[:, :1])]
        return _double(self.finish(torch.cat(sharp, dim=1)))

    def _maps(self, features: torch.Tensor, points: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """(B, MAPS, h, w) of the cells: the signed nearest clicks, wide and narrow; the previous mask; likenesses."""
        given = points[..., 2] >= 0  # (B, 2N)
        positive = torch.arange(points.shape[1], device=points.device) < points.shape[1] // 2
        latest = given & (points[..., 2] == points[..., 2].amax(dim=1, keepdim=True))
        groups = torch.stack([given & positive, given & ~positive, latest], dim=1)  # (B, 3, 2N)
        near = self._places(features.shape[-2:], points)  # (B, 2N, h, w) squared px
        near = torch.where(groups[..., None, None], near[:, None], torch.inf).amin(dim=2)  # (B, 3, h, w)
        narrow, wide = (torch.exp(-near / (2 * reach**2)) for reach in self.config.reaches)
        sign = torch.where((latest & positive).any(dim=1), 1.0, -1.0)[:, None, None, None]
        mask = functional.avg_pool2d(previous, STRIDE)
        places = [narrow[:, :1] - narrow[:, 1:2], wide[:, :2], narrow[:, 2:] * sign, wide[:, 2:] * sign]
        return torch.cat([*places, mask, self._likenesses(features, points, groups, mask)], dim=1)

    def _places(self, size: tuple[int, int], points: torch.Tensor) -> torch.Tensor:
        """(B, 2N, h, w) float: squared distances, px of the input, from each point to the centres of the cells."""
        rows, columns = ((torch.arange(n, device=points.device, dtype=points.dtype) + 0.5) * STRIDE - 0.5 for n in size)
        vertical, horizontal = (rows - points[..., :1]).square(), (columns - points[..., 1:2]).square()
        return vertical[..., None] + horizontal[..., None, :]

    def _likenesses(
        self, features: torch.Tensor, points: torch.Tensor, groups: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """(B, 5, h, w) in [-1, 1]: cosines of each cell's descriptor with those of the groups' clicks, the greatest of a
        group, and with the mean ones inside and outside the mask; 0 where there is none."""
        described = functional.normalize(self.descriptor(features), dim=1)
        batch, size, height, width = described.shape
        flat = described.flatten(2)  # (B, D, h·w)
        rows = (points[..., 0] / STRIDE).long().clamp(0, height - 1)
        columns = (points[..., 1] / STRIDE).long().clamp(0, width - 1)
        clicked = flat.gather(2, (rows * width + columns)[:, None].expand(-1, size, -1))  # (B, D, 2N)
        likeness = torch.einsum("bdn,bdp->bnp", clicked, flat)[:, None]
        likeness = torch.where(groups[..., None], likeness, -torch.inf).amax(dim=2)  # (B, 3, h·w)
        likeness = torch.where(groups.any(dim=2)[..., None], likeness, 0.0)
        weights = torch.cat([mask, 1 - mask], dim=1).flatten(2) * (mask.flatten(1).amax(dim=1) > 0)[:, None, None]
        means = functional.normalize(torch.einsum("bkp,bdp->bdk", weights, flat), dim=1)
        likeness = torch.cat([likeness, torch.einsum("bdk,bdp->bkp", means, flat)], dim=1)
        return likeness.view(batch, 5, height, width)


def _double(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

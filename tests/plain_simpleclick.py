"""SimpleClick told anew: random weights in the released layout, and its forward pass, plain and whole-frame, from the paper."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.nn import functional as F


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


def save(tmp_path: Path, weights: dict, **more) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": weights, **more} if more else weights, path)
    return path

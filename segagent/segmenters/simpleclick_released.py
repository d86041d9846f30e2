"""Reads a released SimpleClick `.pth`: its sizes off the shapes of its weights, its keys as this package names them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from segagent.errors import CheckpointError
from segagent.segmenters.weights import load_pth

# Known widths whose heads are not 64 wide: the tiny model's and ViT-H's.
_HEADS = {160: 4, 1280: 16}

# Released key → ours. The rest of a released checkpoint (class token, classification head, idle upsampling) is not used.
_KEYS = (
    (r"^backbone\.patch_embed\.proj\.", "image_embedding."),
    (r"^patch_embed_coords\.proj\.", "map_embedding."),
    (r"^backbone\.blocks\.(\d+)\.attn\.(qkv|proj)\.", r"blocks.\1.attention.\2."),
    (r"^backbone\.blocks\.", "blocks."),
    (r"^neck\.down_4\.", "pyramid.0."),
    (r"^neck\.down_8\.", "pyramid.1."),
    (r"^neck\.down_16\.", "pyramid.2."),
    (r"^neck\.down_32\.", "pyramid.3."),
    (r"^head\.convs\.(\d)\.conv\.", r"head.levels.\1."),
    (r"^head\.fusion_conv\.conv\.", "head.fuse."),
    (r"^head\.up_conv1\.", "head.upsample.0."),
    (r"^head\.up_conv2\.", "head.upsample.1."),
    (r"^head\.conv_seg\.", "head.classify."),
)
_UNUSED = re.compile(r"backbone\.(cls_token|fc_norm\.|head\.|pre_logits\.)|head\.loss_decode")


def read_released(path: str, num_attention_heads: int | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(settings of a SimpleClickConfig, weights of a SimpleClickModel) of {"state_dict", "config"} or plain weights.

    Shapes do not tell the number of heads: it is what is given here, what the file's config says, or a guess (the released
    models' own; else 64 channels a head, and four heads under 192 channels). Raises CheckpointError.
    """
    # A released config holds the training's loss, a module of isegm, which is not needed.
    held = load_pth(path, ignore=("isegm",))
    weights = held.get("state_dict", held) if isinstance(held, dict) else None
    if not isinstance(weights, dict) or "patch_embed_coords.proj.weight" not in weights:
        raise CheckpointError(f"{path} holds no SimpleClick model: give one of its released .pth files.")
    with not_released(path):
        settings, saved = _sizes(weights), _saved(held.get("config") or {})
        rows, columns = (side // settings["patch_size"] for side in saved.pop("image_size", (0, 0)))
        if rows * columns == weights["backbone.pos_embed"].shape[1] - 1:
            settings["image_size"] = [rows * settings["patch_size"], columns * settings["patch_size"]]
        settings |= saved
        width = settings["hidden_size"]
        guess = _HEADS.get(width, width // 64 if width >= 192 else 4)
        heads = num_attention_heads or settings.get("num_attention_heads") or guess
        settings["num_attention_heads"] = heads
        converted = _convert(weights, settings)
    if width % heads:
        raise CheckpointError(
            f"{path} is {width} channels wide, which {heads} attention heads cannot share: give num_attention_heads."
        )
    return settings, converted


@contextmanager
def not_released(path: str) -> Iterator[None]:
    """Weights of other names or shapes become a CheckpointError."""
    try:
        yield
    except (KeyError, RuntimeError, ValueError, AttributeError, TypeError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is no SimpleClick model that this version knows ({reason}).") from error


def _sizes(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the shapes tell."""
    width, _, patch, _ = weights["backbone.patch_embed.proj.weight"].shape
    fused, head = weights["head.fusion_conv.conv.weight"].shape[0], weights["head.conv_seg.weight"].shape[1]
    inner = ("down_4.1", "down_4.4", "down_8.1", "down_32.1")
    outer = ("down_4.5", "down_8.2", "down_16.0", "down_32.2")
    return {
        "hidden_size": width,
        "num_hidden_layers": len({key.split(".")[2] for key in weights if key.startswith("backbone.blocks.")}),
        "intermediate_size": weights["backbone.blocks.0.mlp.fc1.weight"].shape[0],
        "qkv_bias": "backbone.blocks.0.attn.qkv.bias" in weights,
        "patch_size": patch,
        "image_size": [math.isqrt(weights["backbone.pos_embed"].shape[1] - 1) * patch] * 2,
        "previous_mask": weights["patch_embed_coords.proj.weight"].shape[1] == 3,
        "pyramid_inner": [weights[f"neck.{name}.weight"].shape[0] for name in inner],
        "pyramid_sizes": [weights[f"neck.{name}.weight"].shape[0] for name in outer],
        "head_size": head,
        "upsample": fused // head,
    }


def _saved(config: dict[str, Any]) -> dict[str, Any]:
    """What only the file's own config tells, where it has one: {"params": {name: {"value": …}}}, or plainly {name: …}."""
    entries = config.get("params", config).items()
    values = {name: entry.get("value", entry) if isinstance(entry, dict) else entry for name, entry in entries}
    backbone = values.get("backbone_params") or values
    saved = {
        "num_attention_heads": backbone.get("num_heads"),
        "image_size": backbone.get("img_size"),
        "click_radius": values.get("norm_radius"),
    }
    if values.get("norm_mean_std"):
        saved["image_mean"], saved["image_std"] = (list(v) for v in values["norm_mean_std"])
    return {name: value for name, value in saved.items() if value is not None}


def _convert(weights: dict[str, torch.Tensor], settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Released keys → those of SimpleClickModel."""
    grid = [side // settings["patch_size"] for side in settings["image_size"]]
    positions = weights["backbone.pos_embed"][:, 1:].transpose(1, 2).unflatten(2, grid)
    converted = {"position_embedding": positions.contiguous()}
    idle = tuple(f"head.up_conv{n}." for n in (1, 2) if settings["upsample"] < 2**n)
    for key, value in weights.items():
        if key == "backbone.pos_embed" or _UNUSED.match(key) or key.startswith(idle):
            continue
        pattern, ours = next(((p, o) for p, o in _KEYS if re.match(p, key)), ("^", ""))
        converted[re.sub(pattern, ours, key)] = value
    return converted

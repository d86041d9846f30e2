"""Dense targets of pre-training: for each cell of the picture what is there, and where in it F_sim would click."""

from __future__ import annotations

import cv2
import numpy as np

from segagent.annotator import next_click
from segagent.data import _paint, _shapes
from segagent.data._scenes import Scene
from segagent.masks import iou
from train.nano import INPUT, STRIDE

GRID = INPUT // STRIDE
COLORS, SHAPES = list(_paint.COLORS), list(_shapes.SHAPES)
IGNORE = -100
STOP_IOU = 0.9
# Heads: name → classes (1: a number). Those of the projected features, and those of the language model's hidden states.
# `click` is one class of each cell, and softmax is over the cells.
SEEN = {"row": GRID, "column": GRID, "color": len(COLORS), "shape": len(SHAPES), "here": 2, "x2": 10, "y2": 10}
MEANT = {"meant": 2, "sign": 3, "iou": 1, "click": 1, "clicked_x2": 10, "clicked_y2": 10}


def deepest(region: np.ndarray) -> np.ndarray:
    """(2, GRID, GRID) float32: the second digits of x and y of each cell's point deepest in `region`; IGNORE outside it."""
    padded = cv2.copyMakeBorder(region.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    fine = cv2.resize(depth, (10 * GRID, 10 * GRID), interpolation=cv2.INTER_AREA)
    cells = fine.reshape(GRID, 10, GRID, 10).transpose(0, 2, 1, 3).reshape(GRID, GRID, 100)
    digits = np.stack([cells.argmax(-1) % 10, cells.argmax(-1) // 10]).astype(np.float32)
    return np.where(cells.max(-1) > 0.2, digits, IGNORE)


def cells_of(item: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    """name → (GRID, GRID) targets were the object `item` (H, W) the target of `mask` (H, W).

    here, x2, y2: of what is missed of it; click, clicked_x2, clicked_y2: of F_sim's click of either sign.
    """
    names = ("here", "x2", "y2", "click", "clicked_x2", "clicked_y2")
    found = {name: np.full((GRID, GRID), IGNORE, np.float32) for name in names}
    click = next_click(mask, item)
    if iou(mask, item) >= STOP_IOU or click is None:
        return found | {"sign": np.float32(2)}
    height, width = mask.shape
    x, y = int((click.x + 0.5) / width * 100), int((click.y + 0.5) / height * 100)
    cell = y // 10, x // 10
    missed = deepest(item & ~mask)
    wrong = missed if click.positive else deepest(mask & ~item)
    wrong[:, *cell] = x % 10, y % 10
    found["here"][:] = found["click"][:] = 0
    found["here"][cell], found["click"][cell] = click.positive, 1
    found["x2"], found["y2"], found["clicked_x2"], found["clicked_y2"] = *missed, *wrong
    return found | {"sign": np.float32(click.positive)}


def describe(scene: Scene, mask: np.ndarray, meant: int | None) -> dict[str, np.ndarray]:
    """name → (GRID, GRID) targets, of an object where it covers a cell most; IGNORE where none covers a tenth of it."""
    each = [cells_of(item.mask, mask) for item in scene.objects]
    facts = {
        "color": [COLORS.index(item.color) for item in scene.objects],
        "shape": [SHAPES.index(item.shape) for item in scene.objects],
        "meant": [index == meant for index in range(len(scene.objects))],
        "iou": [iou(mask, item.mask) for item in scene.objects],
        "sign": [cells["sign"] for cells in each],
    }
    cover = np.stack(
        [
            cv2.resize(o.mask.view(np.uint8) * np.float32(1), (GRID, GRID), interpolation=cv2.INTER_AREA)
            for o in scene.objects
        ]
    )
    under, bare = cover.argmax(axis=0), cover.max(axis=0) < 0.1
    place = np.broadcast_to(np.arange(GRID, dtype=np.float32), (GRID, GRID))
    result = {"column": place, "row": place.T}
    for name, values in facts.items():
        result[name] = np.where(bare, 0 if name == "meant" else IGNORE, np.array(values, np.float32)[under])
    for name in ("here", "x2", "y2"):
        result[name] = np.take_along_axis(np.stack([cells[name] for cells in each]), under[None], axis=0)[0]
    result["here"][bare & (result["here"] != 1)] = IGNORE
    for name in ("click", "clicked_x2", "clicked_y2"):
        result[name] = np.full((GRID, GRID), IGNORE) if meant is None else each[meant][name]
    return {name: np.ascontiguousarray(result[name], dtype=np.float32) for name in (*SEEN, *MEANT)}

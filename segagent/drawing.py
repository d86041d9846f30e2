"""Pictures for people: a mask with numbered clicks, its outline as a path, curves of IoU, strips and animations of steps.

PIL, OpenCV and numpy only.
"""

from __future__ import annotations

import base64
import io
import math
import weakref
from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segagent.masks import overlay
from segagent.types import Action, Box, Click

# Told apart by shape as well as by colour: positive clicks are discs, negative ones squares.
POSITIVE, NEGATIVE, LATEST, TARGET = (4, 99, 84), (190, 18, 60), (255, 214, 10), (255, 255, 255)
TRUE_IOU, PREDICTED_IOU, AXIS = (16, 150, 105), (217, 119, 6), (128, 134, 145)


def shown_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) of a picture of `size` scaled, up or down, to `longest`."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def picture(
    image: np.ndarray,
    mask: np.ndarray | None = None,
    actions: Sequence[Action] = (),
    *,
    longest: int | None = None,
    target: np.ndarray | None = None,
    color: tuple[int, int, int] | str = "green",
    alpha: float = 0.5,
    numbers: bool = True,
) -> np.ndarray:
    """(h, w, 3) uint8: image (H, W, 3) with mask (H, W) painted on, its outline, the target's, and the clicks' marks.

    `longest` scales it first, so that outlines and marks are equally sharp and large on any picture.
    """
    height, width = image.shape[:2]
    h, w = (height, width) if longest is None else shown_size((height, width), longest)
    shown = _resize(image, (h, w))
    if mask is not None:
        small = _resize(mask, (h, w))
        shown = overlay(shown, small, color, alpha)
        _outline(shown, small, overlay(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), bool), color, 1.0)[0, 0])
    if target is not None:
        _outline(shown, _resize(target, (h, w)), TARGET, dashed=True)
    return _marks(np.ascontiguousarray(shown), actions, (w / width, h / height), numbers)


def thumbnail(image: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the picture's middle square."""
    height, width = image.shape[:2]
    edge = min(height, width)
    y, x = (height - edge) // 2, (width - edge) // 2
    return _resize(image[y : y + edge, x : x + edge], (side, side))


def strip(pictures: Sequence[np.ndarray], captions: Sequence[str], height: int = 240) -> np.ndarray:
    """(height + caption, w, 3) uint8: pictures side by side at one height, each with its caption below."""
    font, gap = ImageFont.load_default(16), 6
    tiles = [_resize(p, (height, max(1, round(p.shape[1] * height / p.shape[0])))) for p in pictures]
    width = sum(tile.shape[1] for tile in tiles) + gap * max(0, len(tiles) - 1)
    canvas = Image.new("RGB", (max(1, width), height + 26), "white")
    draw, x = ImageDraw.Draw(canvas), 0
    for tile, caption in zip(tiles, captions, strict=True):
        canvas.paste(Image.fromarray(tile), (x, 0))
        draw.text((x + tile.shape[1] / 2, height + 13), caption, fill=(40, 44, 52), font=font, anchor="mm")
        x += tile.shape[1] + gap
    return np.asarray(canvas)


def curve(
    true: Sequence[float | None], predicted: Sequence[float | None], size: tuple[int, int] = (280, 720)
) -> np.ndarray:
    """(h, w, 4) uint8 on a transparent ground, legible on light and dark: IoU over the number of clicks.

    The true IoU is a full line with discs, the predicted one dashed with diamonds; None leaves a gap.
    """
    height, width = size
    left, right, top, bottom = 58, width - 16, 34, height - 40
    canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(20)
    last = max(len(true), len(predicted), 2) - 1
    for level in (0.0, 0.5, 1.0):
        y = bottom - level * (bottom - top)
        draw.line([(left, y), (right, y)], fill=(*AXIS, 110), width=1)
        draw.text((left - 10, y), f"{level:.1f}", fill=AXIS, font=font, anchor="rm")
    stride = max(1, -(-last // 12))
    for step in range(0, last + 1, stride):
        draw.text((left + (right - left) * step / last, bottom + 20), str(step), fill=AXIS, font=font, anchor="mm")
    for values, color, dashed in ((true, TRUE_IOU, False), (predicted, PREDICTED_IOU, True)):
        points = [
            None if v is None else (left + (right - left) * i / last, bottom - v * (bottom - top))
            for i, v in enumerate(values)
        ]
        _line(draw, points, color, dashed)
    shown = [any(v is not None for v in values) for values in (true, predicted)]
    _legend(draw, font, left, shown)
    return np.asarray(canvas)


def data_url(pixels: np.ndarray, quality: int = 88) -> str:
    """A data: URL of (h, w, 3) as JPEG, or of (h, w, 4) and bool (h, w) as PNG."""
    file, kind = io.BytesIO(), "jpeg" if pixels.ndim == 3 and pixels.shape[2] == 3 else "png"
    Image.fromarray(pixels).save(file, kind, **({"quality": quality} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def outline(mask: np.ndarray, longest: int = 1024, tolerance: float = 0.6) -> str:
    """The mask (H, W) as the data of an SVG path, filled by the even-odd rule, in a grid of `grid_size(mask.shape, longest)`.

    It runs along the pixels' edges, as to_polygons does; `tolerance` (px of the grid) straightens it.
    """
    known = _outlines.get((id(mask), longest))
    if known is not None and known[0]() is mask:
        return known[1]
    small = _resize(mask, grid_size(mask.shape, longest))
    doubled = np.repeat(np.repeat(small.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        edge = (contour + 1) // 2
        corners = cv2.approxPolyDP(edge, tolerance, True)[:, 0]
        corners = edge[:, 0] if len(corners) < 3 else corners
        parts.append("M" + "L".join(f"{x} {y}" for x, y in corners.tolist()) + "Z")
    path = "".join(parts)
    if not mask.flags.writeable:  # it cannot change, so neither does its outline
        key = (id(mask), longest)
        _outlines[key] = weakref.ref(mask, lambda _: _outlines.pop(key, None)), path
    return path


_outlines: dict[tuple[int, int], tuple[weakref.ref, str]] = {}


def grid_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) of a picture of `size` scaled down, never up, to `longest`."""
    return size if max(size) <= longest else shown_size(size, longest)


def animation(frames: Sequence[np.ndarray], captions: Sequence[str], seconds: float = 0.9) -> bytes:
    """A GIF that repeats: frames (h, w, 3) of one size, each with its caption below, the last one held longer."""
    font, pictures = ImageFont.load_default(15), []
    for frame, caption in zip(frames, captions, strict=True):
        height, width = frame.shape[:2]
        canvas = Image.new("RGB", (width, height + 28), (17, 24, 39))
        canvas.paste(Image.fromarray(frame))
        ImageDraw.Draw(canvas).text((8, height + 14), caption, fill=(243, 244, 246), font=font, anchor="lm")
        pictures.append(canvas)
    file, times = io.BytesIO(), [round(1000 * seconds)] * (len(pictures) - 1) + [2500]
    pictures[0].save(file, "gif", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return file.getvalue()


def _resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    shrinks = size[0] < array.shape[0]
    if array.dtype == bool:
        return cv2.resize(array.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA if shrinks else 1) >= 0.5
    return cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _outline(shown: np.ndarray, mask: np.ndarray, color: Sequence[int], dashed: bool = False) -> None:
    """Draws the outline of a mask (h, w) into (h, w, 3), over a dark rim that shows on a background of the same colour."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not dashed:
        cv2.drawContours(shown, contours, -1, (20, 20, 20), 3, cv2.LINE_AA)
        cv2.drawContours(shown, contours, -1, tuple(int(c) for c in color), 1, cv2.LINE_AA)
        return
    for contour in contours:
        for start in range(0, len(contour), 14):
            dash = contour[start : start + 8]
            cv2.polylines(shown, [dash], False, (20, 20, 20), 4, cv2.LINE_AA)
            cv2.polylines(shown, [dash], False, tuple(int(c) for c in color), 2, cv2.LINE_AA)


def _marks(shown: np.ndarray, actions: Sequence[Action], scale: tuple[float, float], numbers: bool) -> np.ndarray:
    """The actions' marks, numbered from 1 in their order, the latest with a bright ring; drawn at twice the size for smooth edges."""
    if not actions:
        return shown
    height, width = shown.shape[:2]
    radius = max(5.0, min(18.0, max(height, width) / 56))
    canvas = Image.fromarray(shown)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(8, round(radius * 1.25)))
    for number, action in enumerate(actions, 1):
        latest = number == len(actions)
        if isinstance(action, Box):
            corners = [_place(action.x0, action.y0, scale), _place(action.x1, action.y1, scale)]
            draw.rectangle([*corners[0], *corners[1]], outline=LATEST if latest else (255, 255, 255), width=3)
            centre, fill, square = corners[0], (55, 65, 81), True
        elif isinstance(action, Click):
            centre, fill = _place(action.x, action.y, scale), POSITIVE if action.positive else NEGATIVE
            square = not action.positive
        else:
            continue
        _mark(canvas, centre, radius, fill, square, LATEST if latest else (255, 255, 255))
        if numbers:
            draw.text(centre, str(number), fill=(255, 255, 255), font=font, anchor="mm")
    return np.asarray(canvas)


def _place(x: float, y: float, scale: tuple[float, float]) -> tuple[float, float]:
    """Pixel centres are at integers, before and after scaling."""
    return (x + 0.5) * scale[0] - 0.5, (y + 0.5) * scale[1] - 0.5


def _mark(
    canvas: Image.Image,
    centre: tuple[float, float],
    radius: float,
    fill: tuple[int, int, int],
    square: bool,
    ring: tuple[int, int, int],
) -> None:
    """A disc or a square of `radius` with a ring around it, drawn four times as large and scaled down for smooth edges."""
    side, grain = int(2 * radius + 10), 4
    tile = Image.new("RGBA", (side * grain, side * grain), (0, 0, 0, 0))
    draw, middle = ImageDraw.Draw(tile), side * grain / 2
    for extent, color in ((radius + 3.5, (0, 0, 0, 110)), (radius + 2.2, (*ring, 255)), (radius, (*fill, 255))):
        box = [middle - extent * grain, middle - extent * grain, middle + extent * grain, middle + extent * grain]
        if square:
            draw.rounded_rectangle(box, radius=grain * radius * 0.35, fill=color)
        else:
            draw.ellipse(box, fill=color)
    tile = tile.resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(tile, (round(centre[0] - side / 2 + 0.5), round(centre[1] - side / 2 + 0.5)), tile)


def _line(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float] | None], color: tuple[int, int, int], dashed: bool
) -> None:
    for before, after in pairwise(points):
        if before and after:
            pieces = 2 * round(math.dist(before, after) / 22) + 1 if dashed else 1
            for k in range(0, pieces, 2):
                ends = [_between(before, after, k / pieces), _between(before, after, (k + 1) / pieces)]
                draw.line(ends, fill=color, width=4)
    for point in points:
        if point:
            x, y = point
            if dashed:
                draw.polygon([(x, y - 8), (x + 8, y), (x, y + 8), (x - 8, y)], fill=color)
            else:
                draw.ellipse([x - 6, y - 6, x + 6, y + 6], fill=color)


def _between(a: tuple[float, float], b: tuple[float, float], share: float) -> tuple[float, float]:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share


def _legend(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, left: int, shown: Sequence[bool]) -> None:
    """Names the lines, those that are there."""
    x, names = left, (("true IoU", TRUE_IOU, False), ("predicted IoU", PREDICTED_IOU, True))
    for (label, color, dashed), there in zip(names, shown, strict=True):
        if not there:
            continue
        _line(draw, [(x, 13), (x + 34, 13)], color, dashed)
        draw.text((x + 50, 13), label, fill=AXIS, font=font, anchor="lm")
        x += 70 + draw.textlength(label, font=font)

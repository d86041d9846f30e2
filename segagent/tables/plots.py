"""Plots of tables: bars, lines, and the reliability of predicted IoUs; with PIL alone, drawn at twice the size for sharp lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = (900, 1520)  # px, (height, width)
INK, GRID, FAINT = (51, 60, 74), (222, 226, 232), (148, 158, 172)
COLORS = ((16, 150, 105), (37, 99, 235), (217, 119, 6), (190, 18, 60), (126, 34, 206), (71, 85, 105))


class Axes:
    """A frame with a title, a vertical scale from `low` to `high` and room for a legend on top."""

    def __init__(self, title: str, low: float, high: float, label: str, size: tuple[int, int] = SIZE) -> None:
        height, width = size
        self.left, self.right, self.top, self.bottom = 120, width - 50, 150, height - 120
        self.low, self.high = low, high if high > low else low + 1
        self.canvas = Image.new("RGB", (width, height), "white")
        self.draw, self.font, self.small = (
            ImageDraw.Draw(self.canvas),
            ImageFont.load_default(28),
            ImageFont.load_default(24),
        )
        self.draw.text((self.left, 26), title, fill=INK, font=ImageFont.load_default(32))
        self._legend_x, self._legend_y = float(self.left), 80
        for value in ticks(self.low, self.high):
            y = self.y(value)
            self.draw.line([(self.left, y), (self.right, y)], fill=GRID, width=2)
            self.draw.text((self.left - 14, y), f"{value:g}", fill=INK, font=self.small, anchor="rm")
        self.draw.text((self.left - 14, self.top - 26), label, fill=FAINT, font=self.small, anchor="rm")

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)

    def legend(self, text: str, color: tuple[int, int, int]) -> None:
        width = 84 + self.draw.textlength(text, font=self.small)
        if self._legend_x + width > self.right + 40 and self._legend_x > self.left:
            self._legend_x, self._legend_y = float(self.left), self._legend_y + 34
        x, y = self._legend_x, self._legend_y
        self.draw.rounded_rectangle([x, y, x + 30, y + 24], 5, fill=color)
        self.draw.text((x + 42, y + 12), text, fill=INK, font=self.small, anchor="lm")
        self._legend_x += width

    def below(self, x: float, text: str, row: int = 0) -> None:
        self.draw.text((x, self.bottom + 28 + 34 * row), text, fill=INK, font=self.small, anchor="mm")

    def pixels(self) -> np.ndarray:
        """(h, w, 3) uint8."""
        return np.asarray(self.canvas)


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """At most `most` round numbers from `low` to `high`."""
    rough = (high - low) / (most - 1)
    scale = 10 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 10) for i in range(math.floor((high - first * step) / step + 1e-9) + 1)]


def bars(
    title: str, groups: Sequence[str], series: dict[str, Sequence[float | None]], label: str, digits: int = 1
) -> np.ndarray:
    """(h, w, 3) uint8: for each group a bar of each series, its value above it; None leaves a gap."""
    values = [v for row in series.values() for v in row if v is not None] or [0.0]
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.06 * (high - low)
    axes = Axes(title, low - margin * (low < 0), high + margin, label)
    room = (axes.right - axes.left) / max(1, len(groups))
    width = min(120.0, room * 0.8 / max(1, len(series)))
    font = ImageFont.load_default(max(12, min(24, round(width / 2.6))))
    for place, (name, row) in enumerate(series.items()):
        color = COLORS[place % len(COLORS)]
        if len(series) > 1:
            axes.legend(name, color)
        for i, value in enumerate(row):
            if value is None:
                continue
            x = axes.left + room * (i + 0.5) + width * (place - len(series) / 2)
            top, base = sorted((axes.y(value), axes.y(0)))
            axes.draw.rectangle([x + 3, top, x + width - 3, base], fill=color)
            y, anchor = (top - 6, "mb") if value >= 0 else (base + 6, "mt")
            axes.draw.text((x + width / 2, y), f"{value:.{digits}f}", fill=INK, font=font, anchor=anchor)
    for i, name in enumerate(groups):
        for row, line in enumerate(_wrapped(axes, name, room - 10)[:2]):
            axes.below(axes.left + room * (i + 0.5), line, row)
    return axes.pixels()


def _wrapped(axes: Axes, text: str, room: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if axes.draw.textlength(longer, font=axes.small) <= room or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def lines(
    title: str, xs: Sequence[float], series: dict[str, Sequence[float | None]], label: str, below: str
) -> np.ndarray:
    """(h, w, 3) uint8: one line a series over the places `xs`, which `below` names."""
    values = [v for row in series.values() for v in row if v is not None] or [0.0, 1.0]
    margin = max(1e-6, 0.08 * (max(values) - min(values)))
    axes = Axes(title, min(values) - margin, max(values) + margin, label)
    span = max(1e-9, max(xs) - min(xs)) if xs else 1.0
    places = [axes.left + 30 + (x - min(xs)) / span * (axes.right - axes.left - 60) for x in xs]
    for place, (name, row) in enumerate(series.items()):
        color = COLORS[place % len(COLORS)]
        axes.legend(name, color)
        points = [(x, axes.y(v)) for x, v in zip(places, row, strict=True) if v is not None]
        axes.draw.line(points, fill=color, width=6)
        for x, y in points:
            axes.draw.ellipse([x - 9, y - 9, x + 9, y + 9], fill=color)
    for x, value in zip(places, xs, strict=True):
        axes.below(x, f"{value:g}")
    axes.below((axes.left + axes.right) / 2, below, row=1)
    return axes.pixels()


def reliability(title: str, series: dict[str, dict[str, Any]]) -> np.ndarray:
    """(h, w, 3) uint8: a panel for each series of figures (see calibration.Calibration.compute).

    A disc is a bin of predictions, at its mean predicted and mean true IoU, its area the share of the masks in it; on the
    diagonal both agree.
    """
    side, gap = 640, 40
    width = max(1, len(series)) * (side + gap) + gap + 60
    canvas = Image.new("RGB", (width, side + 250), "white")
    draw, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(26), ImageFont.load_default(22)
    draw.text((gap, 24), title, fill=INK, font=ImageFont.load_default(32))
    for place, (name, figures) in enumerate(series.items()):
        left, top = gap + 60 + place * (side + gap), 150
        inner = side - 70
        draw.text((left + inner / 2, top - 30), name, fill=INK, font=font, anchor="mm")
        for level in np.linspace(0, 1, 6):
            x, y = left + level * inner, top + (1 - level) * inner
            draw.line([(left, y), (left + inner, y)], fill=GRID, width=2)
            draw.line([(x, top), (x, top + inner)], fill=GRID, width=2)
            draw.text((x, top + inner + 20), f"{level:.1f}", fill=INK, font=small, anchor="mm")
            if place == 0:
                draw.text((left - 12, y), f"{level:.1f}", fill=INK, font=small, anchor="rm")
        draw.line([(left, top + inner), (left + inner, top)], fill=FAINT, width=3)
        points = [(b["predicted"], b["true"], b["count"]) for b in figures["bins"] if b["count"]]
        for predicted, true, count in points:
            x, y = left + predicted * inner, top + (1 - true) * inner
            radius = 4 + 30 * math.sqrt(count / max(1, figures["count"]))
            draw.ellipse(
                [x - radius, y - radius, x + radius, y + radius],
                fill=COLORS[place % len(COLORS)],
                outline="white",
                width=3,
            )
        draw.text((left + inner / 2, top + inner + 56), "predicted IoU", fill=FAINT, font=small, anchor="mm")
        said = f"MAE {figures['mae']:.1f}   Pearson {figures['pearson']:.2f}   N {figures['count']}"
        draw.text((left + inner / 2, top + inner + 96), said, fill=INK, font=small, anchor="mm")
    draw.text((gap + 36, 120), "true IoU", fill=FAINT, font=small, anchor="mm")
    return np.asarray(canvas)

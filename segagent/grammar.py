"""What the model is asked and what it says: prompt, action ↔ text, predicted IoU ↔ text, and the coordinate codec.

    Current mIoU: 0.53. Positive point: (412, 133)
    Current mIoU: 0.00. Box: (102, 80), (533, 700)
    Current mIoU: 0.94.                                 (a final state: the stop signal)

The codec is data: `unit` "permille" (integers in [0, 1000), the default), "decimal" ([0, 1) with three decimals) or "pixel"
(of the model's input, whose (height, width) is `resolution`); `order` "xy", or "yx" as the released official weights speak.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from segagent.errors import ExpressionError, GrammarError
from segagent.types import Action, Box, Click

PROMPT = (
    "Segment: {expression}. The current mask is painted in {color}. "
    "State the current mIoU, then the next click, or only the mIoU when the mask is right."
)
MAX_EXPRESSION = 1000

_NUMBER = r"(\d+(?:\.\d+)?)"
_POINT = rf"\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)"
_TEXT = re.compile(
    rf"\s*(?:Current m?IO?U:\s*(?P<iou>\d+(?:\.\d+)?)\s*\.?\s*)?"
    rf"(?:(?P<sign>Positive|Negative) point:\s*(?P<point>{_POINT})|Box:\s*(?P<box>{_POINT}\s*,\s*{_POINT}))?\s*\.?\s*",
    re.IGNORECASE | re.ASCII,
)
_NUMBERS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


class Parsed(NamedTuple):
    action: Action | None  # None: stop
    predicted_iou: float | None  # in [0, 1]


@dataclass(frozen=True)
class Grammar:
    unit: str = "permille"
    order: str = "xy"
    resolution: tuple[int, int] | None = None  # (height, width) of the model's input; for unit "pixel"
    prompt: str = PROMPT

    def __post_init__(self) -> None:
        if self.unit not in ("permille", "decimal", "pixel"):
            raise GrammarError(f"Unknown unit {self.unit!r}: use permille, decimal or pixel.")
        if self.order not in ("xy", "yx"):
            raise GrammarError(f"Unknown order {self.order!r}: use xy or yx.")
        if self.unit == "pixel" and not self.resolution:
            raise GrammarError("Unit pixel needs the model's input size: resolution=(height, width).")
        if self.resolution is not None:
            object.__setattr__(self, "resolution", tuple(int(n) for n in self.resolution))
        try:
            self.prompt.format(expression="", color="")
        except (KeyError, IndexError, ValueError) as error:
            raise GrammarError(f"A prompt may name {{expression}} and {{color}} only: {error!r}.") from error

    def ask(self, expression: str, color: str = "green") -> str:
        """The user's turn for one observation. Raises ExpressionError."""
        return self.prompt.format(expression=check_expression(expression), color=color)

    def format(self, action: Action | None, predicted_iou: float | None, size: tuple[int, int]) -> str:
        """The model's turn; `size` is the image's (height, width), `action` None the stop. Raises GrammarError."""
        parts = []
        if predicted_iou is not None:
            if not 0 <= predicted_iou <= 1:  # also refuses nan
                raise GrammarError(f"An IoU lies in [0, 1]; got {predicted_iou}.")
            parts.append(f"Current mIoU: {predicted_iou:.2f}.")
        if isinstance(action, Click):
            sign = "Positive" if action.positive else "Negative"
            parts.append(f"{sign} point: {self._point(action.x, action.y, size)}")
        elif isinstance(action, Box):
            parts.append(f"Box: {self._point(action.x0, action.y0, size)}, {self._point(action.x1, action.y1, size)}")
        elif action is not None:
            raise GrammarError(f"The grammar has no words for {type(action).__name__}.")
        if not parts:
            raise GrammarError("Nothing to say: give an action, a predicted IoU, or both.")
        return " ".join(parts)

    def parse(self, text: str, size: tuple[int, int]) -> Parsed:
        """The action and predicted IoU in `text`, on an image of `size` (height, width). Raises GrammarError."""
        text = " ".join(text.split())  # also because long white space makes the expression try every way to divide it
        match = _TEXT.fullmatch(text)
        if match is None or not text.strip(" ."):
            raise GrammarError(f"Not an answer of the grammar: {text[:200]!r}.")
        predicted = None if match["iou"] is None else float(match["iou"])
        if predicted is not None and predicted > 1:
            raise GrammarError(f"An IoU above 1: {text[:200]!r}.")
        if match["point"]:
            x, y = self._pixels(match["point"], size)
            return Parsed(Click(x, y, positive=match["sign"].lower() == "positive"), predicted)
        if match["box"]:
            x0, y0, x1, y1 = self._pixels(match["box"], size)
            if x0 > x1 or y0 > y1:
                raise GrammarError(f"A box whose second corner is not right of and below its first: {text[:200]!r}.")
            return Parsed(Box(x0, y0, x1, y1), predicted)
        return Parsed(None, predicted)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Grammar:
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise GrammarError(f"Unknown settings of the grammar: {', '.join(sorted(unknown))}.")
        return cls(**values)

    def _steps(self, size: tuple[int, int]) -> tuple[int, int]:
        """Into how many bins (y, x) are divided."""
        return self.resolution if self.unit == "pixel" else (1000, 1000)

    def _point(self, x: float, y: float, size: tuple[int, int]) -> str:
        # A pixel's centre is at its integer, so pixel x covers [x, x + 1) of [0, W) in the units of the text.
        bins = [
            min(max(math.floor((value + 0.5) / length * steps), 0), steps - 1)
            for value, length, steps in zip((y, x), size, self._steps(size), strict=True)
        ]
        words = [f"{n / 1000:.3f}" if self.unit == "decimal" else str(n) for n in bins]
        return f"({', '.join(words if self.order == 'yx' else words[::-1])})"

    def _pixels(self, text: str, size: tuple[int, int]) -> list[float]:
        """[x, y, …] in pixels, each the centre of its bin."""
        values = []
        for i, number in enumerate(_NUMBERS.findall(text)):
            axis = i % 2 if self.order == "yx" else 1 - i % 2  # 0: y, 1: x
            steps = self._steps(size)[axis]
            value = float(number) * (1000 if self.unit == "decimal" else 1)
            if ("." in number) != (self.unit == "decimal") or not 0 <= value < steps:
                raise GrammarError(f"{number} is no coordinate in unit {self.unit}: {text[:200]!r}.")
            values.append((math.floor(value + 1e-6) + 0.5) / steps * size[axis] - 0.5)
        if self.order == "yx":
            values = [v for i in range(0, len(values), 2) for v in (values[i + 1], values[i])]
        return values


def check_expression(expression: str) -> str:
    """The expression, stripped, its white space folded. Raises ExpressionError when empty or over 1,000 characters."""
    if not isinstance(expression, str) or not expression.strip():
        raise ExpressionError("The expression is empty: say what to segment, e.g. 'the red cup'.")
    folded = " ".join(expression.split())
    if len(folded) > MAX_EXPRESSION:
        raise ExpressionError(f"The expression has {len(folded)} characters: {MAX_EXPRESSION} are the most.")
    return folded

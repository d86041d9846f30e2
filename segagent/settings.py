"""How a vision-language model is asked, and how its answers are read."""

from __future__ import annotations

from dataclasses import dataclass

from segagent.errors import SegAgentError
from segagent.masks import OVERLAY_COLORS

READINGS = {"iou_reading": ("greedy", "expected"), "click_reading": ("greedy", "consensus")}
OPENING_LIMIT = 24  # tokens of what an answer says of the IoU, at most


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is asked; what MLLMPolicy takes besides model, processor and grammar."""

    color: str = "green"  # of the painted mask: a name of masks.OVERLAY_COLORS, which the prompt says
    alpha: float = 0.5  # of the painted mask
    max_new_tokens: int = 48  # of an answer
    attempts: int = 4  # how often an answer is sampled until it is of the grammar
    iou_reading: str = "greedy"  # or "expected": the mean over the IoU's digits (see `digits`), not the likeliest ones
    click_reading: str = "greedy"  # or "consensus": the greedy answer says what to do, the click agreed on where
    likeliest: bool = False  # whether the first of several sampled candidates is that of temperature 0 instead
    reuse: bool = True  # of keys and values; without it everything runs through model.generate

    def __post_init__(self) -> None:
        if self.color not in OVERLAY_COLORS:
            raise SegAgentError(f"Unknown overlay color {self.color!r}: use {', '.join(OVERLAY_COLORS)}.")
        if not 0 < self.alpha <= 1:
            raise SegAgentError(f"The overlay's alpha lies in (0, 1]; got {self.alpha}.")
        if self.attempts < 1 or self.max_new_tokens <= OPENING_LIMIT:
            raise SegAgentError(
                f"attempts is a count from 1 and max_new_tokens one above {OPENING_LIMIT}; "
                f"got {self.attempts} and {self.max_new_tokens}."
            )
        for name, known in READINGS.items():
            if getattr(self, name) not in known:
                raise SegAgentError(f"Unknown {name} {getattr(self, name)!r}: use {' or '.join(known)}.")

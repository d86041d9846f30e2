"""SegAgent: a vision-language model that segments as a human annotator does, click by click. Heavy imports wait for their use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "SegAgent": "agent",
    "Result": "result",
    "load_segmenter": "segmenters",
    "Environment": "environment",
    "reward": "environment",
    "Grammar": "grammar",
    "SimulatedAnnotator": "annotator",
    "next_click": "annotator",
    "MLLMPolicy": "mllm",
    "load_image": "images",
    "load_mask": "images",
    **dict.fromkeys(("Sample", "Click", "Box", "Undo", "State", "Transition", "Trajectory"), "types"),
}
__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from segagent.agent import SegAgent
    from segagent.annotator import SimulatedAnnotator, next_click
    from segagent.environment import Environment, reward
    from segagent.grammar import Grammar
    from segagent.images import load_image, load_mask
    from segagent.mllm import MLLMPolicy
    from segagent.result import Result
    from segagent.segmenters import load_segmenter
    from segagent.types import Box, Click, Sample, State, Trajectory, Transition, Undo


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'segagent' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"segagent.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

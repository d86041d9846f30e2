"""The packaged examples: photographs that scikit-image ships, with target masks drawn for this project, and HRES-Synth scenes.

Nothing is stored but the masks and `examples.json`: photographs are read from the installed scikit-image, scenes are generated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from segagent.errors import MissingDependencyError
from segagent.images import load_image, load_mask
from segagent.types import Sample

_HERE = Path(__file__).parent
_SCENE = 480  # px, the longest side of a scene


@dataclass(frozen=True, slots=True)
class Example:
    key: str  # e.g. "coffee-spoon", "scene-2"
    title: str
    expression: str
    credit: str  # author, licence and source in one line
    kind: str  # photograph | scene
    load: Callable[[], Sample]


@cache
def examples() -> tuple[Example, ...]:
    """All of them, scenes first, for the embedded model knows nothing else. Each scene is generated here (some milliseconds)."""
    table = json.loads((_HERE / "examples.json").read_text(encoding="utf-8"))
    photographs = [
        _photograph(entry, expression, target)
        for entry in table["photographs"]
        for expression, target in entry["targets"].items()
    ]
    return (*(_scene(number, entry) for number, entry in enumerate(table["scenes"], 1)), *photographs)


def example(key: str) -> Example:
    """The example of that key. Raises KeyError."""
    return {e.key: e for e in examples()}[key]


def _photograph(entry: dict, expression: str, target: str) -> Example:
    key = target.removesuffix(".png")

    @cache
    def load() -> Sample:
        image = load_image(_photographs() / entry["file"])
        mask = load_mask(_HERE / target, image.shape[:2])
        return Sample(image, expression, mask, id=key, meta={"source": entry["source"]})

    credit = f"{entry['title']}: {entry['credit']}, {entry['licence']}, {entry['source']}"
    return Example(key, entry["title"], expression, credit, "photograph", load)


def _scene(number: int, entry: dict) -> Example:
    @cache
    def load() -> Sample:
        from segagent.data import hres_synth

        return hres_synth("test", level=entry["level"], size=_SCENE)[entry["index"]]

    credit = f"Scene {number}: HRES-Synth, test split, level {entry['level']}, index {entry['index']}, made at start"
    return Example(f"scene-{number}", f"Scene {number}", load().expression, credit, "scene", load)


def _photographs() -> Path:
    spec = find_spec("skimage")  # located, not imported
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("The example photographs come with scikit-image: pip install scikit-image.")
    return Path(spec.submodule_search_locations[0]) / "data"

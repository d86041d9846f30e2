"""A checkpoint's own part, `segagent.json` beside a transformers model: reading it, writing it, and finding it on the Hub."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from segagent import __version__
from segagent.adapters import ADAPTER
from segagent.downloads import snapshot
from segagent.errors import CheckpointError, SegAgentError, SegmenterError
from segagent.grammar import Grammar
from segagent.search.strategies import Plateau, check_count, make_strategy
from segagent.segmenters import Segmenter, load_segmenter
from segagent.settings import READINGS, Settings

CONFIG = "segagent.json"
VERSION = 1
SEGMENTER = (
    "segmenter"  # the folder of a segmenter whose weights are in the checkpoint, and the reference that means it
)
# A former model's, which would be taken for a part of this one.
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", ADAPTER)
# Never a pickle; Python files only for those who said trust_remote_code.
SAFE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class AgentConfig:
    """What segagent.json holds: how the model speaks and sees, which segmenter it clicks on, how a run goes by default."""

    grammar: Grammar = field(default_factory=Grammar)
    color: str = "green"  # of the mask painted on, one of OVERLAY_COLORS; the prompt may name it
    alpha: float = 0.5  # its opacity, in (0, 1]
    segmenter: str = "grabcut"  # what load_segmenter takes, or "segmenter": the checkpoint's folder of that name
    steps: int = 7  # T: decisions at most; see search.strategies for what one costs
    candidates: int = 1  # K of the paper's Algorithm 2
    temperature: float = 0.0  # of sampled clicks; 0 takes the likeliest, or 1 where there are several candidates
    max_new_tokens: int = 48  # of one answer
    attempts: int = 4  # how often an answer is sampled until it is of the grammar
    iou_reading: str = "greedy"  # or "expected"; see settings.Settings, which checks these
    click_reading: str = "greedy"  # or "consensus"
    strategy: str = "greedy"  # one of search.STRATEGIES
    width: int = 3  # of the strategy "beam"
    patience: int = 0  # a run ends when the best predicted IoU rose by less than `gain` in so many steps; 0: never
    gain: float = 0.01
    likeliest: bool = (
        False  # whether the first of several candidates is that of temperature 0, the others being sampled
    )

    def __post_init__(self) -> None:
        check_run(self)
        if not _number(self.alpha):
            raise CheckpointError(f"alpha is a number; got {self.alpha!r}.")
        if not isinstance(self.likeliest, bool):
            raise CheckpointError(f"likeliest is true or false; got {self.likeliest!r}.")
        kinds = dict.fromkeys(("max_new_tokens", "attempts"), int)
        kinds |= dict.fromkeys(("color", "segmenter", *READINGS), str)
        for name, kind in kinds.items():
            if type(getattr(self, name)) is not kind or not getattr(self, name):
                raise CheckpointError(
                    f"{name} is a {'whole number' if kind is int else 'name'}; got {getattr(self, name)!r}."
                )
        try:
            Settings(**{name: getattr(self, name) for name in MODEL_SETTINGS})
        except SegAgentError as error:
            raise CheckpointError(str(error)) from None

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "segagent": __version__,
            "grammar": self.grammar.to_dict(),
            "overlay": {name: getattr(self, name) for name in _OVERLAY},
            "segmenter": self.segmenter,
            "search": {name: getattr(self, name) for name in _SEARCH},
            "decoding": {name: getattr(self, name) for name in _DECODING},
        }

    @classmethod
    def from_dict(cls, values: Any) -> AgentConfig:
        """Raises CheckpointError on a newer version, an unknown setting or a value of the wrong kind."""
        if not isinstance(values, Mapping) or not _whole(values.get("version")):
            raise CheckpointError(
                f'{CONFIG} is an object with a version, e.g. {{"version": {VERSION}}}; this one is not.'
            )
        if values["version"] > VERSION:
            raise CheckpointError(
                f"The checkpoint was saved in format {values['version']} by segagent {values.get('segagent', '?')}, and "
                f"segagent {__version__} reads formats up to {VERSION}: upgrade segagent."
            )
        parts = {name: values.get(name, {}) for name in ("grammar", "overlay", "search", "decoding")}
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise CheckpointError(f"In {CONFIG}, {name} is an object; got {part!r}.")
        settings = {**parts["overlay"], **parts["search"], **parts["decoding"]}
        unknown = (set(values) - set(cls().to_dict())) | (set(settings) - {*_SEARCH, *MODEL_SETTINGS})
        if unknown:
            raise CheckpointError(f"Unknown settings in {CONFIG}: {', '.join(sorted(unknown))}.")
        settings["segmenter"] = values.get("segmenter", cls.segmenter)
        try:
            return cls(grammar=Grammar.from_dict(dict(parts["grammar"])), **settings)
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{CONFIG} is malformed: {error}") from error


_SEARCH = ("steps", "candidates", "temperature", "strategy", "width", "patience", "gain")
_DECODING = ("max_new_tokens", "attempts", "iou_reading", "click_reading", "likeliest")
_OVERLAY = ("color", "alpha")
MODEL_SETTINGS = (*_OVERLAY, *_DECODING)  # those of settings.Settings that a checkpoint keeps


def check_run(config: AgentConfig, seed: int = 0) -> None:
    """Raises SegAgentError where these are no settings of a run."""
    if not _whole(config.steps) or config.steps < 0:
        raise SegAgentError(f"steps counts decisions: a whole number from 0; got {config.steps!r}.")
    if not _whole(seed) or seed < 0:
        raise SegAgentError(f"seed is a whole number from 0; got {seed!r}.")
    if not _number(config.temperature) or config.temperature < 0 or not math.isfinite(config.temperature):
        raise SegAgentError(f"temperature is a number from 0; got {config.temperature!r}.")
    check_count("candidates", config.candidates)
    check_count("width", config.width)
    make_strategy(config.strategy)
    Plateau(config.patience, config.gain)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_config(folder: Path) -> AgentConfig:
    """The folder's segagent.json. Raises CheckpointError, which says what to do where there is none."""
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {CONFIG}, so it does not say how its model speaks: give that yourself to use a plain "
            f"vision-language model, SegAgent.from_pretrained(…, grammar=Grammar())."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    try:
        return AgentConfig.from_dict(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}): download or save the checkpoint again.") from error


def find_checkpoint(
    path_or_repo: str | PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    code: bool = False,
) -> Path:
    """The local folder of a checkpoint: the folder itself, or a snapshot of a Hub repository, all files of one commit.

    Only safetensors and text files are fetched (and, with `code`, Python files). Raises CheckpointError.
    """
    name = fspath(path_or_repo)
    folder = Path(name).expanduser()
    if not name:
        raise CheckpointError(
            "The checkpoint's name is empty: give a folder, or a repository on the Hub as owner/name."
        )
    if folder.is_file():
        raise CheckpointError(f"{name} is a file: give the folder that it is in.")
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
            raise CheckpointError(f"There is no folder {name}, and a repository on the Hub is named owner/name.")
        patterns = [*SAFE_FILES, "*.py"] if code else list(SAFE_FILES)
        patterns = [f"{subfolder}/{pattern}" for pattern in patterns] if subfolder else patterns
        folder = _snapshot(name, revision, token, local_files_only, patterns)
    if subfolder:
        folder = folder / subfolder
        if not folder.is_dir():
            raise CheckpointError(f"{name} has no folder {subfolder}.")
    return folder


def _snapshot(
    repo: str, revision: str | None, token: str | bool | None, local_files_only: bool, patterns: list[str]
) -> Path:
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    try:
        return snapshot(
            repo, revision=revision, token=token, local_files_only=local_files_only, allow_patterns=patterns
        )
    except errors.HFValidationError as error:
        raise CheckpointError(f"There is no folder {repo}, and no repository on the Hub can be named so.") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: ask for access at https://huggingface.co/{repo}, then log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} has no revision {revision}: see its branches and tags.") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is neither a folder nor a repository on the Hub named {repo}: check the name, or log in if it is private."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repo}{at} is not on this machine and the Hub cannot be reached or was not asked: download it first, or "
            "give a local folder."
        ) from error
    except (OSError, errors.HTTPError) as error:  # what else the disk and the network do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{repo}{at} cannot be downloaded: {reason}") from error


def load_its_segmenter(folder: Path, config: AgentConfig, device: str | None = None) -> Segmenter:
    """The segmenter that a checkpoint names. Raises CheckpointError, which says what to do where it is missing."""
    reference = config.segmenter
    if reference == SEGMENTER:
        if not (folder / SEGMENTER).is_dir():
            raise CheckpointError(
                f"{folder} lacks the folder {SEGMENTER}/ with the weights of its segmenter: download it whole, or give "
                f'another segmenter, e.g. segmenter="grabcut".'
            )
        reference = str(folder / SEGMENTER)
    try:
        return load_segmenter(reference, device=device)
    except (SegmenterError, CheckpointError) as error:
        raise CheckpointError(
            f"The checkpoint's segmenter {config.segmenter!r} cannot be loaded, so give another one, e.g. "
            f'segmenter="grabcut": {error}'
        ) from error


def save_segmenter(segmenter: Segmenter, folder: Path) -> str:
    """Writes a segmenter's local weights to `folder`; → how the checkpoint names it. Others keep the name they have."""
    source = Path(segmenter.reference.rpartition(":")[2]).expanduser()
    if ":" not in segmenter.reference or not source.exists():
        return segmenter.reference
    if hasattr(segmenter, "save_pretrained"):
        segmenter.save_pretrained(folder)
        return SEGMENTER
    if not source.is_dir():
        return segmenter.reference
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix in (".json", ".safetensors"):
            shutil.copyfile(file, folder / file.name)
    return SEGMENTER


def move_into(fresh: Path, target: Path) -> None:
    """Renames `fresh` to `target`; into a folder with files, file by file, the weights of a former model removed."""
    if not target.exists() or not any(target.iterdir()):
        os.replace(fresh, target)
        return
    files = sorted((f.relative_to(fresh) for f in fresh.rglob("*") if f.is_file()), key=lambda f: f.name == CONFIG)
    for file in files:  # segagent.json last
        (target / file).parent.mkdir(exist_ok=True)
        os.replace(fresh / file, target / file)
    for folder in (target, target / SEGMENTER):
        for stale in (file for pattern in MODEL_FILES for file in folder.glob(pattern)):
            if stale.relative_to(target) not in files:
                stale.unlink()

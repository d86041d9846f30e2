"""Opens checkpoints: `.pth` files without running what a pickle may hold, transformers' with faults as one sentence."""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch

from segagent.downloads import checked
from segagent.errors import CheckpointError, SegAgentError

# What torch.load raises on files that are cut, changed or no pickles at all.
_BROKEN = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError),
    *(AttributeError, AssertionError, OverflowError, MemoryError, struct.error),
)

# What transformers raises on folders and repositories that it cannot load.
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError)


class _StandIn:
    """Takes the place of a class or function that a file names: keeps nothing, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def load_pth(path: str | Path, ignore: tuple[str, ...] = ()) -> Any:
    """What a `.pth` file holds, on the CPU: tensors and plain containers, nothing else (`weights_only`).

    Objects of the packages in `ignore` are replaced by inert stand-ins; neither the package nor the object is touched.
    Raises CheckpointError where the file is missing, broken, or holds any other object.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"There is no weights file {path}: download it, or correct the path.")
    try:
        with torch.serialization.safe_globals([(_StandIn, name) for name in _foreign(path, ignore)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            raise CheckpointError(
                f"{path} holds more than weights ({unsafe[1]}), which could run code, and was not opened: "
                "get the weights from their publisher, or convert them to safetensors."
            ) from error
        raise CheckpointError(f"{path} is broken or no file of PyTorch weights: download it again.") from error


def _foreign(path: Path, packages: tuple[str, ...]) -> list[str]:
    """Full names of the objects of `packages` that the file refers to; reads names only."""
    if not packages:
        return []
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file of PyTorch before 1.6, which cannot be asked
        return []
    return [name for name in names if name.partition(".")[0] in packages]


def load_pretrained(model_class: Any, name: str, **options: Any) -> torch.nn.Module:
    """`model_class.from_pretrained` in float32, refusing a checkpoint that lacks weights. Raises CheckpointError."""

    def load() -> tuple[Any, dict[str, Any]]:
        return model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)

    with faults_of(name):
        model, loading = load() if Path(name).exists() else checked(load, name, failures=_UNREADABLE)
    if loading["missing_keys"]:
        raise CheckpointError(
            f"{name} lacks {len(loading['missing_keys'])} of the weights of a {model_class.__name__}, "
            f"e.g. {min(loading['missing_keys'])}: it is another model's, or was saved in part."
        )
    return model


def normalisation_of(name: str, **options: Any) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and deviation of the checkpoint's image processor; None where it has none.

    Only the numbers are read: the processors of SAM 2 and 3 need torchvision, resizing an image does not.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(name, **options)
        return values["image_mean"], values["image_std"]
    except (OSError, KeyError):
        return None


@contextmanager
def faults_of(name: str) -> Iterator[None]:
    """What transformers raises when a folder or repository cannot be loaded becomes a CheckpointError."""
    try:
        yield
    except SegAgentError:
        raise
    except _UNREADABLE as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise CheckpointError(f"No model can be loaded from {name}: {reason}") from error

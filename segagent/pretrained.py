"""A checkpoint's model and processor, loaded and checked: what is wrong with them is said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from segagent import _torchvision
from segagent.adapters import base_of, is_adapter, load_on_base
from segagent.checkpoint import find_checkpoint
from segagent.errors import CheckpointError

_torchvision.mend()

from huggingface_hub.errors import StrictDataclassError  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

# how transformers says that a file is missing, of another architecture, malformed, or needs a package that is not there
_FAILURES = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError)


def load(
    path_or_repo: str | PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """Model and processor of a folder or of a repository of the Hub, of an adapter on its base too. Raises CheckpointError.

    `options` go to the model.
    """
    where = {"token": token, "local_files_only": local_files_only, "code": trust_remote_code}
    folder = find_checkpoint(path_or_repo, revision=revision, subfolder=subfolder, **where)
    options = {"use_safetensors": True, "trust_remote_code": trust_remote_code, "dtype": dtype, **options}
    if not is_adapter(folder):
        model = _model(folder, path_or_repo, options)
    else:
        model = load_on_base(
            folder, lambda name, at: _model(find_checkpoint(name, revision=at, **where), name, options)
        )
    beside = any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    of_base = is_adapter(folder) and not beside
    source = find_checkpoint(base_of(folder)[0], revision=base_of(folder)[1], **where) if of_base else folder
    with _told(path_or_repo, "processor"):
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    return model, processor


def _model(folder: Path, name: str | PathLike[str], options: dict[str, Any]) -> Any:
    """A model with all of its weights. Raises CheckpointError."""
    with _told(name, "model"):
        model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} of its model's weights ({missing[0]}, …): get its files again."
        )
    return model


@contextmanager
def _told(name: str | PathLike[str], part: str) -> Iterator[None]:
    """What transformers raises where it cannot load a part of a checkpoint becomes a CheckpointError."""
    try:
        yield
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{name} has no {part} that transformers can load: {reason}") from error


def check_processor(processor: Any) -> None:
    """Sets a missing padding token to the end-of-text token. Raises CheckpointError for what cannot ask a model."""
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise CheckpointError(
            f"{type(processor).__name__} is no processor of images and text: save the model's AutoProcessor beside it."
        )
    if processor.chat_template is None:
        raise CheckpointError("The checkpoint's processor has no chat template: add a chat_template.jinja to it.")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The end-of-text tokens that the model's generation_config and its tokenizer name. Raises CheckpointError."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    end = frozenset(token for token in (*named, tokenizer.eos_token_id) if token is not None)
    if not end:
        raise CheckpointError(
            "Neither the checkpoint's generation_config nor its tokenizer names an end-of-text token."
        )
    return end

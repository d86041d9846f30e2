"""A checkpoint's model and processor, loaded and checked: what is wrong with them is said in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from segagent import _torchvision
from segagent.errors import CheckpointError

_torchvision.mend()

from safetensors import SafetensorError  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

# what concerns the files, and so both model and processor
SHARED = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder", "trust_remote_code")


def load(name: str, dtype: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Model and processor of a folder or repository. Raises CheckpointError."""
    if not Path(name).is_dir() and (Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        raise CheckpointError(f"There is no checkpoint folder {name}: give a folder, or a repository as owner/name.")
    part = "model"
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, output_loading_info=True, **{"use_safetensors": True, **options}
        )
        part = "processor"
        shared = (
            "revision",
            "token",
            "cache_dir",
            "local_files_only",
            "force_download",
            "subfolder",
            "trust_remote_code",
        )
        processor = AutoProcessor.from_pretrained(name, **{key: options[key] for key in shared if key in options})
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"The checkpoint {name} has no {part} that transformers can load: {reason}") from error
    missing = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if missing:
        raise CheckpointError(
            f"The checkpoint {name} lacks {len(missing)} of its model's weights ({missing[0]}, …): get its files again."
        )
    return model, processor


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


def control_tokens(processor: Any) -> list[str]:
    """The tokens that steer a model, such as an image's placeholder; longest first."""
    tokens = {str(t) for t in processor.tokenizer.added_tokens_decoder.values() if t.special and len(str(t)) > 1}
    return sorted(tokens | set(processor.tokenizer.all_special_tokens), key=len, reverse=True)


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

"""LoRA checkpoints: an adapter of peft and the name of the model that it was trained on, in place of that model's weights."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segagent.errors import CheckpointError, MissingDependencyError

ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})/?")


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def base_of(folder: Path) -> tuple[str, str | None]:
    """(repository or folder, revision) of the model that an adapter was trained on. Raises CheckpointError."""
    path = folder / ADAPTER
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not say of which model it is an adapter: save the adapter again."
        ) from error
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise CheckpointError(f"{path} does not say of which model it is an adapter: write base_model_name_or_path.")
    return base, revision


def load_on_base(folder: Path, load: Callable[[str, str | None], Any]) -> Any:
    """The adapter of a folder on its base, which `load(name, revision)` loads. Raises CheckpointError."""
    base, revision = base_of(folder)
    try:
        from peft import PeftModel
        from safetensors import SafetensorError
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingDependencyError(
            f"{folder} is an adapter of {base}, which needs peft: pip install peft==0.21.2"
        ) from error
    if not (folder / WEIGHTS).is_file():  # peft would go and look for a pickle on the Hub
        raise CheckpointError(f"{folder} has an adapter's settings and no {WEIGHTS}: get its files again.")
    try:
        model = load(base, revision)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is an adapter of {base}, and that cannot be loaded: {error}") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(model, folder)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UserWarning) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"The adapter in {folder} does not fit its base {base}: {reason}") from error
    if adapted.active_peft_config.is_prompt_learning:
        raise CheckpointError(f"The adapter in {folder} adds tokens to the prompt, which is not supported: use LoRA.")
    return adapted


def save_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter of a PeftModel; its base is named by repository and commit where it came from the Hub."""
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the Hub for the base's vocabulary
    (folder / "README.md").unlink(missing_ok=True)  # peft's own, which would take the place of a card
    path = folder / ADAPTER
    settings = json.loads(path.read_text(encoding="utf-8"))
    name, known = settings["base_model_name_or_path"] or "", getattr(model.config, "_commit_hash", None)
    found = _SNAPSHOT.search(Path(name).as_posix())
    if found:
        settings |= {"base_model_name_or_path": f"{found['owner']}/{found['name']}", "revision": found["commit"]}
    elif Path(name).expanduser().exists():
        settings |= {"base_model_name_or_path": str(Path(name).expanduser().absolute()), "revision": None}
    elif known and not settings.get("revision"):
        settings["revision"] = known
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_shareable(folder: Path) -> None:
    """Raises CheckpointError where others could not load the adapter in `folder`: its base is on this machine only."""
    base, _ = base_of(folder)
    if Path(base).expanduser().is_absolute():
        raise CheckpointError(
            f"The adapter's base is the local folder {base}, which nobody else has: push the base and load it from the "
            "Hub before training, or merge the adapter into it (policy.model.merge_and_unload())."
        )


def plain(model: Any) -> Any:
    """The transformers model that an adapter was put into, which runs with it; of any other model, that itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

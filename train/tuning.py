"""Which weights of a vision-language model are trained: all, all but the vision encoder's (the paper's), or a LoRA adapter's."""

from __future__ import annotations

from typing import Any

from segagent.errors import CheckpointError

TUNES = ("full", "freeze-vision", "lora")
_TOWERS = ("vision_tower", "visual", "vision_model")
_PROJECTORS = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list", "modality_projection")


def tower_of(model: Any) -> Any:
    """The vision encoder of a model. Raises CheckpointError."""
    inner = getattr(model, "model", model)
    for name in _TOWERS:
        if getattr(inner, name, None) is not None:
            return getattr(inner, name)
    raise CheckpointError(
        f"Where {type(model).__name__} keeps its vision encoder is not known, so it cannot be frozen: use --tune full."
    )


def freeze(module: Any) -> None:
    """No gradients, and evaluation mode for good: BatchNorm keeps the statistics that it learnt."""
    module.requires_grad_(False)
    module.eval()
    module.train = lambda mode=True: module


def prepare(model: Any, tune: str, rank: int = 16, seed: int = 0) -> Any:
    """The model with `requires_grad` as `tune` says; for "lora" a PeftModel. An adapter that it has is trained on or merged."""
    adapted = hasattr(model, "merge_and_unload")
    if tune == "lora":
        return _continued(model) if adapted else _adapted(model, rank, seed)
    if adapted:
        model = model.merge_and_unload()
    model.requires_grad_(True)
    if tune == "freeze-vision":
        tower = tower_of(model)
        freeze(tower)
        for name, module in tower.named_modules():
            if name.split(".")[-1] in _PROJECTORS:  # Qwen's projector is a part of its tower
                module.requires_grad_(True)
    return model


def _continued(model: Any) -> Any:
    model.set_adapter("default")  # which also makes it trainable
    return model


def _adapted(model: Any, rank: int, seed: int) -> Any:
    """LoRA on every linear layer of the language model and of the projector; the vision encoder stays as it is."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    tower = set(tower_of(model).modules())
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and (module not in tower or any(part in _PROJECTORS for part in name.split(".")))
        and name.split(".")[-1] != "lm_head"
    ]
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, config)

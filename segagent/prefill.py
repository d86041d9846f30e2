"""The keys and values of prompts that were read once: as rows of a batch, and kept so that decoding can go on from them."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

ROOM = 32  # slots that a new batch has for tokens to come


class _Slab(DynamicLayer):
    """Keys and values in one buffer with room to grow in place; the plain layer copies all of them for every token."""

    def __init__(self, room: int = ROOM) -> None:
        super().__init__()
        self._room = room
        self._buffers: tuple[torch.Tensor, ...] = ()  # (B, heads, capacity, width) each

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._buffers or end > self._buffers[0].shape[-2]:
            self._grow(key_states, value_states, start, end + self._room)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        self.is_initialized = True
        return self.keys, self.values

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, start: int, capacity: int) -> None:
        old, self._buffers = (
            self._buffers,
            tuple(s.new_empty(*s.shape[:2], capacity, s.shape[3]) for s in (keys, values)),
        )
        for before, buffer in zip(old, self._buffers, strict=False):
            buffer[:, :, :start] = before[:, :, :start]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where decoding can go on from: one row of a batch, its tokens so far and the distribution of the next one."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # keys and values (B, heads, L, width) of the batch
    row: int
    slots: torch.Tensor  # (n,) where along L this row's n tokens lie, in order
    position: torch.Tensor  # () position of the last token, or (channels,) with M-RoPE
    logits: torch.Tensor  # (V,) float32

    def before(self, count: int) -> Start:
        """`count` tokens earlier; what is fed next gives the logits (there are none)."""
        return Start(self.layers, self.row, self.slots[: len(self.slots) - count], self.position - count, self.logits)


@dataclass(slots=True, eq=False)
class Batch:
    """Rows in decoding. A slot whose mask is 0 is padding, or held a guess that was wrong."""

    cache: Cache
    mask: torch.Tensor  # (B, L) int64
    position: torch.Tensor  # (B,) or (channels, B) int64, of each row's last token
    logits: torch.Tensor  # (B, V) float32, of each row's next token

    def __len__(self) -> int:
        return self.mask.shape[0]

    def feed(self, model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Feeds each row its own tokens (any number up to q) and returns logits (B, q, V) float32.

        They count as read only once `keep` has said how many of them stand.
        """
        width = max(1, *map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        valid = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        self.mask = torch.cat([self.mask, valid.to(self.mask)], 1)
        ahead = torch.arange(1, width + 1, device=self.mask.device)
        output = model(
            input_ids=ids.to(self.mask.device),
            attention_mask=self.mask,
            position_ids=self.position[..., None] + ahead,
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
        )
        return output.logits.float()

    def keep(self, counts: Sequence[int], logits: torch.Tensor) -> None:
        """Of the tokens just fed, each row keeps the first `counts[row]`; `logits` (B, q, V) is what `feed` returned."""
        kept, fed = torch.tensor(counts, device=self.mask.device), logits.shape[1]
        if fed == 0:
            return
        self.mask[:, -fed:] *= torch.arange(fed, device=kept.device) < kept[:, None]
        self.position = self.position + kept
        last = logits[torch.arange(len(self)), (kept - 1).clamp(min=0)]
        self.logits = torch.where(kept[:, None] > 0, last, self.logits)

    def start(self, row: int) -> Start:
        """Row `row` as it stands now; stays valid whatever the batch does later."""
        layers = tuple((layer.keys, layer.values) for layer in self.cache.layers)
        slots = self.mask[row].nonzero()[:, 0]
        return Start(layers, row, slots, self.position[..., row], self.logits[row])


def supports(model: Any) -> bool:
    """Whether the model's keys and values can be reused here: a decoder-only model that takes a DynamicCache of plain layers and
    explicit positions, and keeps no other state between steps. `generate` serves the others."""
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        return False
    needed = {"input_ids", "attention_mask", "position_ids", "past_key_values"}
    parameters = set(inspect.signature(model.forward).parameters)
    own_state = (
        type(model)._update_model_kwargs_for_generation is not GenerationMixin._update_model_kwargs_for_generation
    )
    if model.config.is_encoder_decoder or own_state or not needed <= parameters or "cross_attention_mask" in parameters:
        return False
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def windowed(model: PreTrainedModel) -> bool:
    """Whether some layers see the last slots only. A wrong guess would use up one of these, so such models get no guesses."""
    return any(type(layer) is DynamicSlidingWindowLayer for layer in DynamicCache(config=model.config).layers)


def extended(inputs: dict[str, torch.Tensor], tokens: Sequence[int]) -> dict[str, torch.Tensor]:
    """A processor's output with the same text tokens added to each row."""
    longer = dict(inputs)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            row = torch.tensor({"input_ids": tokens, "attention_mask": [1] * len(tokens)}.get(name, [0] * len(tokens)))
            longer[name] = torch.cat([inputs[name], row.to(inputs[name]).expand(len(inputs[name]), -1)], 1)
    return longer


def prefill(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], guesses: Sequence[int] = ()
) -> tuple[Batch, torch.Tensor]:
    """Reads a processor's output: input_ids (B, L) padded on the left, attention_mask, pixel values and what else there is.

    Fed along are guesses of each answer's first tokens; `keep` says which of them stand. Returns the batch and the logits
    (B, 1 + guesses, V) float32 after the prompt and after each guess.
    """
    inputs, fed = extended(inputs, guesses), len(guesses)
    others = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = model._prepare_position_ids_for_generation(ids, {**others, "input_ids": ids, "attention_mask": mask})
    cache = Cache(layer_class_to_replicate=_Slab)
    prepared = model.prepare_inputs_for_generation(
        ids,
        past_key_values=cache,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        is_first_iteration=True,
        **others,
    )
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        prepared["logits_to_keep"] = 1 + fed
    logits = model(**prepared, return_dict=True).logits[:, -1 - fed :].float()
    return Batch(cache, mask, positions[..., -1 - fed], logits[:, 0]), logits


def gather(starts: Sequence[Start], room: int = ROOM) -> Batch:
    """A batch of these rows, copied, padded on the left; a start may come several times, and from any batch of one model."""
    length = max(len(start.slots) for start in starts)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, start in enumerate(starts):
        groups[id(start.layers[0][0])].append(i)
    padded = [torch.nn.functional.pad(start.slots, (length - len(start.slots), 0)) for start in starts]
    slabs = []
    for number, layer in enumerate(starts[0].layers):
        slab = _Slab(room)
        slab._buffers = tuple(t.new_empty(len(starts), t.shape[1], length + room, t.shape[3]) for t in layer)
        for rows in groups.values():
            source = torch.tensor([starts[i].row for i in rows])[:, None]
            slots = torch.stack([padded[i] for i in rows])
            for tensor, buffer in zip(starts[rows[0]].layers[number], slab._buffers, strict=True):
                buffer[rows, :, :length] = tensor[source, :, slots].transpose(1, 2)
        slab.keys, slab.values = (buffer[:, :, :length] for buffer in slab._buffers)
        slab.is_initialized = True
        slabs.append(slab)
    logits = torch.stack([start.logits for start in starts])
    mask = torch.ones(len(starts), length, dtype=torch.int64, device=logits.device)
    for row, start in zip(mask, starts, strict=True):
        row[: length - len(start.slots)] = 0
    return Batch(Cache(layers=slabs), mask, torch.stack([start.position for start in starts], -1), logits)

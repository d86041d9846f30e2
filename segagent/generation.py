"""Decoding from one prefill: a prompt's keys and values are computed once, and every answer to it goes on from them.

    decoder = Decoder(model, end=…, limit=…, drafts=…)
    openings = decoder.read(inputs, belongs)                        # vision and prompts, and what all answers to each share
    decoder.go_on([openings[i].start …], [Said(…) …], temperature)  # any of them, of any reads, any number of times

Nothing is approximated. Tokens that an answer's form makes nearly certain are guessed and fed together (`Drafts`), but each is
kept only if it is the very token that the model's distribution gives at its place, so the guesses change the time only.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from segagent.drafts import Drafts

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


@dataclass(slots=True, eq=False)
class Said:
    """One answer in the making."""

    tokens: list[int]  # without the end-of-text token
    logprob: float = 0.0  # natural logarithm, over all tokens and the end-of-text token, at temperature 1
    numbers: np.ndarray | None = (
        None  # uniform in [0, 1), one more than the most tokens: what its sampling is drawn with
    )
    ended: bool = False  # by an end-of-text token
    done: bool = False
    drawn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Opening:
    """What was read off one prompt: the greedy beginning of its answer, and where to go on, after it and before it."""

    said: Said
    start: Start
    prompt: Start


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """Decodes with one model. Has no state of its own; callers take turns (the model's forward may have some)."""

    model: PreTrainedModel
    end: frozenset[int]  # end-of-text tokens
    limit: int  # most tokens of an answer
    drafts: Drafts

    def read(self, inputs: dict[str, torch.Tensor], belongs: Callable[[Sequence[int]], bool]) -> list[Opening]:
        """One prefill, then greedily on in each row for as long as the tokens said so far belong to the opening."""
        guesses = self.drafts(())
        batch, logits = prefill(self.model, inputs, guesses)
        prompts, said = batch.logits, [Said([]) for _ in range(len(batch))]
        counts = self._follow(said, [[-1, *guesses]] * len(said), logits, 0.0, belongs)
        batch.keep([count - 1 for count in counts], logits[:, 1:])
        self._decode(batch, said, 0.0, belongs)
        openings = []
        for row, opening in enumerate(said):
            start = batch.start(row)
            openings.append(Opening(opening, start, replace(start.before(len(opening.tokens)), logits=prompts[row])))
        return openings

    def go_on(self, starts: Sequence[Start], said: Sequence[Said], temperature: float) -> None:
        """Completes each answer from its start, all in one batch."""
        logits = torch.stack([start.logits for start in starts])
        self._take(logits, list(enumerate(said)), temperature, None)
        rows = [i for i, answer in enumerate(said) if not answer.done]
        if rows:
            batch = gather([starts[i] for i in rows], self.limit)
            self._decode(batch, [said[i] for i in rows], temperature, None)

    def _decode(self, batch: Batch, said: Sequence[Said], temperature: float, belongs: Callable | None) -> None:
        """Feeds each row its last token and the guesses after it; a guess stands if it is what would have been said."""
        while not all(answer.done for answer in said):
            feeds = [[] if s.done else [s.tokens[-1], *self.drafts(s.tokens)] for s in said]
            logits = batch.feed(self.model, feeds)
            batch.keep(self._follow(said, feeds, logits, temperature, belongs), logits)

    def _follow(
        self,
        said: Sequence[Said],
        feeds: Sequence[Sequence[int]],
        logits: torch.Tensor,
        temperature: float,
        belongs: Callable | None,
    ) -> list[int]:
        """Says what comes after each row's feed (a certain token, then guesses), and how many of the feed stand."""
        live = [i for i, feed in enumerate(feeds) if feed]
        counts = [min(len(feed), 1) for feed in feeds]
        for place in range(logits.shape[1]):
            self._take(logits[:, place], [(i, said[i]) for i in live], temperature, belongs)
            ahead = [feeds[i][place + 1] if place + 1 < len(feeds[i]) else None for i in live]
            live = [i for i, guess in zip(live, ahead, strict=True) if not said[i].done and said[i].tokens[-1] == guess]
            if not live:
                break
            for i in live:
                counts[i] = place + 2
        return counts

    def _take(
        self, logits: torch.Tensor, rows: list[tuple[int, Said]], temperature: float, belongs: Callable | None
    ) -> None:
        """Chooses the next token of these rows of logits (B, V) and adds it to what they said."""
        logits = logits[[i for i, _ in rows]]
        logprobs = torch.log_softmax(logits, -1)
        if temperature > 0:
            cumulative = torch.softmax(logits / temperature, -1).double().cumsum(-1)
            numbers = torch.tensor([s.numbers[s.drawn] for _, s in rows], dtype=torch.float64, device=logits.device)
            chosen = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)
            chosen = chosen.clamp_(max=logits.shape[-1] - 1)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        for (_, said), token, logprob in zip(
            rows, chosen[:, 0].tolist(), logprobs.gather(-1, chosen)[:, 0].tolist(), strict=True
        ):
            said.drawn += 1
            if belongs is not None and (token in self.end or not belongs([*said.tokens, token])):
                said.done = True
                continue
            said.logprob += logprob
            if token in self.end:
                said.ended = said.done = True
            else:
                said.tokens.append(token)
                said.done = belongs is None and len(said.tokens) >= self.limit

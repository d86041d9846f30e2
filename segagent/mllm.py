"""MLLMPolicy: a multimodal language model as the policy and as its own process reward model (paper, sections 3.2 and 3.4).

"Read once, decide many": vision and prompts of all observations go through the model once, as one batch. The predicted IoU and
all proposals are decoded from that one prefill, whose keys and values are kept (see `generation`).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image

from segagent import _torchvision
from segagent.adapters import plain
from segagent.composite import Painter, size_seen
from segagent.consensus import TEMPERATURE, VOTES, agreed
from segagent.drafts import Drafts, drafts_of
from segagent.errors import CheckpointError, ExpressionError, GrammarError, SegAgentError
from segagent.grammar import Grammar, Parsed
from segagent.policy import Observation, Proposal
from segagent.settings import OPENING_LIMIT, Settings
from segagent.types import Click

_torchvision.mend()

from segagent.digits import Digits, expected_iou  # noqa: E402
from segagent.fallback import PlainDecoder, PlainStart  # noqa: E402
from segagent.generation import Decoder, Said  # noqa: E402
from segagent.prefill import Start, supports, windowed  # noqa: E402
from segagent.pretrained import check_processor, end_tokens, load  # noqa: E402
from segagent.prompts import encode, render  # noqa: E402

RETRY_TEMPERATURE = 1.0  # at which a malformed greedy answer is sampled again
_HEADS = ("current miou:", "current iou:")  # how an answer begins, in lower case
_IOU = re.compile(rf"(?:{'|'.join(_HEADS)})\s*(?:\d+(?:\.\d*)?)?\.?\s*")


@dataclass(frozen=True, slots=True, eq=False)
class MLLMReading:
    """One observation, read. It holds the keys and values of its batch for as long as it lives."""

    policy: MLLMPolicy
    start: Start | PlainStart  # after what was said of the IoU
    said: Said
    size: tuple[int, int]  # the image's (height, width)
    predicted_iou: float | None
    text: str  # what was said of the IoU; empty when that was nothing or not of the grammar

    def propose(self, candidates: int = 1, temperature: float = 0.0, seed: int | None = None) -> list[Proposal]:
        """At most `candidates` proposals of different texts, in the order drawn; empty when no valid text came.

        All go on from the greedy IoU. Temperature 0 gives one proposal, whatever `candidates` is: the greedy answer, or the
        one agreed on (`click_reading`).
        """
        return self.propose_many([self], candidates, temperature, [seed])[0]

    @classmethod
    def propose_many(
        cls,
        readings: Sequence[MLLMReading],
        candidates: int = 1,
        temperature: float = 0.0,
        seeds: Sequence[int | None] | None = None,
    ) -> list[list[Proposal]]:
        """`propose` for several readings, of any reads, decoded in one batch (one for each policy that they come from).

        A reading's proposals depend on its own seed, not on what shares the batch; the first k are the same for any
        number of candidates from k, up to duplicates, which are merged.
        """
        seeds = [None] * len(readings) if seeds is None else list(seeds)
        if len(seeds) != len(readings):
            raise SegAgentError(f"{len(readings)} readings and {len(seeds)} seeds: give one seed for each reading.")
        if candidates < 1 or not 0 <= temperature < float("inf"):
            raise SegAgentError(
                f"candidates is a count from 1 and temperature a number from 0; got {candidates} and {temperature}."
            )
        results: list[list[Proposal]] = [[] for _ in readings]
        for policy in dict.fromkeys(reading.policy for reading in readings):
            rows = [i for i, reading in enumerate(readings) if reading.policy is policy]
            found = policy._propose([readings[i] for i in rows], candidates, temperature, [seeds[i] for i in rows])
            for i, proposals in zip(rows, found, strict=True):
                results[i] = proposals
        return results


class MLLMPolicy:
    """Any `AutoModelForImageTextToText`, or peft's adapter on one, with its `AutoProcessor`. Threads may share one; they take turns at the model."""

    def __init__(self, model: Any, processor: Any, grammar: Grammar | None = None, **settings: Any) -> None:
        """`settings` are those of `Settings`. Raises SegAgentError for these, CheckpointError for the processor."""
        self.model, self.processor, self.grammar = model.eval(), processor, grammar or Grammar()
        self.settings = Settings(**settings)
        check_processor(processor)
        self._tokenizer = processor.tokenizer
        self._picture = Painter(self.settings.color, self.settings.alpha, size_seen(processor.image_processor))
        self._lock = threading.Lock()
        self._prompt = lru_cache(256)(self._render)
        self._is_opening = lru_cache(8192)(self._matches_opening)
        runs = plain(model)
        end, limit = end_tokens(runs, self._tokenizer), self.settings.max_new_tokens
        if self.settings.reuse and supports(runs):
            self._decoder = Decoder(
                runs, end, limit, Drafts(()) if windowed(runs) else drafts_of(self.grammar, self._tokenizer)
            )
        else:
            self._decoder = PlainDecoder(runs, end, limit)
        self._digits = Digits.of(self._tokenizer) if self.settings.iou_reading == "expected" else None
        if self._digits is not None and isinstance(self._decoder, PlainDecoder):
            raise CheckpointError(
                "The expected IoU needs a model whose keys and values can be reused: use the greedy IoU."
            )

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | PathLike[str],
        *,
        grammar: Grammar | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        **options: Any,
    ) -> MLLMPolicy:
        """The policy of a checkpoint: a folder, or a repository of the Hub. Raises CheckpointError.

        `device` is cuda where there is one, else cpu. `options` are those of `Settings`; revision, subfolder, token,
        local_files_only and trust_remote_code; and what else transformers' `from_pretrained` takes, such as device_map.
        """
        settings = {name: options.pop(name) for name in Settings.__dataclass_fields__ if name in options}
        model, processor = load(path_or_repo, dtype=dtype, **options)
        if "device_map" not in options:
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, processor, grammar, **settings)

    @property
    def reuses(self) -> bool:
        """Whether proposals go on from the keys and values of the read, or run through `model.generate`."""
        return isinstance(self._decoder, Decoder)

    def read(self, observations: Sequence[Observation]) -> list[MLLMReading]:
        """One reading each, from one batched prefill. Raises ExpressionError or ImageError for what no model can read."""
        batches = [observations] if self.reuses else [[o] for o in observations]
        pictures = [[self._picture(o) for o in batch] for batch in batches]
        readings = []
        with torch.inference_mode(), self._lock:
            for batch, images in zip(batches, pictures, strict=True):
                if batch:
                    readings += self._read(batch, images)
        return readings

    def sample_ious(
        self, observations: Sequence[Observation], count: int, temperature: float = 1.0, *, seeds: Sequence[int]
    ) -> list[list[float]]:
        """At most `count` predicted IoUs of each observation, from whole answers that are sampled; `seeds` one for each.

        What an answer says of the IoU is sampled too, unlike in `propose`; one that begins otherwise gives none.
        """
        if not self.reuses and len(observations) > 1:
            pairs = zip(observations, seeds, strict=True)
            return [self.sample_ious([o], count, temperature, seeds=[seed])[0] for o, seed in pairs]
        numbers = [
            np.random.default_rng([s, k]).random(self.settings.max_new_tokens + 1) for s in seeds for k in range(count)
        ]
        said = [Said([], numbers=row) for row in numbers]
        pictures = [self._picture(o) for o in observations]
        with torch.inference_mode(), self._lock:
            inputs = self._inputs([self._prompt(o.expression) for o in observations], pictures)
            prompts = [opening.prompt for opening in self._decoder.read(inputs, lambda tokens: False)]
            self._decoder.go_on([prompt for prompt in prompts for _ in range(count)], said, temperature)
            openings = [_IOU.match(self._text(answer).lower()) for answer in said]
        parsed = [match and self._parse(match[0], (1, 1)) for match in openings]
        ious = [answer and answer.predicted_iou for answer in parsed]
        return [[iou for iou in ious[i : i + count] if iou is not None] for i in range(0, len(ious), count)]

    def _read(self, observations: Sequence[Observation], images: Sequence[Image.Image]) -> list[MLLMReading]:
        inputs = self._inputs([self._prompt(o.expression) for o in observations], images)
        openings = self._decoder.read(inputs, lambda tokens: self._is_opening(tuple(tokens)))
        texts = [self._text(o.said) for o in openings]
        whole = [len(o.said.tokens) < OPENING_LIMIT for o in openings]  # longer ones were cut off, perhaps in a number
        parsed = [self._parse(text, (1, 1)) if known else None for text, known in zip(texts, whole, strict=True)]
        ious = [answer and answer.predicted_iou for answer in parsed]
        told = [i for i, iou in enumerate(ious) if iou is not None]
        if self._digits is not None and told:
            for i, iou in zip(
                told, expected_iou(self._decoder, [openings[i] for i in told], self._digits), strict=True
            ):
                ious[i] = iou
        readings = []
        for observation, opening, iou, text in zip(observations, openings, ious, texts, strict=True):
            if iou is None:
                start, said, text = opening.prompt, Said([]), ""
            else:
                start, said = opening.start, opening.said
            readings.append(MLLMReading(self, start, said, observation.state.size, iou, text))
        return readings

    def _propose(
        self, readings: Sequence[MLLMReading], candidates: int, temperature: float, seeds: Sequence[int | None]
    ) -> list[list[Proposal]]:
        seeds = [np.random.SeedSequence().entropy if seed is None else seed & (2**64 - 1) for seed in seeds]
        pending = [(i, k) for i in range(len(readings)) for k in range(candidates if temperature else 1)]
        greedy = self.settings.likeliest and candidates > 1  # the first of several, at the first attempt
        found: dict[tuple[int, int], Proposal] = {}
        for attempt in range(self.settings.attempts):
            said = [
                Said(
                    list(readings[i].said.tokens),
                    readings[i].said.logprob,
                    None
                    if greedy and k == attempt == 0
                    else np.random.default_rng([seeds[i], attempt, k]).random(self.settings.max_new_tokens + 1),
                )
                for i, k in pending
            ]
            heat = temperature or (RETRY_TEMPERATURE if attempt else 0.0)
            answers = self._say([readings[i] for i, _ in pending], said, heat)
            found |= {key: answer for key, answer in zip(pending, answers, strict=True) if answer is not None}
            pending = [key for key in pending if key not in found]
            if not pending:
                break
        if self.settings.click_reading == "consensus" and (greedy or not temperature):
            clicks = [i for i in range(len(readings)) if (i, 0) in found and isinstance(found[i, 0].action, Click)]
            agreed_on = self._agreed([readings[i] for i in clicks], [found[i, 0] for i in clicks])
            found |= {(i, 0): proposal for i, proposal in zip(clicks, agreed_on, strict=True)}
        merged: list[dict[str, Proposal]] = [{} for _ in readings]
        for (i, _), proposal in sorted(found.items(), key=lambda item: item[0]):
            merged[i].setdefault(proposal.text, proposal)
        return [list(proposals.values()) for proposals in merged]

    def _say(self, readings: Sequence[MLLMReading], said: Sequence[Said], temperature: float) -> list[Proposal | None]:
        """Completes one answer to each reading; None where it is not of the grammar."""
        with torch.inference_mode(), self._lock:
            self._decoder.go_on([reading.start for reading in readings], said, temperature)
            texts = [self._text(answer) for answer in said]
        parsed = [self._parse(text, reading.size) for text, reading in zip(texts, readings, strict=True)]
        rows = zip(parsed, texts, said, strict=True)
        return [answer and Proposal(answer.action, text, one.logprob) for answer, text, one in rows]

    def _agreed(self, readings: Sequence[MLLMReading], greedy: Sequence[Proposal]) -> list[Proposal]:
        """For each greedy click: of it and sampled ones of its sign, that which the most others are near."""
        if not readings:
            return []
        # The same numbers for each reading, so that its answer depends on nothing beside it.
        numbers = np.random.default_rng(0).random((VOTES, self.settings.max_new_tokens + 1))
        said = [Said(list(r.said.tokens), r.said.logprob, row) for r in readings for row in numbers]
        voices = iter(self._say([reading for reading in readings for _ in range(VOTES)], said, TEMPERATURE))
        chosen = []
        for reading, own in zip(readings, greedy, strict=True):
            others = list(islice(voices, VOTES))
            sign = own.action.positive
            clicks = [p for p in others if p and isinstance(p.action, Click) and p.action.positive == sign]
            chosen.append([own, *clicks][agreed([p.action for p in (own, *clicks)], reading.size)])
        return chosen

    def _render(self, expression: str) -> str:
        return render(self.processor, self.grammar.ask(expression, self.settings.color))

    def _inputs(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        inputs = encode(self.model, self.processor, prompts, images)
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        needed = int(inputs["attention_mask"].sum(-1).max()) + self.settings.max_new_tokens
        if room is not None and needed > room:
            raise ExpressionError(
                f"Prompt and answer need {needed} tokens and the model has room for {room}: shorten the expression."
            )
        return inputs

    def _text(self, said: Said) -> str:
        decode = self._tokenizer.decode
        return decode(said.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def _parse(self, text: str, size: tuple[int, int]) -> Parsed | None:
        try:
            return self.grammar.parse(text, size)
        except GrammarError:
            return None

    def _matches_opening(self, tokens: tuple[int, ...]) -> bool:
        """Whether these tokens begin, or are, what an answer says of the IoU."""
        if len(tokens) > OPENING_LIMIT:
            return False
        text = self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False).lower().lstrip()
        return any(head.startswith(text) for head in _HEADS) or _IOU.fullmatch(text) is not None

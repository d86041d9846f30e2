"""Decoding from one prefill: a prompt's keys and values are computed once, and every answer to it goes on from them.

    decoder = Decoder(model, end=…, limit=…, drafts=…)
    openings = decoder.read(inputs, belongs)                        # vision and prompts, and what all answers to each share
    decoder.go_on([openings[i].start …], [Said(…) …], temperature)  # any of them, of any reads, any number of times

Nothing is approximated. Tokens that an answer's form makes nearly certain are guessed and fed together (`Drafts`), but each is
kept only if it is the very token that the model's distribution gives at its place, so the guesses change the time only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from segagent.drafts import Drafts
from segagent.prefill import Batch, Start, gather, prefill


@dataclass(slots=True, eq=False)
class Said:
    """One answer in the making."""

    tokens: list[int]  # without the end-of-text token
    logprob: float = 0.0  # natural logarithm, over all tokens and the end-of-text token, at temperature 1
    # Uniform in [0, 1), what sampling is drawn with: one more than the most tokens. None: greedy, at any temperature.
    numbers: np.ndarray | None = None
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
        chosen = logits.argmax(-1, keepdim=True)
        drawn = [place for place, (_, s) in enumerate(rows) if temperature > 0 and s.numbers is not None]
        if drawn:
            cumulative = torch.softmax(logits[drawn] / temperature, -1).double().cumsum(-1)
            said = [rows[place][1] for place in drawn]
            numbers = torch.tensor([s.numbers[s.drawn] for s in said], dtype=torch.float64, device=logits.device)
            found = torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:], right=True)
            chosen[drawn] = found.clamp_(max=logits.shape[-1] - 1)
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

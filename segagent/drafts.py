"""Guesses of the tokens that follow from an answer's form ("Positive" is followed by " point: ("), learnt from examples.

They cost nothing but a wider pass when wrong, and nothing ever depends on them: see `generation`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from segagent.grammar import Grammar
from segagent.types import Box, Click


class Drafts:
    """Guesses by the five tokens before; those of the set `alike` (digits) count as one another there."""

    def __init__(self, examples: Sequence[Sequence[int]], alike: Set[int] = frozenset(), longest: int = 8) -> None:
        self._alike, self._longest = alike, longest
        follows: dict[tuple[int, ...], Counter] = defaultdict(Counter)
        for tokens in examples:
            for i in range(len(tokens)):
                follows[self._context(tokens[:i])][tokens[i]] += 1
        likeliest = {context: (*counts.most_common(1)[0], counts.total()) for context, counts in follows.items()}
        self._next = {c: token for c, (token, count, total) in likeliest.items() if count > total / 2}

    def __call__(self, tokens: Sequence[int]) -> list[int]:
        """What is likely to come after `tokens`; often nothing."""
        known = list(tokens[-5:])
        guesses: list[int] = []
        while len(guesses) < self._longest:
            token = self._next.get(self._context(known))
            if token is None:
                break
            guesses.append(token)
            known.append(token)
        return guesses

    def _context(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(-1 if token in self._alike else token for token in tokens[-5:])


def drafts_of(grammar: Grammar, tokenizer: Any, count: int = 400) -> Drafts:
    """Learnt from answers of the grammar, mostly clicks, some boxes."""
    rng = np.random.default_rng(0)
    texts = []
    for i, (x, y, iou) in enumerate(rng.random((count, 3)) * [999, 999, 1]):
        action = Box(x / 2, y / 2, x, y) if i % 10 == 0 else Click(x, y, positive=i % 2 == 1)
        texts.append(grammar.format(action, iou, (1000, 1000)))
    examples = tokenizer(texts, add_special_tokens=False)["input_ids"]
    used = {token for tokens in examples for token in tokens}
    return Drafts(examples, frozenset(t for t in used if tokenizer.decode([t]).strip().isdigit()))

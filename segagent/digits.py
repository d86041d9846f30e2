"""The expected IoU: the mean over all IoUs "0.00" … "1.00" that a model could say, each with its probability.

A greedy answer gives the likeliest digit of each place; the expectation is finer than a hundredth and knows of doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from segagent.errors import CheckpointError
from segagent.generation import Decoder, Opening
from segagent.prefill import gather

UNLIKELY = 1e-4  # a first decimal less likely than this counts with the middle of its range, not with a row of its own


@dataclass(frozen=True, slots=True)
class Digits:
    """The tokens of "0" … "9" and "." within an IoU."""

    tokens: tuple[int, ...]
    point: int

    @classmethod
    def of(cls, tokenizer: Any) -> Digits:
        """Raises CheckpointError where the tokenizer does not write each digit of an IoU as a token of its own."""

        def tail(iou: str) -> list[int]:
            return tokenizer("Current mIoU: " + iou, add_special_tokens=False)["input_ids"][-4:]

        digits = tuple(tail(f"0.{d}{d}")[-1] for d in range(10))
        point = tail("0.00")[1]
        expected = {f"0.{d}{e}": [digits[0], point, digits[d], digits[e]] for d in range(10) for e in range(10)}
        expected["1.00"] = [digits[1], point, digits[0], digits[0]]
        if len({*digits, point}) != 11 or any(tail(iou) != tokens for iou, tokens in expected.items()):
            raise CheckpointError(
                "The expected IoU needs a tokenizer with one token a digit, and this one merges digits: use the greedy IoU."
            )
        return cls(digits, point)


def expected_iou(decoder: Decoder, openings: Sequence[Opening], digits: Digits) -> list[float]:
    """The expected IoU of each opening, all of which say an IoU; two short forward passes over the batch."""
    zero, first, model = digits.tokens[0], [], decoder.model
    for opening in openings:
        tokens = opening.said.tokens
        place = next(i for i, token in enumerate(tokens) if token in digits.tokens)
        first.append((opening.start.before(len(tokens) - place + 1), [tokens[place - 1], zero, digits.point]))
    batch = gather([start for start, _ in first])
    logits = batch.feed(model, [feed for _, feed in first])
    batch.keep([3] * len(batch), logits)
    choice = list(digits.tokens)
    whole = logits[:, 0][:, choice[:2]].softmax(-1)  # (B, 2): 0 or 1
    tenths = logits[:, 2][:, choice].softmax(-1)  # (B, 10)
    hundredths = torch.full_like(tenths, 4.5)  # (B, 10): mean second decimal after each first one
    rows, likely = (tenths >= UNLIKELY).nonzero(as_tuple=True)
    starts = [batch.start(row) for row in range(len(batch))]
    second = gather([starts[row] for row in rows.tolist()])
    logits = second.feed(model, [[choice[digit]] for digit in likely.tolist()])
    scale = torch.arange(10.0, device=logits.device)
    hundredths[rows, likely] = logits[:, 0][:, choice].softmax(-1) @ scale
    fraction = (tenths * (scale / 10 + hundredths / 100)).sum(-1)
    return (whole[:, 1] + whole[:, 0] * fraction).tolist()

"""A second opinion on masks from any vision-language model: it is asked whether the painted region is the described object.

No training in this package's grammar is needed. As a `judge` of `judges.SecondOpinion` it corrects the policy's own PRM; alone,
its predicted IoUs can rank annotations. (The use of a describing model as a verifier of regions follows Describe Anything.)
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

from segagent import _torchvision
from segagent.composite import Painter, size_seen
from segagent.errors import CheckpointError, SegAgentError
from segagent.grammar import check_expression
from segagent.policy import FixedReading, Observation, Reading

_torchvision.mend()

from segagent.pretrained import check_processor, load  # noqa: E402
from segagent.prompts import encode, render  # noqa: E402

QUESTIONS = {
    "yes": (
        "The region painted in {color} was drawn for: {expression}. Does it cover all of that and nothing else? "
        "Answer yes or no."
    ),
    "number": (
        "The region painted in {color} was drawn for: {expression}. How well does it fit, from 0 (not at all) to 100 "
        "(exactly)? Answer with the number only."
    ),
}
ABSENT = "Does the picture show {expression}? Answer yes or no."  # asked of an empty mask: no is what speaks for it
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORDS = ("{0}", " {0}", "{1}", " {1}", "{2}", " {2}")


class Verifier:
    """Any `AutoModelForImageTextToText` with its `AutoProcessor`, as a judge: its readings have an IoU and propose nothing."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        reading: str = "yes",
        question: str | None = None,
        color: str = "green",
        alpha: float = 0.5,
    ) -> None:
        """`reading` "yes" takes the probability of yes against no, "number" the number that is said; `question` may name
        {expression} and {color}. Raises SegAgentError, CheckpointError."""
        if reading not in QUESTIONS:
            raise SegAgentError(f"Unknown reading {reading!r} of a verifier: use {' or '.join(QUESTIONS)}.")
        self.question = QUESTIONS[reading] if question is None else question
        try:
            self.question.format(expression="", color="")
        except (KeyError, IndexError, ValueError) as error:
            raise SegAgentError(
                f"A verifier's question may name {{expression}} and {{color}} only: {error!r}."
            ) from error
        check_processor(processor)
        self.model, self.processor, self.reading, self.color = model.eval(), processor, reading, color
        self._picture = Painter(color, alpha, size_seen(processor.image_processor))
        self._yes, self._no = _first_tokens(processor.tokenizer)
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | PathLike[str], *, device: str | None = None, dtype: str = "auto", **options: Any
    ) -> Verifier:
        """A folder, or a repository of the Hub; `options` are those of the constructor and of `pretrained.load`."""
        own = {name: options.pop(name) for name in ("reading", "question", "color", "alpha") if name in options}
        model, processor = load(path_or_repo, dtype=dtype, **options)
        if "device_map" not in options:
            model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, processor, **own)

    def read(self, observations: Sequence[Observation]) -> list[Reading]:
        """One batch for the masks, one for the empty masks, which are asked for the object in the picture."""
        ious: list[float | None] = [None] * len(observations)
        empty = [i for i, o in enumerate(observations) if not o.mask.any()]
        drawn = [i for i, o in enumerate(observations) if o.mask.any()]
        for rows, question, read in (
            (empty, ABSENT, lambda inputs: [1 - p for p in self._agreement(inputs)]),
            (drawn, self.question, self._agreement if self.reading == "yes" else self._numbers),
        ):
            if rows:
                inputs = self._inputs([observations[i] for i in rows], question)
                with torch.inference_mode(), self._lock:
                    for i, iou in zip(rows, read(inputs), strict=True):
                        ious[i] = iou
        return [FixedReading((), iou) for iou in ious]

    def _agreement(self, inputs: dict[str, torch.Tensor]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of each row's next token."""
        # generate, not forward: it knows each model's way to place a row that is padded on the left
        output = self._generate(inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        logits = output.logits[0].float()
        yes, no = (torch.logsumexp(logits[:, tokens], -1) for tokens in (self._yes, self._no))
        return torch.sigmoid(yes - no).tolist()

    def _numbers(self, inputs: dict[str, torch.Tensor]) -> list[float | None]:
        """The number that each row says, over 100; None where it says none up to 100."""
        said = self._generate(inputs, max_new_tokens=12)[:, inputs["input_ids"].shape[1] :]
        found = [_NUMBER.search(t) for t in self.processor.batch_decode(said, skip_special_tokens=True)]
        values = [None if match is None else float(match[0]) / 100 for match in found]
        return [value if value is not None and value <= 1 else None for value in values]

    def _generate(self, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
        pad = self.processor.tokenizer.pad_token_id
        return self.model.generate(**inputs, do_sample=False, num_beams=1, pad_token_id=pad, **options)

    def _inputs(self, observations: Sequence[Observation], question: str) -> dict[str, torch.Tensor]:
        asked = [question.format(expression=check_expression(o.expression), color=self.color) for o in observations]
        prompts = [render(self.processor, text) for text in asked]
        return encode(self.model, self.processor, prompts, [self._picture(o) for o in observations])


def _first_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that "yes" and "no" may begin with, however they are written. Raises CheckpointError."""

    def begins(word: str) -> set[int]:
        spellings = (text.format(word, word.capitalize(), word.upper()) for text in _WORDS)
        return {tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in spellings}

    yes, no = begins("yes"), begins("no")
    both = yes & no  # such as the blank before either
    if not yes - both or not no - both:
        raise CheckpointError(
            "The verifier's tokenizer does not tell yes from no by their first tokens: use another model."
        )
    return sorted(yes - both), sorted(no - both)

"""Decoding by `model.generate` alone, for models whose keys and values `prefill` cannot keep: same answers, more work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from segagent.generation import Opening, Said
from segagent.prefill import extended


@dataclass(frozen=True, slots=True, eq=False)
class PlainStart:
    """A prompt as the processor gave it (one row), and the answer's first tokens, which are prompted as well."""

    inputs: dict[str, torch.Tensor]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PlainDecoder:
    """What `generation.Decoder` does, with one call of `model.generate` for each prompt and each time it is gone on from."""

    model: Any
    end: frozenset[int]  # end-of-text tokens
    limit: int  # most tokens of an answer

    def read(self, inputs: dict[str, torch.Tensor], belongs: Callable[[Sequence[int]], bool]) -> list[Opening]:
        """The greedy beginning of one prompt's answer, for as long as the tokens belong to it. `inputs` is one row."""
        length = inputs["input_ids"].shape[1]

        def strayed(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.tensor([not belongs(row) for row in ids[:, length:].tolist()], device=ids.device)

        said = Said([])
        self._generate(PlainStart(inputs, ()), [said], 0.0, stopping_criteria=[strayed], count=belongs)
        opening = Said(said.tokens, said.logprob)
        return [Opening(opening, PlainStart(inputs, tuple(said.tokens)), PlainStart(inputs, ()))]

    def go_on(self, starts: Sequence[PlainStart], said: Sequence[Said], temperature: float) -> None:
        """Completes each answer from its start. An answer is drawn from its own numbers, or those of the first of its start."""
        groups = defaultdict(list)
        for start, answer in zip(starts, said, strict=True):
            groups[id(start), answer.numbers is None].append((start, answer))
        for (_, greedy), group in groups.items():
            self._generate(group[0][0], [answer for _, answer in group], 0.0 if greedy else temperature)

    def _generate(
        self, start: PlainStart, said: Sequence[Said], temperature: float, count: Callable | None = None, **options: Any
    ) -> None:
        inputs = extended(start.inputs, start.tokens)
        if temperature > 0:
            # whatever the checkpoint's generation_config says, the model's own distribution is sampled
            options |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            options |= {"num_return_sequences": len(said)}
        else:
            options |= {"do_sample": False}
        device = inputs["input_ids"].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if temperature > 0:
                torch.manual_seed(int(said[0].numbers[0] * 2**53))
            output = self.model.generate(
                **inputs,
                **options,
                repetition_penalty=1.0,
                num_beams=1,
                max_new_tokens=self.limit - len(start.tokens),
                eos_token_id=sorted(self.end),
                pad_token_id=min(self.end),
                return_dict_in_generate=True,
                output_logits=True,
            )
        logprobs = torch.log_softmax(torch.stack(output.logits, 1).float(), -1)
        sequences = output.sequences[:, inputs["input_ids"].shape[1] :]
        logprobs = logprobs.gather(-1, sequences[..., None])[..., 0].tolist()
        rows = list(zip(sequences.tolist(), logprobs, strict=True))
        for i, answer in enumerate(said):
            self._add(answer, *rows[i if len(rows) > 1 else 0], count)

    def _add(self, said: Said, tokens: Sequence[int], logprobs: Sequence[float], belongs: Callable | None) -> None:
        for token, logprob in zip(tokens, logprobs, strict=True):
            if belongs is not None and (token in self.end or not belongs([*said.tokens, token])):
                break
            said.logprob += logprob
            if token in self.end:
                said.ended = True
                break
            said.tokens.append(token)
        said.done = True

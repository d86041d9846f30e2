"""Milliseconds a read and a proposal, decoding from one prefill against `model.generate`: `python -m tests.benchmarks.policy`.

Without --checkpoint the model is a FastVLM of 3 million random weights that is made to say a scripted answer, token by token;
the time of a pass does not depend on what is said. Both sides say the same tokens, which is checked.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny_models

from segagent.mllm import MLLMPolicy, MLLMReading
from segagent.policy import Observation
from segagent.types import State

ANSWER = "Current mIoU: 0.53. Positive point: (412, 133)"


def scripted(text: str) -> tuple[Any, Any]:
    """A FastVLM of 3 M weights, 100 image tokens, that answers ANSWER: its logits are shifted by the place in the answer."""
    model, processor = tiny_models.fastvlm(text, size=160, widths=(48, 96, 192), hidden=224, layers=4)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.02)
    words = processor.tokenizer
    answer = torch.tensor([*words(ANSWER)["input_ids"], words.eos_token_id])
    ask, image = len(words(" A: ")["input_ids"]), model.config.image_token_id  # what comes after the image

    def shift(module: Any, arguments: Any, inputs: dict[str, Any], output: Any) -> Any:
        ids, places = inputs["input_ids"], inputs["position_ids"]
        if (ids[0] == image).any():  # a prompt; all are equally long here
            module.first = int(places[0, (ids[0] == image).nonzero()[-1]]) + ask
        kept = output.logits.shape[1]
        after = (places[:, -kept:] - module.first).clamp(0, len(answer) - 1)
        output.logits.scatter_add_(2, answer[after][..., None], torch.full((*after.shape, 1), 50.0))
        return output

    model.register_forward_hook(shift, with_kwargs=True)
    return model, processor


def observations(count: int, size: int = 160) -> list[Observation]:
    mask = np.zeros((size, size), bool)
    mask[40:90, 50:120] = True
    return [
        Observation(State(tiny_models.picture(size=(size, size), seed=i), mask), "the red cup on the left")
        for i in range(count)
    ]


def best(function: Any, repeats: int) -> float:
    """The least milliseconds of `repeats` runs. Of one thread it is the processor's time, which a busy machine changes less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times) * 1000


def measure(policy: MLLMPolicy, batch: int, repeats: int) -> dict[str, float]:
    observed = observations(batch)
    passes: list[int] = []
    hook = policy.model.register_forward_hook(lambda *_: passes.append(1))
    readings = policy.read(observed)
    reading_passes = len(passes)
    MLLMReading.propose_many(readings, 1, 0.0)
    hook.remove()
    return {
        "read": best(lambda: policy.read(observed), repeats),
        "propose": best(lambda: MLLMReading.propose_many(readings, 1, 0.0), repeats),
        "propose 3": best(lambda: MLLMReading.propose_many(readings, 3, 1.0, list(range(batch))), repeats),
        "passes of a read": reading_passes,
        "passes of a proposal": len(passes) - reading_passes,
    }


def plain(policy: MLLMPolicy, batch: int, repeats: int) -> dict[str, float]:
    """The whole answer by `model.generate`, with the same inputs, K = 1 and K = 3."""
    observed = observations(batch)

    def generate(**options: Any) -> torch.Tensor:
        images = [policy._picture(o) for o in observed]
        inputs = policy._inputs([policy._prompt(o.expression) for o in observed], images)
        output = policy.model.generate(**inputs, max_new_tokens=policy.settings.max_new_tokens, **options)
        return output[:, inputs["input_ids"].shape[1] :]

    said = policy.processor.tokenizer.batch_decode(generate(do_sample=False), skip_special_tokens=True)
    ours = [r.propose()[0].text for r in policy.read(observed)]
    assert [text.strip() for text in said] == ours, (said, ours)
    return {
        "generate": best(lambda: generate(do_sample=False), repeats),
        "generate 3": best(lambda: generate(do_sample=True, num_return_sequences=3, top_k=0), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", help="a folder or repository, in place of the scripted model")
    parser.add_argument(
        "--text", choices=("gpt2", "llama", "qwen2"), default="llama", help="the scripted model's text part"
    )
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    policy = (
        MLLMPolicy.from_pretrained(args.checkpoint, device="cpu")
        if args.checkpoint
        else MLLMPolicy(*scripted(args.text))
    )
    count = sum(p.numel() for p in policy.model.parameters()) / 1e6
    print(
        f"{args.checkpoint or args.text}: {count:.1f} M weights, {torch.get_num_threads()} threads; least of {args.repeats} runs, ms"
    )
    with torch.inference_mode():
        for batch in (1, 3, 8):
            row = {**measure(policy, batch, args.repeats), **plain(policy, batch, args.repeats)}
            print(f"batch {batch}: " + ", ".join(f"{name} {value:.1f}" for name, value in row.items()))
            print(
                f"  generate / (read + propose) {row['generate'] / (row['read'] + row['propose']):.2f}; "
                f"with 3 candidates {row['generate 3'] / (row['read'] + row['propose 3']):.2f}"
            )


if __name__ == "__main__":
    main()

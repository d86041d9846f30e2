"""Search against a literal Algorithm 2, in one run, interleaved: `OMP_NUM_THREADS=1 python -m tests.benchmarks.search`

Three ways to the same states, given the same candidates, on one model and one segmenter:
- search: `GreedySearch`; a step is one batched read, one batched call of the segmenter, one batched decoding of candidates;
- sequential: one call after another, each on its own, but with the keys and values of a read kept for the candidates;
- stopped: one call after another, 1 + 2K a step, each a `model.generate`; the PRM's are stopped when the IoU is said;
- literal: the same with nothing but `model.generate` of whole answers, as Algorithm 2 is written.

Seconds are the process's own (all threads), which other work on the machine changes less than the clock's; both are printed.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from segagent import Environment, MLLMPolicy, SegAgent
from segagent.data import hres_synth
from segagent.policy import Observation, Proposal, Reading, propose_many, seed_for
from segagent.rollout import rollout, rollout_many
from segagent.search import GreedySearch
from segagent.types import Sample, State

WIDE = 32  # tokens in a row: more are a prompt


class Meter:
    """Where the time of a model and a segmenter goes, and what is done in it: taken by hooks, so the code measured is the real one."""

    def __init__(self, model: torch.nn.Module, environment: Environment) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # by part
        self.counts: Counter = Counter()
        self._began: list[float] = []
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave, with_kwargs=True)
        vision = next(m for name, m in model.named_modules() if name.endswith("vision_tower"))
        vision.register_forward_pre_hook(lambda *_: self._began.append(time.process_time()))
        vision.register_forward_hook(self._seen, with_kwargs=True)
        segmenter = environment.segmenter
        environment.segmenter = _Timed(segmenter, self)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[name] += time.process_time() - began

    def _enter(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._vision = 0.0
        self._began.append(time.process_time())

    def _leave(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        name = "prefill" if kwargs["input_ids"].shape[1] > WIDE else "decode"
        self.seconds[name] += time.process_time() - self._began.pop() - self._vision
        self.counts[f"{name} passes"] += 1
        self.counts[f"{name} tokens"] += kwargs["input_ids"].numel()

    def _seen(self, module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self._vision = time.process_time() - self._began.pop()
        self.seconds["vision"] += self._vision
        self.counts["pictures"] += len(args[0] if args else kwargs["pixel_values"])


class _Timed:
    """A segmenter whose time and calls are counted."""

    def __init__(self, segmenter: Any, meter: Meter) -> None:
        self.segmenter, self.meter, self.reference = segmenter, meter, segmenter.reference

    def encode(self, image: Any) -> Any:
        with self.meter.part("segmenter"):
            return self.segmenter.encode(image)

    def predict(self, embedding: Any, states: Sequence[State], actions: Sequence[Any]) -> Any:
        self.meter.counts["segmenter calls"] += 1
        self.meter.counts["masks"] += len(states)
        with self.meter.part("segmenter"):
            return self.segmenter.predict(embedding, states, actions)


@dataclass(frozen=True, slots=True, eq=False)
class _Going:
    """A reading that never proposes to stop, so that every run has its T steps."""

    reading: Reading

    @property
    def predicted_iou(self) -> float | None:
        return self.reading.predicted_iou

    @classmethod
    def propose_many(cls, readings: Sequence[_Going], *options: Any) -> list[list[Proposal]]:
        drawn = propose_many([r.reading for r in readings], *options)
        return [[p for p in row if p.action is not None] for row in drawn]


class Going:
    def __init__(self, policy: MLLMPolicy) -> None:
        self.policy = policy

    def read(self, observations: Sequence[Observation]) -> list[_Going]:
        return [_Going(reading) for reading in self.policy.read(observations)]


class Whole:
    """A policy of whole answers by `model.generate`, of which what is needed is taken."""

    def __init__(self, policy: MLLMPolicy) -> None:
        self.policy = policy

    def read(self, observations: Sequence[Observation]) -> list[_WholeReading]:
        return [_WholeReading(self, o, self._said(o, do_sample=False)[0]) for o in observations]

    def _said(self, observation: Observation, **options: Any) -> list[float | None]:
        """The IoU of each answer that is generated."""
        policy = self.policy
        inputs = policy._inputs([policy._prompt(observation.expression)], [policy._picture(observation)])
        with torch.inference_mode():
            output = policy.model.generate(**inputs, max_new_tokens=policy.settings.max_new_tokens, **options)
        said = policy.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers = [policy._parse(text, observation.state.size) for text in said]
        return [answer and answer.predicted_iou for answer in answers]


@dataclass(frozen=True, slots=True, eq=False)
class _WholeReading:
    policy: Whole
    observation: Observation
    predicted_iou: float | None

    def propose(self, candidates: int, temperature: float, seed: int) -> None:
        self.policy._said(
            self.observation, do_sample=True, top_k=0, temperature=temperature, num_return_sequences=candidates
        )


def one_by_one(
    environment: Environment, policy: Any, sample: Sample, given: Sequence[Sequence[Any]], candidates: int
) -> list[State]:
    """Algorithm 2, one call after another; candidates are drawn, but those that are given are used in their place."""
    observation = Observation(environment.reset(sample), sample.expression, sample.id)
    reading, states = policy.read([observation])[0], []
    for step, actions in enumerate(given):
        reading.propose(candidates, 1.0, seed_for(0, sample.id, step))
        tried = []
        for action in actions:
            state = environment.step(observation.state, action)
            after = policy.read([replace(observation, state=state)])[0]
            tried.append((state, after))
        state, reading = max(tried, key=lambda pair: -1.0 if pair[1].predicted_iou is None else pair[1].predicted_iou)
        observation = replace(observation, state=state)
        states.append(state)
    return states


def searched(
    environment: Environment, policy: Any, sample: Sample, candidates: int, steps: int
) -> tuple[list[State], list[list[Any]]]:
    """The states of a search, and the candidates of each of its steps; one that others came to the same as comes so often."""
    search = GreedySearch(policy, environment, candidates)
    run = [t for t in rollout(environment, search, sample, steps=steps, temperature=1.0) if t.action is not None]
    tree = run[-1].details
    return [t.next_state for t in run], [
        [node.action for node in tree.children(i) for _ in range(1 + node.merged)] for i in tree.walk[: len(run)]
    ]


@dataclass(slots=True)
class Cost:
    cpu: float = 0.0
    wall: float = 0.0
    steps: int = 0
    parts: Counter | None = None
    counts: Counter | None = None

    def measure(self, meter: Meter, function: Callable[[], Any]) -> Any:
        """Adds what one call of `function` costs; → what it returns."""
        meter.seconds.clear()
        meter.counts.clear()
        cpu, wall = time.process_time(), time.perf_counter()
        result = function()
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall
        self.parts = (self.parts or Counter()) + Counter(meter.seconds)
        self.counts = (self.counts or Counter()) + meter.counts
        return result

    def line(self, name: str) -> str:
        parts = {**self.parts, "rest": self.cpu - sum(self.parts.values())}
        shares = ", ".join(
            f"{part} {1000 * parts[part] / self.steps:.1f}" for part in sorted(parts, key=parts.get)[::-1]
        )
        counts = ", ".join(f"{key} {n / self.steps:.1f}" for key, n in sorted(self.counts.items()))
        return (
            f"{name}: {1000 * self.cpu / self.steps:.1f} ms of the processor, {1000 * self.wall / self.steps:.1f} ms a step\n"
            f"    ms: {shares}\n    a step: {counts}"
        )


def same(a: Sequence[State], b: Sequence[State]) -> bool:
    return len(a) == len(b) and all(
        x.actions == y.actions and (x.mask == y.mask).all() for x, y in zip(a, b, strict=True)
    )


def compare(agent: SegAgent, samples: Sequence[Sample], candidates: int, steps: int) -> None:
    policy, environment = agent.policy, agent.environment
    stopped = MLLMPolicy(policy.model, policy.processor, policy.grammar, reuse=False)
    others = {"sequential": policy, "stopped": stopped, "literal": Whole(policy)}
    meter = Meter(policy.model, environment)
    costs = {name: Cost() for name in ("search", *others, "K = 1")}
    searched(environment, Going(policy), samples[0], candidates, 1)  # encodes, warms up
    identical = Counter()
    for sample in samples:
        environment.segmenter.encode(sample.image)
        states, given = costs["search"].measure(
            meter, lambda s=sample: searched(environment, Going(policy), s, candidates, steps)
        )
        for name, other in others.items():
            found = costs[name].measure(
                meter, lambda s=sample, p=other, g=given: one_by_one(environment, p, s, g, candidates)
            )
            identical[name] += same(found, states)
        single, _ = costs["K = 1"].measure(meter, lambda s=sample: searched(environment, Going(policy), s, 1, steps))
        for name, cost in costs.items():
            cost.steps += len(single if name == "K = 1" else states)
    for name, cost in costs.items():
        print(cost.line(f"{name}, K = {candidates}" if name != "K = 1" else name))
    for name in others:
        print(
            f"{name} / search: {ratio(costs[name], costs['search'])}; "
            f"identical states in {identical[name]} of {len(samples)} runs"
        )
    print(f"K = {candidates} / K = 1, a step: {ratio(costs['search'], costs['K = 1'])}")


def ratio(a: Cost, b: Cost) -> str:
    return f"{a.cpu / a.steps / (b.cpu / b.steps):.2f} (clock {a.wall / a.steps / (b.wall / b.steps):.2f})"


def together(agent: SegAgent, samples: Sequence[Sample], candidates: int, steps: int) -> None:
    """All samples in lock step against one after another."""
    policy, environment = Going(agent.policy), agent.environment
    for sample in samples:
        environment.segmenter.encode(sample.image)
    cpu = []
    for batch in (len(samples), 1):
        began = time.process_time()
        for first in range(0, len(samples), batch):
            search = GreedySearch(policy, environment, candidates)
            part = samples[first : first + batch]
            list(rollout_many(environment, search, part, steps=steps, temperature=1.0))
        cpu.append(time.process_time() - began)
    print(f"{len(samples)} samples one after another / in lock step: {cpu[1] / cpu[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", help="a folder or repository, in place of the embedded nano")
    parser.add_argument("--segmenter", help="instead of the checkpoint's")
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--samples", type=int, default=4)
    args = parser.parse_args()
    agent = SegAgent.from_pretrained(args.checkpoint, segmenter=args.segmenter)
    samples = [hres_synth("test")[i] for i in range(args.samples)]
    print(f"K = {args.candidates}, T = {args.steps}, {len(samples)} samples, {torch.get_num_threads()} threads")
    compare(agent, samples, args.candidates, args.steps)
    together(agent, samples, args.candidates, min(args.steps, 4))


if __name__ == "__main__":
    main()

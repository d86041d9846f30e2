"""SegAgent: a policy that clicks, the segmenter it clicks on, and how the two run; loaded, saved and asked as one thing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from segagent.adapters import save_adapter
from segagent.cards import card_text
from segagent.checkpoint import (
    CONFIG,
    MODEL_SETTINGS,
    SEGMENTER,
    AgentConfig,
    check_run,
    find_checkpoint,
    load_its_segmenter,
    move_into,
    read_config,
    save_segmenter,
)
from segagent.environment import Environment, check_action
from segagent.errors import CheckpointError, SegAgentError
from segagent.grammar import Grammar, check_expression
from segagent.images import load_image, load_mask
from segagent.judges import SecondOpinion
from segagent.policy import Observation, Policy, ScriptedPolicy
from segagent.result import Result
from segagent.rollout import collect, rollout
from segagent.search import CANDIDATES, Plateau, TreeSearch, make_strategy
from segagent.segmenters import Segmenter, load_segmenter
from segagent.types import Action, Sample, State, Transition
from segagent.uploads import upload

NANO = Path(__file__).parent / "nano"  # the embedded checkpoint


class RunOptions(TypedDict, total=False):
    """How a run goes; what is left out, or None, is as the checkpoint has it."""

    steps: int | None  # T: decisions at most, a person's clicks included; see search.strategies for what one costs
    candidates: int | None  # K: clicks to compare at each step; more than one, or a strategy, makes it a search
    temperature: float | None  # of sampled clicks; 0 takes the likeliest, or 1 where there are several candidates
    strategy: str | None  # greedy, beam, best-first or mcts; with one and no candidates there are CANDIDATES
    width: int | None  # of a beam
    patience: int | None  # the run ends when the best predicted IoU rose by less than `gain` in so many steps; 0: never
    gain: float | None


class SegAgent:
    """Segments by clicking. Stateless between calls; several threads may share one."""

    def __init__(
        self, policy: Policy, segmenter: Segmenter | str = "grabcut", config: AgentConfig | None = None
    ) -> None:
        """`config` holds the defaults of a run; a model's grammar and overlay are the policy's own."""
        self.policy = policy
        self.environment = Environment(load_segmenter(segmenter) if isinstance(segmenter, str) else segmenter)
        self.config = config or AgentConfig()

    @property
    def segmenter(self) -> Segmenter:
        return self.environment.segmenter

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str] | None = None,
        *,
        segmenter: Segmenter | str | None = None,
        grammar: Grammar | None = None,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> SegAgent:
        """A checkpoint from a folder or the Hub; without one, the embedded segagent-nano.

        `segmenter` (an object, or what load_segmenter takes) replaces the checkpoint's. `grammar` says how the model speaks,
        and makes an agent of a plain vision-language model that has no segagent.json. Raises CheckpointError.
        """
        if path_or_repo is None and not NANO.is_dir():
            raise CheckpointError("This installation has no embedded model: give a checkpoint's folder or repository.")
        folder = find_checkpoint(
            NANO if path_or_repo is None else path_or_repo,
            revision=revision,
            subfolder=subfolder,
            token=token,
            local_files_only=local_files_only,
            code=trust_remote_code,
        )
        config = AgentConfig() if grammar and not (folder / CONFIG).exists() else read_config(folder)
        if grammar is not None:
            config = replace(config, grammar=grammar)
        if segmenter is None:
            segmenter = load_its_segmenter(folder, config, device)
        elif isinstance(segmenter, str):
            segmenter = load_segmenter(segmenter, device=device)
        from segagent.mllm import MLLMPolicy  # torch and transformers only from here on

        policy = MLLMPolicy.from_pretrained(
            folder,
            grammar=config.grammar,
            **{name: getattr(config, name) for name in MODEL_SETTINGS},
            device=device,
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
        )
        return cls(policy, segmenter, config)

    def second_opinion(self, judge: Policy, combine: str = "mean") -> SegAgent:
        """An agent whose predicted IoUs are those of its policy and of `judge` combined (see judges.COMBINE).

        `judge` is any policy that reads masks, e.g. `verifier.Verifier.from_pretrained(…)`. Raises SegAgentError.
        """
        return type(self)(SecondOpinion(self.policy, judge, combine), self.segmenter, self.config)

    def save_pretrained(self, folder: str | os.PathLike[str], max_shard_size: str = "5GB") -> None:
        """Writes the whole checkpoint, weights in files of at most `max_shard_size`. Raises CheckpointError.

        Of a policy with an adapter (peft's), the adapter is written and its base named. `folder` shows nothing until all of it
        is written.
        """
        model = getattr(self.policy, "model", None)
        if model is None:
            raise CheckpointError(f"A {type(self.policy).__name__} has no model to save.")
        target = Path(folder).expanduser().absolute()
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"{target} is a file: give a folder.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
                fresh = Path(temporary) / "checkpoint"
                fresh.mkdir()
                if hasattr(model, "get_base_model"):
                    save_adapter(model, fresh)
                else:
                    model.save_pretrained(fresh, max_shard_size=max_shard_size)
                self.policy.processor.save_pretrained(fresh)
                reference = save_segmenter(self.segmenter, fresh / SEGMENTER)
                config = replace(self.config, segmenter=reference, grammar=self.policy.grammar, **self._decoding())
                (fresh / CONFIG).write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
                move_into(fresh, target)
        except OSError as error:
            raise CheckpointError(f"{target} cannot be written: {error.strerror or error}.") from error

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        card: str | os.PathLike[str] | None = None,
        report: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        commit_message: str = "Upload a SegAgent checkpoint",
    ) -> str:
        """Uploads the checkpoint in one commit; → the commit's address. Raises CheckpointError.

        `card` (a Markdown file) becomes its README. With `report` (what segagent.evaluate measured, or its report.json) the
        figures are in the card as `model-index`, and without a `card` one is made of them.
        """
        text = card_text(repo, card, report)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "checkpoint"
            self.save_pretrained(folder)
            if text is not None:
                (folder / "README.md").write_text(text, encoding="utf-8")
            return upload(folder, repo, private=private, token=token, revision=revision, message=commit_message)

    def segment(
        self,
        image: Any,
        expression: str,
        *,
        mask: Any = None,
        clicks: Sequence[Action] = (),
        seed: int = 0,
        **options: Unpack[RunOptions],
    ) -> Result:
        """The best mask by predicted IoU of what `expression` names, and the run that led to it; arguments as of `stream`."""
        sample = self._sample(image, expression)
        transitions = self._run(sample, mask, clicks, seed, options)
        return Result.of(collect(sample, transitions), self.segmenter.reference)

    def stream(
        self,
        image: Any,
        expression: str,
        *,
        mask: Any = None,
        clicks: Sequence[Action] = (),
        seed: int = 0,
        **options: Unpack[RunOptions],
    ) -> Iterator[Transition]:
        """The run's transitions as they are made, the closing one last. What is wrong with the input is raised at once.

        image: see load_image. mask: where to start (see load_mask). clicks: a person's, done first. seed: of what is
        sampled. options: see RunOptions. Of a search, the tree so far is in each transition's `details` that it decided.
        """
        return self._run(self._sample(image, expression), mask, clicks, seed, options)

    def refine(self, image: Any, expression: str, mask: Any, **options: Any) -> Result:
        """`segment` that goes on from `mask` instead of nothing."""
        return self.segment(image, expression, mask=mask, **options)

    def score(self, image: Any, expression: str, mask: Any) -> float:
        """The IoU in [0, 1] that the policy predicts for `mask` (paper, Table 3: filtering of annotations)."""
        sample = self._sample(image, expression)
        state = self.environment.reset(sample, load_mask(mask, sample.size))
        predicted = self.policy.read([Observation(state, sample.expression, sample.id)])[0].predicted_iou
        if predicted is None:
            raise SegAgentError(
                "The model did not say how good the mask is: it was not trained to, or speaks another grammar."
            )
        return predicted

    def _decoding(self) -> dict[str, Any]:
        """The policy's settings that a checkpoint keeps; they, not the config, are what it was trained or made with."""
        settings = self.policy.settings
        return {name: getattr(settings, name) for name in MODEL_SETTINGS}

    def _sample(self, image: Any, expression: str) -> Sample:
        return Sample(load_image(image), check_expression(expression))

    def _run(
        self,
        sample: Sample,
        mask: Any,
        clicks: Sequence[Action],
        seed: int,
        options: RunOptions,
    ) -> Iterator[Transition]:
        config = self._configured(options)
        check_run(config, seed)
        start = self.environment.reset(sample, None if mask is None else load_mask(mask, sample.size))
        for click in clicks:
            check_action(start, click)
        steps = max(0, config.steps - len(clicks))
        return self._transitions(self._searching(config), sample, start, clicks, steps, config.temperature, seed)

    def _configured(self, options: RunOptions) -> AgentConfig:
        unknown = set(options) - set(RunOptions.__annotations__)
        if unknown:
            raise TypeError(f"Unknown option of a run: {', '.join(sorted(unknown))}.")
        given = {name: value for name, value in options.items() if value is not None}
        if "strategy" in given and self.config.candidates == 1:
            given.setdefault("candidates", CANDIDATES)
        return replace(self.config, **given)

    def _searching(self, config: AgentConfig) -> Policy:
        """The policy itself, or a search of its own for this run."""
        if config.candidates == 1 and config.strategy == AgentConfig.strategy and not config.patience:
            return self.policy
        strategy = make_strategy(config.strategy, config.width)
        plateau = Plateau(config.patience, config.gain)
        return TreeSearch(self.policy, self.environment, strategy, config.candidates, plateau)

    def _transitions(
        self,
        policy: Policy,
        sample: Sample,
        state: State,
        clicks: Sequence[Action],
        steps: int,
        temperature: float,
        seed: int,
    ) -> Iterator[Transition]:
        """A person's clicks, then at most `steps` of the policy's."""
        for transition in rollout(self.environment, ScriptedPolicy(clicks), sample, steps=len(clicks), start=state):
            if transition.action is not None:
                state = transition.next_state
                yield transition
        yield from rollout(
            self.environment, policy, sample, steps=steps, start=state, temperature=temperature, seed=seed
        )

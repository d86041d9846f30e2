"""Search in worlds whose best path is known: what each strategy finds, what it costs, and what it does when things fail."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from fakes import BrushSegmenter, FunctionPolicy, disc_sample

from segagent import Box, Click, Environment, Undo
from segagent.errors import SegAgentError, SegmenterError
from segagent.export import replay, trajectory_to_json
from segagent.masks import iou
from segagent.policy import FixedReading, Observation, Proposal, seed_for
from segagent.rollout import collect, rollout, rollout_many
from segagent.search import MCTS, STRATEGIES, Beam, GreedySearch, Plateau, Tree, TreeSearch, make_strategy
from segagent.types import Sample, State

# Greedy takes click 1, under which nothing is good; click 2 looks worse and leads to the best state, (2, 3).
TRAP = {
    (): 0.1,
    (1,): 0.5,
    (2,): 0.4,
    (1, 4): 0.3,
    (1, 5): 0.2,
    (1, 4, 6): 0.3,
    (2, 3): 0.9,
    (2, 7): 0.3,
    (2, 3, 8): 0.6,
}
ALL = sorted(STRATEGIES)


def path_of(state: State) -> tuple[int, ...]:
    return tuple(int(a.x) // 4 for a in state.actions)


def world(values: dict[tuple[int, ...], float | None], stops: tuple = ()) -> FunctionPolicy:
    """States are paths of numbers, each a click in a place of its own; `values` are their predicted IoUs, `stops` where to stop."""

    def decide(observation: Observation):
        path = path_of(observation.state)
        onward = [p[-1] for p in values if p[:-1] == path and p]
        actions = [Click(4 * step + 2, 20) for step in onward]
        return values[path], [*actions, *([None] if path in stops else [])]

    return FunctionPolicy(decide)


def run(
    policy, strategy="greedy", candidates=3, steps=6, plateau=None, segmenter=None, sample=None, start=None, seed=0
):
    """(trajectory, its last tree, the segmenter) of one search."""
    environment = Environment(segmenter or BrushSegmenter(radius=1))
    search = TreeSearch(policy, environment, strategy, candidates, plateau)
    sample = sample or disc_sample()
    found = collect(sample, rollout(environment, search, sample, steps=steps, start=start, seed=seed))
    return found, found.transitions[-1].details, environment.segmenter


class Sampler:
    """Clicks anywhere, seeded; knows the true IoU with a disc."""

    def __init__(self, stop_at: float = 2.0) -> None:
        self.stop_at, self.batches = stop_at, []

    def read(self, observations):
        self.batches.append([o.state for o in observations])
        return [SamplerReading(self, iou(o.mask, disc_sample().target), o.state.size) for o in observations]


class SamplerReading:
    def __init__(self, sampler, predicted_iou, size):
        self.sampler, self.predicted_iou, self.size = sampler, predicted_iou, size

    def propose(self, candidates=1, temperature=0.0, seed=None):
        if self.predicted_iou >= self.sampler.stop_at:
            return [Proposal(None, "stop")]
        rng = np.random.default_rng(seed)
        xs, ys, signs = rng.integers(50, size=candidates), rng.integers(40, size=candidates), rng.random(candidates)
        return [
            Proposal(Click(int(x), int(y), bool(s < 0.8)), f"{x}", -float(x))
            for x, y, s in zip(xs, ys, signs, strict=True)
        ]


@pytest.mark.parametrize(("strategy", "found"), [("greedy", 0.5), ("beam", 0.9), ("best-first", 0.9), ("mcts", 0.9)])
def test_what_each_strategy_finds_where_the_best_looking_click_leads_nowhere(strategy, found):
    trajectory, tree, _ = run(world(TRAP), strategy)
    assert trajectory.predicted_ious[trajectory.best()] == found
    assert path_of(trajectory.states[trajectory.best()]) == ((2, 3) if found == 0.9 else (1,))
    assert path_of(tree.nodes[tree.best].state) == path_of(trajectory.states[trajectory.best()])
    assert [path_of(tree.nodes[i].state) for i in tree.path] == ([(), (2,), (2, 3)] if found == 0.9 else [(), (1,)])
    if strategy != "greedy":  # the others end where the best is
        assert trajectory.states[-1] is trajectory.states[trajectory.best()]


def test_best_first_goes_back_by_undo():
    trajectory, tree, segmenter = run(world(TRAP), "best-first", steps=3)
    first, second, third = Click(6, 20), Click(10, 20), Click(14, 20)
    assert [t.action for t in trajectory.steps] == [first, Undo(), second, third]
    assert trajectory.predicted_ious == (0.1, 0.5, 0.1, 0.4, 0.9)
    assert trajectory.states[2] is trajectory.states[0]
    assert tree.jumps == ((1, 0),)
    assert tree.spent.steps == 3
    assert segmenter.calls == [2, 2, 2]  # nothing for the way back, nor for the way on
    assert trajectory.end == "steps"


@pytest.mark.parametrize("strategy", ALL)
def test_a_run_is_a_chain_of_transitions_that_can_be_replayed(strategy):
    trajectory, tree, _ = run(Sampler(), strategy, steps=8, seed=3)
    for before, after in pairwise(trajectory.transitions):
        assert before.next_state is after.state
    for step in trajectory.steps:
        if isinstance(step.action, Undo):
            assert step.next_state is step.state.previous
    assert [tree.nodes[i].state for i in tree.walk] == list(trajectory.states)
    assert tree.nodes[tree.best].predicted_iou == max(p for p in trajectory.predicted_ious)
    saved = trajectory_to_json(trajectory, "fake:brush")
    again = replay(saved, trajectory.sample.image, BrushSegmenter(radius=1))
    assert all((a.mask == b.mask).all() for a, b in zip(again.states, trajectory.states, strict=True))


def test_one_batch_of_masks_and_one_of_readings_a_step():
    sampler = Sampler()
    trajectory, tree, segmenter = run(sampler, "greedy", steps=4)
    assert len(trajectory.steps) == 4
    assert segmenter.calls == [3] * 4
    assert [len(batch) for batch in sampler.batches][:2] == [1, 3]
    assert len(sampler.batches) == 5  # the last state was read already
    read = [state for batch in sampler.batches for state in batch]
    assert len({id(state) for state in read}) == len(read)  # none twice
    assert (tree.spent.segmented, tree.spent.read) == (12, len(read))


@pytest.mark.parametrize("strategy", ALL)
def test_what_a_search_says_it_spent_is_what_it_spent(strategy):
    sampler = Sampler()
    _, tree, segmenter = run(sampler, strategy, steps=5, seed=1)
    spent = tree.spent
    assert spent.segmented == sum(segmenter.calls)
    assert spent.read == sum(map(len, sampler.batches)) == len(tree)
    assert len(segmenter.calls) == 5 == spent.steps
    assert spent.expanded == (1 + 4 * 3 if strategy == "beam" else 5)  # a beam's step expands its three states
    assert spent.expanded == sum(node.expanded is not None for node in tree)
    assert Counter(node.expanded for node in tree)[0] == 1


def test_readings_that_are_given_up_are_read_again_when_needed():
    def search(held):
        sampler, environment = Sampler(), Environment(BrushSegmenter(radius=1))
        searching = TreeSearch(sampler, environment, MCTS(0.5), 3, held=held)
        found = collect(disc_sample(), rollout(environment, searching, disc_sample(), steps=9))
        return found.transitions[-1].details, sum(map(len, sampler.batches))

    (tree, read), (same, more) = search(100), search(1)
    assert [(n.action, n.predicted_iou, n.expanded) for n in tree] == [
        (n.action, n.predicted_iou, n.expanded) for n in same
    ]
    assert tree.spent.read == read == len(tree)
    assert same.spent.read == more > read


def test_each_step_keeps_the_candidate_that_looks_best():
    trajectory, tree, _ = run(Sampler(), candidates=5, seed=4)
    for number, step in enumerate(trajectory.steps):
        drawn = SamplerReading(Sampler(), 0, (40, 50)).propose(5, 1.0, seed_for(4, "disc", number))
        candidates = step.details.children(tree.walk[number])
        assert [(c.action, c.logprob) for c in candidates] == [(p.action, p.logprob) for p in drawn]
        assert step.action == max(candidates, key=lambda c: c.predicted_iou).action
    assert [tree.nodes[i].predicted_iou for i in tree.walk] == list(trajectory.predicted_ious)


def test_the_tree_grows_while_the_run_streams():
    trajectory, last, _ = run(Sampler(), "best-first", steps=6)
    trees = [t.details for t in trajectory if t.details is not None]
    assert [tree.spent.steps for tree in trees] == [1, 2, 3, 4, 5, 6, 6]
    for earlier, later in pairwise(trees):
        assert isinstance(earlier, Tree)
        assert [n.state for n in earlier] == [n.state for n in later][: len(earlier)]
        assert later.walk[: len(earlier.walk)] == earlier.walk
    scored = last.scored(trajectory.sample)
    assert [node.iou for node in scored] == pytest.approx([node.predicted_iou for node in scored])


def test_more_candidates_are_better_on_average():
    def quality(candidates):
        runs = [
            run(Sampler(), candidates=candidates, steps=3, seed=s, segmenter=BrushSegmenter())[0] for s in range(20)
        ]
        return np.mean([max(r.ious) for r in runs])

    assert quality(1) < quality(3) < quality(8)


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("predicted", [0.9, 0.0])
def test_no_such_object_is_an_answer(strategy, predicted):
    values = {(): predicted, (1,): predicted, (2,): predicted / 2}
    trajectory, tree, _ = run(world(values, stops=((),)), strategy)
    assert [t.end for t in trajectory] == ["stop"]
    assert not trajectory.states[-1].mask.any()
    assert tree.best == 0
    assert [node.stop for node in tree] == [False, False, False, True]


@pytest.mark.parametrize("strategy", ALL)
def test_a_stop_where_another_candidate_reads_better_is_not_taken(strategy):
    values = {(): 0.2, (1,): 0.7, (1, 2): 0.8}
    trajectory, _, _ = run(world(values, stops=((), (1, 2))), strategy)
    assert [t.action and path_of(t.next_state) for t in trajectory] == [(1,), (1, 2), None]
    assert trajectory.end == "stop"


@pytest.mark.parametrize("strategy", ["best-first", "mcts"])
def test_a_stop_is_believed_only_of_the_best_state(strategy):
    values = {(): 0.1, (1,): 0.6, (2,): 0.5, (1, 3): 0.2, (2, 4): 0.1, (2, 4, 5): 0.7}
    trajectory, tree, _ = run(world(values, stops=((2,), (2, 4, 5))), strategy, steps=8)
    assert path_of(trajectory.states[-1]) == (2, 4, 5)
    assert trajectory.end == "stop"
    assert tree.jumps


def test_a_run_goes_back_to_the_best_state_to_stop_there():
    values = {(): 0.1, (1,): 0.6, (2,): 0.65, (1, 3): 0.2, (2, 4): 0.3}
    # the stop of (2,) is as good as its state, which nothing else reaches
    trajectory, _, _ = run(world(values, stops=((2,),)), "best-first")
    assert [path_of(s) for s in trajectory.states] == [(), (2,)]
    assert trajectory.end == "stop"


def test_mcts_follows_the_upper_confidence_bound():
    """Two arms; after each is tried once, visits and means decide, computed here by hand."""
    values = {(): 0.0, (1,): 0.5, (2,): 0.4, (1, 3): 0.4, (1, 4): 0.3, (2, 5): 0.45, (1, 3, 6): 0.1, (2, 5, 7): 0.1}
    for exploration in (0.0, 0.05, 0.4):
        trajectory, tree, _ = run(world(values), MCTS(exploration), steps=2)
        assert path_of(tree.nodes[1].state) == (1,)
        arm1, arm2 = (0.5 + 0.4 + 0.3) / 3, 0.4
        bounds = [arm1 + exploration * math.sqrt(math.log(5) / 3), arm2 + exploration * math.sqrt(math.log(5))]
        goes = trajectory.steps[-1] if exploration else None
        assert (tree.nodes[1].visits, tree.nodes[1].value) == (3, pytest.approx(arm1))
        assert tree.nodes[0].visits == 5
        if goes is not None:
            assert bounds[1] > bounds[0]
    _, tree, _ = run(world(values), MCTS(0.0), steps=6)
    assert {path_of(node.state) for node in tree} == set(values)  # all is seen where there are steps enough


def test_a_beam_expands_its_width_in_one_batch():
    policy = world(TRAP)
    _, tree, segmenter = run(policy, Beam(2), steps=2)
    assert segmenter.calls == [2, 4]
    assert policy.batches == [1, 2, 4]
    assert [node.expanded for node in tree][:3] == [0, 1, 1]


def test_candidates_that_do_the_same_cost_once():
    clicks = [Click(5, 5), Click(5.3, 4.6), Click(5, 5, False), Box(1, 1, 9, 9), Box(1.2, 1, 9, 9), None, None]
    policy = FunctionPolicy(lambda o: (0.1 * len(o.state.actions), clicks))
    _, tree, segmenter = run(policy, candidates=7, steps=1)
    # a pixel, its negative (which changes nothing), a box, a stop
    assert segmenter.calls == [3]
    assert policy.batches == [1, 3]
    assert [node.merged for node in tree] == [0, 1, 0, 1, 1]
    assert (tree.spent.proposed, tree.spent.merged) == (7, 3)


def test_candidates_that_lead_to_one_mask_are_read_once():
    clicks = [Click(5, 5, False), Click(25, 25, False), Click(15, 5)]
    policy = FunctionPolicy(lambda o: (0.1, clicks))
    _, tree, segmenter = run(policy, steps=1)
    assert segmenter.calls == [3]
    assert policy.batches == [1, 2]
    assert [node.merged for node in tree] == [0, 1, 0]
    assert (tree.spent.segmented, tree.spent.read, tree.spent.merged) == (3, 3, 1)


class Fragile(BrushSegmenter):
    """Refuses clicks in the left half."""

    def predict(self, embedding, states, actions):
        if any(a.x < 25 for a in actions):
            raise SegmenterError("It cannot click there.")
        return super().predict(embedding, states, actions)


def test_candidates_that_fail_are_left_out_and_counted():
    clicks = [Click(5, 5), Click(30, 5), Click(999, 5), Click(math.nan, 3), Undo()]
    policy = FunctionPolicy(lambda o: (0.1, clicks))
    trajectory, tree, _ = run(policy, candidates=5, steps=2, segmenter=Fragile())
    assert [t.action for t in trajectory.steps] == [Click(30, 5)] * 2
    assert tree.spent.failed == 8 == len(tree.skipped)
    assert "It cannot click there." in tree.skipped
    assert sum("outside the image" in reason for reason in tree.skipped) == 4


@pytest.mark.parametrize("strategy", ALL)
def test_where_all_candidates_fail_the_run_ends_and_keeps_what_it_had(strategy):
    policy = FunctionPolicy(lambda o: (0.3, [Click(5, 5)] if o.state.actions else [Click(30, 5)]))
    trajectory, tree, _ = run(policy, strategy, segmenter=Fragile())
    assert trajectory.end == "malformed"
    assert trajectory.transitions[-1].text == "It cannot click there."
    assert path_of(trajectory.states[-1]) == (7,)
    assert tree.spent.failed == 1


@pytest.mark.parametrize("strategy", ALL)
def test_a_policy_that_says_nothing_valid_ends_the_run(strategy):
    trajectory, tree, _ = run(FunctionPolicy(lambda o: (0.5, [])), strategy)
    assert trajectory.end == "malformed"
    assert len(trajectory) == len(tree) == 1


def test_best_first_survives_a_state_where_nothing_valid_is_said():
    values = {(): 0.1, (1,): 0.5, (2,): 0.4, (2, 3): 0.9}
    trajectory, _, _ = run(world(values), "best-first", steps=3)
    assert path_of(trajectory.states[-1]) == (2, 3)


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("said", [None, math.nan, -0.5, 7.0])
def test_a_prm_that_says_no_number_in_0_to_1(strategy, said):
    values = {(): said, (1,): said, (2,): said, (1, 3): said}
    trajectory, tree, _ = run(world(values, stops=((1, 3),)), strategy)
    assert path_of(trajectory.states[1]) == (1,)  # the first drawn, as without a PRM
    assert set(trajectory.predicted_ious) == {None}
    assert tree.spent.unread == tree.spent.read
    mixed, _, _ = run(world({(): 0.1, (1,): said, (2,): 0.4}), strategy, steps=1)
    assert path_of(mixed.states[1]) == (2,)


@pytest.mark.parametrize("strategy", ALL)
def test_the_rule_of_convergence(strategy):
    values = {tuple(range(1, n + 1)): v for n, v in enumerate([0.1, 0.3, 0.6, 0.605, 0.6, 0.7, 0.9])}
    ends = {}
    for patience in (0, 1, 2, 5):
        trajectory, tree, segmenter = run(world(values), strategy, plateau=Plateau(patience, 0.05), steps=10)
        ends[patience] = trajectory.end, max(path_of(s) for s in trajectory.states)
        assert len(segmenter.calls) == tree.spent.steps if trajectory.end == "converged" else True
    assert ends[1] == ("converged", (1, 2, 3))
    assert ends[2] == ("converged", (1, 2, 3, 4))
    assert ends[0] == ends[5] == ("malformed", (1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("strategy", ALL)
def test_runs_in_lock_step_are_the_runs_alone(strategy):
    environment = Environment(BrushSegmenter())
    samples = [disc_sample(str(i)) for i in range(4)]
    together = {i: [] for i in range(4)}

    def told(t):
        return t.action, t.predicted_iou, t.iou, t.text, t.end, t.details and t.details.to_json()

    search = TreeSearch(Sampler(0.3), environment, strategy, 3, Plateau(4))
    for i, transition in rollout_many(environment, search, samples, steps=7, seed=5):
        together[i].append(told(transition))
    for i, sample in enumerate(samples):
        single = TreeSearch(Sampler(0.3), environment, strategy, 3, Plateau(4))
        assert [told(t) for t in rollout(environment, single, sample, steps=7, seed=5)] == together[i]
    assert len({str(told) for told in together.values()}) == 4


def test_one_search_serves_run_after_run():
    environment = Environment(BrushSegmenter())
    search = TreeSearch(Sampler(), environment, "mcts")
    runs = [collect(disc_sample(), rollout(environment, search, disc_sample(), steps=3)) for _ in range(2)]
    assert [len(r.transitions[-1].details) for r in runs] == [len(runs[0].transitions[-1].details)] * 2
    assert [t.action for t in runs[0]] == [t.action for t in runs[1]]


@pytest.mark.parametrize("strategy", ALL)
def test_a_refinement_and_masks_at_both_extremes(strategy):
    sample = disc_sample()
    for start in (np.zeros(sample.size, bool), np.ones(sample.size, bool)):
        full = Sample(sample.image, "all of it", np.ones(sample.size, bool), id="full")
        trajectory, tree, _ = run(Sampler(), strategy, sample=full, start=start, steps=2)
        assert tree.scored(full).nodes[0].iou == float(start.all())
        assert (trajectory.states[0].mask == start).all()


def test_without_steps_only_the_first_state_is_read():
    sampler = Sampler()
    trajectory, tree, segmenter = run(sampler, "mcts", steps=0)
    assert trajectory.end == "steps"
    assert (len(tree), segmenter.calls, len(sampler.batches)) == (1, [], 1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GreedySearch(None, None, 0), "candidates is a whole number from 1 to 100; got 0"),
        (lambda: GreedySearch(None, None, 101), "candidates"),
        (lambda: GreedySearch(None, None, 2.5), "candidates"),
        (lambda: TreeSearch(None, None, "dfs"), "Unknown strategy 'dfs': use greedy, beam, best-first, mcts"),
        (lambda: make_strategy("beam", 0), "width"),
        (lambda: MCTS(math.nan), "exploration"),
        (lambda: MCTS(-1), "exploration"),
        (lambda: Plateau(-1), "patience"),
        (lambda: Plateau(2, 3), "gain"),
    ],
)
def test_settings_out_of_range(make, words):
    with pytest.raises(SegAgentError, match=words):
        make()


def test_a_reading_that_is_asked_directly_steps_once():
    environment = Environment(BrushSegmenter())
    search = GreedySearch(world(TRAP), environment, 3)
    reading = search.read([Observation(environment.reset(disc_sample()), "x")])[0]
    assert reading.predicted_iou == 0.1
    proposals = reading.propose()
    assert [p.action for p in proposals] == [Click(6, 20)]
    assert proposals[0].details.spent.steps == 1


def test_fixed_readings_keep_their_texts():
    policy = FunctionPolicy(lambda o: (0.1, [Click(3, 3)]))
    trajectory, tree, _ = run(policy, steps=1)
    assert trajectory.steps[0].text == tree.nodes[1].text == repr(Click(3, 3))
    assert isinstance(policy.read([Observation(trajectory.states[0], "x")])[0], FixedReading)

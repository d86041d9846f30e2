"""`import segagent` is light, and so is all that needs no model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import segagent

HEAVY = ("torch", "transformers", "trl", "gradio", "datasets")
CORE = ("annotator", "environment", "errors", "grammar", "masks", "metrics", "policy", "rollout", "segmenters", "types")


def in_a_fresh_process(code: str) -> dict:
    """What `code` prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def loads(statement: str) -> dict:
    return in_a_fresh_process(
        f"import json, sys, time\nstart = time.perf_counter()\n{statement}\n"
        "seconds = time.perf_counter() - start\n"
        f"print(json.dumps({{'seconds': seconds, 'heavy': [name for name in {HEAVY} if name in sys.modules]}}))"
    )


def test_import_is_light_and_quick():
    runs = [loads("import segagent")]
    assert runs[0]["heavy"] == []
    while runs[-1]["seconds"] >= 0.5 and len(runs) < 5:  # a busy machine may need a second try
        runs.append(loads("import segagent"))
    assert min(run["seconds"] for run in runs) < 0.5


def test_the_core_needs_no_model():
    assert loads(f"from segagent import {', '.join(CORE)}")["heavy"] == []
    assert (
        loads("from segagent import Click, Environment, Grammar, Sample, SimulatedAnnotator, load_segmenter")["heavy"]
        == []
    )


def test_a_run_of_the_simulated_annotator_needs_no_model():
    code = (
        "import numpy as np\nfrom segagent import Environment, Sample, SimulatedAnnotator, load_segmenter\n"
        "from segagent.rollout import rollout\ntarget = np.zeros((40, 50), bool)\ntarget[10:30, 10:30] = True\n"
        "sample = Sample(np.uint8(60 + 140 * target)[..., None].repeat(3, 2), 'the square', target)\n"
        "run = list(rollout(Environment(load_segmenter('grabcut')), SimulatedAnnotator(target), sample, steps=2))"
    )
    assert loads(code)["heavy"] == []


def test_every_public_name_is_there():
    listed = dir(segagent)
    for name in segagent.__all__:
        assert name in listed
    assert segagent.next_click is segagent.annotator.next_click
    with pytest.raises(AttributeError, match="no attribute 'Cat'"):
        segagent.Cat  # noqa: B018

"""LoRA checkpoints: an adapter alone is saved, comes back on its base from a folder, the Hub and the cache, and says what is missing."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from tiny_models import llava, picture, save, speaker

from segagent import Grammar, MLLMPolicy, SegAgent
from segagent.adapters import ADAPTER, WEIGHTS, base_of
from segagent.checkpoint import CONFIG, AgentConfig
from segagent.errors import CheckpointError, MissingDependencyError
from segagent.pretrained import load

IMAGE = picture()


def adapted(model, seed=0):
    """A LoRA policy's model whose adapter changes what is said."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)"))
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, 0.3)
    return model.eval()


def logits(model, processor):
    policy = MLLMPolicy(model, processor, Grammar())
    inputs = policy._inputs([policy._prompt("the cup")], [policy._picture(observation())])
    with torch.inference_mode():
        return model(**inputs).logits


def observation():
    from segagent.policy import Observation
    from segagent.types import State

    return Observation(State(IMAGE, np.zeros(IMAGE.shape[:2], bool)), "the cup")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    model, processor = speaker()
    return save(copy.deepcopy(model), processor, tmp_path_factory.mktemp("base") / "model")


def agent_on(name, **options):
    model, processor = load(name)
    return SegAgent(MLLMPolicy(adapted(model), processor, Grammar(), **options), "grabcut", AgentConfig(steps=2))


def push_base(base):
    from huggingface_hub import HfApi

    HfApi().create_repo("ada/base")
    return HfApi().upload_folder(repo_id="ada/base", folder_path=base).oid


def test_the_adapter_alone_is_saved_and_comes_back(base, tmp_path):
    agent = agent_on(str(base), alpha=0.25)
    assert agent.policy.reuses
    agent.save_pretrained(tmp_path / "lora")
    files = {file.name for file in (tmp_path / "lora").iterdir()}
    assert {ADAPTER, WEIGHTS, CONFIG, "processor_config.json"} <= files
    assert not {"README.md", "model.safetensors", "config.json"} & files
    assert (tmp_path / "lora" / WEIGHTS).stat().st_size < (base / "model.safetensors").stat().st_size / 4
    assert base_of(tmp_path / "lora") == (str(base), None)
    back = SegAgent.from_pretrained(tmp_path / "lora")
    assert back.policy.settings.alpha == 0.25
    plain = load(base)
    wanted = logits(agent.policy.model, agent.policy.processor)
    assert torch.equal(logits(back.policy.model, back.policy.processor), wanted)
    assert not torch.allclose(logits(*plain), wanted, atol=1e-2)
    assert [t.text for t in back.stream(IMAGE, "the cup")] == [t.text for t in agent.stream(IMAGE, "the cup")]


def test_an_adapter_in_place_of_a_whole_model_and_back(base, tmp_path):
    agent, whole = agent_on(str(base)), SegAgent(MLLMPolicy(*load(base), Grammar()))
    whole.save_pretrained(tmp_path / "agent")
    agent.save_pretrained(tmp_path / "agent")
    assert not list((tmp_path / "agent").glob("model*.safetensors"))
    wanted = logits(agent.policy.model, agent.policy.processor)
    back = SegAgent.from_pretrained(tmp_path / "agent").policy
    assert torch.equal(logits(back.model, back.processor), wanted)
    merged = MLLMPolicy(agent.policy.model.merge_and_unload(), agent.policy.processor, Grammar())
    SegAgent(merged).save_pretrained(tmp_path / "agent")
    assert not (tmp_path / "agent" / ADAPTER).exists()
    assert torch.allclose(logits(*load(tmp_path / "agent")), wanted, atol=1e-4)


def test_over_the_hub_with_the_base_at_its_commit(hub, base):
    commit = push_base(base)
    agent = agent_on("ada/base")
    agent.push_to_hub("ada/lora")
    assert "model.safetensors" not in hub.files("model", "ada/lora")
    named = json.loads(hub.read("model", "ada/lora", ADAPTER))
    assert (named["base_model_name_or_path"], named["revision"]) == ("ada/base", commit)
    from huggingface_hub import HfApi

    HfApi().delete_file("model.safetensors", repo_id="ada/base")  # a later version of the base changes nothing
    back = SegAgent.from_pretrained("ada/lora")
    assert [t.text for t in back.stream(IMAGE, "the cup")] == [t.text for t in agent.stream(IMAGE, "the cup")]
    requests = len(hub.requests)
    SegAgent.from_pretrained("ada/lora", local_files_only=True)
    assert len(hub.requests) == requests


def test_the_whole_model_replaces_the_adapter_on_the_hub(hub, base):
    push_base(base)
    agent = agent_on("ada/base")
    agent.push_to_hub("ada/agent")
    merged = MLLMPolicy(agent.policy.model.merge_and_unload(), agent.policy.processor, Grammar())
    SegAgent(merged).push_to_hub("ada/agent")
    assert ADAPTER not in hub.files("model", "ada/agent")
    assert "model.safetensors" in hub.files("model", "ada/agent")


def test_an_adapter_of_a_local_base_is_not_published(hub, base):
    with pytest.raises(CheckpointError, match="which nobody else has: push the base"):
        agent_on(str(base)).push_to_hub("ada/lora")
    assert not hub.repos


# What can be missing


@pytest.fixture
def lora(base, tmp_path):
    own = shutil.copytree(base, tmp_path / "base")
    agent_on(str(own)).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def refused(words, folder, error=CheckpointError):
    with pytest.raises(error, match=words) as told:
        SegAgent.from_pretrained(folder)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


def test_the_base_is_absent(lora, hub):
    shutil.rmtree(lora.parent / "base")
    refused("is an adapter of .*base, and that cannot be loaded: There is no folder", lora)
    named = json.loads((lora / ADAPTER).read_text())
    (lora / ADAPTER).write_text(json.dumps({**named, "base_model_name_or_path": "ada/none"}))
    refused("is an adapter of ada/none, and that cannot be loaded: There is neither a folder nor a repository", lora)


def test_peft_is_absent(lora, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refused("needs peft: pip install peft", lora, MissingDependencyError)


def test_the_base_is_another_architecture(lora):
    save(*llava(), lora.parent / "other")
    named = json.loads((lora / ADAPTER).read_text())
    (lora / ADAPTER).write_text(json.dumps({**named, "base_model_name_or_path": str(lora.parent / "other")}))
    refused("does not fit its base", lora)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"base_model_name_or_path": 3}'])
def test_malformed_settings(lora, text):
    (lora / ADAPTER).write_text(text)
    refused("does not say of which model", lora)


def test_missing_broken_and_foreign_weights(lora):
    weights = (lora / WEIGHTS).read_bytes()
    (lora / WEIGHTS).write_bytes(weights[:100])
    refused("does not fit its base", lora)
    (lora / WEIGHTS).unlink()
    torch.save({}, lora / "adapter_model.bin")
    refused("no adapter_model.safetensors", lora)


def test_weights_that_lack_some(lora):
    from safetensors.torch import load_file, save_file

    weights = load_file(lora / WEIGHTS)
    weights.pop(min(weights))
    save_file(weights, lora / WEIGHTS, metadata={"format": "pt"})
    refused("does not fit its base .* missing adapter keys", lora)


def test_a_processor_of_the_base_serves_an_adapter_without_one(lora):
    (lora / "processor_config.json").unlink()
    assert SegAgent.from_pretrained(lora).policy.processor.chat_template

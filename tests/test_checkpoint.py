"""Checkpoints: what is saved comes back, on a folder and over the Hub; and one sentence for each that is not whole."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from tiny_models import picture, save, speaker

from segagent import Grammar, MLLMPolicy, SegAgent
from segagent.agent import NANO
from segagent.checkpoint import CONFIG, VERSION, AgentConfig
from segagent.errors import CheckpointError, SegAgentError

IMAGE = picture()
GRAMMAR = Grammar(order="yx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved agent whose every setting differs from the default."""
    policy = MLLMPolicy(*speaker(), GRAMMAR, alpha=0.25, max_new_tokens=40, attempts=2)
    agent = SegAgent(policy, "grabcut", AgentConfig(steps=2, temperature=0.5))
    agent.save_pretrained(tmp_path_factory.mktemp("checkpoints") / "agent")
    return next(iter(tmp_path_factory.getbasetemp().glob("checkpoints*/agent")))


@pytest.fixture
def copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def change(folder, **values):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def refused(words, *arguments, **options):
    with pytest.raises(CheckpointError, match=words) as error:
        SegAgent.from_pretrained(*arguments, **options)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def test_what_is_saved_comes_back(checkpoint):
    agent = SegAgent.from_pretrained(checkpoint)
    settings = agent.policy.settings
    assert (settings.alpha, settings.max_new_tokens, settings.attempts) == (0.25, 40, 2)
    assert agent.policy.grammar == GRAMMAR
    assert (agent.config.steps, agent.config.temperature, agent.config.alpha) == (2, 0.5, 0.25)
    policy = MLLMPolicy(*speaker(), GRAMMAR, alpha=0.25, max_new_tokens=40, attempts=2)
    before = SegAgent(policy, "grabcut", agent.config).segment(IMAGE, "the cup", seed=3)
    after = agent.segment(IMAGE, "the cup", seed=3)
    assert [t.text for t in after.trajectory] == [t.text for t in before.trajectory]
    assert (after.mask == before.mask).all()
    assert 0 <= agent.score(IMAGE, "the cup", np.zeros((48, 64), bool)) <= 1


def test_a_seed_decides_what_is_sampled(checkpoint):
    agent = SegAgent.from_pretrained(checkpoint)
    runs = [[t.text for t in agent.stream(IMAGE, "the cup", temperature=1.0, seed=seed)] for seed in (1, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) > 1


def test_the_folder_is_a_transformers_model(checkpoint):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert model.num_parameters() == speaker()[0].num_parameters()
    assert AutoProcessor.from_pretrained(checkpoint).chat_template
    assert not [f for f in checkpoint.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_config_round_trip():
    config = AgentConfig(
        Grammar(unit="pixel", resolution=(448, 448)), "red", 0.3, "sam:a/b", 11, 3, 0.7, 32, 6, "expected"
    )
    assert AgentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert AgentConfig.from_dict({"version": 1}) == AgentConfig()


# Saving


def test_nothing_is_seen_of_a_save_that_fails(checkpoint, tmp_path, monkeypatch):
    agent = SegAgent.from_pretrained(checkpoint)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(agent.policy.processor, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="No space left"):
        agent.save_pretrained(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_saving_over_a_checkpoint_keeps_what_is_not_its_own(checkpoint, copy):
    (copy / "README.md").write_text("mine")
    (copy / "model-00001-of-00002.safetensors").write_bytes(b"a former model's")
    (copy / "model.safetensors.index.json").write_text("{}")
    before = {f.name for f in checkpoint.iterdir()}
    agent = SegAgent.from_pretrained(checkpoint)
    agent.config = AgentConfig(steps=5)
    agent.save_pretrained(copy)
    assert {f.name for f in copy.iterdir()} == before | {"README.md"}
    assert (copy / "README.md").read_text() == "mine"
    assert SegAgent.from_pretrained(copy).config.steps == 5


def test_save_refuses_a_file(checkpoint, tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        SegAgent.from_pretrained(checkpoint).save_pretrained(tmp_path / "a")


def test_a_segmenters_local_weights_travel_with_it(checkpoint, tmp_path):
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            output_channels=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            mlp_dim=16,
            global_attn_indexes=[0],
            window_size=0,
            num_pos_feats=8,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_dim=16, iou_head_hidden_dim=16
        ),
    )
    config.prompt_encoder_config.image_embedding_size = 8
    torch.manual_seed(0)
    SamModel(config).save_pretrained(tmp_path / "sam")
    agent = SegAgent.from_pretrained(checkpoint, segmenter=str(tmp_path / "sam"))
    agent.save_pretrained(tmp_path / "agent")
    wanted = agent.segment(IMAGE, "the cup").mask
    shutil.rmtree(tmp_path / "sam")
    os.rename(tmp_path / "agent", tmp_path / "moved")
    assert json.loads((tmp_path / "moved" / CONFIG).read_text())["segmenter"] == "segmenter"
    back = SegAgent.from_pretrained(tmp_path / "moved")
    assert (back.segment(IMAGE, "the cup").mask == wanted).all()
    shutil.rmtree(tmp_path / "moved" / "segmenter")
    assert "segmenter=" in refused("lacks the folder segmenter/", tmp_path / "moved")
    assert SegAgent.from_pretrained(tmp_path / "moved", segmenter="grabcut").segmenter.reference == "grabcut"


# Checkpoints that are not whole


def test_without_segagent_json(tmp_path):
    folder = save(*speaker(), tmp_path / "plain")
    assert "grammar=Grammar(" in refused("has no segagent.json", folder)
    agent = SegAgent.from_pretrained(folder, grammar=GRAMMAR)
    assert agent.policy.grammar == GRAMMAR
    assert agent.segmenter.reference == "grabcut"
    assert agent.segment(IMAGE, "the cup", steps=1).mask.shape == (48, 64)


def test_a_given_grammar_replaces_the_checkpoints(checkpoint):
    agent = SegAgent.from_pretrained(checkpoint, grammar=Grammar())
    assert agent.policy.grammar == Grammar()
    assert agent.config.steps == 2


def test_a_newer_version(copy):
    text = refused("upgrade segagent", change(copy, version=VERSION + 1, segagent="9.0", surprise=1))
    assert "9.0" in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": None}, "version"),
        ({"version": "1"}, "version"),
        ({"surprise": 1}, "Unknown settings.*surprise"),
        ({"search": {"depth": 3}}, "Unknown settings.*depth"),
        ({"search": []}, "search is an object"),
        ({"search": {"steps": -1}}, "steps"),
        ({"search": {"steps": "seven"}}, "steps"),
        ({"search": {"temperature": None}}, "temperature"),
        ({"decoding": {"max_new_tokens": "many"}}, "max_new_tokens"),
        ({"decoding": {"iou_reading": 3}}, "iou_reading"),
        ({"decoding": {"click_reading": "loud"}}, "click_reading 'loud': use greedy or consensus"),
        ({"decoding": {"max_new_tokens": 5}}, "max_new_tokens"),
        ({"overlay": {"color": ["green"]}}, "color"),
        ({"overlay": {"color": "mauve"}}, "color"),
        ({"overlay": {"alpha": 2}}, "alpha"),
        ({"grammar": {"unit": "inch"}}, "inch"),
        ({"grammar": {"unit": "pixel"}}, "resolution"),
        ({"grammar": {"unit": "pixel", "resolution": "big"}}, "malformed"),
        ({"grammar": {"prompt": 3}}, "malformed"),
        ({"grammar": {"dialect": "old"}}, "dialect"),
        ({"segmenter": 3}, "segmenter"),
        ({"segmenter": ""}, "segmenter"),
    ],
)
def test_malformed_settings(copy, values, words):
    refused(words, change(copy, **values))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_json(copy, text):
    (copy / CONFIG).write_bytes(text.encode("latin-1"))
    refused(CONFIG, copy)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("clicknet-9", "clicknet-9"),
        ("sam:/nowhere/sam", "nowhere"),
        ("segment-anything:vit_b:/nowhere/sam_vit_b.pth", "nowhere"),
        ("segmenter", "lacks the folder segmenter/"),
    ],
)
def test_a_missing_segmenter(copy, reference, words):
    assert "grabcut" in refused(words, change(copy, segmenter=reference))
    assert SegAgent.from_pretrained(copy, segmenter="grabcut")


def test_missing_and_unsafe_weights(copy):
    weights = torch.nn.Linear(1, 1).state_dict()
    (copy / "model.safetensors").unlink()
    refused("safetensors|model", copy)
    torch.save(weights, copy / "pytorch_model.bin")
    refused("safetensors|model", copy)


def test_a_malicious_pth(checkpoint, tmp_path):
    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"model": Malice()}, tmp_path / "sam_vit_b.pth")
    with pytest.raises(SegAgentError, match="could run code"):
        SegAgent.from_pretrained(checkpoint, segmenter=str(tmp_path / "sam_vit_b.pth"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "name", ["/nowhere/agent", "./nowhere", "~/nowhere", "nowhere", "a/b/c", "", "bad name/with space"]
)
def test_no_such_folder(name):
    refused("folder|empty", name)


def test_a_file_is_no_checkpoint(checkpoint):
    refused("is a file", checkpoint / CONFIG)


def test_subfolder(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "all" / "nano")
    assert SegAgent.from_pretrained(tmp_path / "all", subfolder="nano").config.steps == 2
    refused("no folder micro", tmp_path / "all", subfolder="micro")


def test_the_embedded_model():
    if not NANO.is_dir():
        assert "give a checkpoint" in refused("no embedded model")
        pytest.skip("this tree has no embedded model yet")
    agent = SegAgent.from_pretrained()
    result = agent.segment(IMAGE, "the red square", steps=2)
    assert result.mask.shape == (48, 64)
    assert all(f.stat().st_size < 10 * 2**20 for f in NANO.iterdir())


# The Hub


def test_push_and_pull(hub, checkpoint, tmp_path):
    agent = SegAgent.from_pretrained(checkpoint)
    (tmp_path / "card.md").write_text("---\nlicense: apache-2.0\n---\n# Agent\n")
    url = agent.push_to_hub("ada/agent", private=True, card=tmp_path / "card.md")
    assert url.startswith(hub.url + "/ada/agent/commit/")
    assert hub.repos["models", "ada/agent"].private
    assert {CONFIG, "model.safetensors", "config.json", "README.md"} <= hub.files("model", "ada/agent")
    refused("neither a folder nor a repository", "ada/agent", token="read")
    back = SegAgent.from_pretrained("ada/agent")
    assert [t.text for t in back.stream(IMAGE, "the cup")] == [t.text for t in agent.stream(IMAGE, "the cup")]

    agent.config = AgentConfig(steps=9)
    agent.push_to_hub("ada/agent", revision="nine")
    assert SegAgent.from_pretrained("ada/agent", revision="nine").config.steps == 9
    assert SegAgent.from_pretrained("ada/agent").config.steps == 2
    refused("no revision ten", "ada/agent", revision="ten")


def test_shards_in_a_private_repositorys_folder_with_a_segmenter(hub, checkpoint, tmp_path):
    from huggingface_hub import HfApi

    from segagent.segmenters.simpleclick import SimpleClickSegmenter
    from segagent.segmenters.simpleclick_model import SimpleClickConfig, SimpleClickModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"image_size": 32, "pyramid_inner": (8, 4, 8, 8), "pyramid_sizes": (4, 4, 4, 4), "head_size": 4}
    SimpleClickModel(SimpleClickConfig(**sizes)).save_pretrained(tmp_path / "clicks")
    agent = SegAgent.from_pretrained(checkpoint, segmenter=str(tmp_path / "clicks"))
    agent.save_pretrained(tmp_path / "all" / "small", max_shard_size="60KB")
    assert len(list((tmp_path / "all" / "small").glob("model-*.safetensors"))) > 1
    HfApi().create_repo("ada/agents", private=True)
    HfApi().upload_folder(repo_id="ada/agents", folder_path=tmp_path / "all")
    wanted = agent.segment(IMAGE, "the cup").mask
    shutil.rmtree(tmp_path / "clicks")
    refused("neither a folder nor a repository", "ada/agents", subfolder="small", token="read")
    back = SegAgent.from_pretrained("ada/agents", subfolder="small", token="write")
    assert (back.segment(IMAGE, "the cup").mask == wanted).all()
    alone = SimpleClickSegmenter.from_pretrained("ada/agents", subfolder="small/segmenter")
    assert alone.model.config.hidden_size == 16


def test_only_safe_files_are_fetched(hub, checkpoint, tmp_path):
    from huggingface_hub import HfApi

    folder = shutil.copytree(checkpoint, tmp_path / "agent")
    (folder / "pytorch_model.bin").write_bytes(b"\0pickle")
    (folder / "modeling_agent.py").write_text("raise SystemExit")
    HfApi().create_repo("ada/agent")
    HfApi().upload_folder(repo_id="ada/agent", folder_path=folder)
    SegAgent.from_pretrained("ada/agent")
    fetched = [path for _, path in hub.requests if "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in fetched)
    assert not any(path.endswith((".bin", ".py")) for path in fetched)


def test_offline_after_one_download(hub, checkpoint):
    SegAgent.from_pretrained(checkpoint).push_to_hub("ada/agent")
    refused("not on this machine", "ada/agent", local_files_only=True)
    SegAgent.from_pretrained("ada/agent")
    before = len(hub.requests)
    assert SegAgent.from_pretrained("ada/agent", local_files_only=True).config.steps == 2
    assert len(hub.requests) == before


def test_the_hub_fails(hub, checkpoint):
    refused("neither a folder nor a repository", "ada/none")
    agent = SegAgent.from_pretrained(checkpoint)
    agent.push_to_hub("ada/agent")
    hub.fail("GET", "/api/models/ada/agent", 403, times=9, X_Error_Code="GatedRepo")
    refused("is gated", "ada/agent")
    hub.failures.clear()
    hub.fail("GET", "model.safetensors", "drop", times=99)
    refused("cannot be downloaded|not on this machine", "ada/agent")


def test_the_hub_is_not_there(hub):
    hub.__exit__()
    refused("cannot be reached", "ada/agent")


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [("ada/agent", "read", "uploaded"), ("bob/agent", "write", "rights"), ("a b/c", "write", "uploaded")],
)
def test_a_push_that_may_not_be(hub, checkpoint, repo, token, words):
    with pytest.raises(CheckpointError, match=words):
        SegAgent.from_pretrained(checkpoint).push_to_hub(repo, token=token)

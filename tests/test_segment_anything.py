"""The original segment-anything package behind the segmenter protocol, on a tiny random model in its registry."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

from segagent import _torchvision
from segagent.checkpoint import save_segmenter
from segagent.environment import Environment
from segagent.errors import CheckpointError, MissingDependencyError, SegmenterError
from segagent.segmenters import load_segmenter
from segagent.segmenters.base import Segmenter
from segagent.segmenters.segment_anything import SegmentAnythingSegmenter
from segagent.types import Box, Click, State

_torchvision.mend()
segment_anything = pytest.importorskip("segment_anything")

SIDE = 64


def build(width: int = 32):
    """A Sam of 64 px, its weights large enough for masks that depend on the prompts."""
    from segment_anything import modeling

    torch.manual_seed(0)
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            depth=2,
            embed_dim=width,
            img_size=SIDE,
            num_heads=2,
            patch_size=8,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            window_size=4,
            out_chans=16,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=16, image_embedding_size=(8, 8), input_image_size=(SIDE, SIDE), mask_in_chans=8
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=32, num_heads=2),
            transformer_dim=16,
            iou_head_depth=3,
            iou_head_hidden_dim=16,
        ),
    )
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.normal_(std=0.25)
    return sam.eval()


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """The path of a .pth of the tiny model, which the registry builds as vit_t."""
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_t", build)
    path = tmp_path / "tiny.pth"
    torch.save(build().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def segmenter() -> SegmentAnythingSegmenter:
    return SegmentAnythingSegmenter(build())


def picture(height: int = 50, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def start(image: np.ndarray) -> State:
    return State(image, np.zeros(image.shape[:2], bool))


def test_candidates_share_one_call_and_equal_one_by_one(segmenter):
    image = picture()
    embedding = segmenter.encode(image)
    calls = []
    handle = segmenter.model.mask_decoder.register_forward_hook(lambda *_: calls.append(1))
    state = start(image)
    for candidates in (
        [Click(3, 4), Click(70, 20), Click(30, 40, positive=False)],
        [Click(10, 40), Click(60, 5), Click(0, 0, positive=False)],
        [Box(5, 5, 40, 30), Box(0, 0, 79, 49)],
    ):
        calls.clear()
        together = segmenter.predict(embedding, [state] * len(candidates), candidates)
        assert len(calls) == 1
        for action, prediction in zip(candidates, together, strict=True):
            alone = segmenter.predict(embedding, [state], [action])[0]
            np.testing.assert_allclose(prediction.memory, alone.memory, atol=1e-5)
        state = State(image, together[0].mask, (*state.actions, candidates[0]), together[0].memory, previous=state)
    handle.remove()
    assert isinstance(segmenter, Segmenter)


@pytest.mark.parametrize("size", [(48, SIDE), (50, 80), (90, 70)])
def test_equals_the_packages_own_predictor(segmenter, size):
    image = picture(*size)
    predictor = segment_anything.SamPredictor(segmenter.model)
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(np.array([[20, 11]]), np.array([1]), multimask_output=True)
    state = Environment(segmenter).step(start(image), Click(20, 11))
    np.testing.assert_allclose(state.memory, logits[scores.argmax()], atol=1e-5)
    np.testing.assert_array_equal(state.mask, masks[scores.argmax()])
    masks, _, logits = predictor.predict(
        np.array([[20, 11], [40, 30]]),
        np.array([1, 0]),
        mask_input=logits[[scores.argmax()]],
        multimask_output=False,
    )
    following = Environment(segmenter).step(state, Click(40, 30, positive=False))
    np.testing.assert_allclose(following.memory, logits[0], atol=1e-5)
    np.testing.assert_array_equal(following.mask, masks[0])
    masks, _, logits = predictor.predict(box=np.array([10, 5, 50, 40]), multimask_output=False)
    boxed = Environment(segmenter).step(start(image), Box(10, 5, 50, 40))
    np.testing.assert_allclose(boxed.memory, logits[0], atol=1e-5)


def test_loads_a_pth(registered):
    loaded = SegmentAnythingSegmenter.from_pretrained(f"vit_t:{registered}")
    assert loaded.reference == f"segment-anything:vit_t:{registered}"
    image = picture()
    expected = SegmentAnythingSegmenter(build())
    results = [s.predict(s.encode(image), [start(image)], [Click(20, 20)])[0] for s in (loaded, expected)]
    np.testing.assert_array_equal(results[0].memory, results[1].memory)


def test_saved_as_safetensors_it_comes_back(registered, tmp_path):
    loaded = SegmentAnythingSegmenter.from_pretrained(f"vit_t:{registered}")
    assert save_segmenter(loaded, tmp_path / "segmenter") == "segmenter"
    registered.unlink()
    back = load_segmenter(str(tmp_path / "segmenter"))
    image = picture()
    one, two = (s.predict(s.encode(image), [start(image)], [Click(20, 20)])[0] for s in (loaded, back))
    np.testing.assert_array_equal(one.memory, two.memory)
    (tmp_path / "segmenter" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="no readable model"):
        load_segmenter(str(tmp_path / "segmenter"))


class Malicious:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_unopened(registered, tmp_path):
    mark, bad = tmp_path / "mark", tmp_path / "bad.pth"
    for modern in (True, False):
        torch.save({"a": Malicious(mark)}, bad, _use_new_zipfile_serialization=modern)
        with pytest.raises(CheckpointError, match=r"holds more than weights \(\w+.system\).* not opened"):
            SegmentAnythingSegmenter.from_pretrained(f"vit_t:{bad}")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04", b"\x80\x02}q\x00.", "half"])
def test_a_broken_file_is_one_sentence(registered, tmp_path, content):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(registered.read_bytes()[:5000] if content == "half" else content)
    with pytest.raises(CheckpointError) as caught:
        SegmentAnythingSegmenter.from_pretrained(f"vit_t:{bad}")
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_faults_are_one_sentence(registered, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="There is no weights file"):
        SegmentAnythingSegmenter.from_pretrained(f"vit_t:{tmp_path / 'none.pth'}")
    for name in ("vit_x:a.pth", "vit_b", "vit_b:", ""):
        with pytest.raises(SegmenterError, match="names no segment-anything model: write <default"):
            SegmentAnythingSegmenter.from_pretrained(name)
    for number, held in enumerate((build(width=16).state_dict(), [1, 2], {"a": torch.zeros(1)})):
        other = tmp_path / f"{number}.pth"
        torch.save(held, other)
        with pytest.raises(CheckpointError, match="does not hold the weights of vit_t"):
            SegmentAnythingSegmenter.from_pretrained(f"vit_t:{other}")
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(MissingDependencyError, match="pip install segment-anything=="):
        SegmentAnythingSegmenter.from_pretrained(f"vit_t:{registered}")

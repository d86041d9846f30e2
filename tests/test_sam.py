"""SAM, SAM-HQ, SAM 2 and SAM 3 behind the segmenter protocol, on tiny random models."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from segagent import _torchvision
from segagent.environment import Environment
from segagent.errors import CheckpointError, SegmenterError
from segagent.segmenters.base import Segmenter
from segagent.segmenters.sam import FAMILIES, Geometry, SamSegmenter
from segagent.types import Box, Click, State, Undo

_torchvision.mend()  # transformers imports its parts at their first use

SIDE = 64


def _prompting(hidden: int = 16) -> dict:
    return {
        "prompt_encoder_config": {
            "hidden_size": hidden,
            "image_size": SIDE,
            "patch_size": 8,
            "mask_input_channels": 8,
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    }


def _sam_config(model_type: str) -> transformers.PreTrainedConfig:
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 32,
    }
    parts = _prompting()
    if model_type == "sam_hq":
        parts["mask_decoder_config"]["vit_dim"] = 32
        return transformers.SamHQConfig(vision_config=vision, **parts)
    return transformers.SamConfig(vision_config=vision, **parts)


def _sam2_vision() -> dict:
    return {
        "backbone_config": {
            "hidden_size": 8,
            "image_size": [SIDE, SIDE],
            "patch_kernel_size": [3, 3],
            "patch_stride": [2, 2],
            "patch_padding": [1, 1],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 2, 2, 2],
            "window_size_per_stage": [4, 4, 4, 4],
            "window_positional_embedding_background_size": [4, 4],
            "global_attention_blocks": [3],
            "model_type": "sam2_hiera_det_model",
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 16,
        "model_type": "sam2_vision_model",
    }


def _sam3_config() -> transformers.PreTrainedConfig:
    vision = {
        "backbone_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "pretrain_image_size": 32,
            "model_type": "sam3_vit_model",
        },
        "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "model_type": "sam3_vision_model",
    }
    return transformers.Sam3TrackerConfig(vision_config=vision, **_prompting())


def tiny(model_type: str) -> torch.nn.Module:
    """A random model whose weights are large enough for masks that depend on the prompts."""
    if model_type in ("sam", "sam_hq"):
        config = _sam_config(model_type)
    elif model_type == "sam2":
        config = transformers.Sam2Config(vision_config=_sam2_vision(), **_prompting())
    else:
        config = _sam3_config()
    torch.manual_seed(0)
    model = getattr(transformers, FAMILIES[model_type].model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25)
    return model


TYPES = ("sam", "sam_hq", "sam2", "sam3_tracker")


@pytest.fixture(scope="module", params=TYPES)
def segmenter(request) -> SamSegmenter:
    return SamSegmenter(tiny(request.param), family=FAMILIES[request.param], reference="sam:tiny")


@pytest.fixture(scope="module")
def sam() -> SamSegmenter:
    return SamSegmenter(tiny("sam"), family=FAMILIES["sam"])


def picture(height: int = 50, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def start(image: np.ndarray, mask: np.ndarray | None = None) -> State:
    return State(image, np.zeros(image.shape[:2], bool) if mask is None else mask)


class Calls:
    """Counts the calls of the mask decoder and keeps what each was given."""

    def __init__(self, segmenter: SamSegmenter) -> None:
        self.inputs: list[dict] = []
        self._handle = segmenter.model.register_forward_pre_hook(
            lambda _module, _args, kwargs: self.inputs.append(kwargs), with_kwargs=True
        )

    def __enter__(self) -> list[dict]:
        return self.inputs

    def __exit__(self, *_) -> None:
        self._handle.remove()


def test_candidates_of_a_state_share_one_call_and_equal_one_by_one(segmenter):
    image = picture()
    state = start(image)
    embedding = segmenter.encode(image)
    for candidates in (
        [Click(3, 4), Click(70, 20), Click(30, 40, positive=False)],  # the first click, the second, a box after two
        [Click(10, 40), Click(60, 5, positive=False), Click(0, 0)],
        [Box(5, 5, 40, 30), Box(0, 0, 79, 49), Box(20, 3, 21, 4)],
        [Click(33, 21), Click(50, 9)],
    ):
        with Calls(segmenter) as calls:
            together = segmenter.predict(embedding, [state] * len(candidates), candidates)
        assert len(calls) == 1
        for action, prediction in zip(candidates, together, strict=True):
            alone = segmenter.predict(embedding, [state], [action])[0]
            np.testing.assert_allclose(prediction.memory, alone.memory, atol=1e-5)
            assert (prediction.mask != alone.mask).mean() < 1e-3  # a logit of 1e-7 may fall on either side of zero
        assert len({prediction.memory.tobytes() for prediction in together}) == len(candidates)
        state = State(image, together[0].mask, (*state.actions, candidates[0]), together[0].memory, previous=state)


def test_different_histories_in_one_batch_equal_one_by_one(segmenter):
    image = picture()
    environment = Environment(segmenter)
    one = environment.step(start(image), Click(40, 20))
    two = environment.step(one, Click(5, 45, positive=False))
    refined = start(image, np.pad(np.ones((20, 30), bool), ((10, 20), (20, 30))))
    states = [start(image), one, two, refined, start(image), two]
    actions = [Click(1, 1), Click(20, 30), Box(0, 0, 50, 40), Click(60, 40), Box(3, 3, 9, 30), Click(8, 8)]
    embedding = segmenter.encode(image)
    together = segmenter.predict(embedding, states, actions)
    for state, action, prediction in zip(states, actions, together, strict=True):
        alone = segmenter.predict(embedding, [state], [action])[0]
        np.testing.assert_allclose(prediction.memory, alone.memory, atol=1e-5)


def test_several_masks_are_asked_for_at_the_first_click_only(segmenter):
    image = picture()
    environment = Environment(segmenter)
    with Calls(segmenter) as calls:
        state = environment.step(start(image), Click(40, 20))
        state = environment.step(state, Click(8, 9, positive=False))
        state = environment.step(state, Box(2, 3, 50, 40))
        environment.step(start(image), Box(2, 3, 50, 40))
        environment.step(start(image, np.eye(50, 80, dtype=bool)), Click(40, 20))
    first, second, third, box, refinement = calls
    assert [c["multimask_output"] for c in calls] == [True, False, False, False, False]
    assert first["input_masks"] is None
    assert box["input_masks"] is None
    assert torch.equal(second["input_masks"][0, 0], torch.from_numpy(state.previous.previous.memory))
    assert third["input_labels"].tolist() == [[[1, 0]]]
    assert third["input_boxes"].shape == (1, 1, 4)
    assert refinement["input_masks"].shape == (1, 1, 32, 32)
    assert refinement["input_masks"].min() >= -10
    assert refinement["input_masks"].max() > -10


def test_the_mask_of_highest_predicted_iou_is_kept(segmenter):
    image = picture()
    embedding = segmenter.encode(image)
    prediction = segmenter.predict(embedding, [start(image)], [Click(40, 20)])[0]
    prompts = segmenter._stack([segmenter._prompt(embedding.geometry, start(image), Click(40, 20))])
    with torch.inference_mode():
        logits, scores = segmenter._decode(embedding.features, prompts)
    assert logits.shape[:2] == scores.shape == (1, 3)
    best = logits[0, scores[0].argmax()].numpy()
    limit = FAMILIES[segmenter.model.config.model_type].limit
    np.testing.assert_allclose(prediction.memory, best if limit is None else best.clip(-limit, limit), atol=1e-6)


def test_states_are_plain_and_pickle(segmenter):
    environment = Environment(segmenter)
    state = environment.step(environment.step(start(picture()), Click(4, 4)), Click(9, 40))
    assert type(state.memory) is np.ndarray
    assert state.memory.dtype == np.float32
    assert state.memory.shape == (32, 32)
    assert state.memory.base is None  # no view that keeps the whole batch alive
    again = pickle.loads(pickle.dumps(state))
    following = [environment.step(s, Click(30, 30)) for s in (state, again)]
    np.testing.assert_array_equal(following[0].memory, following[1].memory)
    assert environment.step(state, Undo()) is state.previous
    assert isinstance(segmenter, Segmenter)


def test_another_segmenters_memory_is_not_fed_back(sam):
    image, mask = picture(), np.zeros((50, 80), bool)
    mask[10:30, 20:60] = True
    foreign = State(image, mask, (Click(30, 20),), memory=np.zeros((448, 448), np.float32))
    plain = State(image, mask, (Click(30, 20),))
    a, b = sam.predict(sam.encode(image), [foreign, plain], [Click(50, 25)] * 2)
    np.testing.assert_array_equal(a.memory, b.memory)


def test_encodes_an_image_once_by_content(sam):
    image = picture(seed=5)
    assert sam.encode(image) is sam.encode(image.copy())
    assert sam.encode(image) is not sam.encode(picture(seed=6))
    for seed in range(20):
        sam.encode(picture(8, 8, seed))
    assert len(sam.encode) == 8


def test_many_threads_share_a_segmenter(segmenter):
    image = picture()
    clicks = [Click(x, 20) for x in range(0, 80, 10)]
    expected = [segmenter.predict(segmenter.encode(image), [start(image)], [c])[0].memory for c in clicks]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda c: segmenter.predict(segmenter.encode(image), [start(image)], [c])[0].memory, clicks)
        )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def processor_of(model_type: str):
    """The released processor of a family, at the tiny models' size."""
    if model_type in ("sam", "sam_hq"):
        pictures = transformers.SamImageProcessorPil(
            size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}, mask_size={"longest_edge": 32}
        )
        return {"sam": transformers.SamProcessor, "sam_hq": transformers.SamHQProcessor}[model_type](pictures)
    pytest.importorskip("torchvision")
    square = {"size": {"height": SIDE, "width": SIDE}, "mask_size": {"height": 32, "width": 32}}
    if model_type == "sam2":
        return transformers.Sam2Processor(transformers.Sam2ImageProcessor(**square))
    return transformers.Sam3TrackerProcessor(transformers.Sam3ImageProcessor(**square))


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("size", [(48, 64), (120, 90), (33, 50)])
def test_equals_model_and_processor_of_transformers(model_type, size):
    processor, image = processor_of(model_type), picture(*size)
    segmenter = SamSegmenter(tiny(model_type), family=FAMILIES[model_type])
    later = model_type in ("sam2", "sam3_tracker")

    def reference(points, labels, box=None, logits=None):
        given = {"input_points": [[points]] if later else [points], "input_labels": [[labels]] if later else [labels]}
        given = (given if points else {}) | ({"input_boxes": [[box]]} if box else {})
        inputs = processor(image, **given, return_tensors="pt")
        inputs = {k: v.float() if k in ("input_points", "input_boxes") else v for k, v in inputs.items()}
        sizes = [inputs.pop(k) for k in ("original_sizes", "reshaped_input_sizes") if k in inputs]
        if not later and box and points:  # this processor forgets the axis of the masks that are asked for
            inputs["input_points"] = inputs["input_points"].view(1, 1, -1, 2)
            inputs["input_labels"] = inputs["input_labels"].view(1, 1, -1)
        with torch.inference_mode():
            output = segmenter.model(
                **inputs, input_masks=logits, multimask_output=len(points) == 1 and box is None and logits is None
            )
        best = int(output.iou_scores[0, 0].argmax())
        mask = processor.post_process_masks(output.pred_masks, *sizes)[0][0, best]
        return output.pred_masks[:, :, best], mask.numpy()

    def check(state, expected) -> None:
        logits, mask = expected
        limited = logits[0, 0].clamp(-32, 32) if later else logits[0, 0]
        # Pillow's resizing and torchvision's differ by a level in some pixels.
        np.testing.assert_allclose(state.memory, limited, atol=0.1 if later else 1e-4)
        assert (state.mask != mask).mean() < (0.01 if later else 1e-3)

    environment = Environment(segmenter)
    first = environment.step(start(image), Click(20, 11))
    expected = reference([[20, 11]], [1])
    check(first, expected)
    fed_back = expected[0].clamp(-32, 32) if later else expected[0]
    second = environment.step(first, Click(41, 30, positive=False))
    check(second, reference([[20, 11], [41, 30]], [1, 0], logits=fed_back))
    boxed = environment.step(start(image), Box(5, 7, 40, 25))
    expected = reference([], [], [5, 7, 40, 25])
    check(boxed, expected)
    fed_back = expected[0].clamp(-32, 32) if later else expected[0]
    check(environment.step(boxed, Click(20, 11)), reference([[20, 11]], [1], [5, 7, 40, 25], fed_back))


def test_the_normalisation_of_a_saved_processor_is_read(tmp_path):
    processor, model = processor_of("sam2"), tiny("sam2")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert SamSegmenter.from_pretrained(tmp_path)._mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_branch_goes_on_from_its_own_logits(segmenter):
    image, environment = picture(), Environment(segmenter)
    root = environment.step(start(image), Click(40, 20))
    left, right = environment.step_many([root, root], [Click(5, 5), Click(70, 40, positive=False)])
    undone = environment.step(environment.step(left, Click(9, 9)), Undo())
    assert undone is left
    for parent in (left, right, undone):
        with Calls(segmenter) as calls:
            environment.step(parent, Click(33, 33))
        assert torch.equal(calls[0]["input_masks"][0, 0], torch.from_numpy(parent.memory))
        assert calls[0]["input_points"].shape == (1, 1, 3, 2)


def test_the_high_quality_token_alone(tmp_path):
    model, image = tiny("sam_hq"), picture()
    model.save_pretrained(tmp_path)
    both, alone = SamSegmenter.from_pretrained(tmp_path), SamSegmenter.from_pretrained(tmp_path, hq_token_only=True)
    pixels = both.encode(image).geometry.pixels(image, both._mean, both._deviation)
    state = start(image)
    for clicks in ([Click(20, 20)], [Click(20, 20), Click(60, 9, positive=False)]):
        points = torch.tensor([[[[c.x * 0.8, c.y * 0.8] for c in clicks]]])
        labels = torch.tensor([[[int(c.positive) for c in clicks]]])
        logits = None if state.memory is None else torch.from_numpy(state.memory)[None, None]
        with torch.inference_mode():
            output = model(
                pixels, points, labels, input_masks=logits, hq_token_only=True, multimask_output=len(clicks) == 1
            )
        assert output.pred_masks.shape[2] == 1
        found = alone.predict(alone.encode(image), [state], clicks[-1:])[0]
        np.testing.assert_allclose(found.memory, output.pred_masks[0, 0, 0], atol=1e-4)
        assert (found.memory != both.predict(both.encode(image), [state], clicks[-1:])[0].memory).any()
        state = State(image, found.mask, tuple(clicks), found.memory, previous=state)
    with pytest.raises(SegmenterError, match="hq_token_only is an option of SAM-HQ, and this is a sam model"):
        SamSegmenter(tiny("sam"), family=FAMILIES["sam"], hq_token_only=True)


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("size", [(50, 80), (300, 200), (1, 1), (7, 900), (2000, 3)])
def test_geometry(size, stretch):
    geometry = Geometry(size, 256, (64, 64), stretch)
    height, width = geometry.covered
    assert 1 <= height <= 256
    assert 1 <= width <= 256
    corners = geometry.points([(0, 0), (size[1], size[0])])
    np.testing.assert_allclose(corners, [(0, 0), (width, height)], atol=1e-4)
    assert geometry.points([]).shape == (0, 2)
    mask = np.zeros(size, bool)
    mask[size[0] // 4 :, : (size[1] + 1) // 2] = True
    logits = geometry.logits(mask)
    assert logits.shape == (64, 64)
    assert logits.dtype == np.float32
    assert np.abs(logits).max() <= 10
    if min(size) >= 50:
        back = geometry.mask(torch.from_numpy(logits))
        assert (back & mask).sum() / (back | mask).sum() > 0.95
    assert geometry.mask(torch.from_numpy(logits)).shape == size


@pytest.mark.parametrize("model_type", TYPES)
def test_loads_by_path(tmp_path, model_type):
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    mean, deviation = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": deviation}))
    loaded = SamSegmenter.from_pretrained(tmp_path)
    assert loaded.reference == f"sam:{tmp_path}"
    image = picture()
    expected = SamSegmenter(model, family=FAMILIES[model_type], normalisation=(mean, deviation))
    results = [s.predict(s.encode(image), [start(image)], [Click(20, 20)])[0] for s in (loaded, expected)]
    np.testing.assert_allclose(results[0].memory, results[1].memory, atol=1e-5)
    (tmp_path / "preprocessor_config.json").unlink()
    default = SamSegmenter.from_pretrained(tmp_path)
    torch.testing.assert_close(default._mean.flatten(), torch.tensor(FAMILIES[model_type].normalisation[0]))


def _remembering() -> dict:
    """The parts of a video model's config that an image needs none of."""
    return {
        "image_size": SIDE,
        "memory_attention_hidden_size": 16,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": 16,
        "memory_encoder_output_channels": 4,
        "mask_downsampler_embed_dim": 16,
        "memory_fuser_embed_dim": 16,
        "memory_fuser_intermediate_dim": 16,
        "memory_fuser_num_layers": 1,
    }


def test_loads_the_image_part_of_a_video_checkpoint(tmp_path):
    # What facebook/sam2* publish: the weights and the config of the video model.
    config = transformers.Sam2VideoConfig(vision_config=_sam2_vision(), **_prompting(), **_remembering())
    torch.manual_seed(0)
    video = transformers.Sam2VideoModel(config)
    video.save_pretrained(tmp_path)
    loaded = SamSegmenter.from_pretrained(tmp_path)
    assert type(loaded.model) is transformers.Sam2Model
    torch.testing.assert_close(loaded.model.mask_decoder.iou_token.weight, video.mask_decoder.iou_token.weight.detach())


def test_loads_the_tracker_out_of_a_sam3_checkpoint(tmp_path):
    # What facebook/sam3 publishes: detector and tracker of the video model, with one vision encoder for both.
    vision = _sam3_config().vision_config.to_dict()
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_layers": 1}
    words = {"intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 50, "projection_dim": 16}
    detector = transformers.Sam3Config(
        vision_config=vision,
        text_config={"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 8, **words},
        geometry_encoder_config=small,
        detr_encoder_config=small,
        detr_decoder_config={**small, "num_queries": 4},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )
    tracker = transformers.Sam3TrackerVideoConfig(vision_config=vision, **_prompting(), **_remembering())
    torch.manual_seed(0)
    video = transformers.Sam3VideoModel(
        transformers.Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=tracker.to_dict())
    )
    video.config.save_pretrained(tmp_path)
    weights = {name: tensor.contiguous() for name, tensor in video.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = SamSegmenter.from_pretrained(tmp_path).model
    assert type(loaded) is transformers.Sam3TrackerModel
    for found, published in (
        (loaded.mask_decoder.iou_token, video.tracker_model.mask_decoder.iou_token),
        (loaded.vision_encoder.neck.fpn_layers[0].proj1, video.tracker_neck.fpn_layers[0].proj1),
        (
            loaded.vision_encoder.backbone.layers[0].mlp.fc1,
            video.detector_model.vision_encoder.backbone.layers[0].mlp.fc1,
        ),
    ):
        torch.testing.assert_close(found.weight, published.weight.detach())


def test_what_cannot_be_loaded_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"No model can be loaded from .*nothing"):
        SamSegmenter.from_pretrained(tmp_path / "nothing", local_files_only=True)
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(SegmenterError, match="is a bert model: give a checkpoint of sam, sam2"):
        SamSegmenter.from_pretrained(tmp_path / "bert")
    folder = tmp_path / "broken"
    model = tiny("sam")
    model.save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="No model can be loaded"):
        SamSegmenter.from_pretrained(folder)
    model.save_pretrained(folder, state_dict={k: v for k, v in model.state_dict().items() if "mask_decoder" not in k})
    with pytest.raises(CheckpointError, match=r"lacks .* of the weights of a SamModel"):
        SamSegmenter.from_pretrained(folder)
    with pytest.raises(CheckpointError):
        SamSegmenter.from_pretrained("not a name", local_files_only=True)

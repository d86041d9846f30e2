"""The table of back ends, the Protocol, and the cache that every back end shares."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from segagent import segmenters
from segagent.errors import SegmenterError
from segagent.segmenters import EmbeddingCache, Segmenter, load_segmenter
from segagent.segmenters.base import content_key


@pytest.fixture
def made(monkeypatch):
    """Stands in for the neural back ends: records what each would have been made from."""
    calls = []

    class Fake:
        @classmethod
        def from_pretrained(cls, path, **options):
            calls.append((cls.__module__, path, options))
            return cls()

    def imported(module):
        fake = type("Fake", (Fake,), {"__module__": module.rpartition(".")[2]})
        return type("module", (), {back_end.class_name: fake for back_end in segmenters._BACK_ENDS.values()})

    monkeypatch.setattr(segmenters.importlib, "import_module", imported)
    return calls


def test_the_default_is_grabcut_and_its_reference_makes_it_again():
    default = load_segmenter()
    assert isinstance(default, Segmenter)
    assert default.reference == "grabcut"
    assert type(load_segmenter(default.reference)) is type(default)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sam:facebook/sam-vit-base", ("sam", "facebook/sam-vit-base")),
        ("segment-anything:vit_b:/models/weights.pth", ("segment_anything", "vit_b:/models/weights.pth")),
        ("/models/sam_vit_h_4b8939.pth", ("segment_anything", "vit_h:/models/sam_vit_h_4b8939.pth")),
        (r"C:\models\sam_vit_l.pth", ("segment_anything", r"vit_l:C:\models\sam_vit_l.pth")),
    ],
)
def test_names_and_files_find_their_back_end(made, name, expected):
    load_segmenter(name, device="cpu")
    assert made == [(*expected, {"device": "cpu"})]


@pytest.mark.parametrize("kind", ["sam", "sam2", "sam2_video", "sam3_tracker"])
def test_a_bare_folder_is_known_by_its_config(made, tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    load_segmenter(str(tmp_path))
    assert made == [("sam", str(tmp_path), {})]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("grabcat", "grabcut, sam:"),
        ("", "grabcut, sam:"),
        ("grabcut:weights.pth", "has no weights"),
        ("sam", "sam:<repository or folder>"),
        ("sam:", "sam:<repository or folder>"),
        ("mystery.pth", "segment-anything:<vit_b|vit_l|vit_h>:"),
        ("/nowhere/at/all", "grabcut, sam:"),
    ],
)
def test_an_unknown_name_says_what_is_known(name, says):
    with pytest.raises(SegmenterError) as error:
        load_segmenter(name)
    assert says in str(error.value)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model_type": "bert"}'])
def test_a_folder_that_is_no_segmenter_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SegmenterError, match=r"config\.json|type 'bert'"):
        load_segmenter(str(tmp_path))


def test_a_repository_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SegmenterError, match="No segmenter 'nobody/nothing-at-all' here or on the Hub"):
        load_segmenter("nobody/nothing-at-all")


def test_the_classical_segmenter_needs_no_neural_package():
    code = (
        "import sys, segagent; segagent.load_segmenter('grabcut');"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'segment_anything') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


class TestCache:
    def test_two_threads_that_ask_for_one_image_encode_it_once(self):
        encoded = []

        def encode(image):
            time.sleep(0.02)
            encoded.append(image)
            return object()

        cache, image, found = EmbeddingCache(encode), np.zeros((4, 4, 3), np.uint8), []
        threads = [threading.Thread(target=lambda: found.append(cache(image.copy()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(encoded) == 1
        assert len(found) == 8
        assert len(set(map(id, found))) == 1

    def test_it_is_bounded_and_forgets_the_least_recently_used(self):
        encoded = []
        cache = EmbeddingCache(lambda image: encoded.append(int(image[0, 0, 0])) or image, size=2)
        images = [np.full((2, 2, 3), value, np.uint8) for value in range(3)]
        for i in (0, 1, 0, 2, 0, 1):
            cache(images[i])
        assert len(cache) == 2
        assert encoded == [0, 1, 2, 1]

    def test_a_failure_is_not_remembered(self):
        answers = [ValueError("once"), "embedding"]

        def encode(image):
            answer = answers.pop(0)
            if isinstance(answer, ValueError):
                raise answer
            return answer

        cache, image = EmbeddingCache(encode), np.zeros((2, 2, 3), np.uint8)
        with pytest.raises(ValueError, match="once"):
            cache(image)
        assert cache(image) == "embedding"

    def test_the_key_is_the_content_and_the_shape(self):
        image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        assert content_key(image) == content_key(image.copy())
        assert content_key(image) != content_key(image.reshape(4, 2, 3))
        changed = image.copy()
        key = content_key(changed)
        changed[0, 0, 0] ^= 1
        assert content_key(changed) != key

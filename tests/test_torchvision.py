"""torchvision healthy, broken (a CUDA build on a CPU torch) and absent: each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A finder that takes the place of the usual one and does not find the packages named: as if they were not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    names = {names!r}

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in cls.names else super().find_spec(fullname, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""

PROCESSORS = """
import numpy as np
from transformers import CLIPImageProcessor
image = np.zeros((40, 60, 3), np.uint8)
assert CLIPImageProcessor()(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)


def succeed(code: str) -> str:
    done = python(code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def without(*names: str) -> str:
    return WITHOUT.format(names=names)


def test_a_broken_torchvision_is_mended():
    # After a first import failed (its submodules stay half-imported), and from many threads at once.
    code = """
import sys, threading
try:
    import torchvision
except RuntimeError as error:
    assert "operator torchvision::" in str(error)
else:
    sys.exit("healthy")
from segagent._torchvision import mend
failures = []
def run():
    try:
        mend()
        from torchvision.transforms.v2 import functional
        from torchvision.ops.boxes import batched_nms
    except Exception as error:
        failures.append(error)
threads = [threading.Thread(target=run) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
assert not failures, failures
import segment_anything
"""
    done = python(code + PROCESSORS)
    if done.returncode and done.stderr.strip() == "healthy":
        pytest.skip("the installed torchvision is healthy: nothing to mend")
    assert done.returncode == 0, done.stderr


def test_a_healthy_torchvision_is_left_alone():
    # A package of the same name that imports without trouble: the same module object before and after, nothing defined.
    code = """
import sys, types
from importlib.machinery import ModuleSpec
healthy = types.ModuleType("torchvision")
healthy.__spec__ = ModuleSpec("torchvision", None)
sys.modules["torchvision"] = healthy
from segagent import _torchvision
_torchvision.mend()
_torchvision.require("A test")
assert sys.modules["torchvision"] is healthy and _torchvision._library is None and "torch" not in sys.modules
"""
    succeed(code)


def test_another_breakage_is_one_sentence(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('compiled with different CUDA major versions')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from segagent._torchvision import mend
from segagent.errors import MissingDependencyError
try:
    mend()
except MissingDependencyError as error:
    print(error)
"""
    said = succeed(code)
    assert "different CUDA major versions" in said
    assert "pip install torchvision==" in said
    assert "\n" not in said


def test_absent_is_no_trouble_until_something_needs_it():
    code = f"""
import sys
from segagent import _torchvision
from segagent.errors import MissingDependencyError
_torchvision.mend()
assert "torchvision" not in sys.modules and "torch" not in sys.modules
try:
    _torchvision.require("The segment-anything package")
except MissingDependencyError as error:
    print(error)
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sam import FAMILIES, Click, Environment, SamSegmenter, picture, start, tiny
segmenter = SamSegmenter(tiny("sam2"), family=FAMILIES["sam2"])  # whose own image processor needs torchvision
assert Environment(segmenter).step(start(picture()), Click(9, 9)).memory.shape == (32, 32)
from segagent.segmenters.simpleclick_model import SimpleClickModel
from segagent.segmenters.segment_anything import SegmentAnythingSegmenter
try:
    SegmentAnythingSegmenter.from_pretrained("vit_b:none.pth")
except MissingDependencyError as error:
    print(error)
"""
    said = succeed(without("torchvision") + code + PROCESSORS).splitlines()
    assert said == 2 * [
        "The segment-anything package needs torchvision, which is not installed: pip install torchvision==0.28.0"
    ]


def test_a_hook_that_refuses_it_is_absence():
    code = """
import sys
from segagent import _torchvision
from segagent.errors import MissingDependencyError
class Refuse:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse)
_torchvision.mend()
try:
    _torchvision.require("A test")
except MissingDependencyError as error:
    print(error)
"""
    assert succeed(code).startswith("A test needs torchvision")

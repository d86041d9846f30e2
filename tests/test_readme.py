"""The README and the cards tell the truth: their Python runs, and each file of the tree has its line."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "data_cards/segagent-nano.md", "data_cards/clicknet.md"])
def test_the_code_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / name)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {"__name__": "__main__"})


def test_each_file_has_its_line():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: which files belong to the tree is not known")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    listed = set(re.findall(r"^ *([\w./-]+\.\w+|LICENSE|\.ci/run|\.gitignore)  ", TEXT, re.MULTILINE))
    own = [
        f
        for f in files
        if f and not re.match(r"tests/test_|segagent/nano/|segagent/clicknet/|segagent/examples/.*png", f)
    ]
    assert [f for f in own if f not in listed] == []
    assert sorted(listed - set(files)) == []


def test_the_front_matter_is_a_space():
    import yaml

    facts = yaml.safe_load(TEXT.split("---")[1])
    assert facts["sdk"] == "gradio"
    assert (ROOT / facts["app_file"]).exists()
    assert f"gradio[mcp]=={facts['sdk_version']}" in (ROOT / "requirements.txt").read_text()
    assert len(facts["short_description"]) <= 60


def test_pins_are_installed():
    from importlib.metadata import version

    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, pin = re.sub(r"\[.*\]", "", line).split("==")
            assert version(name).split("+")[0] == pin

"""The code of the data cards runs. Those of HRES and of trajectories run where their data is made: test_hres, test_data_cli."""

from __future__ import annotations

import re
from pathlib import Path

import segagent.data
from segagent.data import build_hres_synth
from segagent.data.synth_shards import push_hres_synth

CARDS = Path(__file__).parents[1] / "data_cards"
RUN_BY = {
    "hres-synth.md": __file__,
    "hres.md": "test_hres.py",
    "trajectories.md": "test_data_cli.py",
    "segagent-nano.md": "test_readme.py",
    "clicknet.md": "test_readme.py",
}


def test_the_code_of_hres_synths_card_runs(hub, tmp_path, monkeypatch, capsys):
    def fewer(out, counts, **options):
        return build_hres_synth(out, {split: count // 500 for split, count in counts.items()}, size=128, **options)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segagent.data, "build_hres_synth", fewer)
    text = (CARDS / "hres-synth.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks[:2]:
        exec(block, {})
    push_hres_synth("data/HRES-Synth", "ada/HRES-Synth", card=CARDS / "hres-synth.md")
    pushed = hub.read("dataset", "ada/HRES-Synth", "README.md").decode()
    assert "OWNER" not in pushed
    exec(re.findall(r"^```python\n(.*?)^```", pushed, re.DOTALL | re.MULTILINE)[2], {})
    assert "hres-synth/test/hard/" in capsys.readouterr().out


def test_each_card_is_run_by_a_test():
    assert {path.name for path in CARDS.glob("*.md")} == set(RUN_BY)
    for name, test in RUN_BY.items():
        assert name in (Path(__file__).parent / test).read_text(encoding="utf-8")

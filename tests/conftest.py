"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, connect


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hugging Face Hub on loopback; this process and its children use it, with a token that may write as "ada"."""
    with HubServer() as server:
        connect(monkeypatch, server, tmp_path / "hf_home")
        yield server

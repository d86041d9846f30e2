"""A small Hugging Face Hub on loopback for tests: repositories, LFS, commits, trees, resolve with ranges, and failures on demand.

It follows the real routes closely enough for huggingface_hub, datasets and transformers. In a test:

    def test_push(hub):                       # the fixture in conftest.py; everything already points here
        hub.fail("PUT", "/lfs/", "drop")      # once; the next request that matches is cut off half-way
        folder_pushed_with_huggingface_hub()
        assert hub.files("dataset", "ada/things") == {"README.md", …}

By hand: `python tests/hub_server.py 8000`, then HF_ENDPOINT=http://127.0.0.1:8000 HF_TOKEN=write HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hub_routes import Handler
from hub_store import Failure, Repo


class HubServer:
    """`with HubServer() as hub:`; `hub.url` is the endpoint. Tokens: write (user ada), read, expired."""

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens = {"write": ("ada", "write"), "read": ("bob", "read"), "expired": ("ada", "expired")}
        self.failures: list[Failure] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fail(self, method: str, part: str, kind: str | int, times: int = 1, **headers: str) -> None:
        """Let requests fail: `kind` is "drop" (cut off), "corrupt" (the body's last byte changes; "corrupt-middle" one
        in its middle), or a status."""
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        self.failures.append(Failure(method, part, kind, times, headers))

    def files(self, type: str, repo_id: str, revision: str = "main") -> set[str]:
        """Paths of a repository ("model", "dataset", "space"); empty where it is not there."""
        repo = self.repos.get((f"{type}s", repo_id))
        return set(repo.commits[repo.refs.get(revision, revision)][1]) if repo else set()

    def read(self, type: str, repo_id: str, path: str, revision: str = "main") -> bytes:
        repo = self.repos[f"{type}s", repo_id]
        return repo.commits[repo.refs.get(revision, revision)][1][path].data

    def next_failure(self, method: str, path: str) -> Failure | None:
        with self.lock:
            self.requests.append((method, path))
            for failure in self.failures:
                if failure.times and failure.method == method and failure.part in path:
                    failure.times -= 1
                    return failure
        return None


def connect(monkeypatch: Any, hub: HubServer, home: Path, token: str | None = "write") -> None:
    """Point huggingface_hub, datasets and transformers of this process, and the environment of its children, at `hub`."""
    from datasets import config as datasets_config
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    patches = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in patches.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr(_http, "time", impatient)  # no waits between its retries
    monkeypatch.setattr(datasets_config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", home / "datasets")


def main() -> None:
    with HubServer(int(sys.argv[1]) if len(sys.argv) > 1 else 8000) as hub:
        print(f"HF_ENDPOINT={hub.url} HF_TOKEN=write HF_HUB_DISABLE_XET=1")
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()

"""What the test hub keeps: repositories as commits of files, and the failures that it was told to have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """git's name of it; of an LFS file, that of its pointer."""
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repo:
    id: str
    type: str
    private: bool = False
    sdk: str | None = None
    commits: dict[str, tuple[str, dict[str, Blob]]] = field(default_factory=dict)  # sha: (title, tree)
    refs: dict[str, str] = field(default_factory=dict)  # branch, tag or refs/pr/n: sha

    def commit(self, title: str, tree: dict[str, Blob], ref: str = "main") -> str:
        names = "".join(f"{path} {blob.etag}\n" for path, blob in sorted(tree.items()))
        sha = hashlib.sha1(f"{self.id}\n{len(self.commits)}\n{title}\n{names}".encode()).hexdigest()
        self.commits[sha] = title, tree
        self.refs[ref] = sha
        return sha


@dataclass
class Failure:
    """What goes wrong with the next `times` requests of a method whose path holds `part`."""

    method: str
    part: str
    kind: str | int  # drop | corrupt | corrupt-middle | an HTTP status
    times: int
    headers: dict[str, str]


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def changed(data: bytes, kind: str = "corrupt") -> bytes:
    """The same length, another content: one bit of the last byte, or of the one in the middle."""
    if not data:
        return data
    place = len(data) // 2 if kind == "corrupt-middle" else len(data) - 1
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def sizes(blob: Blob) -> dict[str, Any]:
    lfs = {"lfs": {"oid": blob.sha256, "sha256": blob.sha256, "size": len(blob.data), "pointerSize": 134}}
    return {"size": len(blob.data), "oid": blob.oid, "blobId": blob.oid, **(lfs if blob.lfs else {})}


def entries(tree: dict[str, Blob], folder: str, recursive: bool) -> dict[str, dict[str, Any]]:
    """Files and folders below `folder`, by path."""
    found: dict[str, dict[str, Any]] = {}
    for path, blob in sorted(tree.items()):
        names = path.removeprefix(f"{folder}/" if folder else "").split("/")
        for depth in range(1, len(names) if recursive else min(len(names), 2)):
            parent = "/".join(([folder] if folder else []) + names[:depth])
            found.setdefault(parent, {"type": "directory", "path": parent, "oid": "0" * 40, "size": 0})
        if recursive or len(names) == 1:
            found[path] = {"type": "file", "path": path, **sizes(blob)}
    return found

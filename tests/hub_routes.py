"""The test hub's routes, as huggingface_hub, datasets and transformers call them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import Blob, HubError, Repo, changed, entries, sizes

if TYPE_CHECKING:
    from hub_server import HubServer

BINARY = (".parquet", ".safetensors", ".arrow", ".bin", ".png", ".jpg", ".npz", ".pth", ".zip", ".gz", ".model")
DATE = "2026-01-01T00:00:00.000Z"
REPO = r"/api/(?P<type>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
BASE = r"/(?:(?P<prefix>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        self.parts = urlsplit(self.path)
        self.query = parse_qs(self.parts.query)
        self.route = unquote(self.parts.path)
        failure = self.hub.next_failure(self.command, self.route)
        self.corrupt = failure.kind if failure is not None and str(failure.kind).startswith("corrupt") else None
        if failure is not None and failure.kind == "drop":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self._body()
        if failure is not None and isinstance(failure.kind, int):
            return self._send(failure.kind, b'{"error": "injected"}', failure.headers)
        try:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, self.route)
                if match and self.command in method:
                    with self.hub.lock:
                        action(self, **match.groupdict())
                    return
            raise HubError(404, f"There is no route {self.command} {self.route}.")
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self._send(error.status, json.dumps({"error": str(error)}).encode(), headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().strip(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    # Who is asking, and for what

    def user(self, write: bool = False) -> str | None:
        """The asking user. Raises HubError for a wrong or expired token, or where writing is not allowed."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            if write:
                raise HubError(401, "Invalid username or password.")
            return None
        name, right = self.hub.tokens.get(token, (None, None))
        if name is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        if right == "expired":
            raise HubError(401, "User Access Token is expired")
        if write and right != "write":
            raise HubError(403, "You don't have the required permissions: this token can only read.")
        return name

    def repo(self, type: str, id: str, write: bool = False) -> Repo:
        user = self.user(write)
        repo = self.hub.repos.get((type, id))
        if repo is None or (repo.private and user != id.split("/")[0]):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and user != id.split("/")[0]:
            raise HubError(403, f"You have no right to write to {id}.")
        return repo

    def sha(self, repo: Repo, revision: str) -> str:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # Repositories

    def whoami(self) -> None:
        name = self.user()
        if name is None:
            raise HubError(401, "Invalid username or password.")
        self.json(
            {"type": "user", "id": name, "name": name, "fullname": name, "orgs": [], "auth": {"type": "access_token"}}
        )

    def create(self) -> None:
        user, body = self.user(write=True), json.loads(self.body)
        owner = body.get("organization") or user
        type, id = f"{body.get('type') or 'model'}s", f"{owner}/{body['name']}"
        if owner != user:
            raise HubError(
                403, f'You don\'t have the rights to create a {body.get("type")} under the namespace "{owner}"'
            )
        url = f"{self.hub.url}/{'' if type == 'models' else type + '/'}{id}"
        if (type, id) in self.hub.repos:
            return self.json({"error": "You already created this repo", "url": url}, 409)
        private = bool(body.get("private")) or body.get("visibility") == "private"
        repo = Repo(id, type, private, body.get("sdk"))
        repo.commit("initial commit", {".gitattributes": Blob(b"*.parquet filter=lfs\n", False)})
        self.hub.repos[type, id] = repo
        self.json({"url": url, "name": id, "id": id})

    def delete(self) -> None:
        body = json.loads(self.body)
        type, id = f"{body.get('type') or 'model'}s", f"{body.get('organization') or self.user(True)}/{body['name']}"
        del self.hub.repos[type, self.repo(type, id, write=True).id]
        self._send(200)

    def info(self, type: str, id: str, revision: str = "main") -> None:
        repo = self.repo(type, id)
        sha = self.sha(repo, revision)
        tree = repo.commits[sha][1]
        siblings = [{"rfilename": path, **sizes(blob)} for path, blob in sorted(tree.items())]
        card = re.match(rb"---\s*\n(.*?)\n---", tree.get("README.md", Blob(b"", False)).data, re.DOTALL)
        value = {
            "_id": "0" * 24,
            "id": id,
            "author": id.split("/")[0],
            "sha": sha,
            "private": repo.private,
            "gated": False,
        }
        value |= {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        value |= {"createdAt": DATE, "lastModified": DATE, "cardData": yaml.safe_load(card[1]) if card else {}}
        self.json(
            value | ({"sdk": repo.sdk, "runtime": {"stage": "RUNNING", "hardware": {}}} if type == "spaces" else {})
        )

    def list_refs(self, type: str, id: str) -> None:
        refs = self.repo(type, id).refs
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        listed: dict[str, list] = {kind: [] for kind in (*kinds, "converts")}
        for name, sha in refs.items():
            kind = "pullRequests" if name.startswith("refs/pr/") else "tags" if name.startswith("v") else "branches"
            ref = name if kind == "pullRequests" else kinds[kind] + name
            listed[kind].append({"name": name, "ref": ref, "targetCommit": sha})
        self.json(listed)

    def list_commits(self, type: str, id: str, revision: str) -> None:
        repo = self.repo(type, id)
        self.sha(repo, revision)
        rows = [
            {"id": sha, "title": title, "message": "", "date": DATE, "authors": [{"user": id.split("/")[0]}]}
            for sha, (title, _) in reversed(repo.commits.items())
        ]
        self.json(rows)

    def branch(self, type: str, id: str, revision: str) -> None:
        repo, body = self.repo(type, id, write=True), json.loads(self.body or b"{}")
        if revision in repo.refs:
            return self.json({"error": "Reference already exists"}, 409)
        repo.refs[revision] = self.sha(repo, body.get("startingPoint") or "main")
        self._send(200)

    def tag(self, type: str, id: str, revision: str) -> None:
        repo = self.repo(type, id, write=True)
        repo.refs[json.loads(self.body)["tag"]] = self.sha(repo, revision)
        self._send(200)

    def settings(self, type: str, id: str) -> None:
        body = json.loads(self.body)
        self.repo(type, id, write=True).private = body.get("private") or body.get("visibility") == "private"
        self.json({})

    # Files

    def tree(self, type: str, id: str, revision: str, path: str = "") -> None:
        repo = self.repo(type, id)
        tree = repo.commits[self.sha(repo, revision)][1]
        path = (path or "").strip("/")
        inside = {name: blob for name, blob in tree.items() if not path or name.startswith(f"{path}/")}
        if path and not inside:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        self.json(list(entries(inside, path, recursive).values()))

    def paths_info(self, type: str, id: str, revision: str) -> None:
        repo = self.repo(type, id)
        tree = repo.commits[self.sha(repo, revision)][1]
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode())["paths"]
        everything = entries(tree, "", True)
        self.json([everything[path] for path in paths if path in everything])

    def preupload(self, type: str, id: str, revision: str) -> None:
        repo = self.repo(type, id, write=True)
        tree = repo.commits[self.sha(repo, revision)][1]
        answer = []
        for file in json.loads(self.body)["files"]:
            path, known = file["path"], tree.get(file["path"])
            binary = b"\0" in base64.b64decode(file["sample"]) or path.endswith(BINARY) or file["size"] > 10_000_000
            mode = "lfs" if binary else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known and known.oid})
        self.json({"files": answer})

    def lfs_batch(self, id: str, prefix: str | None = None) -> None:
        self.repo(prefix or "models", id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.hub.lfs:
                put = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
                verify = {"href": f"{self.hub.url}/lfs-verify/{prefix or 'models'}/{id}"}
                wanted = {**wanted, "actions": {"upload": put, "verify": verify}}
            objects.append(wanted)
        self.json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        self.hub.lfs[oid] = changed(self.body, self.corrupt) if self.corrupt else self.body
        self._send(200)

    def lfs_verify(self, prefix: str, id: str) -> None:
        self.repo(prefix, id, write=True)
        body = json.loads(self.body)
        data = self.hub.lfs.get(body["oid"], b"")
        if hashlib.sha256(data).hexdigest() != body["oid"] or len(data) != body["size"]:
            self.hub.lfs.pop(body["oid"], None)
            raise HubError(422, f"The stored object does not have the hash {body['oid']}.")
        self._send(200)

    def commit(self, type: str, id: str, revision: str) -> None:
        """All of the operations, or none."""
        repo = self.repo(type, id, write=True)
        parent = self.sha(repo, revision)
        tree, header = dict(repo.commits[parent][1]), {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
                if value.get("parentCommit", parent) != parent:
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise HubError(400, f"LFS pointer {value['oid']} points to a file that does not exist")
                tree[value["path"]] = Blob(self.hub.lfs[value["oid"]], True)
            else:
                gone = [p for p in tree if p == value["path"] or p.startswith(value["path"].rstrip("/") + "/")]
                for path in gone:
                    del tree[path]
        ref, pull = revision, {}
        if self.query.get("create_pr", ["0"])[0] == "1":
            number = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
            ref = f"refs/pr/{number}"
            pull = {
                "pullRequestUrl": f"{self.hub.url}/{'' if type == 'models' else type + '/'}{id}/discussions/{number}"
            }
        sha = repo.commit(header.get("summary", ""), tree, ref)
        url = f"{self.hub.url}/{'' if type == 'models' else type + '/'}{id}/commit/{sha}"
        self.json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": "", **pull})

    def resolve(self, id: str, revision: str, path: str, prefix: str | None = None) -> None:
        repo = self.repo(prefix or "models", id)
        sha = self.sha(repo, revision)
        blob = repo.commits[sha][1].get(path)
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        data = changed(blob.data, self.corrupt) if self.corrupt else blob.data
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if span and self.command == "GET":
            start = int(span[1]) if span[1] else max(len(data) - int(span[2]), 0)
            end = min(int(span[2]), len(data) - 1) if span[1] and span[2] else len(data) - 1
            if start >= len(data):
                return self._send(416, headers={"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        self._send(status, data, headers | {"Content-Length": str(len(data))})

    def validate_yaml(self) -> None:
        card = re.match(r"---\s*\n(.*?)\n---", json.loads(self.body)["content"], re.DOTALL)
        try:
            yaml.safe_load(card[1] if card else "")
            self.json({"errors": [], "warnings": []})
        except yaml.YAMLError as error:
            self.json({"errors": [{"message": str(error)}], "warnings": []}, 400)


ROUTES: list[tuple[tuple[str, ...], str, Callable]] = [
    (("GET",), r"/api/whoami-v2", Handler.whoami),
    (("POST",), r"/api/repos/create", Handler.create),
    (("DELETE",), r"/api/repos/delete", Handler.delete),
    (("POST",), r"/api/validate-yaml", Handler.validate_yaml),
    (("GET",), REPO, Handler.info),
    (("GET",), REPO + r"/revision/(?P<revision>.+)", Handler.info),
    (("GET",), REPO + r"/refs", Handler.list_refs),
    (("GET",), REPO + r"/commits/(?P<revision>.+)", Handler.list_commits),
    (("GET",), REPO + r"/tree/(?P<revision>refs/pr/\d+|[^/]+)(?P<path>/.*)?", Handler.tree),
    (("POST",), REPO + r"/paths-info/(?P<revision>.+)", Handler.paths_info),
    (("POST",), REPO + r"/preupload/(?P<revision>.+)", Handler.preupload),
    (("POST",), REPO + r"/commit/(?P<revision>.+)", Handler.commit),
    (("POST",), REPO + r"/branch/(?P<revision>.+)", Handler.branch),
    (("POST",), REPO + r"/tag/(?P<revision>.+)", Handler.tag),
    (("PUT",), REPO + r"/settings", Handler.settings),
    (("POST",), BASE + r"\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    (("POST",), r"/lfs-verify/(?P<prefix>[a-z]+)/(?P<id>[^/]+/[^/]+)", Handler.lfs_verify),
    (("GET", "HEAD"), BASE + r"/resolve/(?P<revision>refs/pr/\d+|[^/]+)/(?P<path>.+)", Handler.resolve),
]

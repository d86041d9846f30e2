"""The Hub, on loopback: that the test server behaves as the real one, and that what this package sends and fetches survives it."""

import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from segagent import downloads
from segagent.data._hub import push_folder
from segagent.data.sources import load_trajectories
from segagent.downloads import cached, snapshot
from segagent.errors import CheckpointError, DataError
from segagent.trajectories import features, from_row, to_row
from segagent.types import Click, Sample, State, Trajectory, Transition
from segagent.uploads import upload


@pytest.fixture
def model(hub):
    """ada/model with a text and a large file in two commits, the first tagged v1."""
    api = HfApi()
    api.create_repo("ada/model")
    api.upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", repo_id="ada/model")
    api.create_tag("ada/model", tag="v1")
    add = [CommitOperationAdd("a.txt", b"two"), CommitOperationAdd("sub/w.safetensors", bytes(range(256)) * 40)]
    api.create_commit("ada/model", add, commit_message="second")
    return api


def test_revisions_folders_and_offline_cache(model):
    def read(*args, **options):
        return Path(hf_hub_download("ada/model", *args, **options)).read_bytes()

    assert (read("a.txt"), read("a.txt", revision="v1")) == (b"two", b"one")
    assert read("sub/w.safetensors") == bytes(range(256)) * 40
    assert [f.path for f in model.list_repo_tree("ada/model")] == [".gitattributes", "a.txt", "sub"]
    assert len(model.list_repo_commits("ada/model")) == 3
    (large,) = model.get_paths_info("ada/model", ["sub/w.safetensors"])
    assert (large.size, large.lfs.size) == (10240, 10240)
    with pytest.raises(EntryNotFoundError):
        read("missing.txt")
    with pytest.raises(RevisionNotFoundError):
        read("a.txt", revision="v2")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("ada/none", "a.txt")
    folder = snapshot_download("ada/model")
    assert snapshot_download("ada/model", local_files_only=True) == folder
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download("ada/other", local_files_only=True)


def test_branches_pull_requests_deletion_and_stale_parents(model, hub):
    model.create_branch("ada/model", branch="wip", revision="v1")
    model.delete_file("a.txt", repo_id="ada/model", revision="wip")
    assert "a.txt" not in hub.files("model", "ada/model", "wip")
    assert "a.txt" in hub.files("model", "ada/model")
    info = model.upload_file(path_or_fileobj=b"x", path_in_repo="b.txt", repo_id="ada/model", create_pr=True)
    assert info.pr_num == 1
    assert "b.txt" in hub.files("model", "ada/model", "refs/pr/1")
    assert "b.txt" not in hub.files("model", "ada/model")
    old = model.list_repo_commits("ada/model")[-1].commit_id
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        model.create_commit("ada/model", [CommitOperationAdd("c", b"c")], commit_message="c", parent_commit=old)
    assert {ref.name for ref in model.list_repo_refs("ada/model").branches} == {"main", "wip"}
    model.delete_repo("ada/model")
    assert not model.repo_exists("ada/model")


def test_private_repositories_and_tokens(hub):
    api = HfApi()
    api.create_repo("ada/secret", private=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="ada/secret")
    assert hf_hub_download("ada/secret", "a.txt")
    for token in ("read", False, "expired", "nonsense"):
        with pytest.raises(HfHubHTTPError):
            HfApi(token=token).model_info("ada/secret")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token="read").create_repo("bob/mine")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("ada/secret")
    api.update_repo_settings("ada/secret", private=False)
    assert HfApi(token="read").model_info("ada/secret").id == "ada/secret"


def test_spaces_and_cards(hub, tmp_path):
    api = HfApi()
    api.create_repo("ada/page", repo_type="space", space_sdk="gradio")
    (tmp_path / "README.md").write_text("---\ntitle: Page\nsdk: gradio\n---\n# Page\n")
    (tmp_path / "app.py").write_text("print()\n")
    api.upload_folder(repo_id="ada/page", repo_type="space", folder_path=tmp_path)
    info = api.space_info("ada/page")
    assert (info.sdk, info.card_data["title"]) == ("gradio", "Page")
    assert {s.rfilename for s in info.siblings} == {".gitattributes", "README.md", "app.py"}


def test_ranges(model, hub):
    def get(span):
        request = urllib.request.Request(f"{hub.url}/ada/model/resolve/main/sub/w.safetensors", headers={"Range": span})
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers["Content-Range"], answer.read()

    assert get("bytes=2-4") == (206, "bytes 2-4/10240", b"\2\3\4")
    assert get("bytes=10238-") == (206, "bytes 10238-10239/10240", b"\xfe\xff")
    assert get("bytes=-1") == (206, "bytes 10239-10239/10240", b"\xff")
    with pytest.raises(urllib.error.HTTPError, match="416"):
        get("bytes=10240-")


def test_a_download_that_breaks_off_is_taken_up(model, hub):
    hub.fail("GET", "/sub/w.safetensors", "drop", times=2)
    with open(hf_hub_download("ada/model", "sub/w.safetensors"), "rb") as stream:
        assert stream.read() == bytes(range(256)) * 40


@pytest.mark.parametrize("name", ["a.txt", "sub/w.safetensors"])
def test_a_damaged_download_is_fetched_again_and_no_more_than_once(model, hub, name):
    hub.fail("GET", name, "corrupt")
    folder = snapshot("ada/model")
    assert (folder / name).read_bytes() == hub.read("model", "ada/model", name)
    before = len(hub.requests)
    snapshot("ada/model", local_files_only=True)
    assert len(hub.requests) == before
    for path in cached("ada/model"):
        path.resolve().unlink()
        path.unlink()
    hub.fail("GET", name, "corrupt", times=2)
    with pytest.raises(OSError, match=f"{Path(name).name} came without the content whose hash the Hub gave"):
        snapshot("ada/model")
    assert name not in {str(path.relative_to(folder)) for path in cached("ada/model")}
    assert (snapshot("ada/model") / name).read_bytes() == hub.read("model", "ada/model", name)


def test_a_file_that_changed_on_the_disk_is_noticed_without_hashing_all_each_time(model, hub, monkeypatch):
    folder = snapshot("ada/model")
    hashed = []
    monkeypatch.setattr(downloads, "digest", lambda blob, old=downloads.digest: hashed.append(blob) or old(blob))
    snapshot("ada/model")
    assert not hashed
    weights = (folder / "sub" / "w.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(OSError, match="came without the content"):
        snapshot("ada/model", local_files_only=True)
    assert hashed == [weights]
    assert (snapshot("ada/model") / "sub" / "w.safetensors").read_bytes() == bytes(range(256)) * 40


# Trajectory data sets


def runs(count, round=0):
    image = np.random.default_rng(round).integers(0, 255, (20, 30, 3), np.uint8)
    target = np.zeros((20, 30), bool)
    target[4:12, 5:15] = True
    for i in range(count):
        sample = Sample(image, f"thing {i}", target, f"s{round}-{i}")
        start = State(image, np.zeros((20, 30), bool))
        done = State(image, target, (Click(9, 8),), previous=start)
        steps = (
            Transition(start, Click(9, 8), done, None, 0.0, 1.0),
            Transition(done, None, done, 1.0, 1.0, 1.0, end="stop"),
        )
        yield Trajectory(sample, steps)


@pytest.fixture
def folder(tmp_path):
    from datasets import Dataset

    for round in range(2):
        rows = [to_row(run, segmenter="grabcut", round=round) for run in runs(3, round)]
        Dataset.from_list(rows, features=features()).to_parquet(tmp_path / "rows" / f"train-{round:05d}.parquet")
    (tmp_path / "rows" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Trajectories\n")
    return tmp_path / "rows"


def test_trajectories_there_and_back(hub, folder, tmp_path):
    from datasets import load_dataset

    address = push_folder(folder, "ada/clicks", private=True)
    assert address.endswith(HfApi().dataset_info("ada/clicks").sha)
    stored = load_dataset("ada/clicks", split="train")
    assert stored.features == features()
    assert stored.filter(lambda row: row["round"] == 1)["id"][:] == ["s1-0", "s1-1", "s1-2"]
    streamed = list(load_dataset("ada/clicks", split="train", streaming=True))
    for run, one, two in zip([*runs(3, 0), *runs(3, 1)], stored, streamed, strict=True):
        for row in (one, two):
            back = from_row(row)
            assert (back.sample.image == run.sample.image).all()
            assert [t.action for t in back] == [t.action for t in run]
            assert (back.states[-1].mask == run.states[-1].mask).all()
    # A smaller version replaces the files of the former one, and the former stays as a revision.
    (folder / "train-00001.parquet").unlink()
    push_folder(folder, "ada/clicks", replace=("*.parquet",))
    assert load_dataset("ada/clicks", split="train").num_rows == 3
    assert load_dataset("ada/clicks", split="train", revision=address.rsplit("/")[-1]).num_rows == 6


def test_damaged_and_interrupted_downloads_of_data(hub, folder, tmp_path):
    push_folder(folder, "ada/clicks")
    hub.fail("GET", "train-00000.parquet", "drop", times=2)
    assert len(load_trajectories("ada/clicks", cache_dir=tmp_path / "one")) == 6
    for kind in ("corrupt", "corrupt-middle"):  # the second is a readable file with another picture in it
        shutil.rmtree(tmp_path / "hf_home" / "hub")
        hub.fail("GET", "train-00000.parquet", kind)
        runs_back = load_trajectories("ada/clicks", cache_dir=tmp_path / kind)
        assert [run.sample.id for run in runs_back] == ["s0-0", "s0-1", "s0-2", "s1-0", "s1-1", "s1-2"]
        shutil.rmtree(tmp_path / "hf_home" / "hub")
        hub.fail("GET", "train-00000.parquet", kind, times=2)
        with pytest.raises(DataError, match=r"Cannot load ada/clicks: train-00000\.parquet came without the content"):
            load_trajectories("ada/clicks", cache_dir=tmp_path / f"{kind}-twice")
        assert not [path for path in cached("ada/clicks", "dataset") if path.name == "train-00000.parquet"]
    hub.fail("GET", "train-00001.parquet", "drop")
    assert len(list(load_trajectories("ada/clicks", streaming=True))) == 6
    with pytest.raises(DataError, match="Cannot load ada/clicks: it has no such revision"):
        load_trajectories("ada/clicks", revision="v9", cache_dir=tmp_path / "three")


@pytest.mark.parametrize(
    ("method", "part", "kind"),
    [
        ("PUT", "/lfs/", "drop"),
        ("PUT", "/lfs/", 500),
        ("PUT", "/lfs/", 429),
        ("POST", "/objects/batch", 503),
        ("POST", "/preupload/", 500),
        ("POST", "/lfs-verify/", 500),
    ],
)
def test_failures_that_pass_are_survived(hub, folder, method, part, kind):
    hub.fail(method, part, kind, times=2)
    push_folder(folder, "ada/clicks")
    assert hub.files("dataset", "ada/clicks") >= {"README.md", "train-00000.parquet", "train-00001.parquet"}
    assert hub.read("dataset", "ada/clicks", "train-00000.parquet") == (folder / "train-00000.parquet").read_bytes()


@pytest.mark.parametrize(
    ("method", "part", "kind", "sentence"),
    [
        ("PUT", "/lfs/", "drop", "the connection to the Hub failed"),
        ("PUT", "/lfs/", 500, "the Hub has a fault of its own"),
        ("PUT", "/lfs/", 429, "the Hub is asked too often"),
        ("PUT", "/lfs/", "corrupt", "does not have the hash"),
        ("POST", "/commit/", 401, "the token is wrong or has expired"),
        ("POST", "/commit/", "drop", "the connection to the Hub failed"),
        ("POST", "/repos/create", 403, "this token may not do that"),
    ],
)
def test_failures_that_stay_are_reported_and_nothing_is_published(hub, folder, method, part, kind, sentence):
    hub.fail(method, part, kind, times=1000)
    with pytest.raises(DataError, match=sentence):
        push_folder(folder, "ada/clicks")
    assert hub.files("dataset", "ada/clicks") <= {".gitattributes"}
    hub.failures.clear()
    push_folder(folder, "ada/clicks")
    assert "train-00001.parquet" in hub.files("dataset", "ada/clicks")


@pytest.mark.parametrize(
    ("method", "part", "kind", "sentence"),
    [
        ("PUT", "/lfs/", "drop", "the connection to the Hub failed"),
        ("PUT", "/lfs/", "corrupt", "does not have the hash"),
        ("POST", "/commit/", 500, "the Hub has a fault of its own"),
        ("POST", "/repos/create", 401, "the token is wrong or has expired"),
    ],
)
def test_checkpoints_are_published_whole_or_not_at_all(hub, tmp_path, method, part, kind, sentence):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "agent" / "segagent.json").write_text("{}")
    options = {"private": None, "token": None, "revision": None, "message": "Upload"}
    hub.fail(method, part, kind, times=1000)
    with pytest.raises(CheckpointError, match=sentence):
        upload(tmp_path / "agent", "ada/agent", **options)
    assert hub.files("model", "ada/agent") <= {".gitattributes"}
    hub.failures.clear()
    upload(tmp_path / "agent", "ada/agent", **options)
    assert hub.files("model", "ada/agent") >= {"model.safetensors", "segagent.json"}


@pytest.mark.parametrize(
    ("token", "repo", "sentence"),
    [
        ("expired", "ada/clicks", "the token is wrong or has expired .User Access Token is expired."),
        ("nonsense", "ada/clicks", "the token is wrong or has expired"),
        (False, "ada/clicks", "the token is wrong or has expired"),
        ("read", "bob/clicks", "this token may not do that"),
        ("write", "carol/clicks", "this token may not do that"),
        ("write", "a/b/c", "is no name of a repository"),
    ],
)
def test_who_may_not_push_is_told_so(hub, folder, token, repo, sentence):
    with pytest.raises(DataError, match=sentence):
        push_folder(folder, repo, token=token)
    assert not hub.repos


def test_a_folder_without_data_and_a_hub_that_is_away(hub, folder, tmp_path):
    with pytest.raises(DataError, match="holds no parquet file"):
        push_folder(tmp_path / "nowhere", "ada/clicks")
    hub.__exit__()
    with pytest.raises(DataError, match="Cannot upload to ada/clicks: the connection to the Hub failed"):
        push_folder(folder, "ada/clicks")

"""Data sets to and from the Hub: one commit or none, and one sentence for what goes wrong on the way."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from segagent.downloads import checked
from segagent.errors import DataError


@contextmanager
def explained(repo: str, doing: str) -> Iterator[None]:
    """Turns what the Hub, the network and the disk raise into a DataError about `repo`."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub import errors

    try:
        yield
    except DataError:
        raise
    except errors.HFValidationError as error:
        raise DataError(
            f"{repo!r} is no name of a repository: it is owner/name, in letters, digits, - _ and ."
        ) from error
    except (OSError, ValueError, RuntimeError, errors.HTTPError, DatasetsError) as error:
        raise DataError(f"Cannot {doing} {repo}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What of the Hub, the network or the disk is behind an error, and what to do: the end of a sentence."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    chain = []
    while error is not None and len(chain) < 20:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for each in chain:
        if isinstance(each, errors.GatedRepoError):
            return "it is gated: ask for access on its page, then log in with `hf auth login`."
        if isinstance(each, errors.RevisionNotFoundError):
            return "it has no such revision: see its branches and tags."
        if isinstance(each, errors.RepositoryNotFoundError):
            return "there is no such repository, or it is private: check the name, or log in with `hf auth login`."
        if isinstance(each, errors.HfHubHTTPError):
            return _status(each.response.status_code, each.server_message)
        if isinstance(each, errors.LocalEntryNotFoundError):
            return "it is not in the cache, and the Hub cannot be reached or was not asked."
        if isinstance(each, errors.HTTPError):
            return f"the connection to the Hub failed ({each}): check the network and try again."
        if isinstance(each, OSError) and each.errno == errno.ENOSPC:
            return "the disk is full: free some space."
    if isinstance(chain[0], DatasetNotFoundError):  # it hides why
        return "there is no such data set, it is private, or the Hub cannot be reached: check name, network and `hf auth login`."
    first = next((line for each in chain for line in str(each).splitlines() if line.strip()), type(chain[0]).__name__)
    return first if first.endswith(".") else f"{first}."


def _status(status: int, message: str | None) -> str:
    said = f" ({message.strip().rstrip('.')})" if message else ""
    if status == 401:
        return f"the token is wrong or has expired{said}: log in again with `hf auth login`."
    if status == 403:
        return f"this token may not do that{said}: use one that may write there."
    if status == 429:
        return f"the Hub is asked too often{said}: wait a few minutes."
    if status >= 500:
        return f"the Hub has a fault of its own (status {status}){said}: try again later."
    return f"the Hub refused it (status {status}){said}."


def load_rows(
    path_or_repo: str | PathLike[str],
    split: str,
    *,
    streaming: bool,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | PathLike[str] | None,
) -> Any:
    """datasets.load_dataset of a folder or a repository, whose files have the hashes that the Hub gave. Raises DataError."""
    from datasets import DownloadMode, load_dataset
    from datasets.exceptions import DatasetsError

    name = str(path_or_repo)
    options = {"split": split, "streaming": streaming, "revision": revision, "token": token}
    options["cache_dir"] = None if cache_dir is None else str(cache_dir)
    if streaming or Path(name).is_dir():
        with explained(name, "load"):
            return load_dataset(name, **options)
    # What `datasets` made of a damaged file in its own cache must be made again.
    modes = iter([None, DownloadMode.REUSE_CACHE_IF_EXISTS])
    with explained(name, "load"):
        return checked(
            lambda: load_dataset(name, download_mode=next(modes), **options),
            name,
            "dataset",
            (OSError, ValueError, RuntimeError, DatasetsError),
        )


def push_folder(
    folder: str | PathLike[str],
    repo: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload the data",
    replace: tuple[str, ...] = (),
) -> str:
    """Uploads a data set's folder in one commit, which also removes files that match `replace`; → the commit's address.

    The large files go first and are part of nothing until the commit: where that fails, nothing is published. Raises DataError.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not any(folder.rglob("*.parquet")):
        raise DataError(f"{str(folder)!r} holds no parquet file: build the data set into it first.")
    api = HfApi(token=token)
    with explained(repo, "upload to"):
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, repo_type="dataset", branch=revision, exist_ok=True)
        info = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            revision=revision,
            commit_message=message,
            ignore_patterns=[".partial/*"],
            delete_patterns=list(replace),
        )
    return str(info.commit_url)


def filled_card(card: str | PathLike[str], repo: str) -> str:
    """The text of a card for one repository: "OWNER/NAME" in its code becomes the repository's own name. Raises DataError."""
    try:
        text = Path(card).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"The card {str(card)!r} cannot be read: {error.strerror}.") from error
    return text.replace(f"OWNER/{Path(card).stem.upper()}", repo)

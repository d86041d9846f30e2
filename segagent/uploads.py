"""A checkpoint's folder to the Hub: one commit or none, and one sentence for what goes wrong on the way."""

from __future__ import annotations

from pathlib import Path

from segagent.adapters import check_shareable, is_adapter
from segagent.checkpoint import MODEL_FILES
from segagent.errors import CheckpointError


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    message: str,
) -> str:
    """Uploads a checkpoint's folder in one commit, which also removes a former model's files; → the commit's address."""
    from huggingface_hub import HfApi, errors

    from segagent.data._hub import reason

    api = HfApi(token=token)
    try:
        if is_adapter(folder):
            check_shareable(folder)
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        info = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            delete_patterns=list(MODEL_FILES),
        )
    except CheckpointError:
        raise
    # The disk's, those of malformed names, those of uploads that huggingface_hub wraps, the network's.
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        raise CheckpointError(f"The checkpoint cannot be uploaded to {repo}: {reason(error)}") from error
    return str(info.commit_url)

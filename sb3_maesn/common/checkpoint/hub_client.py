"""Download from and upload to the Hugging Face Hub, with error messages of one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sb3_maesn.common.checkpoint.archive import LIMITS


class HubError(OSError):
    """Error of the Hub: it cannot be reached, refuses access, or lacks what was asked for; the message says which."""


def download(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download the two files of a checkpoint from one commit into huggingface_hub's cache.

    If the Hub cannot be reached, files from an earlier download are used.

    :param repo_id: name of the repository, ``"org/name"``
    :param revision: branch, tag or commit, None for ``main``
    :param token: access token of the Hub, None for the one that huggingface_hub has stored
    :param cache_dir: folder of the download cache, None for huggingface_hub's own
    :param local_files_only: whether to use the download cache only, without network access
    :return: folder of the files
    :raises HubError: if the download fails, or a file is missing or larger than a checkpoint's files may be
    """
    from httpx2 import TransportError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    fetch: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir, "max_workers": 1}
    with one_line(f"{repo_id}{f' at {revision}' if revision else ''}"):
        try:
            if not local_files_only:
                _check_files(repo_id, revision, token)
            folder = snapshot_download(repo_id, allow_patterns=list(LIMITS), local_files_only=local_files_only, **fetch)
        except (OfflineModeIsEnabled, TransportError) as error:  # the files may be in the cache
            try:
                folder = snapshot_download(repo_id, allow_patterns=list(LIMITS), local_files_only=True, **fetch)
            except LocalEntryNotFoundError:
                raise error from None
    return Path(folder)


def commit(
    repo_id: str,
    files: Mapping[str, bytes | Path],
    message: str,
    token: str | bool | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Publish files in one commit, so that the repository never holds only some of them.

    :param repo_id: name of the repository, ``"org/name"``; created if it does not exist
    :param files: contents or local paths by name in the repository
    :param message: commit message
    :param token: access token of the Hub, None for the one that huggingface_hub has stored
    :param private: whether a new repository is private, None for the owner's default
    :param revision: existing branch to commit to, None for ``main``
    :param create_pr: whether to open a pull request instead of committing directly
    :return: URL of the commit or the pull request
    :raises HubError: if the upload fails; the files in the repository are then unchanged
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with one_line(repo_id):
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr, run_as_future=False
        )
    return str(done.pr_url or done.commit_url)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Replace huggingface_hub's errors by errors with a message of one line.

    :param what: name of the repository, for the message
    :raises HubError: if the body of the context raises an error of huggingface_hub or an OSError
    """
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HubError as error:
        raise HubError(f"{what}: {error}") from None
    except HFValidationError as error:
        raise HubError(f"{what} is no name of a repository, such as org/maesn-WheeledGoal-v0: {error}") from None
    except (HTTPError, OSError) as error:
        raise HubError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Describe the cause of an error of huggingface_hub in a few words."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _reason(error.__cause__)
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "it is not in the cache, and the Hub may not be asked in offline mode"
    if isinstance(error, GatedRepoError):
        return "its owner asks for an agreement first, on the repository's page"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or your token (HF_TOKEN, `hf auth login`) does not open it"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        refused = "does not authorise you: check your token (HF_TOKEN, `hf auth login`)"
        return f"the Hub {refused if status in (401, 403) else f'answered {status}'}"
    return f"cannot reach {constants.ENDPOINT}: {str(error) or type(error).__name__}"


def _check_files(repo_id: str, revision: str | None, token: str | bool | None) -> None:
    """Check, before anything is downloaded, that the files exist and are not too large."""
    from huggingface_hub import HfApi

    about = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
    sizes = {entry.rfilename: entry.size or 0 for entry in about.siblings or ()}
    for name, limit in LIMITS.items():
        if name not in sizes:
            raise HubError(f"it holds no {name}: it was not published by sb3_maesn")
        if sizes[name] > limit:
            raise HubError(f"expected at most {limit} bytes in {name}, got {sizes[name]}")

"""The Hugging Face Hub: one way down and one way up, with errors that fit on a line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sb3_maesn.common.checkpoint.archive import LIMITS


class HubError(OSError):
    """The Hub cannot be reached, refuses, or has not what was asked for; the message says which."""


def download(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch a checkpoint into huggingface_hub's cache: its two files, of one commit, and nothing else.

    :param repo_id: ``"org/name"``
    :param revision: branch, tag or commit; ``main`` where None
    :param token: as in huggingface_hub: the stored one where None
    :param cache_dir: likewise
    :param local_files_only: likewise
    :return: the folder of the files
    :raises HubError: if that fails, or a file is missing or larger than a checkpoint's can be
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
        except (OfflineModeIsEnabled, TransportError) as error:  # then the cache may still serve
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
    """Publish files in one commit, so that the repository never holds half of them; it is made if there is none.

    :param repo_id: ``"org/name"``
    :param files: their contents, or where they are, by name in the repository
    :param message: of the commit
    :param token: as in huggingface_hub: the stored one where None
    :param private: whether a new repository is
    :param revision: branch to commit to, which exists; ``main`` where None
    :param create_pr: propose the commit in place of making it
    :return: address of the commit
    :raises HubError: if that fails; the repository then is as it was
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
    """Turn huggingface_hub's errors into one line each.

    :param what: the repository
    :raises HubError: in their place
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
    """Ask for the sizes before anything is fetched."""
    from huggingface_hub import HfApi

    about = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
    sizes = {entry.rfilename: entry.size or 0 for entry in about.siblings or ()}
    for name, limit in LIMITS.items():
        if name not in sizes:
            raise HubError(f"it holds no {name}: it was not published by sb3_maesn")
        if sizes[name] > limit:
            raise HubError(f"expected at most {limit} bytes in {name}, got {sizes[name]}")

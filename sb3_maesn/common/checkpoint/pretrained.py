"""List of the models shipped with the package, and lookup of models by name, path or repository."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_maesn.common.checkpoint.archive import CONFIG
from sb3_maesn.common.checkpoint.file import read_config
from sb3_maesn.common.checkpoint.hub_client import download

FOLDER = Path(__file__).resolve().parents[2] / "pretrained"
RESULTS = "results.json"


@dataclass(frozen=True)
class PretrainedModel:
    """Description of a model shipped with the package, with its scores on the test tasks.

    :param name: name that ``from_pretrained`` accepts
    :param algorithm: name of the algorithm's class
    :param env_id: environment id of the task family that the model was trained on
    :param test_env_id: id of the environment in which the model was tested
    :param n_tasks: number of test tasks
    :param rule: name of the adaptation rule
    :param n_episodes: number of episodes of each task in an adaptation round
    :param mean_return: mean return by round; round 0 is the unadapted policy
    :param success: fraction of successful episodes by round
    :param solved: fraction of solved tasks by round; a task is solved if at least half of its episodes succeed
    """

    name: str
    algorithm: str
    env_id: str | None
    test_env_id: str
    n_tasks: int
    rule: str
    n_episodes: int
    mean_return: tuple[float, ...]
    success: tuple[float, ...]
    solved: tuple[float, ...]


def list_pretrained() -> dict[str, PretrainedModel]:
    """List the models shipped with the package, with their scores on the test tasks.

    :return: descriptions by name
    """
    return {name: _describe(folder) for name, folder in pretrained_folders().items()}


def pretrained_folders() -> dict[str, Path]:
    """List the checkpoints shipped with the package.

    :return: folders by name of the model
    """
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob(f"*/{CONFIG}"))}


def read_results(folder: Path) -> dict[str, Any]:
    """Read how a model shipped with the package was trained and tested.

    :param folder: folder of the model
    :return: plain values by name; ``rounds`` is the table of scores, a row for each round
    """
    results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return results


def _describe(folder: Path) -> PretrainedModel:
    config, results = read_config(folder), read_results(folder)
    rounds = results["rounds"]

    def column(key: str) -> tuple[float, ...]:
        return tuple(row[key] for row in rounds)

    return PretrainedModel(
        name=folder.name,
        algorithm=config.algorithm,
        env_id=config.task_family.get("id"),
        test_env_id=results["env"],
        n_tasks=results["tasks"],
        rule=results["rule"],
        n_episodes=rounds[1]["episodes"] - rounds[0]["episodes"],
        mean_return=column("mean_return"),
        success=column("success"),
        solved=column("solved"),
    )


def find_pretrained(
    name: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find a model among those shipped with the package, then among local paths, then on the Hugging Face Hub.

    :param name: name, path or repository of the model
    :param revision: branch, tag or commit of the repository, None for ``main``
    :param token: access token of the Hub, None for the one that huggingface_hub has stored
    :param cache_dir: folder of the download cache, None for huggingface_hub's own
    :param local_files_only: whether to use the download cache only, without network access
    :return: path of the checkpoint
    :raises ValueError: if there is no such model; the message suggests the most similar name
    :raises HubError: if the Hub cannot be reached or refuses access
    """
    known = pretrained_folders()
    if str(name) in known:
        return known[str(name)]
    if Path(name).exists() or Path(f"{name}.zip").exists():
        return Path(name)
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/")) and not name.endswith(".zip"):
        return download(name, revision, token, cache_dir, local_files_only)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no pretrained model {str(name)!r}{hint or '.'} There are: {', '.join(known) or 'none'}")

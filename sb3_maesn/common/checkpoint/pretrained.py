"""The models that come with the package, and where a model of a given name is to be found."""

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
    """A model that comes with the package, and how well it adapts.

    :param name: what ``from_pretrained`` takes
    :param algorithm: name of its class
    :param env_id: the task family it was trained on
    :param test_env_id: where it was tested
    :param n_tasks: tasks of the test
    :param rule: of adaptation
    :param n_episodes: of a round
    :param mean_return: by round; round 0 is the unadapted policy
    :param success: share of successful episodes by round
    :param solved: share of tasks of which at least half of the round's episodes succeed
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
    """The models that come with the package, by name, with their scores on the test tasks."""
    return {name: _describe(folder) for name, folder in pretrained_folders().items()}


def pretrained_folders() -> dict[str, Path]:
    """The checkpoints that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(FOLDER.glob(f"*/{CONFIG}"))}


def read_results(folder: Path) -> dict[str, Any]:
    """How a model that comes with the package was trained and tested: plain values, ``rounds`` the rows of its table.

    :param folder: of the model
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
    """Find a model: one that comes with the package, a file, or a repository of the Hub, in this order.

    :param name: its name, path or repository
    :param revision: of the repository
    :param token: as in huggingface_hub
    :param cache_dir: likewise
    :param local_files_only: likewise
    :return: its checkpoint
    :raises ValueError: naming the nearest
    :raises HubError: if the Hub cannot be reached or refuses
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
    raise ValueError(f"there is no pretrained model {str(name)!r}{hint} There are: {', '.join(known) or 'none'}")

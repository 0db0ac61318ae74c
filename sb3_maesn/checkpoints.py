"""Loading of models of any algorithm, and export of trained models as pretrained models of the package."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.type_aliases import GymEnv

from sb3_maesn.common.checkpoint.archive import CheckpointError, find_archive, is_checkpoint, shown
from sb3_maesn.common.checkpoint.file import read_checkpoint
from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.common.checkpoint.plain_json import dump_json
from sb3_maesn.common.checkpoint.pretrained import FOLDER, RESULTS
from sb3_maesn.common.files import write_atomically
from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm
from sb3_maesn.config import ConfigError
from sb3_maesn.model_files import find_model_file
from sb3_maesn.results import known_columns, read_adaptation_table
from sb3_maesn.training import ALGOS, find_recipe

__all__ = [
    "ALGORITHMS",
    "CheckpointError",
    "export_pretrained",
    "load_checkpoint",
    "load_model",
    "load_trained",
    "read_rounds",
]

#: Algorithms by the name that a checkpoint records: all of ``training.ALGOS`` that have checkpoints.
ALGORITHMS: dict[str, type[CheckpointMixin]] = {
    recipe.algorithm.__name__: recipe.algorithm
    for recipe in ALGOS.values()
    if issubclass(recipe.algorithm, CheckpointMixin)
}
MAX_BYTES = 200_000  # size of a pretrained model of the package


def load_checkpoint(path: str | Path, env: GymEnv | str | None = None) -> CheckpointMixin:
    """Load a checkpoint of any algorithm.

    :param path: folder or zip file, with or without ``.zip``
    :param env: environment to continue training with, None for none
    :return: model of the algorithm that the checkpoint names
    :raises CheckpointError: if the checkpoint is damaged or of an unknown algorithm (a ValueError)
    """
    checkpoint = read_checkpoint(path)
    name = checkpoint.config.algorithm
    if name not in ALGORITHMS:
        raise CheckpointError(f"expected a model of one of {', '.join(ALGORITHMS)}, got one of {shown(name)}")
    model = ALGORITHMS[name].from_checkpoint(checkpoint)
    if env is not None:
        model.set_env(env)  # type: ignore[arg-type]  # an algorithm with tasks takes an id too
    return model


def load_model(name: str | Path) -> MetaOnPolicyAlgorithm:
    """Load a model of MAESN, MAML or LatentSpace for evaluation.

    A file of SB3's ``save`` may contain code, which loading runs.

    :param name: checkpoint, file of SB3's ``save``, or name of a pretrained model
    :return: model on the CPU; one from a file of ``save`` is a ``MetaOnPolicyAlgorithm``, which acts and adapts as the
        algorithm that saved it
    :raises ValueError: if there is no such model, or it is of another algorithm
    """
    path = find_model_file(name)
    if not is_checkpoint(path):
        return MetaOnPolicyAlgorithm.load(path, device="cpu")
    model = load_checkpoint(path)
    if not isinstance(model, MetaOnPolicyAlgorithm):
        raise ConfigError(
            f"expected a model of MAESN, MAML or LatentSpace, got one of {type(model).__name__} in {name}"
        )
    return model


def load_trained(path: str | Path, algo: str) -> CheckpointMixin:
    """Load a checkpoint, or a file of SB3's ``save`` of a given algorithm.

    A file of SB3's ``save`` may contain code, which loading runs.

    :param path: file or folder, with or without ``.zip``
    :param algo: key of ``training.ALGOS``; only a file of ``save`` needs it
    :return: model on the CPU
    :raises ValueError: if there is no such file or algorithm
    """
    found = find_archive(path)
    if found.is_dir() or is_checkpoint(found):  # a folder can only be a checkpoint
        return load_checkpoint(found)
    algorithm: Any = find_recipe(algo).algorithm
    model: CheckpointMixin = algorithm.load(found, device="cpu")
    return model


def export_pretrained(
    model: CheckpointMixin,
    name: str,
    rounds: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    env_id: str | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Write a model as a pretrained model of the package: a checkpoint that acts and adapts, and its test results.

    :param model: trained model
    :param name: name that ``from_pretrained`` takes, such as ``"maesn-WheeledGoal-v0"``
    :param rounds: rows of ``results.adaptation_rows`` on the test tasks
    :param about: origin of the rows: ``env``, ``tasks`` and ``rule``, and further facts on training and test
    :param env_id: task family that the model was trained on; None if the model knows it
    :param folder: folder of all pretrained models
    :return: folder of the model
    :raises ValueError: if the model is larger than ``MAX_BYTES``, or its task family, its success or the origin of the
        rows is missing; a model of that name then stays as it is
    """
    missing = {"env", "tasks", "rule"} - set(about)
    if missing or len(rounds) < 2:
        raise ValueError(f"expected the rows of at least 2 rounds, and what they are of: {sorted(missing)} missing")
    model.env_id = env_id or model.env_id
    if model.env_id is None:
        raise ValueError("expected the task family that the model was trained on: its file does not say it")
    unknown = set(rounds[0]) - set(known_columns(rounds)[0])
    if unknown:
        raise ValueError(f"expected an environment that reports success, got no values of {', '.join(sorted(unknown))}")
    target = folder / name
    results = dump_json({**about, "rounds": list(rounds)})
    with tempfile.TemporaryDirectory() as draft:
        model.save_checkpoint(draft, contents="agent")
        size = len(results) + sum(path.stat().st_size for path in Path(draft).iterdir())
    if size > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES} bytes in {target}, got {size}")
    model.save_checkpoint(target, contents="agent")
    write_atomically(target / RESULTS, lambda file: file.write(results))
    return target


def read_rounds(table: Path, rule: str, model: str | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the rows of one model and rule from a table of adaptation rounds.

    :param table: CSV file that ``scripts/evaluate.py learning`` or ``scripts/plot_adaptation.py`` wrote, with the JSON
        file of the same name beside it
    :param rule: adaptation rule
    :param model: name of the model in the table, None for the first
    :return: rows by round, and their origin
    :raises ValueError: if a file cannot be read, is no such table, or has no such rows
    """
    about = table.with_suffix(".json")
    try:
        rows = read_adaptation_table(table)
        made = json.loads(about.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    models = list(dict.fromkeys(row.get("model", "") for row in rows))
    chosen = model if model is not None else (models[0] if models else "")
    own = [row for row in rows if row.get("model", "") == chosen and row.get("rule") == rule]
    if not own:
        raise ConfigError(f"{table} has no rows of rule {rule!r} and model {chosen!r}; its models: {', '.join(models)}")
    rounds = [{key: _number(text) for key, text in row.items() if key not in ("model", "rule", "env")} for row in own]
    about_all = {key: made[key] for key in ("env", "split", "tasks", "seed", "command", "versions")}
    return rounds, {"rule": rule, **about_all, "env": own[0].get("env", made["env"])}


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)

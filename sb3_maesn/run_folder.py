"""Folders of training runs, named and laid out as in rl-zoo: ``logs/maesn/WheeledGoal-v0_1/``."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.callbacks import BaseCallback


def create_run_folder(log_folder: str | Path, algo: str, env_id: str) -> Path:
    """Create the next free folder ``{log_folder}/{algo}/{env_id}_{n}``.

    Two runs that start at the same time get different folders.

    :param log_folder: root of all logs
    :param algo: name of the algorithm
    :param env_id: environment id
    :return: new folder, which contains a folder ``{env_id}`` for the settings
    """
    parent = Path(log_folder) / algo
    parent.mkdir(parents=True, exist_ok=True)
    n = latest_run_number(parent, env_id) + 1
    while True:
        folder = parent / f"{file_name(env_id)}_{n}"
        try:
            folder.mkdir()
        except FileExistsError:
            n += 1
            continue
        (folder / file_name(env_id)).mkdir()
        return folder


def latest_run_number(parent: Path, env_id: str) -> int:
    """Find the highest run number of an environment.

    :param parent: folder of all runs of an algorithm
    :param env_id: environment id
    :return: highest n of the folders ``{env_id}_{n}``, 0 if there are none
    """
    pattern = re.compile(re.escape(file_name(env_id)) + r"_(\d+)")
    matches = [pattern.fullmatch(path.name) for path in parent.iterdir()]
    return max((int(match.group(1)) for match in matches if match), default=0)


def file_name(env_id: str) -> str:
    """Turn an environment id into a file name.

    :param env_id: environment id, such as ``"namespace/Env-v0"``
    :return: id with hyphens instead of slashes
    """
    return env_id.replace("/", "-")


def write_settings(
    folder: Path, env_id: str, config: Mapping[str, Any], args: Mapping[str, Any], argv: Sequence[str]
) -> None:
    """Write the settings of a run to ``config.yml``, ``args.yml`` and ``command.txt`` in ``{folder}/{env_id}``.

    :param folder: folder of the run
    :param env_id: environment id
    :param config: hyperparameters as plain values
    :param args: arguments of the command line by name
    :param argv: words of the command line
    """
    settings = folder / file_name(env_id)
    (settings / "config.yml").write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    (settings / "args.yml").write_text(yaml.safe_dump(dict(args)), encoding="utf-8")
    (settings / "command.txt").write_text(shlex.join(argv) + "\n", encoding="utf-8")


def training_command(folder: Path, env_id: str) -> str:
    """Read the command line of a run.

    :param folder: folder of the run
    :param env_id: environment id
    :return: command line, empty if it was not recorded
    """
    path = folder / file_name(env_id) / "command.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


class IterationCheckpoints(BaseCallback):
    """Callback that saves ``rl_model_{steps}_steps.zip`` between iterations, every ``save_freq`` environment steps.

    SB3's ``CheckpointCallback`` saves within an iteration; a run resumed from such a file counts its steps twice.

    :param save_freq: environment steps between two checkpoints
    :param folder: folder of the run
    :param verbose: 1 to print the name of each file, 0 for no output
    """

    def __init__(self, save_freq: int, folder: str | Path, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.save_freq = save_freq
        self.folder = Path(folder)
        self._next_save = 0

    def _on_training_start(self) -> None:
        self._next_save = self.num_timesteps + self.save_freq

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._next_save:
            path = self.folder / f"rl_model_{self.model.num_timesteps}_steps.zip"
            self.model.save(path)
            self._next_save = self.model.num_timesteps + self.save_freq
            if self.verbose:
                print(f"Saved {path}")

    def _on_step(self) -> bool:
        return True


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint with the most steps.

    :param folder: folder of a run
    :return: path of the checkpoint, None if there is none
    """
    numbered = [(int(path.stem.split("_")[2]), path) for path in folder.glob("rl_model_*_steps.zip")]
    return max(numbered)[1] if numbered else None


@dataclass(frozen=True)
class Run:
    """Training run that was found in a log folder.

    :param algo: name of the algorithm
    :param env_id: environment id
    :param folder: folder of the run
    """

    algo: str
    env_id: str
    folder: Path

    def setting(self, file: str, key: str) -> Any:
        """Look up a setting of the run.

        :param file: ``config.yml`` or ``args.yml``
        :param key: key in the file
        :return: value, None if it was not recorded
        """
        path = self.folder / file_name(self.env_id) / file
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _SettingsLoader) if path.is_file() else None
        except yaml.YAMLError:  # not plain, such as the settings of another library
            return None
        return content.get(key) if isinstance(content, dict) else None


def recorded_argument(folder: Path, key: str) -> Any:
    """Look up an argument of the command line of a run.

    :param folder: folder of the run
    :param key: name of the argument
    :return: value, None if it was not recorded
    """
    paths = sorted(folder.glob("*/args.yml"))
    return Run(folder.parent.name, paths[0].parent.name, folder).setting("args.yml", key) if paths else None


def parent_of(folder: Path, candidates: Sequence[Path]) -> Path | None:
    """Find the run whose model a resumed run went on with.

    :param folder: folder of the run
    :param candidates: folders of runs
    :return: the one among the candidates, None if it is not there, or the run began with a new model
    """
    agent = recorded_argument(folder, "trained_agent")
    if not agent:
        return None
    names = Path(agent).parts[-3:-1]  # algorithm and run: the path may be relative to another directory
    return next((path for path in candidates if path != folder and path.parts[-2:] == names), None)


class _SettingsLoader(yaml.SafeLoader):
    """Loader of plain YAML, and of the one Python object in rl-zoo's settings files, an OrderedDict of them all."""


def _as_dict(loader: yaml.SafeLoader, node: yaml.Node) -> dict[Any, Any]:
    """Read an OrderedDict, which YAML represents by the arguments of its constructor: a list of pairs."""
    assert isinstance(node, yaml.SequenceNode)
    arguments = loader.construct_sequence(node, deep=True)
    return dict(arguments[0]) if arguments else {}


_SettingsLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _as_dict)


def list_runs(log_folder: str | Path) -> list[Run]:
    """Find all runs with recorded settings.

    :param log_folder: root of all logs
    :return: runs, sorted by algorithm, environment and number
    :raises ValueError: if the folder does not exist
    """
    if not Path(log_folder).is_dir():
        raise ValueError(f"there is no log folder {log_folder}")
    found = []
    for path in Path(log_folder).glob("*/*/*/args.yml"):
        folder, (stem, _, number) = path.parents[1], path.parents[1].name.rpartition("_")
        if stem == path.parent.name and number.isdigit():
            algo, env_id = folder.parent.name, path.parent.name
            recorded = Run(algo, env_id, folder).setting("args.yml", "env")  # a folder's name has no slashes
            found.append((algo, env_id, int(number), Run(algo, recorded or env_id, folder)))
    return [run for *_, run in sorted(found, key=lambda entry: entry[:3])]


def find_run(log_folder: str | Path, algo: str, env_id: str, exp_id: int = 0) -> Path:
    """Find the folder of a run.

    :param log_folder: root of all logs
    :param algo: name of the algorithm
    :param env_id: environment id
    :param exp_id: number of the run, 0 for the latest, -1 if the files are in the folder of the algorithm itself
    :return: ``{log_folder}/{algo}/{env_id}_{n}``, or ``{log_folder}/{algo}`` for -1
    :raises FileNotFoundError: if there is no such folder
    """
    parent = Path(log_folder) / algo
    if exp_id < 0:
        folder = parent
    else:
        n = exp_id or (latest_run_number(parent, env_id) if parent.is_dir() else 0)
        folder = parent / f"{file_name(env_id)}_{n or 1}"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no log folder {folder}: train with scripts/train.py, or say where with -f")
    return folder


def find_runs(log_folder: str | Path, algo: str, env_ids: Sequence[str]) -> list[Path]:
    """Find the folders of all runs of an algorithm on some environments.

    :param log_folder: root of all logs
    :param algo: name of the algorithm
    :param env_ids: environment ids
    :return: folders, in the order of the environments and by number
    """
    parent = Path(log_folder) / algo
    if not parent.is_dir():
        return []
    numbered = [(env_id, range(1, latest_run_number(parent, env_id) + 1)) for env_id in env_ids]
    folders = [parent / f"{file_name(env_id)}_{n}" for env_id, numbers in numbered for n in numbers]
    return [folder for folder in folders if folder.is_dir()]


def find_model(
    folder: Path, env_id: str, best: bool = False, checkpoint: int | None = None, last_checkpoint: bool = False
) -> Path:
    """Find a model file of a run, by default the one saved at the end of training.

    :param folder: folder of the run
    :param env_id: environment id
    :param best: whether to take the best model of the evaluations
    :param checkpoint: environment steps of the checkpoint to take, None for no checkpoint
    :param last_checkpoint: whether to take the last checkpoint
    :return: path of the file
    :raises FileNotFoundError: if there is no such file; the message lists the models that the run has, and names the
        latest run that has such a file
    """
    pattern = f"{file_name(env_id)}.zip"
    if best:
        pattern = "best_model.zip"
    elif checkpoint is not None:
        pattern = f"rl_model_{checkpoint}_steps.zip"
    elif last_checkpoint:
        pattern = "rl_model_*_steps.zip"
    path = latest_checkpoint(folder) if "*" in pattern else folder / pattern
    if path is None or not path.is_file():
        wanted = "checkpoint" if path is None else path.name
        there = ", ".join(sorted(file.name for file in folder.glob("*.zip"))) or "no model"
        n = _latest_run_with(folder.parent, env_id, pattern)
        advice = f"; the latest run that has one is number {n}: choose it with --exp-id {n}" if n else ""
        raise FileNotFoundError(f"there is no {wanted} in {folder}, which holds {there}{advice}")
    return path


def _latest_run_with(parent: Path, env_id: str, pattern: str) -> int:
    """Find the highest number of a run of an environment with a file of a pattern; 0 if there is none."""
    for n in range(latest_run_number(parent, env_id), 0, -1):
        if any((parent / f"{file_name(env_id)}_{n}").glob(pattern)):
            return n
    return 0

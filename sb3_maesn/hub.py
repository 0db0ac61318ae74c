"""Publication of models on the Hugging Face Hub, in rl-zoo's layout and with a checkpoint that is safe to load."""

import csv
import inspect
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sb3_maesn.checkpoints import ALGORITHMS
from sb3_maesn.common.checkpoint.archive import LIMITS
from sb3_maesn.common.checkpoint.file import CheckpointConfig, read_config
from sb3_maesn.common.checkpoint.hub_client import HubError, commit, download, one_line
from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.common.checkpoint.plain_json import dump_json
from sb3_maesn.common.checkpoint.pretrained import find_pretrained, list_pretrained, read_results
from sb3_maesn.model_card import CURVE, CardFacts, make_card
from sb3_maesn.results import Row, known_columns
from sb3_maesn.run_folder import file_name, training_command
from sb3_maesn.training import ALGOS

__all__ = [
    "HubError",
    "Publication",
    "create_repository",
    "download",
    "pretrained_publication",
    "publication_files",
    "push_to_hub",
]

#: Files of a run's folder, and of the folder of its settings, that are published unchanged.
RUN_FILES = ("progress.csv", "evaluations.npz")
SETTINGS_FILES = ("config.yml", "args.yml", "env_kwargs.yml")


@dataclass(frozen=True)
class Publication:
    """Model to publish, with its results and further files.

    :param repo_id: repository, such as ``"org/maesn-WheeledGoal-v0"``
    :param model: model to publish
    :param env_id: environment that the model was trained on; empty if the model knows it
    :param rounds: rows of ``results.adaptation_rows`` on test tasks; empty if the model was not evaluated
    :param tested: origin of the rows: ``env``, ``tasks`` and ``rule``; ``split``, ``command`` and the number of
        ``episodes`` of each task that were measured in a round, if known
    :param command: command that trained the model, empty if unknown
    :param files: further files by name, such as a ``replay.mp4``, a GIF or raw curves; they replace generated files of
        the same name
    :param licence: licence in the abbreviation of the Hub
    """

    repo_id: str
    model: CheckpointMixin
    env_id: str = ""
    rounds: Sequence[Row] = ()
    tested: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    licence: str = "mit"

    def __post_init__(self) -> None:
        missing = {"env", "tasks", "rule"} - set(self.tested)
        if self.rounds and missing:
            raise ValueError(f"expected tested to say what the rounds are of, got it without {sorted(missing)}")
        if not self.env_id and self.model.env_id is None:
            raise ValueError(
                "expected env_id, the environment that the model was trained on: the model does not know it"
            )

    @property
    def trained_on(self) -> str:
        """Environment that the model was trained on."""
        return self.env_id or str(self.model.env_id)

    @property
    def algo(self) -> str:
        """Name of the algorithm, as the flag ``--algo`` takes it."""
        named = {recipe.algorithm.__name__: name for name, recipe in ALGOS.items()}
        return named.get(type(self.model).__name__, type(self.model).__name__.lower())


def push_to_hub(
    model: CheckpointMixin,
    repo_id: str,
    env_id: str = "",
    rounds: Sequence[Row] = (),
    tested: Mapping[str, Any] | None = None,
    command: str = "",
    files: Mapping[str, bytes | Path] | None = None,
    commit_message: str = "",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    licence: str = "mit",
) -> str:
    """Publish a model in one commit: its checkpoint, SB3's own file, settings, results and a model card.

    :param model: model to publish
    :param repo_id: repository, such as ``"org/maesn-WheeledGoal-v0"``; it is created if missing
    :param env_id: environment that the model was trained on; empty if the model knows it
    :param rounds: rows of ``results.adaptation_rows`` on test tasks; empty if the model was not evaluated
    :param tested: origin of the rows: ``env``, ``tasks`` and ``rule``; ``split`` and ``command`` if known
    :param command: command that trained the model, empty if unknown
    :param files: further files by name, such as a ``replay.mp4``, a GIF or raw curves
    :param commit_message: message of the commit, empty for a default
    :param private: whether a new repository is private, None for the default of the Hub
    :param token: token of the Hub, None for the one that ``huggingface_hub`` has stored
    :param revision: branch to commit to, None for ``main``
    :param create_pr: whether to open a pull request instead of committing to the branch
    :param licence: licence in the abbreviation of the Hub
    :return: URL of the commit
    :raises HubError: if the Hub cannot be reached or refuses the commit (an OSError); the repository is then unchanged
    :raises ValueError: if the model cannot be written as a checkpoint, or its environment is unknown
    """
    publication = Publication(repo_id, model, env_id, rounds, tested or {}, command, files or {}, licence)
    return push_publication(publication, commit_message, private, token, revision, create_pr)


def push_publication(
    publication: Publication,
    commit_message: str = "",
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Publish a model with its results and files in one commit.

    :param publication: model, results and files
    :param commit_message: message of the commit, empty for a default
    :param private: whether a new repository is private, None for the default of the Hub
    :param token: token of the Hub, None for the one that ``huggingface_hub`` has stored
    :param revision: branch to commit to, None for ``main``
    :param create_pr: whether to open a pull request instead of committing to the branch
    :return: URL of the commit
    :raises HubError: if the Hub cannot be reached or refuses the commit (an OSError); the repository is then unchanged
    """
    contents, message = publication_files(publication), commit_message or _message(publication)
    return commit(publication.repo_id, contents, message, token, private, revision, create_pr)


def create_repository(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> None:
    """Create a repository if it is missing, to find out early that the Hub cannot be reached or refuses access.

    :param repo_id: repository, such as ``"org/maesn-WheeledGoal-v0"``
    :param private: whether a new repository is private, None for the default of the Hub
    :param token: token of the Hub, None for the one that ``huggingface_hub`` has stored
    :raises HubError: if the Hub cannot be reached or refuses access (an OSError)
    """
    from huggingface_hub import HfApi

    with one_line(repo_id):
        HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True)


def publication_files(publication: Publication) -> dict[str, bytes | Path]:
    """Make all files of a repository.

    :param publication: model, results and files
    :return: contents or paths by name in the repository
    """
    files, config = _model_files(publication)
    files |= _settings(publication) | _results(publication) | dict(publication.files)
    facts = CardFacts(
        repo_id=publication.repo_id,
        algorithm=config.algorithm,
        about_algorithm=_first_sentence(type(publication.model)),
        adapts=hasattr(publication.model, "adapt"),
        env_id=publication.trained_on,
        hyperparameters=config.hyperparameters,
        num_timesteps=publication.model.num_timesteps,
        seed=publication.model.seed,
        command=publication.command,
        versions=config.versions,
        rounds=known_columns(publication.rounds),
        tested=publication.tested,
        files=sorted(files),
        licence=publication.licence,
    )
    return {"README.md": str(make_card(facts)).encode(), **files}


def pretrained_publication(name: str, organisation: str, licence: str = "mit") -> Publication:
    """Prepare a pretrained model of the package for publication.

    :param name: key of ``list_pretrained()``
    :param organisation: user or organisation of the Hub
    :param licence: licence in the abbreviation of the Hub
    :return: model with its results
    """
    folder, about = find_pretrained(name), list_pretrained()[name]
    results = read_results(folder)
    model = ALGORITHMS[about.algorithm].load_checkpoint(folder)
    tested = {key: value for key, value in results.items() if key != "rounds"}
    repo_id, command = f"{organisation}/{name}", str(results.get("training_command", ""))
    return Publication(repo_id, model, rounds=results["rounds"], tested=tested, command=command, licence=licence)


def run_files(folder: Path, env_id: str) -> tuple[dict[str, bytes | Path], str]:
    """Collect the files of a run to publish with its model: settings, raw curves and videos.

    :param folder: folder of the run
    :param env_id: environment id
    :return: paths by name in the repository, and the command that trained the model
    """
    settings = folder / file_name(env_id)
    found: dict[str, bytes | Path] = {name: settings / name for name in SETTINGS_FILES}
    found |= {name: folder / name for name in RUN_FILES}
    found |= {path.name: path for path in (*folder.glob("replay.mp4"), *folder.glob("*.gif"))}
    films = sorted(folder.glob("videos/*.mp4"), key=lambda path: path.stat().st_mtime)
    if films:  # as record_video.py writes them; the Hub plays replay.mp4
        found = {"replay.mp4": films[-1], **found}
    return {name: path for name, path in found.items() if Path(str(path)).is_file()}, training_command(folder, env_id)


def write_files(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write the files of a repository to a folder, for inspection before publication.

    :param folder: folder, created if missing
    :param files: contents or paths by name, as :func:`publication_files` returns them
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _model_files(publication: Publication) -> tuple[dict[str, bytes | Path], CheckpointConfig]:
    model, packed = publication.model, io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        model.save_checkpoint(folder)
        config = read_config(folder)
        files: dict[str, bytes | Path] = {name: (Path(folder) / name).read_bytes() for name in LIMITS}
    model.save(packed)
    return {f"{publication.algo}-{file_name(publication.trained_on)}.zip": packed.getvalue(), **files}, config


def _settings(publication: Publication) -> dict[str, bytes | Path]:
    """Make rl-zoo's three settings files, for a model without a run folder."""
    entry = {**publication.model.plain_settings(), "n_timesteps": publication.model.num_timesteps}
    args = {"algo": publication.algo, "env": publication.trained_on, "seed": publication.model.seed}
    contents = {"config.yml": entry, "args.yml": args, "env_kwargs.yml": {}}
    return {name: yaml.safe_dump(content, sort_keys=False).encode() for name, content in contents.items()}


def _results(publication: Publication) -> dict[str, bytes | Path]:
    """Make rl-zoo's summary of results, the table of adaptation rounds and, with matplotlib, its figure."""
    if not publication.rounds:
        return {}
    rounds = known_columns(publication.rounds)
    last, n_tasks = rounds[-1], int(publication.tested["tasks"])
    n_episodes = publication.tested.get("episodes", int(last["episodes"]) // max(len(rounds) - 1, 1))
    summary = {
        "mean_reward": last["mean_return"],
        "std_reward": round(last["return_interval"] / 1.96 * n_tasks**0.5, 2),  # over the means of the tasks
        "is_deterministic": False,
        "n_eval_episodes": n_tasks * n_episodes,
        **publication.tested,
        "rounds": rounds,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(last), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rounds)
    files: dict[str, bytes | Path] = {"results.json": dump_json(summary), "adaptation.csv": table.getvalue().encode()}
    if find_spec("matplotlib") is not None:  # the extra [plots]
        files[CURVE] = _draw_curve(publication)
    return files


def _draw_curve(publication: Publication) -> bytes:
    from sb3_maesn.plots import plot_adaptation_tables

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CURVE
        title = f"{type(publication.model).__name__} adapting to {publication.tested['env']}"
        plot_adaptation_tables({publication.algo: publication.rounds}, path, title)
        return path.read_bytes()


def _first_sentence(algorithm: type) -> str:
    """Take the first line of the docstring of an algorithm's module, or of the class for one of the user's own."""
    own = algorithm.__module__.startswith("sb3_maesn.")
    text = inspect.getdoc(inspect.getmodule(algorithm) if own else algorithm) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _message(publication: Publication) -> str:
    steps = publication.model.num_timesteps
    return f"{type(publication.model).__name__} on {publication.trained_on} after {steps} steps"

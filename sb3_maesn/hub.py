"""Publishing models on the Hugging Face Hub, in rl-zoo's layout and with a checkpoint that is safe to load."""

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
from sb3_maesn.common.checkpoint.hub_client import HubError, commit, download
from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.common.checkpoint.plain_json import dump_json
from sb3_maesn.common.checkpoint.pretrained import find_pretrained, list_pretrained, read_results
from sb3_maesn.model_card import CURVE, CardFacts, make_card
from sb3_maesn.results import Row
from sb3_maesn.run_folder import file_name, training_command
from sb3_maesn.training import ALGOS

__all__ = ["HubError", "Publication", "download", "pretrained_publication", "publication_files", "push_to_hub"]

#: Files of a run's folder, or of the folder of its settings, that are published as they are.
RUN_FILES = ("progress.csv", "evaluations.npz")
SETTINGS_FILES = ("config.yml", "args.yml", "env_kwargs.yml")


@dataclass(frozen=True)
class Publication:
    """A model and what is published with it.

    :param repo_id: ``"org/maesn-WheeledGoal-v0"``
    :param model: the model
    :param env_id: what it was trained on; asked of the model where empty
    :param rounds: rows of ``results.adaptation_rows`` on test tasks; empty where it was not evaluated
    :param tested: ``env``, ``tasks`` and ``rule`` of these; ``split`` and ``command`` if known
    :param command: that trained it
    :param files: further files by name, or in place of those made here: a ``replay.mp4``, a GIF, raw curves
    :param licence: as the Hub abbreviates it
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
        """The environment that the model was trained on."""
        return self.env_id or str(self.model.env_id)

    @property
    def algo(self) -> str:
        """Name of the algorithm on the command line."""
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
    """Publish a model: its checkpoint, SB3's own file, settings, results and a card, in one commit.

    :param model: the model
    :param repo_id: ``"org/maesn-WheeledGoal-v0"``; the repository is made if there is none
    :param env_id: what it was trained on; asked of the model where empty
    :param rounds: rows of ``results.adaptation_rows`` on test tasks, for the card
    :param tested: ``env``, ``tasks`` and ``rule`` of these; ``split`` and ``command`` if known
    :param command: that trained it
    :param files: further files by name: a ``replay.mp4``, a GIF, raw curves
    :param commit_message: of the commit
    :param private: whether a new repository is
    :param token: as in ``huggingface_hub``: the stored one where None
    :param revision: branch to commit to; ``main`` where None
    :param create_pr: propose the commit in place of making it
    :param licence: as the Hub abbreviates it
    :return: address of the commit
    :raises HubError: an OSError, if the Hub cannot be reached or refuses; the repository then is as it was
    :raises ValueError: if the model has no safe form, or its environment is not known
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
    """Publish in one commit.

    :param publication: what to publish
    :param commit_message: of the commit
    :param private: whether a new repository is
    :param token: as in ``huggingface_hub``: the stored one where None
    :param revision: branch to commit to; ``main`` where None
    :param create_pr: propose the commit in place of making it
    :return: address of the commit
    :raises HubError: an OSError, if the Hub cannot be reached or refuses; the repository then is as it was
    """
    contents, message = publication_files(publication), commit_message or _message(publication)
    return commit(publication.repo_id, contents, message, token, private, revision, create_pr)


def publication_files(publication: Publication) -> dict[str, bytes | Path]:
    """Make all files of a repository.

    :param publication: what to publish
    :return: contents, or paths, by name in the repository
    """
    files, config = _model_files(publication)
    files |= _settings(publication, config) | _results(publication) | dict(publication.files)
    facts = CardFacts(
        repo_id=publication.repo_id,
        algorithm=config.algorithm,
        about_algorithm=_first_line(type(publication.model)),
        env_id=publication.trained_on,
        hyperparameters=config.hyperparameters,
        num_timesteps=publication.model.num_timesteps,
        seed=publication.model.seed,
        command=publication.command,
        versions=config.versions,
        rounds=publication.rounds,
        tested=publication.tested,
        files=sorted(files),
        licence=publication.licence,
    )
    return {"README.md": str(make_card(facts)).encode(), **files}


def pretrained_publication(name: str, organisation: str) -> Publication:
    """A model that comes with the package, ready to be published.

    :param name: one of ``list_pretrained()``
    :param organisation: of the Hub
    """
    folder, about = find_pretrained(name), list_pretrained()[name]
    results = read_results(folder)
    model = ALGORITHMS[about.algorithm].load_checkpoint(folder)
    tested = {key: value for key, value in results.items() if key != "rounds"}
    repo_id, command = f"{organisation}/{name}", str(results.get("training_command", ""))
    return Publication(repo_id, model, rounds=results["rounds"], tested=tested, command=command)


def run_files(folder: Path, env_id: str) -> tuple[dict[str, bytes | Path], str]:
    """What a run's folder adds to its model: settings, raw curves, a video, and the command.

    :param folder: folder of the run
    :param env_id: environment id
    :return: files by name, and the command
    """
    settings = folder / file_name(env_id)
    found: dict[str, bytes | Path] = {name: settings / name for name in SETTINGS_FILES}
    found |= {name: folder / name for name in RUN_FILES}
    found |= {path.name: path for path in (*folder.glob("replay.mp4"), *folder.glob("*.gif"))}
    return {name: path for name, path in found.items() if Path(str(path)).is_file()}, training_command(folder, env_id)


def write_files(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write a repository's files into a folder, to look at them before they are published.

    :param folder: which is made
    :param files: from :func:`publication_files`
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


def _settings(publication: Publication, config: CheckpointConfig) -> dict[str, bytes | Path]:
    """The zoo's three files, for a model without a run's folder."""
    entry = {"policy": config.policy, "policy_kwargs": config.policy_kwargs, **config.hyperparameters}
    entry["n_timesteps"] = publication.model.num_timesteps
    args = {"algo": publication.algo, "env": publication.trained_on, "seed": publication.model.seed}
    contents = {"config.yml": entry, "args.yml": args, "env_kwargs.yml": {}}
    return {name: yaml.safe_dump(content, sort_keys=False).encode() for name, content in contents.items()}


def _results(publication: Publication) -> dict[str, bytes | Path]:
    """The zoo's summary, the raw curve and its figure."""
    if not publication.rounds:
        return {}
    rounds, last = publication.rounds, publication.rounds[-1]
    n_tasks = int(publication.tested["tasks"])
    summary = {
        "mean_reward": last["mean_return"],
        "std_reward": round(last["return_interval"] / 1.96 * n_tasks**0.5, 2),  # of the tasks' means
        "is_deterministic": False,
        "n_eval_episodes": n_tasks * int(last["episodes"]) // max(len(rounds) - 1, 1),
        **publication.tested,
        "rounds": [dict(row) for row in rounds],
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


def _first_line(algorithm: type) -> str:
    return (inspect.getdoc(inspect.getmodule(algorithm)) or "").partition("\n\n")[0].replace("\n", " ")


def _message(publication: Publication) -> str:
    steps = publication.model.num_timesteps
    return f"{type(publication.model).__name__} on {publication.trained_on} after {steps} steps"

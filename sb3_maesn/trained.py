"""Trained agents, loaded from the log folders of training runs or from the pretrained models of the package."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_maesn.common.checkpoint.pretrained import list_pretrained
from sb3_maesn.envs import FAMILIES
from sb3_maesn.run_folder import Run, find_model, find_run, list_runs
from sb3_maesn.tasks import check_env_id
from sb3_maesn.training import ALGOS, check_device, find_recipe


@dataclass(frozen=True)
class AgentChoice:
    """Choice of the agent to load, in terms of rl-zoo's flags.

    :param algo: key of ``training.ALGOS``
    :param env_id: id of the training environment
    :param log_folder: root of all logs
    :param exp_id: number of the run, 0 for the latest, -1 if the files are in the folder of the algorithm itself
    :param best: whether to take the best model of the evaluations instead of the last model
    :param checkpoint: environment steps of the checkpoint to take, None for no checkpoint
    :param last_checkpoint: whether to take the last checkpoint
    :param device: torch device
    """

    algo: str
    env_id: str
    log_folder: str = "logs"
    exp_id: int = 0
    best: bool = False
    checkpoint: int | None = None
    last_checkpoint: bool = False
    device: str = "cpu"

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "AgentChoice":
        """Make a choice from the flags of the scripts that load one agent.

        :param args: parsed arguments with ``algo``, ``env``, ``folder``, ``exp_id``, ``load_best``,
            ``load_checkpoint``, ``load_last_checkpoint`` and ``device``
        :return: choice of the agent
        """
        kind = args.load_best, args.load_checkpoint, args.load_last_checkpoint
        return cls(args.algo, args.env, args.folder, args.exp_id, *kind, args.device)

    @property
    def is_default(self) -> bool:
        """Whether no particular run or model is chosen, so that a pretrained model may stand in."""
        return self.exp_id == 0 and not self.best and self.checkpoint is None and not self.last_checkpoint


@dataclass(frozen=True)
class TrainedAgent:
    """Loaded agent.

    :param algo: key of ``training.ALGOS``
    :param env_id: id of the training environment
    :param name: name for titles and tables
    :param model: model
    :param folder: folder of the run, None for a pretrained model of the package
    :param task: words of ``--task`` that name the one task of the training; empty if there were many tasks or none
    """

    algo: str
    env_id: str
    name: str
    model: OnPolicyAlgorithm
    folder: Path | None = None
    task: Sequence[str] = ()

    @property
    def adapts(self) -> bool:
        """Whether the agent adapts to new tasks; others play the one task they were trained on."""
        return hasattr(self.model, "adapt")

    @property
    def test_env_id(self) -> str:
        """Id of the environment in which the agent is tested and played, chosen by the recipe of its algorithm."""
        return find_recipe(self.algo).test_env_id(self.env_id)


def load_agent(choice: AgentChoice) -> TrainedAgent:
    """Load an agent from its run, or a pretrained model of the package if there is no run.

    :param choice: choice of the agent
    :return: agent
    :raises ValueError: if there is no such algorithm or environment, or the model is of another algorithm
    :raises FileNotFoundError: if there is neither such a run nor such a pretrained model
    """
    algorithm: Any = find_recipe(choice.algo).algorithm
    check_env_id(choice.env_id)
    device = check_device(choice.device)
    try:
        folder = find_run(choice.log_folder, choice.algo, choice.env_id, choice.exp_id)
    except FileNotFoundError:
        name = f"{choice.algo}-{choice.env_id}"
        if not choice.is_default or name not in list_pretrained():
            raise
        return TrainedAgent(choice.algo, choice.env_id, name, algorithm.from_pretrained(name))
    path = find_model(folder, choice.env_id, choice.best, choice.checkpoint, choice.last_checkpoint)
    model = algorithm.load(path, device=device)
    words = Run(choice.algo, choice.env_id, folder).setting("args.yml", "task") or ()
    name, task = f"{choice.algo}/{folder.name}/{path.stem}", tuple(map(str, words))
    return TrainedAgent(choice.algo, choice.env_id, name, model, folder, task)


def list_agents(log_folder: str, pretrained: bool = True) -> list[AgentChoice]:
    """List the latest run of each algorithm and environment, and the pretrained models of the package.

    :param log_folder: root of all logs; it need not exist
    :param pretrained: whether to list pretrained models of algorithms and environments without a run
    :return: choices for :func:`load_agent`
    """
    runs = list_runs(log_folder) if Path(log_folder).is_dir() else []
    found = [(run.algo, run.env_id) for run in runs]
    if pretrained:
        named = {f"{algo}-{env_id}": (algo, env_id) for algo in ALGOS for env_id in FAMILIES}
        found += [named[name] for name in list_pretrained() if name in named]
    return [AgentChoice(algo, env_id, log_folder) for algo, env_id in sorted(set(found))]

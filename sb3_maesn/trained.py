"""Trained agents, found where rl-zoo keeps them, or else among those that come with the package."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_maesn.cli import check_env_id, sparse_variant
from sb3_maesn.common.checkpoint.pretrained import list_pretrained
from sb3_maesn.envs import FAMILIES
from sb3_maesn.run_folder import Run, find_model, find_run, list_runs
from sb3_maesn.training import ALGOS, check_device, find_recipe


@dataclass(frozen=True)
class AgentChoice:
    """Which agent to load, in the words of rl-zoo's flags.

    :param algo: name of the algorithm
    :param env_id: environment id it was trained on
    :param log_folder: root of all logs
    :param exp_id: number of the run, 0 for the latest, -1 where runs have no folders of their own
    :param best: its best model in place of the last
    :param checkpoint: or the checkpoint after this number of steps
    :param last_checkpoint: or its last checkpoint
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
        """Read the flags that all scripts have in common.

        :param args: parsed arguments
        """
        kind = args.load_best, args.load_checkpoint, args.load_last_checkpoint
        return cls(args.algo, args.env, args.folder, args.exp_id, *kind, args.device)

    @property
    def is_default(self) -> bool:
        """Whether any agent of this algorithm and environment would do."""
        return self.exp_id == 0 and not self.best and self.checkpoint is None and not self.last_checkpoint


@dataclass(frozen=True)
class TrainedAgent:
    """A loaded agent.

    :param algo: name of the algorithm
    :param env_id: environment id it was trained on
    :param name: for titles and tables
    :param model: the model
    :param folder: folder of its run, None for an agent that comes with the package
    :param task: the one task it was trained on, in the words of ``--task``; empty where there were many or none
    """

    algo: str
    env_id: str
    name: str
    model: OnPolicyAlgorithm
    folder: Path | None = None
    task: Sequence[str] = ()

    @property
    def adapts(self) -> bool:
        """Whether it adapts to new tasks; others play the one task they were trained on."""
        return hasattr(self.model, "adapt")

    @property
    def test_env_id(self) -> str:
        """Environment it is tested on: sparse reward, if it adapts."""
        return sparse_variant(self.env_id) if self.adapts else self.env_id


def load_agent(choice: AgentChoice) -> TrainedAgent:
    """Load an agent from its run, or the one that comes with the package where there is no run.

    :param choice: which
    :return: the agent
    :raises ValueError: if there is no such algorithm or environment, or the model is of another algorithm
    :raises FileNotFoundError: if there is neither a run nor such an agent in the package
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
    """List the agents there are: the latest run of each algorithm and environment, and what comes with the package.

    :param log_folder: root of all logs; it need not exist
    :param pretrained: whether to list the package's own agents where there is no run of theirs
    :return: what ``load_agent`` takes
    """
    runs = list_runs(log_folder) if Path(log_folder).is_dir() else []
    found = [(run.algo, run.env_id) for run in runs]
    if pretrained:
        named = {f"{algo}-{env_id}": (algo, env_id) for algo in ALGOS for env_id in FAMILIES}
        found += [named[name] for name in list_pretrained() if name in named]
    return [AgentChoice(algo, env_id, log_folder) for algo, env_id in sorted(set(found))]

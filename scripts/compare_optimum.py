"""Train RL2 by its tuned settings and compare it, on held-out tasks and while it learns, with the best there could be.

Bandit: the Bayes-optimal player. PointGoal: a player that knows the goal, in every episode of the trial. The floor is
what a player without any idea gets: the return of either arm, or of standing still.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = Path(__file__).resolve().parent.parent / "zoo_configs" / "rl2.yml"


class Reference(NamedTuple):
    """What to compare with.

    :param n_tasks: how many tasks
    :param n_trials: trials of each
    :param floor: return of an episode without any idea of the task
    :param best: makes the best return of an episode from the tasks
    """

    n_tasks: int
    n_trials: int
    floor: float
    best: Callable[[Any], float]


def bandit_optimum(tasks: Any) -> float:
    """Return of the Bayes-optimal player.

    :param tasks: not used: it is the mean over all tasks there are
    """
    from sb3_maesn.envs.bandit import N_PULLS, bayes_optimal_return

    return bayes_optimal_return(N_PULLS)


def point_optimum(tasks: Any) -> float:
    """Mean return of the player that knows the goal.

    :param tasks: goals (n, 2), an episode each
    """
    from sb3_maesn.envs import make_vec
    from sb3_maesn.envs.point import best_controls

    env = make_vec("PointGoal-v0", len(tasks))
    env.set_tasks(tasks)
    env.seed(0)
    observations, total = env.reset(), 0.0
    for _ in range(env.horizon):
        observations, rewards, _, _ = env.step(best_controls(observations, tasks))
        total += float(rewards.mean())
    return total


REFERENCES = {
    "Bandit-v0": Reference(10_000, 1, 5.0, bandit_optimum),
    "PointGoal-v0": Reference(100, 10, -20.0, point_optimum),
}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("env", choices=list(REFERENCES), help="environment id")
    add("-n", "--n-timesteps", type=int, default=-1, help="environment steps, -1: as configured")
    add("--evaluations", type=int, default=10, help="evaluations during the training")
    add(
        "--split",
        choices=("validation", "test"),
        default="test",
        help="set of tasks to compare on; settings are chosen on validation",
    )
    add("--tasks", type=int, default=-1, help="how many, -1: enough for the comparison")
    add("--first-task", type=int, default=0, help="index of the first; a set goes on beyond what has been looked at")
    add("--seed", type=int, default=0, help="seed")
    add("--csv", default="", help="table to write (results/rl2-<env>.csv if empty)")
    add("--verbose", type=int, default=1, help="2: tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    import torch

    from sb3_maesn.cli import one_line_errors
    from sb3_maesn.results import format_table, provenance, write_table

    torch.set_num_threads(1)
    with one_line_errors(args.verbose):
        rows = compare(args)
        print(format_table(rows))
        settings = {
            "env": args.env,
            "config": "zoo_configs/rl2.yml",
            "split": args.split,
            "first_task": args.first_task,
        }
        write_table(args.csv or f"results/rl2-{args.env}.csv", rows, provenance(args.seed, **settings))
    return 0


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train and evaluate.

    :param args: parsed arguments
    :return: one row for each evaluation and episode of the trial
    """
    from sb3_maesn.config import SCRIPT_KEYS, constructor_arguments, load_entry
    from sb3_maesn.envs import make_family, make_vec
    from sb3_maesn.envs.multi_task import MultiTaskVecEnv
    from sb3_maesn.rl2 import RL2

    reference, entry = REFERENCES[args.env], load_entry(CONFIG, args.env)
    n_tasks = reference.n_tasks if args.tasks < 0 else args.tasks
    budget = int(entry["n_timesteps"]) if args.n_timesteps < 0 else args.n_timesteps
    settings = constructor_arguments({k: v for k, v in entry.items() if k not in SCRIPT_KEYS}, RL2)
    env = MultiTaskVecEnv(make_vec(args.env, entry["n_envs"]))
    model = RL2(entry["policy"], env, seed=args.seed, **settings)
    tasks = make_family(args.env).task_set(args.split, args.first_task + n_tasks)[args.first_task :]
    best = reference.best(tasks)
    rows: list[dict[str, Any]] = []

    def evaluate() -> None:
        result = model.evaluate_trials(args.env, list(tasks), n_trials=reference.n_trials)
        rows.extend(make_rows(model.num_timesteps, result.returns, reference.floor, best))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)

    model.learn(budget, callback=every(model, budget // args.evaluations, evaluate))
    evaluate()
    return rows


def every(model: Any, n_steps: int, act: Callable[[], None]) -> Any:
    """Make a callback that acts between two iterations, about every so many steps.

    :param model: the model
    :param n_steps: environment steps
    :param act: what to do
    """
    from stable_baselines3.common.callbacks import BaseCallback

    class Every(BaseCallback):
        def _on_rollout_start(self) -> None:
            before = self.model.num_timesteps - model.timesteps_per_iteration
            if before // n_steps < self.model.num_timesteps // n_steps:
                act()

        def _on_step(self) -> bool:
            return True

    return Every()


def make_rows(timesteps: int, returns: Any, floor: float, best: float) -> list[dict[str, Any]]:
    """Compare the episodes of trials with the best and the worst.

    :param timesteps: of the training so far
    :param returns: (K, n_tasks, n_trials)
    :param floor: return of an episode without any idea of the task
    :param best: best return of an episode
    :return: a row for each of the K episodes; the interval is the half width of a 95 % interval over tasks
    """
    from sb3_maesn.results import mean_and_interval

    means, intervals = mean_and_interval(returns.mean(axis=2))
    return [
        {
            "timesteps": timesteps,
            "episode": episode + 1,
            "mean_return": round(float(mean), 4),
            "interval": round(float(interval), 4),
            "floor": floor,
            "best_return": round(best, 4),
            "share_of_best": round(float((mean - floor) / (best - floor)), 4),
        }
        for episode, (mean, interval) in enumerate(zip(means, intervals, strict=True))
    ]


if __name__ == "__main__":
    sys.exit(main())

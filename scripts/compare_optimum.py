"""Train RL2 with its tuned settings and compare it with an optimal player, on held-out tasks and during training.

The optimal player of Bandit is the Bayes-optimal one; that of PointGoal knows the goal in every episode. The floor is
the return of a player that knows nothing about the task: one that pulls either arm, or stands still.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import _flags


class Reference(NamedTuple):
    """Reference returns of an environment, and the size of the comparison.

    :param n_tasks: number of tasks
    :param n_trials: number of trials of each task
    :param floor: return of an episode of a player that knows nothing about the task
    :param best: function from the tasks to the mean return of an episode of the optimal player
    """

    n_tasks: int
    n_trials: int
    floor: float
    best: Callable[[Any], float]


def bandit_optimum(tasks: Any) -> float:
    """Compute the return of the Bayes-optimal player of Bandit.

    :param tasks: not used, since the return is the mean over the distribution of tasks
    :return: return of an episode
    """
    from sb3_maesn.envs.bandit import N_PULLS, bayes_optimal_return

    return bayes_optimal_return(N_PULLS)


def point_optimum(tasks: Any) -> float:
    """Compute the mean return of a player of PointGoal that knows the goal.

    :param tasks: goals, one episode each (n, 2)
    :return: mean return of an episode
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
    parser = _flags.make_parser(__doc__)
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare RL2 with an optimal player."""
    return _flags.run(make_parser(), compare, argv)


def compare(args: argparse.Namespace) -> None:
    """Train and evaluate RL2, and print and write the table.

    :param args: parsed arguments
    """
    import torch

    from sb3_maesn.cli import check_flag
    from sb3_maesn.results import format_table, provenance, table_path, write_table

    check_flag(args, "n_timesteps", 1, default=-1)
    check_flag(args, "evaluations", 1)
    check_flag(args, "tasks", 1, default=-1)
    check_flag(args, "first_task", 0)
    table = table_path(args.csv or f"results/rl2-{args.env}.csv")
    torch.set_num_threads(1)
    rows = train_and_evaluate(args)
    print(format_table(rows))
    settings = {"env": args.env, "config": "zoo_configs/rl2.yml", "split": args.split, "first_task": args.first_task}
    write_table(table, rows, provenance(args.seed, **settings))


def train_and_evaluate(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Train RL2 and evaluate it at regular intervals.

    :param args: parsed arguments
    :return: one row per evaluation and episode of a trial
    """
    from sb3_maesn.config import constructor_arguments, load_entry
    from sb3_maesn.envs import make_family, make_vec
    from sb3_maesn.envs.multi_task import MultiTaskVecEnv
    from sb3_maesn.rl2 import RL2

    reference, entry = REFERENCES[args.env], load_entry(_flags.default_file("rl2"), args.env)
    n_tasks = reference.n_tasks if args.tasks < 0 else args.tasks
    budget = int(entry["n_timesteps"]) if args.n_timesteps < 0 else args.n_timesteps
    settings = constructor_arguments(entry, RL2)
    env = MultiTaskVecEnv(make_vec(args.env, entry["n_envs"]))
    model = RL2(entry["policy"], env, seed=args.seed, **settings)
    tasks = make_family(args.env).task_set(args.split, args.first_task + n_tasks)[args.first_task :]
    best = reference.best(tasks)
    rows: list[dict[str, Any]] = []

    def evaluate() -> None:
        result = model.evaluate_trials(args.env, list(tasks), n_trials=reference.n_trials)
        rows.extend(make_rows(model.num_timesteps, result.returns, reference.floor, best))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)

    model.learn(budget, callback=every(model, max(budget // args.evaluations, 1), evaluate))
    evaluate()
    return rows


def every(model: Any, n_steps: int, act: Callable[[], None]) -> Any:
    """Make a callback that calls a function between iterations, about every ``n_steps`` environment steps.

    :param model: model to train
    :param n_steps: environment steps between two calls
    :param act: function to call
    :return: callback
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
    """Compare the returns of the episodes of trials with the floor and the optimum.

    :param timesteps: environment steps of the training so far
    :param returns: returns of the K episodes of each trial (K, n_tasks, n_trials)
    :param floor: return of an episode of a player that knows nothing about the task
    :param best: mean return of an episode of the optimal player
    :return: one row per episode of a trial; the interval is the half width of a 95 % confidence interval over tasks
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

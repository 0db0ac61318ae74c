"""Compare theta's policy gradient with and without VIME's curiosity, on tasks that adaptation of the latent misses.

A task is missed if none of its episodes succeeds while the latent is adapted. For every eta, theta's policy gradient
then continues from the adapted latent with the same number of episodes. The task is solved if at least half of the
fresh episodes of the resulting policy succeed.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("model", help="model file, or the name of a pretrained model such as maesn-paper-WheeledGoal-v0")
    add("--env", default="", help="environment id (if empty, the sparse variant of the family that the name tells)")
    _flags.add_test_flags(parser)
    add("--policy-rounds", type=int, default=10, help="rounds of theta's policy gradient on a task that is missed")
    add("--etas", nargs="+", type=float, default=[0.0, 0.1, 1.0], help="weights of the intrinsic reward")
    add("--fresh-episodes", type=int, default=50, help="episodes that say whether a task is solved")
    add("--csv", required=True, help="table to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare weights of the intrinsic reward."""
    return _flags.run(make_parser(), compare, argv)


def compare(args: argparse.Namespace) -> None:
    """Find the missed tasks, improve the policy on each of them with every eta, and write the table.

    :param args: parsed arguments
    :raises ConfigError: if no task is missed
    """
    import torch

    from sb3_maesn.checkpoints import load_model
    from sb3_maesn.config import ConfigError
    from sb3_maesn.model_files import find_model_file, guess_test_env
    from sb3_maesn.results import format_table, provenance, table_path, write_table
    from sb3_maesn.tasks import check_env_id, tasks_of

    table = table_path(args.csv)
    torch.set_num_threads(1)
    find_model_file(args.model)
    env_id = args.env or guess_test_env(args.model)
    check_env_id(env_id)
    model, tasks = load_model(args.model), tasks_of(env_id, args.split, args.n_tasks)
    rows: list[dict[str, Any]] = []
    for index, task in enumerate(tasks):
        # The seed differs between tasks but not between etas, so that all etas continue from the same adapted latent.
        settings = {"task": task, "n_episodes": args.episodes, "rule": args.rule, "seed": args.seed + index}
        adapt = partial(model.adapt, env_id, n_rounds=args.rounds, **settings)
        history = adapt().adaptation
        assert history is not None
        if (history.success > 0).any():
            continue
        for eta in args.etas:
            improved = adapt(n_policy_rounds=args.policy_rounds, eta=eta)
            rows.append({"task": index, "eta": eta, **outcome(improved, env_id, task, args)})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if not rows:
        raise ConfigError(f"the latent finds the reward of all {len(tasks)} tasks: there is nothing to compare")
    summary = summarise(rows, len(tasks))
    print("\n" + format_table(summary))
    about = {"env": env_id, "split": args.split, "n_tasks": len(tasks), "summary": summary}
    write_table(table, rows, provenance(args.seed, **about))


def outcome(improved: Any, env_id: str, task: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate an improved policy on fresh episodes.

    :param improved: model whose theta has been improved on the task
    :param env_id: environment id
    :param task: task
    :param args: parsed arguments
    :return: last columns of a row
    """
    from sb3_maesn.evaluation import evaluate_adaptation

    fresh = evaluate_adaptation(improved, env_id, [task], n_rounds=0, n_episodes=args.fresh_episodes, seed=args.seed)
    return {
        "return_before": round(improved.policy_adaptation[0], 2),
        "mean_return": round(float(fresh.mean_return[0]), 2),
        "success": round(float(fresh.success_rate[0]), 3),
        "solved": bool(fresh.solved[0, 0]),
    }


def summarise(rows: Sequence[dict[str, Any]], n_tasks: int) -> list[dict[str, Any]]:
    """Count the missed tasks whose reward was found and that were solved, for each eta.

    :param rows: rows of all missed tasks and etas
    :param n_tasks: number of all tasks, missed or not
    :return: one row per eta
    """
    summary = []
    for eta in dict.fromkeys(row["eta"] for row in rows):
        own = [row for row in rows if row["eta"] == eta]
        summary.append(
            {
                "eta": eta,
                "tasks": n_tasks,
                "missed": len(own),
                "found": sum(row["success"] > 0 for row in own),
                "solved": sum(row["solved"] for row in own),
                "mean_return": round(sum(row["mean_return"] for row in own) / len(own), 2),
            }
        )
    return summary


if __name__ == "__main__":
    sys.exit(main())

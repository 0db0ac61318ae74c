"""Compare theta's policy gradient with and without VIME's curiosity, on tasks that adaptation of the latent misses.

A task is missed if none of its episodes succeeds while the latent adapts. From there every eta goes on with the same
number of episodes, and fresh ones of the policy that comes out say whether the task is solved then: at least half of
them succeed.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("model", help="model file, or the name of a pretrained model such as maesn-paper-WheeledGoal-v0")
    add("--env", default="", help="environment id (if empty, the sparse variant of the family that the name tells)")
    _flags.add_test_flags(parser)
    add("--policy-rounds", type=int, default=10, help="rounds of theta's policy gradient on a task that is missed")
    add("--etas", nargs="+", type=float, default=[0.0, 0.1, 1.0], help="weights of the intrinsic reward")
    add("--fresh-episodes", type=int, default=50, help="episodes that say whether a task is solved")
    add("--csv", required=True, help="table to write")
    add("--verbose", type=int, default=1, help="2: tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    return _flags.run(make_parser(), compare, argv)


def compare(args: argparse.Namespace) -> None:
    """Find the tasks that are missed, go on with each, and write the table.

    :param args: parsed arguments
    :raises ConfigError: if no task is missed
    """
    import torch

    from sb3_maesn.checkpoints import load_model
    from sb3_maesn.cli import check_env_id, find_model_file, guess_test_env, tasks_of
    from sb3_maesn.config import ConfigError
    from sb3_maesn.results import format_table, provenance, write_table

    torch.set_num_threads(1)
    find_model_file(args.model)
    env_id = args.env or guess_test_env(args.model)
    check_env_id(env_id)
    model, tasks = load_model(args.model), tasks_of(env_id, args.split, args.n_tasks)
    rows: list[dict[str, Any]] = []
    for index, task in enumerate(tasks):
        # luck that differs from task to task; the latent's part is the same for every eta
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
        raise ConfigError(f"the latent finds the reward of all {args.n_tasks} tasks: there is nothing to compare")
    summary = summarise(rows, len(tasks))
    print("\n" + format_table(summary))
    about = {"env": env_id, "split": args.split, "n_tasks": len(tasks), "summary": summary}
    write_table(args.csv, rows, provenance(args.seed, **about))


def outcome(improved: Any, env_id: str, task: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Play fresh episodes of a policy whose theta has been improved.

    :param improved: the model
    :param env_id: environment id
    :param task: its task
    :param args: parsed arguments
    :return: the end of a row
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
    """Count the missed tasks that are found and solved.

    :param rows: a row for each missed task and eta
    :param n_tasks: of which some were missed
    :return: one row for each eta
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

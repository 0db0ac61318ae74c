"""Compare after how many steps single-task algorithms first find the reward of a task, over several seeds."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("--env", default="SparseMountainCarWeak-v0", help="environment id; its episodes must report success")
    add(
        "--task", nargs="+", default=[], help="the task: index into the training tasks, validation:INDEX, or its values"
    )
    add("--algos", nargs="+", default=["trpo", "vime"], help="algorithms, with the settings of zoo_configs/<algo>.yml")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of each")
    add("-n", "--n-timesteps", type=int, default=100_000, help="environment steps of each run")
    add("--csv", default="results/vime-MountainCar.csv", help="table to write")
    add("--keep", action="store_true", help="keep the rows of other algorithms and seeds that the table has already")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the exploration of single-task algorithms."""
    return _flags.run(make_parser(), compare, argv)


def compare(args: argparse.Namespace) -> None:
    """Train every algorithm with every seed, and print and write the table.

    :param args: parsed arguments
    """
    import torch

    from sb3_maesn.results import format_table, provenance, table_path, write_table

    table_path(args.csv)  # before anything is trained
    torch.set_num_threads(1)
    rows = kept_rows(args) if args.keep else []
    for algo in args.algos:
        for seed in args.seeds:
            rows.append(explore(args, algo, seed))
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    rows.sort(key=lambda row: (row["algo"], row["seed"]))
    print("\n" + format_table(summarise(rows)))
    write_table(args.csv, rows, provenance(None, summary=summarise(rows), n_timesteps=args.n_timesteps))


def kept_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Read the rows of an existing table whose algorithms and seeds are not about to be trained.

    :param args: parsed arguments
    :return: rows, empty if there is no table
    """
    import csv

    if not Path(args.csv).exists():
        return []
    with Path(args.csv).open(newline="", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        first = row["first_success"]
        row.update(seed=int(row["seed"]), found=row["found"] == "True", first_success=int(first) if first else "")
    return [row for row in rows if row["algo"] not in args.algos or row["seed"] not in args.seeds]


def explore(args: argparse.Namespace, algo: str, seed: int) -> dict[str, Any]:
    """Train an algorithm once and record when an episode succeeds.

    :param args: parsed arguments
    :param algo: name of the algorithm
    :param seed: seed
    :return: row of the table
    :raises ConfigError: if the environment does not report success
    """
    from contextlib import closing

    from stable_baselines3.common.callbacks import ConvertCallback

    from sb3_maesn.config import ConfigError, constructor_arguments, load_entry
    from sb3_maesn.recipes import TrainingRun
    from sb3_maesn.training import find_recipe

    recipe = find_recipe(algo)
    config = load_entry(_flags.default_file(algo), args.env)
    arguments = constructor_arguments(config, recipe.algorithm)
    run = TrainingRun(algo, args.env, config, Path(), task=args.task)
    algorithm: Any = recipe.algorithm
    outcomes: list[tuple[int, bool]] = []  # step at the end and success of every episode

    def note(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        for info in (variables["infos"][i] for i in variables["dones"].nonzero()[0]):
            if "is_success" not in info:
                raise ConfigError(f"expected episodes that report is_success at their end, got those of {args.env}")
            outcomes.append((model.num_timesteps, bool(info["is_success"])))
        return True

    with closing(recipe.make_env(run, recipe.n_members(config))) as env:
        model = algorithm(config.get("policy", recipe.policy), env, seed=seed, device="cpu", **arguments)
        model.learn(args.n_timesteps, callback=ConvertCallback(note))
    return {"env": args.env, "algo": algo, "seed": seed, **first_success(outcomes, model.num_timesteps)}


def first_success(outcomes: Sequence[tuple[int, bool]], n_timesteps: int) -> dict[str, Any]:
    """Describe a run by its successful episodes.

    :param outcomes: environment step at the end and success of every episode
    :param n_timesteps: environment steps of the run
    :return: whether and when an episode first succeeded, and the share of successful episodes in the last fifth of the
        run
    """
    steps = [step for step, success in outcomes if success]
    late = [success for step, success in outcomes if step > 0.8 * n_timesteps]
    return {
        "found": bool(steps),
        "first_success": steps[0] if steps else "",
        "late_success": round(sum(late) / len(late), 3) if late else "",
        "timesteps": n_timesteps,
    }


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the seeds that found the reward, for each algorithm.

    :param rows: rows of all algorithms and seeds, as :func:`explore` returns them
    :return: one row per algorithm
    """
    summary = []
    for algo in dict.fromkeys(row["algo"] for row in rows):
        own = [row for row in rows if row["algo"] == algo]
        firsts = sorted(row["first_success"] for row in own if row["found"])
        median = firsts[len(own) // 2] if len(firsts) > len(own) // 2 else ""  # seeds that found nothing sort last
        found = f"{len(firsts)} of {len(own)}"
        summary.append({"env": own[0]["env"], "algo": algo, "seeds_that_found": found, "median_first_success": median})
    return summary


if __name__ == "__main__":
    sys.exit(main())

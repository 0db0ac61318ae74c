"""Adapt a meta-trained model to one new task and report every adaptation round."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("model", help="model file, or the name of a pretrained model such as maesn-WheeledGoal-v0")
    add(
        "--env",
        default="",
        help="environment id (if empty, the sparse variant of the family that the model's name tells)",
    )
    add("--task", nargs="+", default=["0"], help="index into the set of tasks, or the task's own values")
    add(
        "--split",
        default="validation",
        choices=("train", "validation", "test"),
        help="set of tasks that an index counts in",
    )
    add("--rounds", type=int, default=3, help="adaptation rounds")
    add("--episodes", type=int, default=50, help="episodes of a round")
    add("--rule", default=None, help="adaptation rule")
    add("--seed", type=int, default=0, help="seed")
    add("--csv", default="", help="table to write, NAME.csv, with figures beside it")
    add("--save", default="", help="file for the adapted model")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Adapt a model to a task."""
    return _flags.run(make_parser(), adapt, argv)


def adapt(args: argparse.Namespace) -> None:
    """Adapt, print the rounds, and write the table and the adapted model if requested.

    :param args: parsed arguments
    """
    from sb3_maesn.checkpoints import load_model
    from sb3_maesn.evaluation import evaluate_adaptation
    from sb3_maesn.model_files import find_model_file, guess_test_env
    from sb3_maesn.results import format_table, latent_rows, table_path
    from sb3_maesn.tasks import check_env_id, find_task

    if args.csv:
        table_path(args.csv)  # before anything is played
    find_model_file(args.model)
    env_id = args.env or guess_test_env(args.model)
    check_env_id(env_id)
    model = load_model(args.model)
    task = find_task(args.task, env_id, args.split)
    settings = {"n_rounds": args.rounds, "n_episodes": args.episodes, "rule": args.rule, "seed": args.seed}
    result = evaluate_adaptation(model, env_id, [task], **settings)
    rows = latent_rows(result)
    print(f"{env_id}, task {task}\n{format_table(rows)}")
    if args.csv:
        write_files(args, env_id, result, rows)
    if args.save:
        model.adapt(env_id, task=task, **settings).save(args.save)
        print(f"Saved the adapted model as {args.save}")


def write_files(args: argparse.Namespace, env_id: str, result: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table with its origin, and figures of the rounds in return, success and latent space.

    :param args: parsed arguments
    :param env_id: environment id
    :param result: result of ``evaluate_adaptation``
    :param rows: rows of the table
    """
    from pathlib import Path

    from sb3_maesn import plots
    from sb3_maesn.results import provenance, write_table

    path = Path(args.csv)
    write_table(path, rows, provenance(args.seed, model=args.model, env=env_id, task=args.task, split=args.split))
    title = f"{env_id}, task {' '.join(args.task)}"
    curves = {args.rule or "default rule": (result.returns, result.success)}
    plots.plot_adaptation_curve(curves, path.with_suffix(".png"), title)
    if result.mean.shape[2] >= 2:
        latents = (result.latents[:, 0], result.returns[:, 0], result.mean[:, 0], result.log_std[:, 0])
        plots.plot_latent_map(*latents, path.with_name(f"{path.stem}-latents.png"), title)
    print(f"Wrote {path} and figures beside it")


if __name__ == "__main__":
    sys.exit(main())

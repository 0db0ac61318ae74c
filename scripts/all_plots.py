"""Average the evaluations of all runs, draw them and tabulate the last ones, with the flags of rl-zoo."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("-a", "--algos", nargs="+", default=["maesn"], help="algorithms")
    add("-e", "--env", nargs="+", default=["WheeledGoal-v0"], help="environment ids")
    add("-f", "--exp-folders", nargs="+", default=["logs"], help="roots of logs")
    add("-l", "--labels", nargs="+", default=[], help="label of each root (its name if none)")
    add("-k", "--key", default="results", help="array of evaluations.npz: results, successes or ep_lengths")
    add("-max", "--max-timesteps", type=float, default=float("inf"), help="steps to leave the rest out after")
    add("-min", "--min-timesteps", type=float, default=0, help="leave runs out that were not trained as long")
    add("-median", "--median", action="store_true", help="medians in place of means in the table")
    add("-o", "--output", default="plots", help="folder for figures and the table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and tabulate the evaluations of all runs."""
    return _flags.run(make_parser(), plot, argv)


def plot(args: argparse.Namespace) -> None:
    """Draw one figure per environment, and print and write the table.

    :param args: parsed arguments
    """
    from sb3_maesn import curves, plots
    from sb3_maesn.config import ConfigError
    from sb3_maesn.results import provenance, write_table

    names = [Path(folder).resolve().name for folder in args.exp_folders]
    labels = args.labels or (names if len(set(names)) == len(names) else args.exp_folders)
    if len(labels) != len(args.exp_folders):
        raise ConfigError(f"expected one label for each of {len(args.exp_folders)} folders, got {len(labels)}")
    if len(set(labels)) < len(labels):
        raise ConfigError(f"expected labels that differ, got {', '.join(labels)}")
    roots = dict(zip(labels, args.exp_folders, strict=True))
    rows = []
    for env_id in args.env:
        found = curves.gather(roots, args.algos, env_id, args.key, args.max_timesteps, args.min_timesteps)
        if found:
            lines = {name: (one.timesteps, one.mean, one.std_error) for name, one in found.items()}
            plots.plot_curves(lines, Path(args.output) / f"{env_id}.png", "environment steps", args.key)
        rows += [curves.last_row(env_id, name, one, args.median) for name, one in found.items()]
    if not rows:
        raise ConfigError(f"there are no evaluations of {', '.join(args.algos)} on {', '.join(args.env)}")
    write_table(Path(args.output) / "results.csv", rows, provenance(None, key=args.key))
    print(f"{curves.markdown_table(rows)}\nWrote {args.output}")


if __name__ == "__main__":
    sys.exit(main())

"""Draw training curves from monitor files to an image file, with the flags of rl-zoo."""

import argparse
import sys
from collections.abc import Sequence

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("-a", "--algo", default="maesn", help="algorithm")
    add("-e", "--env", nargs="+", default=["WheeledGoal-v0"], help="environment ids")
    add("-f", "--exp-folder", default="logs", help="root of the logs")
    add("-x", "--x-axis", choices=("steps", "episodes", "time"), default="steps", help="x axis")
    add("-y", "--y-axis", choices=("success", "reward", "length"), default="reward", help="y axis")
    add("-max", "--max-timesteps", type=float, default=float("inf"), help="steps to leave the rest out after")
    add("-w", "--episode-window", type=int, default=1000, help="episodes of the moving average")
    add("-o", "--output", default="plots/train.png", help="image file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw training curves."""
    return _flags.run(make_parser(), plot, argv)


def plot(args: argparse.Namespace) -> None:
    """Draw one line per run.

    :param args: parsed arguments
    """
    from sb3_maesn import curves, plots
    from sb3_maesn.cli import check_flag
    from sb3_maesn.config import ConfigError
    from sb3_maesn.run_folder import find_runs

    check_flag(args, "episode_window", 1)
    output = plots.image_path(args.output)
    lines = {}
    for folder in find_runs(args.exp_folder, args.algo, args.env):
        curve = curves.training_curve(folder, args.x_axis, args.y_axis, args.episode_window, args.max_timesteps)
        if curve is None:
            print(f"{folder} has no {args.y_axis} of {args.episode_window} episodes or more")
        else:
            lines[folder.name] = *curve, None
    if not lines:
        raise ConfigError(f"there is nothing to draw of {args.algo} on {', '.join(args.env)} in {args.exp_folder}")
    plots.plot_curves(lines, output, curves.X_AXES[args.x_axis], curves.Y_AXES[args.y_axis][0])
    print(f"Wrote {output}")


if __name__ == "__main__":
    sys.exit(main())

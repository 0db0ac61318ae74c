"""Film an agent before and after it adapts to a task, side by side, as MP4 and GIF; no display is needed."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    _flags.add_agent_flags(parser)
    _flags.add_adaptation_flags(parser)
    parser.add_argument("-n", "--n-timesteps", type=int, default=600, help="steps of the video")
    parser.add_argument("-o", "--output-folder", default="", help="folder to write to (videos/ of the run if empty)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported
    from sb3_maesn.cli import one_line_errors

    with one_line_errors(args.verbose):
        record(args)
    return 0


def record(args: argparse.Namespace) -> None:
    """Film as the arguments say.

    :param args: parsed arguments
    """
    from sb3_maesn import playing, video
    from sb3_maesn.cli import check_flag
    from sb3_maesn.trained import AgentChoice, load_agent

    check_flag(args, "n_timesteps", 1)
    agent = load_agent(AgentChoice.from_args(args))
    model, task = playing.prepare(agent, playing.Adaptation.from_args(args))
    titles = {"before adaptation": agent.model, f"after {args.rounds} rounds of {args.episodes} episodes": model}
    scenes = titles if model is not agent.model else {agent.name: model}
    how = {"n_timesteps": args.n_timesteps, "deterministic": not args.stochastic, "seed": args.seed}
    panels = [video.film(player, agent.test_env_id, task, **how) for player in scenes.values()]
    frames = video.side_by_side(panels, list(scenes))
    folder = Path(args.output_folder or (agent.folder or Path()) / "videos")
    name = f"{agent.name.replace('/', '-')}-{agent.test_env_id.replace('/', '-')}-task-{'_'.join(args.task)}"
    for ending in (".mp4", ".gif"):
        video.write_video(folder / f"{name}{ending}", frames)
        if args.verbose > 0:
            print(f"Wrote {folder / name}{ending}")


if __name__ == "__main__":
    sys.exit(main())

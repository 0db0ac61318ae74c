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
    """Film an agent before and after adaptation."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo reads it when it is imported
    return _flags.run(make_parser(), record, argv)


def record(args: argparse.Namespace) -> None:
    """Load an agent, adapt it, film it and write the videos.

    :param args: parsed arguments
    """
    from sb3_maesn import playing, video
    from sb3_maesn.cli import check_flag
    from sb3_maesn.trained import AgentChoice, load_agent

    check_flag(args, "n_timesteps", 1)
    wishes = playing.Adaptation.from_args(args)
    agent = load_agent(AgentChoice.from_args(args))
    adaptation = wishes.complete(agent)
    task = playing.task_to_play(agent, adaptation)
    # both fail before the adaptation, not after it
    playing.make_stage(agent.test_env_id, task, "rgb_array").close()
    video.check_writers()
    model = playing.adapt(agent, task, adaptation)
    scenes = {agent.name: model}
    if model is not agent.model:
        scenes = {"before adaptation": agent.model, f"after {adaptation.describe()}": model}
    how = {"n_timesteps": args.n_timesteps, "deterministic": not args.stochastic, "seed": args.seed}
    panels = [video.film(player, agent.test_env_id, task, **how) for player in scenes.values()]
    frames = video.side_by_side(panels, list(scenes))
    folder = Path(args.output_folder or (agent.folder or Path()) / "videos")
    words = ["task", "_".join(adaptation.task)] if adaptation.task else []
    name = "-".join([agent.name, agent.test_env_id, *words]).replace("/", "-")
    for ending in (".mp4", ".gif"):
        video.write_video(folder / f"{name}{ending}", frames)
        if args.verbose > 0:
            print(f"Wrote {folder / name}{ending}")


if __name__ == "__main__":
    sys.exit(main())

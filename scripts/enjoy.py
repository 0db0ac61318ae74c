"""Adapt a trained agent to a task and watch it: ``python scripts/enjoy.py --algo maesn --env WheeledGoal-v0``."""

import argparse
import sys
from collections.abc import Sequence

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    _flags.add_agent_flags(parser)
    _flags.add_adaptation_flags(parser)
    parser.add_argument("-n", "--n-timesteps", type=int, default=1000, help="steps to play")
    parser.add_argument("--no-render", action="store_true", help="open no window")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    from sb3_maesn.cli import one_line_errors  # after --help, which must be quick

    with one_line_errors(args.verbose):
        enjoy(args)
    return 0


def enjoy(args: argparse.Namespace) -> None:
    """Adapt and play as the arguments say.

    :param args: parsed arguments
    """
    from sb3_maesn import playing
    from sb3_maesn.trained import AgentChoice, load_agent

    say = print if args.verbose > 0 else lambda *_: None
    agent = load_agent(AgentChoice.from_args(args))
    say(f"Loaded {agent.name}")
    model, task = playing.prepare(agent, playing.Adaptation.from_args(args))
    say(f"{agent.test_env_id}, task {task}\n{playing.describe_adaptation(model)}")
    env = playing.make_stage(agent.test_env_id, task, None if args.no_render else "human")
    try:
        episodes = playing.play(model, env, args.n_timesteps, deterministic=not args.stochastic, seed=args.seed)
    finally:
        env.close()
    for episode in episodes:
        say(f"Episode Reward: {episode.reward:.2f}\nEpisode Length {episode.length}")
    say("\n".join(playing.summarise(episodes)))


if __name__ == "__main__":
    sys.exit(main())

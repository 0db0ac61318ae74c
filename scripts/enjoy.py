"""Adapt a trained agent to a task and watch it play: ``python scripts/enjoy.py --env WheeledGoal-v0``."""

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
    """Adapt an agent to a task and show how it plays."""
    return _flags.run(make_parser(), enjoy, argv)


def enjoy(args: argparse.Namespace) -> None:
    """Load an agent, adapt it, play and print the episodes.

    :param args: parsed arguments
    """
    from sb3_maesn import playing
    from sb3_maesn.cli import check_flag
    from sb3_maesn.trained import AgentChoice, load_agent

    check_flag(args, "n_timesteps", 1)
    wishes = playing.Adaptation.from_args(args)
    say = print if args.verbose > 0 else lambda *_: None
    agent = load_agent(AgentChoice.from_args(args))
    say(f"Loaded {agent.name}")
    adaptation = wishes.complete(agent)
    task = playing.task_to_play(agent, adaptation)
    say(agent.test_env_id if task is None else f"{agent.test_env_id}, task {task}")
    # the window opens before the adaptation, so that a missing display is reported without a wait
    env = playing.make_stage(agent.test_env_id, task, None if args.no_render else "human")
    try:
        model = playing.adapt(agent, task, adaptation)
        if history := playing.describe_adaptation(model):
            say(history)
        episodes = playing.play(model, env, args.n_timesteps, deterministic=not args.stochastic, seed=args.seed)
    finally:
        env.close()
    for episode in episodes:
        say(f"Episode Reward: {episode.reward:.2f}\nEpisode Length {episode.length}")
    say("\n".join(playing.summarise(episodes)))


if __name__ == "__main__":
    sys.exit(main())

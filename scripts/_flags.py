"""What several scripts share: flags, and how they run; without the package, whose import would make ``--help`` slow."""

import argparse
from collections.abc import Callable, Sequence


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser in the scripts' common style.

    :param description: what the script does
    :return: a parser that knows ``--verbose``
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--verbose", type=int, default=1, help="0: silent, 1: messages, 2: messages and tracebacks")
    return parser


def run(
    parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> int:
    """Run a script, reporting bad input on one line.

    :param parser: the script's, which knows ``--verbose``
    :param action: what the script does
    :param argv: arguments of the command line
    :return: exit code
    """
    args = parser.parse_args(argv)
    from sb3_maesn.cli import one_line_errors

    with one_line_errors(args.verbose):
        action(args)
    return 0


def add_agent_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a trained agent; rl-zoo's.

    :param parser: parser of a script
    """
    add = parser.add_argument
    add("--algo", default="maesn", help="algorithm")
    add("--env", default="WheeledGoal-v0", help="environment id the agent was trained on")
    add("-f", "--folder", default="logs", help="root of the logs; without a run, the agent of the package")
    add("--exp-id", type=int, default=0, help="number of the run, 0: the latest, -1: no run folder")
    add("--load-best", action="store_true", help="load the best model instead of the last")
    add("--load-checkpoint", type=int, metavar="STEPS", help="load the checkpoint after that many steps instead")
    add("--load-last-checkpoint", action="store_true", help="load the last checkpoint instead")
    add("--device", default="cpu", help="torch device")


def add_adaptation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how to adapt to a task, and how to play it then.

    :param parser: parser of a script
    """
    add = parser.add_argument
    add("--task", nargs="+", default=["0"], help="index into the test tasks, validation:INDEX, or the task's values")
    add("--rounds", type=int, default=3, help="adaptation rounds, 0: play unadapted")
    add("--episodes", type=int, default=20, help="episodes of an adaptation round")
    add("--rule", default=None, help="adaptation rule")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--stochastic", action="store_true", help="draw actions")
    actions.add_argument("--deterministic", action="store_true", help="take the most likely actions (default)")
    add("--seed", type=int, default=0, help="seed")


def add_test_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say on which tasks agents are measured.

    :param parser: parser of a script
    """
    add = parser.add_argument
    add("--split", default="test", choices=("train", "validation", "test"), help="set of tasks")
    add("--n-tasks", type=int, default=20, help="tasks, the first of the set")
    add("--rounds", type=int, default=3, help="adaptation rounds")
    add("--episodes", type=int, default=20, help="episodes of a round")
    add("--rule", default=None, help="adaptation rule")
    add("--seed", type=int, default=0, help="seed")

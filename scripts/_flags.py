"""Flags, default files and the main function that the scripts share.

Nothing here imports the package at the top, which would make ``--help`` slow.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser in the scripts' common style.

    :param description: description of the script
    :return: parser with the flag ``--verbose``
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--verbose", type=int, default=1, help="level of output: 0, 1 or 2; 2 shows tracebacks")
    return parser


def run(
    parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None
) -> int:
    """Run a script and report bad input on one line.

    :param parser: parser that :func:`make_parser` returned
    :param action: function that does the work and returns an exit code, or None for 0
    :param argv: arguments of the command line, None for those of the process
    :return: exit code
    """
    args = parser.parse_args(argv)
    from sb3_maesn.cli import one_line_errors  # only now, so that --help is fast

    with one_line_errors(args.verbose):
        return action(args) or 0


def command_line(script: str, argv: Sequence[str] | None) -> list[str]:
    """Reconstruct the command that runs a script, for the record.

    :param script: path of the script
    :param argv: arguments of the command line, None for those of the process
    :return: words of the command
    """
    return ["python", *(sys.argv if argv is None else [script, *argv])]


def default_file(algo: str) -> Path:
    """Find the hyperparameter file of an algorithm in ``zoo_configs``.

    The folder is beside that of the scripts; an installed package does not contain it.

    :param algo: name of the algorithm
    :return: path of the file, which need not exist
    """
    return Path(__file__).resolve().parent.parent / "zoo_configs" / f"{algo}.yml"


def add_agent_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a trained agent, with the names of rl-zoo.

    :param parser: parser of a script
    """
    add = parser.add_argument
    add("--algo", default="maesn", help="algorithm")
    add("--env", default="WheeledGoal-v0", help="environment id the agent was trained on")
    add("-f", "--folder", default="logs", help="root of the logs; if it has no such run, the pretrained model is taken")
    add("--exp-id", type=int, default=0, help="number of the run, 0: the latest, -1: no run folder")
    add("--load-best", action="store_true", help="load the best model instead of the last")
    add("--load-checkpoint", type=int, metavar="STEPS", help="load the checkpoint after that many steps instead")
    add("--load-last-checkpoint", action="store_true", help="load the last checkpoint instead")
    add("--device", default="cpu", help="torch device")


def add_adaptation_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for adapting to one task and playing it.

    :param parser: parser of a script
    """
    add = parser.add_argument
    add(
        "--task",
        nargs="+",
        default=[],
        help="index into the test tasks, validation:INDEX, or the task's values; the first test task if not given. An"
        " agent that learned one task plays that one, whose index counts in the training tasks",
    )
    add(
        "--rounds",
        type=int,
        help="adaptation rounds, 0: play unadapted; 3 if not given, or for rl2 one less than the episodes of a training"
        " trial",
    )
    add("--episodes", type=int, help="episodes of an adaptation round; 20 if not given, or 1 for rl2")
    add("--rule", default=None, help="adaptation rule")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--stochastic", action="store_true", help="draw actions")
    actions.add_argument("--deterministic", action="store_true", help="take the most likely actions (default)")
    add("--seed", type=int, default=0, help="seed")


def add_test_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for evaluating agents on a set of tasks.

    :param parser: parser of a script
    """
    add = parser.add_argument
    add("--split", default="test", choices=("train", "validation", "test"), help="set of tasks")
    add("--n-tasks", type=int, default=20, help="number of tasks, the first of the set")
    add("--rounds", type=int, default=3, help="adaptation rounds")
    add("--episodes", type=int, default=20, help="episodes of a round")
    add("--rule", default=None, help="adaptation rule")
    add("--seed", type=int, default=0, help="seed")

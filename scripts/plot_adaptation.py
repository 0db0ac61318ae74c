"""Compare the adaptation of trained agents to the test tasks, or draw saved tables of adaptation."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("tables", nargs="*", metavar="CSV", help="tables of this script or of evaluate.py, in place of agents")
    add("-a", "--algos", nargs="+", default=["maesn"], help="algorithms")
    add("-e", "--env", default="WheeledGoal-v0", help="environment id the agents were trained on")
    add("-f", "--folder", default="logs", help="root of the logs")
    add("--load-best", action="store_true", help="load the best models instead of the last")
    _flags.add_test_flags(parser)
    add("-o", "--output", default="plots/adaptation.png", help="image file; a table is written beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the adaptation of agents."""
    return _flags.run(make_parser(), plot, argv)


def plot(args: argparse.Namespace) -> None:
    """Draw one line per agent.

    :param args: parsed arguments
    """
    from sb3_maesn import plots
    from sb3_maesn.results import read_adaptation_tables

    tables = read_adaptation_tables(args.tables) if args.tables else measure(args)
    title = "" if args.tables else f"{args.env}, {args.n_tasks} {args.split} tasks, {args.episodes} episodes a round"
    plots.plot_adaptation_tables(tables, args.output, title)
    print(f"Wrote {args.output}")


def measure(args: argparse.Namespace) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Adapt the agents to the tasks, and print and write the table.

    :param args: parsed arguments
    :return: rows by name of the agent
    """
    from sb3_maesn.benchmarking import EvaluationPlan, measure_adaptation
    from sb3_maesn.results import adaptation_rows, format_table, provenance, write_table
    from sb3_maesn.trained import AgentChoice, load_agent

    tables = {}
    for algo in args.algos:
        agent = load_agent(AgentChoice(algo, args.env, args.folder, best=args.load_best))
        result = measure_adaptation(agent, EvaluationPlan.from_args(args))
        tables[agent.name] = adaptation_rows(result.returns, result.success)
    rows = [{"model": name, "rule": args.rule or "default"} | row for name, part in tables.items() for row in part]
    print(format_table(rows))
    write_table(Path(args.output).with_suffix(".csv"), rows, provenance(args.seed, env=args.env, split=args.split))
    return tables


if __name__ == "__main__":
    sys.exit(main())

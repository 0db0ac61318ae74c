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

    output = plots.image_path(args.output)
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    if args.tables:
        tables, title = read_adaptation_tables(args.tables), ""
    else:
        tables, title = measure(args, output.with_suffix(".csv"))
    plots.plot_adaptation_tables(tables, output, title)
    print(f"Wrote {output}")


def measure(args: argparse.Namespace, table: Path) -> tuple[Mapping[str, Sequence[Mapping[str, Any]]], str]:
    """Adapt the agents to the tasks, and print and write the table.

    :param args: parsed arguments
    :param table: CSV file to write
    :return: rows by name of the agent, with its environment if the agents are tested in different ones, and title
    """
    from sb3_maesn.benchmarking import EvaluationPlan, measure_adaptation
    from sb3_maesn.results import adaptation_rows, format_table, provenance, rule_name, write_table
    from sb3_maesn.trained import AgentChoice, load_agent

    agents = [load_agent(AgentChoice(algo, args.env, args.folder, best=args.load_best)) for algo in args.algos]
    envs = sorted({agent.test_env_id for agent in agents})  # RL2 sees the reward of its training, others the sparse one
    tables, rows, n_tasks = {}, [], 0
    for agent in agents:
        model: Any = agent.model
        rule = rule_name(model, args.rule)
        result = measure_adaptation(agent, EvaluationPlan.from_args(args))
        measured = adaptation_rows(result.returns, result.success, rule)
        tables[agent.name if len(envs) == 1 else f"{agent.name}, {agent.test_env_id}"] = measured
        rows += [{"model": agent.name, "rule": rule, "env": agent.test_env_id} | row for row in measured]
        n_tasks = result.returns.shape[1]
    print(format_table(rows))
    write_table(table, rows, provenance(args.seed, env=", ".join(envs), split=args.split, tasks=n_tasks))
    return tables, f"{', '.join(envs)}, {n_tasks} {args.split} tasks, {args.episodes} episodes a round"


if __name__ == "__main__":
    sys.exit(main())

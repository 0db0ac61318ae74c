"""Evaluate all trained agents on the test tasks and tabulate them in rl-zoo's columns, with their success."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("--log-dir", default="logs", help="root of the logs; the latest run of each algorithm and environment counts")
    add("--benchmark-dir", default="logs/benchmark", help="folder to write to")
    add("--no-pretrained", action="store_true", help="leave out the agents that come with the package")
    add("--only", nargs="+", default=[], metavar="ENV", help="environment ids (all if none)")
    _flags.add_test_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and tabulate all trained agents."""
    return _flags.run(make_parser(), benchmark, argv)


def benchmark(args: argparse.Namespace) -> None:
    """Evaluate the agents one by one; an agent that cannot be loaded or played is reported and left out.

    :param args: parsed arguments
    """
    from sb3_maesn.benchmarking import EvaluationPlan, benchmark_row
    from sb3_maesn.config import ConfigError
    from sb3_maesn.curves import markdown_table
    from sb3_maesn.results import provenance, write_table
    from sb3_maesn.trained import list_agents, load_agent

    plan, rows = EvaluationPlan.from_args(args), []
    choices = list_agents(args.log_dir, not args.no_pretrained)
    choices = [choice for choice in choices if not args.only or choice.env_id in args.only]
    for i, choice in enumerate(choices, start=1):
        print(f"{i}/{len(choices)} {choice.algo} on {choice.env_id}", flush=True)
        try:
            rows.append(benchmark_row(load_agent(choice), plan))
        except Exception as error:  # of whatever kind: an agent or an environment of the user's own may raise any
            print(f"left out: {type(error).__name__}: {error}", file=sys.stderr)
    if not rows:
        raise ConfigError(f"there are no agents in {args.log_dir}")
    folder = Path(args.benchmark_dir)
    write_table(folder / "benchmark.csv", rows, provenance(args.seed, tasks=args.n_tasks, split=args.split))
    table = markdown_table(rows)
    (folder / "benchmark.md").write_text(f"# Performance of trained agents\n\n{plan.describe()}\n\n{table}\n")
    print(f"{table}\nWrote {folder / 'benchmark.md'}")


if __name__ == "__main__":
    sys.exit(main())

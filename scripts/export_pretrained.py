"""Make a trained model one that comes with the package: ``MAESN.from_pretrained("maesn-WheeledGoal-v0")``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("model", help="model file of training (its code is run: use your own), or a checkpoint")
    add("--results", required=True, help="table of `scripts/evaluate.py learning` with the model's rows")
    add("--row", default=None, help="the model's name in that table (the first if not given)")
    add("--rule", default="posterior", help="adaptation rule whose rows are its scores")
    add("--algo", default="maesn", help="algorithm")
    add("--env", default="WheeledGoal-v0", help="environment id it was trained on")
    add("--name", default="", help="name ({algo}-{env} if empty)")
    add("--command", default="", help="command that trained it (that of the model's run folder if empty)")
    add("--folder", default="", help="folder of all such models (the package's own if empty)")
    add("--verbose", type=int, default=1, help="2: tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    return _flags.run(make_parser(), export, argv)


def export(args: argparse.Namespace) -> None:
    """Export as the arguments say.

    :param args: parsed arguments
    """
    from sb3_maesn.checkpoints import export_pretrained, load_trained, read_rounds
    from sb3_maesn.cli import check_env_id
    from sb3_maesn.common.checkpoint.pretrained import FOLDER
    from sb3_maesn.run_folder import training_command

    check_env_id(args.env)
    rounds, about = read_rounds(Path(args.results), args.rule, args.row)
    model = load_trained(args.model, args.algo)
    about["training_command"] = args.command or training_command(Path(args.model).parent, args.env)
    name = args.name or f"{args.algo}-{args.env}"
    target = export_pretrained(model, name, rounds, about, args.env, Path(args.folder) if args.folder else FOLDER)
    print(f"Wrote {target}: {sum(path.stat().st_size for path in target.iterdir())} bytes")


if __name__ == "__main__":
    sys.exit(main())

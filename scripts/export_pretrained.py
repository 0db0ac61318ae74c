"""Export a trained model as a pretrained model of the package, for ``MAESN.from_pretrained``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export a pretrained model."""
    return _flags.run(make_parser(), export, argv)


def export(args: argparse.Namespace) -> None:
    """Read the model and its results and write them to the folder of pretrained models.

    :param args: parsed arguments
    """
    from sb3_maesn.checkpoints import export_pretrained, load_trained, read_rounds
    from sb3_maesn.common.checkpoint.pretrained import FOLDER
    from sb3_maesn.run_folder import training_command
    from sb3_maesn.tasks import check_env_id

    check_env_id(args.env)
    rounds, about = read_rounds(Path(args.results), args.rule, args.row)
    model = load_trained(args.model, args.algo)
    about["training_command"] = args.command or training_command(Path(args.model).parent, args.env)
    name = args.name or f"{args.algo}-{args.env}"
    target = export_pretrained(model, name, rounds, about, args.env, Path(args.folder) if args.folder else FOLDER)
    print(f"Wrote {target}: {sum(path.stat().st_size for path in target.iterdir())} bytes")


if __name__ == "__main__":
    sys.exit(main())

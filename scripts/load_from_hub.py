"""Fetch a model from the Hugging Face Hub: ``python scripts/load_from_hub.py --env AntGoal-v0 -orga ORG``.

Only the checkpoint that holds no code is fetched; the file for SB3's ``load`` is made from it here.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("--algo", default="maesn", help="algorithm")
    add("--env", default="WheeledGoal-v0", help="environment id the agent was trained on")
    add("-orga", "--organization", "--org", required=True, help="user or organisation of the Hub")
    add("-name", "--repo-name", default="", help="repository ({algo}-{env} if empty)")
    add("-f", "--folder", default="logs", help="root of the logs")
    add("--revision", default=None, help="branch, tag or commit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    from sb3_maesn.cli import one_line_errors  # after --help, which must be quick

    with one_line_errors(args.verbose):
        path = fetch(args, ["python", *(sys.argv if argv is None else [__file__, *argv])])
    print(f"Saved {path}")
    return 0


def fetch(args: argparse.Namespace, command: Sequence[str]) -> Path:
    """Fetch as the arguments say.

    :param args: parsed arguments
    :param command: the command, for the record
    :return: the model's file, in the folder of a new run
    """
    from sb3_maesn.common.checkpoint.file import read_config
    from sb3_maesn.hub import download
    from sb3_maesn.run_folder import create_run_folder, file_name, write_settings
    from sb3_maesn.training import find_recipe

    algorithm = find_recipe(args.algo).algorithm
    if not hasattr(algorithm, "load_checkpoint"):
        raise ValueError(f"{args.algo} has no checkpoints without code: load its file with SB3 if you trust its author")
    name = args.repo_name or f"{args.algo}-{file_name(args.env)}"
    checkpoint = download(f"{args.organization}/{name}", args.revision)
    model, config = algorithm.load_checkpoint(checkpoint), read_config(checkpoint)
    folder = create_run_folder(args.folder, args.algo, args.env)
    path = folder / f"{file_name(args.env)}.zip"
    model.save(path)
    settings = {"policy": config.policy, "policy_kwargs": config.policy_kwargs, **config.hyperparameters}
    write_settings(folder, args.env, settings, {**vars(args), "seed": model.seed}, command)
    return path


if __name__ == "__main__":
    sys.exit(main())

"""Download a model from the Hugging Face Hub: ``python scripts/load_from_hub.py --env AntGoal-v0 -orga ORG``.

Only the checkpoint, which contains no code, is downloaded; the file for SB3's ``load`` is made from it.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("--algo", default="maesn", help="algorithm")
    add("--env", default="WheeledGoal-v0", help="environment id the agent was trained on")
    add("-orga", "--organization", "--org", required=True, help="user or organisation of the Hub")
    add("-name", "--repo-name", default="", help="repository ({algo}-{env} if empty)")
    add("--task", nargs="+", default=[], help="task of an agent that learned one, for the record: see its args.yml")
    add("-f", "--folder", default="logs", help="root of the logs")
    add("--revision", default=None, help="branch, tag or commit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Download a model into the folder of a new run."""
    return _flags.run(make_parser(), partial(fetch, command=_flags.command_line(__file__, argv)), argv)


def fetch(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Download a checkpoint and save the model and its settings in the folder of a new run.

    :param args: parsed arguments
    :param command: words of the command, for the record
    :raises ValueError: if the algorithm has no checkpoints
    """
    from sb3_maesn.hub import download
    from sb3_maesn.run_folder import create_run_folder, file_name, write_settings
    from sb3_maesn.training import find_recipe

    algorithm = find_recipe(args.algo).algorithm
    if not hasattr(algorithm, "load_checkpoint"):
        raise ValueError(f"{args.algo} has no checkpoints without code: load its file with SB3 if you trust its author")
    name = args.repo_name or f"{args.algo}-{file_name(args.env)}"
    checkpoint = download(f"{args.organization}/{name}", args.revision)
    model = algorithm.load_checkpoint(checkpoint)
    folder = create_run_folder(args.folder, args.algo, args.env)
    path = folder / f"{file_name(args.env)}.zip"
    model.save(path)
    write_settings(folder, args.env, model.plain_settings(), {**vars(args), "seed": model.seed}, command)
    print(f"Saved {path}")


if __name__ == "__main__":
    sys.exit(main())

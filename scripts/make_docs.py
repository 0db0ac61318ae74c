"""Build the documentation from the README and the docstrings, treating every warning as an error."""

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import _flags

ROOT = Path(__file__).resolve().parent.parent
#: Modules that users import.
MODULES = (
    "sb3_maesn",
    "sb3_maesn.callbacks",
    "sb3_maesn.common.adaptation.rounds",
    "sb3_maesn.common.adaptation.rules",
    "sb3_maesn.envs",
    "sb3_maesn.evaluation",
    "sb3_maesn.zoo",
)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    parser.add_argument("-o", "--output", default=str(ROOT / "docs"), help="folder to write to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Build the documentation."""
    return _flags.run(make_parser(), build, argv)


def build(args: argparse.Namespace) -> None:
    """Render the pages.

    :param args: parsed arguments
    """
    import pdoc

    import sb3_maesn

    sb3_maesn.__doc__ = front_page((ROOT / "README.md").read_text(encoding="utf-8"))
    pdoc.render.configure(docformat="restructuredtext", footer_text=f"sb3_maesn {sb3_maesn.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's category for what it cannot import, parse or include
        # SB3's type GymEnv refers to a class by a string that only SB3's own module can resolve.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .*ForwardRef\('VecEnv'\)", UserWarning)
        pdoc.pdoc(*MODULES, output_directory=Path(args.output))
    print(f"Wrote {args.output}/index.html")


def front_page(readme: str) -> str:
    """Turn the README into the docstring of the package.

    :param readme: text with links relative to the folder of the project
    :return: text with the same links relative to a subfolder of it
    """
    return re.sub(r"\]\((?!https?://|#)", "](../", readme)


if __name__ == "__main__":
    sys.exit(main())

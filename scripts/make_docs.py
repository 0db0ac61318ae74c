"""Build the documentation: the README as its front page, and the API from the docstrings; every warning is an error."""

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What users import; the modules behind them are for readers of the code.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("-o", "--output", default=str(ROOT / "docs"), help="folder to write to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    import pdoc

    import sb3_maesn

    sb3_maesn.__doc__ = front_page((ROOT / "README.md").read_text(encoding="utf-8"))
    pdoc.render.configure(docformat="restructuredtext", footer_text=f"sb3_maesn {sb3_maesn.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's class: what it cannot import, parse or include
        # SB3's type of environments names a class by a string, which only SB3's own module can resolve.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .*ForwardRef\('VecEnv'\)", UserWarning)
        pdoc.pdoc(*MODULES, output_directory=Path(args.output))
    print(f"Wrote {args.output}/index.html")
    return 0


def front_page(readme: str) -> str:
    """Make the README a docstring of the package.

    :param readme: text, with links relative to the project's folder
    :return: text, with links that lead to the same places from a folder beside the package
    """
    return re.sub(r"\]\((?!https?://|#)", "](../", readme)


if __name__ == "__main__":
    sys.exit(main())

"""Everything that the README shows is run, or at least checked against what it names."""

import importlib.util
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The README's shell commands, without comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_python_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another in one namespace, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    snippets = blocks("python")
    assert len(snippets) >= 5
    for i, snippet in enumerate(snippets):
        exec(compile(snippet, f"README.md, snippet {i + 1}", "exec"), namespace)
    assert namespace["result"].solved_rate[-1] > 0.8
    assert namespace["adapted"].adaptation is not None
    assert namespace["resumed"].num_timesteps == 2 * namespace["model"].num_timesteps


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "python"], ids=" ".join)
def test_script_commands_parse(root: Path, words: Sequence[str]) -> None:
    arguments = load_script(root / words[1]).make_parser().parse_args(words[2:])
    conf_file = getattr(arguments, "conf_file", "")
    assert not conf_file or (root / conf_file).is_file()


def test_make_targets_exist(root: Path) -> None:
    targets = re.findall(r"^(\w+):", (root / "Makefile").read_text(), flags=re.MULTILINE)
    named = [words[1] for words in commands() if words[0] == "make"]
    named += [name for line in re.findall(r"`make ([a-z ]+)`", README) for name in line.split()]
    assert len(named) >= 4
    assert set(named) <= set(targets)


def test_links_to_files_lead_somewhere(root: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (root / target).exists(), target

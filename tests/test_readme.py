"""Everything that the README shows is run, or at least checked against what it names."""

import csv
import fnmatch
import importlib.util
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import pytest
from huggingface_hub import close_session

import sb3_maesn
from sb3_maesn import zoo
from sb3_maesn.training import ALGOS
from tests.hub_server import running_hub

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "results" / "README.md").read_text(encoding="utf-8")


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


def tables(first_heading: str) -> list[list[list[str]]]:
    """The cells of the README's tables whose first column is called so, without their heads."""
    found = re.findall(rf"^\| {first_heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    return [[re.split(r"\s*\|\s*", line.strip("| ")) for line in rows.splitlines()] for rows in found]


@pytest.fixture
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small Hub in the place of the real one, and a reader who is logged in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub(urlparse(os.environ["HF_ENDPOINT"]).port or 0) as (hub, _):
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield
    close_session()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("_hub")
def test_python_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after another in one namespace, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    snippets = blocks("python")
    assert len(snippets) >= 10
    for i, snippet in enumerate(snippets):
        exec(compile(snippet, f"README.md, snippet {i + 1}", "exec"), namespace)
    assert namespace["result"].solved_rate[-1] > 0.8
    assert namespace["adapted"].adaptation is not None
    assert namespace["pulled"].num_timesteps == namespace["again"].num_timesteps > 0
    assert namespace["resumed"].num_timesteps == 2 * namespace["model"].num_timesteps


def test_every_snippet_is_of_a_language_that_is_tested() -> None:
    assert set(re.findall(r"^```(\w+)$", README, flags=re.MULTILINE)) == {"bash", "python"}


@pytest.mark.parametrize("words", [words for words in commands() if words[:2] != ["python", "-m"]], ids=" ".join)
def test_commands_parse(root: Path, words: Sequence[str]) -> None:
    if words[0] != "python":
        assert words[0] in ("make", "pip")
        return
    arguments = load_script(root / words[1]).make_parser().parse_args(words[2:])
    conf_file = getattr(arguments, "conf_file", "")
    assert not conf_file or conf_file.startswith("logs/") or (root / conf_file).is_file()


def test_commands_of_the_zoo_parse(root: Path) -> None:
    """Their flags are those of our own script of the same name."""
    lines = [words[2:] for words in commands() if words[:2] == ["python", "-m"]]
    assert lines
    for module, script, *flags in lines:
        assert module == zoo.__name__
        arguments = load_script(root / "scripts" / f"{script}.py").make_parser().parse_args(flags)
        assert arguments.algo in zoo.meta_learners()


def test_table_of_algorithms_is_complete() -> None:
    (rows,) = tables("class")
    assert {row[1].strip("`") for row in rows} == set(ALGOS)
    classes = {recipe.algorithm.__name__ for recipe in ALGOS.values()}
    assert {row[0].strip("`").split(".")[-1] for row in rows} == classes


def test_table_of_results_is_what_was_measured(root: Path) -> None:
    families = [rows for rows in tables("family") if len(rows) == 3]
    assert len(families) == 1
    for family, solved, success, _ in families[0]:
        with (root / "results" / f"maesn-{family}-v0-learning.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        first = [row for row in rows if row["model"] == rows[0]["model"] and row["rule"] == "posterior"][1:]
        for text, column in ((solved, "solved"), (success, "success")):
            assert text.split() == [f"{float(row[column]):.2f}".removeprefix("0") for row in first], (family, column)


def test_table_of_baselines_has_what_rl2_reached(root: Path) -> None:
    (baselines,) = tables("baseline")
    for algorithm, measured, result in (row[:3] for row in baselines if row[0] == "RL2"):
        family, digits = measured.split(",")[0], 2 if "Bandit" in measured else 1
        with (root / "results" / f"{algorithm.lower()}-{family}-v0-fresh.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        last = [row for row in rows if row["timesteps"] == rows[-1]["timesteps"]]
        numbers = [*(row["mean_return"] for row in last), last[0]["best_return"], last[0]["floor"]]
        written = [float(number) for number in re.findall(r"-?\d+\.?\d*", result)]
        assert written == [round(float(number), digits) for number in numbers]


def test_table_of_baselines_has_what_curiosity_solved(root: Path) -> None:
    (baselines,) = tables("baseline")
    (row,) = [row for row in baselines if "VIME's reward" in row[0]]
    summary = json.loads((root / "results" / "curiosity-WheeledGoal-v0.json").read_text())["summary"]
    without, curious = summary[0], summary[-1]
    assert without["eta"] == 0 < curious["eta"]
    assert f"the {without['missed']} of {without['tasks']} tasks" in row[1]
    assert row[2] == f"solved {curious['solved']}; without VIME {without['solved']}"


def test_results_are_explained(root: Path) -> None:
    patterns = re.findall(r"`([^`\s/]+\.(?:csv|gif))`", RESULTS)
    for name in (path.name for path in (root / "results").iterdir() if path.suffix in (".csv", ".gif")):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), f"nothing about {name} in results/README.md"


@pytest.mark.parametrize("name", sb3_maesn.__all__)
def test_public_names_have_docstrings(name: str) -> None:
    public = getattr(sb3_maesn, name)
    assert len(public.__doc__ or "") > 40
    inherited = [getattr(base, "__doc__", None) for base in getattr(public, "__mro__", ())[1:]]
    assert public.__doc__ not in inherited


def test_make_targets_exist(root: Path) -> None:
    targets = re.findall(r"^(\w+):", (root / "Makefile").read_text(), flags=re.MULTILINE)
    named = [words[1] for words in commands() if words[0] == "make"]
    named += [name for line in re.findall(r"`make ([a-z ]+)`", README) for name in line.split()]
    assert len(named) >= 4
    assert set(named) <= set(targets)


def test_links_to_files_lead_somewhere(root: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (root / target).exists(), target

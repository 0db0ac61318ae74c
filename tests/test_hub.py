"""Publishing and loading through the real client, against a small Hub on the loopback interface."""

import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import gymnasium as gym
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, close_session
from sb3_contrib import TRPO

from sb3_maesn import MAESN, list_pretrained
from sb3_maesn.checkpoints import ALGORITHMS, load_checkpoint
from sb3_maesn.common.checkpoint.archive import CheckpointError
from sb3_maesn.common.checkpoint.hub_client import HubError, download
from sb3_maesn.hub import _first_sentence, pretrained_publication, publication_files, push_to_hub, run_files
from sb3_maesn.model_card import CardFacts, make_card
from sb3_maesn.run_folder import create_run_folder, write_settings
from tests.hub_server import Hub, Repo, running_hub
from tests.test_playing import tiny_rl2
from tests.tiny import POINT, assert_same, tiny

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
WHEELED = ROOT / "results" / "maesn-WheeledGoal-v0-learning.csv"
HUB_PORT = urlparse(os.environ["HF_ENDPOINT"]).port or 0  # of conftest.py
REPO = "org/maesn-PointGoal-v0"
ROUNDS = [
    {
        "round": r,
        "episodes": 10 * r,
        "mean_return": -20.0 + r,
        "return_interval": 0.5,
        "success": 0.25 * r,
        "success_interval": 0.1,
        "solved": 0.3 * r,
    }
    for r in range(3)
]
TESTED = {"env": "PointGoalSparse-v0", "tasks": 20, "rule": "kernel", "command": "python scripts/evaluate.py learning"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub, a client without a token or a cache, and no waiting between tries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with running_hub(HUB_PORT) as (hub, _):
        yield hub
    close_session()  # or the client keeps its connection to this server


@pytest.fixture
def published(hub: Hub) -> MAESN:
    model = tiny()
    model.push_to_hub(REPO, token=hub.token)
    return model


@pytest.fixture
def with_results(hub: Hub) -> MAESN:
    model = tiny()
    model.push_to_hub(REPO, token=hub.token, rounds=ROUNDS, tested=TESTED, command="python scripts/train.py")
    return model


def test_what_is_pushed_is_pulled(hub: Hub, with_results: MAESN) -> None:
    assert_same(MAESN.from_pretrained(REPO), with_results)
    assert len(hub.repos[REPO].messages) == 1
    files = hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]
    zoo = {"maesn-PointGoal-v0.zip", "config.yml", "args.yml", "env_kwargs.yml", "results.json", "README.md"}
    assert set(files) == zoo | {"model.safetensors", "config.json", "adaptation.csv", "adaptation.png"}
    assert yaml.safe_load(files["config.yml"])["meta_batch_size"] == 3
    assert json.loads(files["results.json"])["mean_reward"] == -18.0
    assert files["adaptation.csv"].decode().splitlines()[1].startswith("0,0,-20.0")
    assert files["adaptation.png"].startswith(b"\x89PNG")


def test_only_the_safe_files_are_pulled(hub: Hub, published: MAESN) -> None:
    hub.requests.clear()
    MAESN.from_pretrained(REPO)
    assert not [request for request in hub.requests if ".zip" in request]


def test_the_card_is_one_that_the_hub_takes(hub: Hub, with_results: MAESN) -> None:
    card: Any = ModelCard(hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]["README.md"].decode())
    card.validate()
    assert card.data.library_name == "stable-baselines3"
    assert card.data.license == "mit"
    assert {"meta-reinforcement-learning", "MAESN", POINT} <= set(card.data.tags)
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"mean_reward": "-18.00 +/- 0.50", "success_rate": 0.5, "solved_tasks": 0.6}
    for said in ("python scripts/train.py", "scripts/evaluate.py learning", f'from_pretrained("{REPO}")', "`kernel`"):
        assert said in card.text
    assert "| 2 | 20 | -18.0 ± 0.5 | 50.0 % ± 10.0 | 60 % |" in card.text
    assert "![Return and success by adaptation round](adaptation.png)" in card.text
    _, snippet, _ = re.split("```(?:python)?\n", card.text, maxsplit=2)
    names: dict[str, Any] = {}
    exec(snippet, names)
    assert len(names["adapted"].adaptation.success_rate) > 1


def test_a_second_push_is_a_second_commit_and_the_first_stays_in_reach(hub: Hub, published: MAESN) -> None:
    first = hub.repos[REPO].refs["main"]
    newer = tiny(seed=1)
    address = push_to_hub(newer, REPO, token=hub.token, commit_message="Another seed")
    assert address.endswith(hub.repos[REPO].refs["main"])
    assert hub.repos[REPO].messages == ["MAESN on PointGoal-v0 after 0 steps", "Another seed"]
    assert_same(MAESN.from_pretrained(REPO), newer)
    assert_same(MAESN.from_pretrained(REPO, revision=first), published)


def test_pushing_the_same_again_changes_nothing_that_loads(hub: Hub, published: MAESN) -> None:
    published.push_to_hub(REPO, token=hub.token)
    assert_same(MAESN.from_pretrained(REPO), published)


def test_private_repositories_open_with_a_token(hub: Hub) -> None:
    tiny().push_to_hub("org/private", token=hub.token, private=True)
    assert hub.repos["org/private"].private
    with pytest.raises(HubError, match="no such repository, or your token"):
        MAESN.from_pretrained("org/private")
    assert MAESN.from_pretrained("org/private", token=hub.token).seed == 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: MAESN.from_pretrained("org/none"), "org/none: there is no such repository"),
        (lambda: MAESN.from_pretrained(REPO, revision="v9"), "at v9: there is no such revision"),
        (lambda: MAESN.from_pretrained(REPO, local_files_only=True), "not in the cache"),
        (lambda: tiny().push_to_hub(REPO, token="wrong"), "does not authorise you"),
        (lambda: tiny().push_to_hub("a b/c", token="wrong"), "is no name of a repository"),
        (lambda: MAESN.from_pretrained("-org/--x"), "is no name of a repository"),
    ],
    ids=["repository", "revision", "offline", "token", "name-push", "name-pull"],
)
def test_what_the_hub_refuses_is_told_on_one_line(
    hub: Hub, published: MAESN, act: Callable[[], Any], message: str
) -> None:
    with pytest.raises(HubError, match=message) as caught:
        act()
    assert len(str(caught.value)) < 400
    assert len(hub.repos[REPO].messages) == 1


def test_a_repository_of_something_else_is_refused(hub: Hub) -> None:
    hub.repos["org/other"] = Repo()
    hub.repos["org/other"].commit({"pytorch_model.bin": b"pickle"}, "other")
    with pytest.raises(HubError, match=r"it holds no model\.safetensors: it was not published by sb3_maesn"):
        MAESN.from_pretrained("org/other")


def test_a_model_of_another_algorithm_is_refused(hub: Hub, published: MAESN) -> None:
    class Other(MAESN):
        pass

    with pytest.raises(CheckpointError, match=f"{REPO}: expected a model of Other, got one of 'MAESN'"):
        Other.from_pretrained(REPO)


def test_huge_files_are_refused_before_they_are_fetched(hub: Hub, published: MAESN) -> None:
    hub.inflate = 10**6
    hub.requests.clear()
    with pytest.raises(HubError, match="expected at most"):
        MAESN.from_pretrained(REPO)
    assert not [request for request in hub.requests if "resolve" in request]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_corrupt_file_is_refused(hub: Hub, published: MAESN, name: str) -> None:
    repo = hub.repos[REPO]
    data = repo.commits[repo.refs["main"]][name]
    repo.commit({name: data[:-40] + bytes(b ^ 1 for b in data[-40:])}, "corrupt")
    with pytest.raises(CheckpointError, match=REPO):
        MAESN.from_pretrained(REPO)


def test_half_of_another_push_is_refused(hub: Hub, published: MAESN) -> None:
    """As a client without commits of several files would leave it."""
    files = publication_files(pretrained_publication("maesn-WheeledGoal-v0", "org"))
    hub.repos[REPO].commit({"model.safetensors": files["model.safetensors"]}, "half")  # type: ignore[dict-item]  # the file is there
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed"):
        MAESN.from_pretrained(REPO)


@pytest.mark.parametrize("where", ["preupload", "/commit/", "validate-yaml", "repos/create"])
def test_a_push_that_breaks_off_leaves_the_repository_as_it_was(hub: Hub, published: MAESN, where: str) -> None:
    before = dict(hub.repos[REPO].refs)
    hub.break_at = where
    with pytest.raises(HubError, match=r"cannot reach http://127\.0\.0\.1"):
        tiny(seed=1).push_to_hub(REPO, token=hub.token)
    hub.break_at = ""
    assert hub.repos[REPO].refs == before
    assert_same(MAESN.from_pretrained(REPO), published)


@pytest.mark.parametrize("where", ["revision/main", "tree/", "model.safetensors", "config.json"])
def test_a_pull_that_breaks_off_is_told_and_can_be_repeated(hub: Hub, published: MAESN, where: str) -> None:
    hub.break_at = where
    with pytest.raises(HubError, match=r"cannot reach http://127\.0\.0\.1"):
        MAESN.from_pretrained(REPO)
    hub.break_at, hub.break_body = "", "resolve"
    with pytest.raises(HubError, match=r"cannot reach .* (incomplete|without sending complete)"):
        MAESN.from_pretrained(REPO)
    hub.break_body = ""
    assert_same(MAESN.from_pretrained(REPO), published)


def test_what_is_in_the_cache_needs_no_hub(hub: Hub, published: MAESN, monkeypatch: pytest.MonkeyPatch) -> None:
    MAESN.from_pretrained(REPO)
    hub.break_at = "/"
    assert_same(MAESN.from_pretrained(REPO), published)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(MAESN.from_pretrained(REPO), published)
    assert_same(MAESN.from_pretrained(REPO, local_files_only=True), published)


def test_without_a_server_the_address_is_named(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=f"org/x: cannot reach http://127.0.0.1:{HUB_PORT}"):
        download("org/x", cache_dir=tmp_path)


def test_a_shipped_model_is_published_with_its_scores(hub: Hub) -> None:
    publication = pretrained_publication("maesn-WheeledGoal-v0", "org")
    files = publication_files(publication)
    card: Any = ModelCard(bytes(files["README.md"]).decode())
    assert {result.dataset_name for result in card.data.eval_results} == {"WheeledGoalSparse-v0"}
    assert "python scripts/train.py --algo maesn --env WheeledGoal-v0" in card.text
    assert publication.repo_id == "org/maesn-WheeledGoal-v0"


def test_a_runs_folder_brings_its_settings_curves_and_video(tmp_path: Path) -> None:
    settings = tmp_path / POINT
    settings.mkdir()
    for path in (settings / "config.yml", settings / "args.yml", tmp_path / "progress.csv", tmp_path / "replay.mp4"):
        path.write_text("a: 1")
    (settings / "command.txt").write_text("python scripts/train.py\n")
    files, command = run_files(tmp_path, POINT)
    assert set(files) == {"config.yml", "args.yml", "progress.csv", "replay.mp4"}
    assert command == "python scripts/train.py"


def test_what_is_pulled_can_be_loaded_without_knowing_its_algorithm(hub: Hub, published: MAESN) -> None:
    folder = download(REPO)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert_same(load_checkpoint(folder), published)  # type: ignore[arg-type]  # it is a MAESN


def test_results_without_their_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"without \['rule', 'tasks'\]"):
        push_to_hub(tiny(), REPO, rounds=ROUNDS, tested={"env": POINT})
    model = tiny()
    model.env_id = None
    with pytest.raises(ValueError, match="expected env_id"):
        push_to_hub(model, REPO)
    np.testing.assert_equal(model.env_id, None)


def card_of(algorithm: str, **changes: Any) -> str:
    facts: dict[str, Any] = {"about_algorithm": "", "env_id": POINT, "hyperparameters": {}, "num_timesteps": 1}
    facts |= {"repo_id": REPO, "algorithm": algorithm, "seed": 0, "command": "", "versions": {}}
    return str(make_card(CardFacts(**{**facts, **changes})))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_introduced_by_a_sentence(algorithm: str) -> None:
    sentence = _first_sentence(ALGORITHMS[algorithm])
    assert sentence.startswith(algorithm)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert 40 < len(sentence) < 160


def test_an_algorithm_of_the_users_own_is_introduced_by_its_class() -> None:
    class Own(MAESN):
        """Meta-learner of mine.

        Details.
        """

    assert _first_sentence(Own) == "Meta-learner of mine."


def test_the_card_of_a_model_of_one_task_does_not_promise_adaptation() -> None:
    card = card_of("VIME", adapts=False)
    assert "adapt" not in card
    assert "meta" not in card.partition("---\n\n")[2]
    assert "action, _ = model.predict(observation)" in card
    assert f'model = VIME.from_pretrained("{REPO}")' in card


@pytest.mark.parametrize(
    ("tested", "phrase"),
    [
        ({"rule": "posterior"}, "20 test tasks of `E`, which training never saw, by the rule `posterior`."),
        ({"rule": "memory", "split": "train"}, "20 training tasks of `E`, by its memory."),
    ],
)
def test_the_card_tells_what_was_tested(tested: dict[str, Any], phrase: str) -> None:
    assert phrase in card_of("MAESN", rounds=ROUNDS, tested={"env": "E", "tasks": 20, **tested})


# The scripts


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def run(name: str, *flags: str) -> int:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return int(module.main(list(flags)))

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = create_run_folder(tmp_path / "logs", "maesn", POINT)
    write_settings(folder, POINT, {"gamma": 0.99}, {"env": POINT}, ["python", "scripts/train.py"])
    tiny().save(folder / f"{POINT}.zip")
    return folder


def test_a_run_is_published_measured_and_fetched_again(
    hub: Hub, run_folder: Path, run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    agent = ["--env", POINT, "-orga", "org"]
    test = ["--n-tasks", "2", "--episodes", "3", "--rounds", "1"]
    assert run_script("push_to_hub", *agent, *test, "-m", "First") == 0
    assert hub.repos[REPO].messages == ["First"]
    results = json.loads(hub.repos[REPO].commits[hub.repos[REPO].refs["main"]]["results.json"])
    assert [row["round"] for row in results["rounds"]] == [0, 1]
    assert (results["tasks"], results["rule"]) == (2, "posterior")
    assert run_script("load_from_hub", *agent, "-f", "fetched") == 0
    fetched = Path("fetched/maesn/PointGoal-v0_1")
    assert_same(MAESN.load(fetched / f"{POINT}.zip"), tiny())
    assert yaml.safe_load((fetched / POINT / "config.yml").read_text())["meta_batch_size"] == 3


def test_all_shipped_models_are_published(
    hub: Hub, run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert run_script("push_to_hub", "--all-pretrained", "--org", "org") == 0
    assert set(hub.repos) == {f"org/{name}" for name in list_pretrained()}
    for name in list_pretrained():
        assert MAESN.from_pretrained(f"org/{name}").num_timesteps == MAESN.from_pretrained(name).num_timesteps


def test_shipped_models_get_the_licence_that_is_asked_for(hub: Hub, run_script: Callable[..., int]) -> None:
    flags = ["--all-pretrained", "--org", "org", "--license", "apache-2.0", "--dry-run", "look"]
    assert run_script("push_to_hub", *flags) == 0
    assert all("license: apache-2.0" in path.read_text() for path in Path("look").glob("*/README.md"))


def test_a_model_of_an_environment_without_success_is_published(
    hub: Hub, run_folder: Path, run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = np.full((2, 2, 3), np.nan)
    result = SimpleNamespace(returns=np.arange(12.0).reshape(2, 2, 3), success=unknown, lengths=np.ones((2, 2, 3)))
    monkeypatch.setattr("sb3_maesn.benchmarking.evaluate_adaptation", lambda *_: result)
    assert run_script("push_to_hub", "--env", POINT, "-orga", "org", "--n-tasks", "2", "--dry-run", "look") == 0
    folder = Path("look/maesn-PointGoal-v0")
    results = json.loads((folder / "results.json").read_text())
    assert (results["mean_reward"], results["n_eval_episodes"], "success" in results["rounds"][0]) == (8.5, 6, False)
    card = (folder / "README.md").read_text()
    assert "| 1 | 3 | 8.5 ± 2.9 |\n" in card
    assert "![Return by adaptation round]" in card
    words = ("type: success_rate", "successful episodes", "solved tasks", "solved_tasks")
    assert [word for word in words if word in card.partition("## Training")[0] + card.partition("## Results")[2]] == []


def test_a_round_of_rl2_is_an_episode(hub: Hub, tmp_path: Path, run_script: Callable[..., int]) -> None:
    folder = create_run_folder(tmp_path / "logs", "rl2", POINT)
    write_settings(folder, POINT, {}, {"env": POINT}, ["python", "scripts/train.py"])
    tiny_rl2().save(folder / f"{POINT}.zip")
    flags = ["--algo", "rl2", "--env", POINT, "-orga", "org", "--n-tasks", "2", "--episodes", "3", "--rounds", "2"]
    assert run_script("push_to_hub", *flags, "--dry-run", "look") == 0
    results = json.loads(Path("look/rl2-PointGoal-v0/results.json").read_text())
    assert [row["episodes"] for row in results["rounds"]] == [0, 1, 2]
    assert results["n_eval_episodes"] == 2 * 3


def test_the_latest_film_is_published(run_folder: Path) -> None:
    assert "replay.mp4" not in run_files(run_folder, POINT)[0]
    (run_folder / "videos").mkdir()
    for age, name in enumerate(("new.mp4", "old.mp4")):
        (run_folder / "videos" / name).write_bytes(b"film")
        os.utime(run_folder / "videos" / name, (1000 - age, 1000 - age))
    assert run_files(run_folder, POINT)[0]["replay.mp4"] == run_folder / "videos" / "new.mp4"
    (run_folder / "replay.mp4").write_bytes(b"chosen")
    assert run_files(run_folder, POINT)[0]["replay.mp4"] == run_folder / "replay.mp4"


def test_a_dry_run_writes_what_would_be_published(hub: Hub, run_script: Callable[..., int]) -> None:
    assert run_script("push_to_hub", "--env", "WheeledGoal-v0", "-orga", "org", "--dry-run", "look") == 0
    assert "MAESN on WheeledGoal-v0" in Path("look/maesn-WheeledGoal-v0/README.md").read_text()
    assert not hub.repos


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("load_from_hub", ["--env", POINT], "there is no such repository"),
        ("load_from_hub", ["--algo", "mason"], "did you mean maesn"),
        ("load_from_hub", ["--algo", "trpo"], "no checkpoints without code"),
        ("push_to_hub", ["--env", POINT, "--no-results"], "does not authorise you"),
        ("push_to_hub", ["--env", POINT, "--exp-id", "7"], "there is no log folder"),
        ("push_to_hub", ["--env", POINT, "--results", "nowhere.csv"], "cannot read nowhere.csv"),
        ("push_to_hub", ["--env", POINT, "--no-results", "--video", "a.avi"], "mp4 or gif"),
        (
            "push_to_hub",
            ["--env", POINT, "--results", str(WHEELED)],
            "results on WheeledGoalSparse-v0, not of a",
        ),
        (
            "push_to_hub",
            ["--env", POINT, "--results", str(WHEELED).replace("learning", "few-episodes")],
            "is no table of adaptation rounds",
        ),
        (
            "push_to_hub",
            ["--env", "WheeledGoal-v0", "--no-results", "--rule", "kernel"],
            "maesn-WheeledGoal-v0 comes with results of its own: leave out --no-results and --rule",
        ),
        ("push_to_hub", ["--all-pretrained", "--video", "a.mp4"], "own results: leave out --video"),
        ("push_to_hub", ["--env", POINT, "--n-tasks", "0"], "n_tasks must be at least 1, got 0"),
        ("push_to_hub", ["--algo", "trpo", "--env", POINT, "--no-results"], "trpo has no checkpoints without code"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    hub: Hub,
    run_folder: Path,
    run_script: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    script: str,
    flags: list[str],
    message: str,
) -> None:
    trpo = create_run_folder(run_folder.parents[1], "trpo", POINT)
    write_settings(trpo, POINT, {}, {"env": POINT, "task": ["3"]}, ["python", "scripts/train.py"])
    TRPO("MlpPolicy", gym.make(POINT), n_steps=64, batch_size=64, seed=0).save(trpo / f"{POINT}.zip")
    with pytest.raises(SystemExit) as stopped:
        run_script(script, "-orga", "org", *flags)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not hub.repos


def test_who_may_not_write_learns_it_before_anything_is_measured(
    hub: Hub,
    run_folder: Path,
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured: list[Any] = []
    monkeypatch.setattr("sb3_maesn.benchmarking.evaluate_adaptation", lambda *args, **kwargs: measured.append(args))
    with pytest.raises(SystemExit):
        run_script("push_to_hub", "--env", POINT, "-orga", "org")
    assert "does not authorise you" in capsys.readouterr().err
    assert not measured

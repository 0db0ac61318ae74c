"""Model cards for the Hugging Face Hub: usage, training, results and files of a published model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sb3_maesn.envs import FAMILIES
from sb3_maesn.results import MEMORY, Row

IMAGES, VIDEOS = (".png", ".gif"), (".mp4",)
CURVE = "adaptation.png"


@dataclass(frozen=True)
class CardFacts:
    """Contents of a model card.

    :param repo_id: repository
    :param algorithm: name of the class of the algorithm
    :param about_algorithm: sentence that describes the algorithm
    :param env_id: environment that the model was trained on
    :param hyperparameters: arguments of the constructor by name
    :param num_timesteps: environment steps trained
    :param seed: seed of the training
    :param command: command that trained the model, empty if unknown
    :param versions: versions of the packages that wrote the model, by package
    :param rounds: rows of ``results.adaptation_rows``, without success if it is unknown; empty if the model was not
        evaluated
    :param tested: origin of the rows: ``env``, ``tasks`` and ``rule``; ``split`` and ``command`` if known
    :param files: names of all other files of the repository
    :param licence: licence in the abbreviation of the Hub
    :param adapts: whether the model adapts to new tasks
    """

    repo_id: str
    algorithm: str
    about_algorithm: str
    env_id: str
    hyperparameters: Mapping[str, Any]
    num_timesteps: int
    seed: int | None
    command: str
    versions: Mapping[str, str]
    rounds: Sequence[Row] = ()
    tested: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()
    licence: str = "mit"
    adapts: bool = True

    @property
    def name(self) -> str:
        """Name of the repository without its organisation."""
        return self.repo_id.rpartition("/")[2]

    @property
    def test_env_id(self) -> str:
        """Environment that the model was tested on; the one it was trained on if it was not tested."""
        return str(self.tested.get("env", self.env_id))


def make_card(facts: CardFacts) -> ModelCard:
    """Write a model card.

    :param facts: contents of the card
    :return: card with the metadata that the Hub reads
    """
    data = ModelCardData(
        library_name="stable-baselines3",
        license=facts.licence,
        pipeline_tag="reinforcement-learning",
        tags=_tags(facts),
        model_name=facts.name,
        eval_results=_eval_results(facts) or None,
    )
    sections = (_introduction(facts), _usage(facts), _training(facts), _results(facts), _contents(facts))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def _tags(facts: CardFacts) -> list[str]:
    general = ["reinforcement-learning", "deep-reinforcement-learning"]
    meta = ["meta-reinforcement-learning"] if facts.adapts else []
    return [*general, *meta, "stable-baselines3", "sb3_maesn", facts.algorithm, facts.env_id]


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    if not facts.rounds:
        return []
    last = facts.rounds[-1]
    metrics = {
        "mean_reward": f"{last['mean_return']:.2f} +/- {last['return_interval']:.2f}",
        **({"success_rate": last["success"], "solved_tasks": last["solved"]} if "success" in last else {}),
    }
    return [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=facts.test_env_id,
            dataset_name=facts.test_env_id,
            dataset_split=str(facts.tested.get("split", "test")),
            metric_type=metric,
            metric_name=f"{metric} after {last['episodes']} episodes of a new task",
            metric_value=value,
        )
        for metric, value in metrics.items()
    ]


def _introduction(facts: CardFacts) -> str:
    if not facts.adapts:
        return (
            f"# {facts.algorithm} on {facts.env_id}\n\n"
            f"A policy for one task, trained with `sb3_maesn` on Stable-Baselines3.\n{facts.about_algorithm}"
        )
    return (
        f"# {facts.algorithm} on {facts.env_id}\n\n"
        f"A meta-policy, trained with `sb3_maesn` on Stable-Baselines3.\n"
        f"{facts.about_algorithm}\n\n"
        f"It was meta-trained on many tasks of the family `{facts.env_id}`. Given a new task of the family,\n`adapt`"
        " runs a few rounds of episodes on it and returns a policy for it: an ordinary Stable-Baselines3 model."
    )


def _usage(facts: CardFacts) -> str:
    if not facts.adapts:
        snippet = "action, _ = model.predict(observation)\n```\n"
        return f"## Use\n\n```python\n{_loading(facts)}{snippet}\n{_safety(facts)}"
    imports, choice = "", "# env, task: an environment with tasks, and one of them\n"
    if facts.test_env_id in FAMILIES:
        imports = "from sb3_maesn.envs import make_vec\n"
        choice = (
            f'env = make_vec("{facts.test_env_id}", n_envs=50)\n'
            'task = env.env_method("task_set", "test", indices=[0])[0][3]  # or values of your own, such as a goal\n'
        )
    return (
        "## Use\n\n```python\n"
        f"{_loading(facts, imports)}{choice}"
        "adapted = model.adapt(env, task=task)\n"
        "print(adapted.adaptation.success_rate)  # by round; the first is the policy before adaptation\n```\n\n"
        "`adapted.predict(observation, state, episode_start)` acts, as that of every recurrent policy of SB3 does.\n"
        f"{_safety(facts)}"
    )


def _loading(facts: CardFacts, imports: str = "") -> str:
    return (
        f"from sb3_maesn import {facts.algorithm}\n{imports}\n"
        f'model = {facts.algorithm}.from_pretrained("{facts.repo_id}")\n'
    )


def _safety(facts: CardFacts) -> str:
    return (
        "This reads `model.safetensors` and `config.json`, which hold numbers and settings and nothing that could run."
        f" The file\n`*.zip` is for `{facts.algorithm}.load`, which runs whatever code a file holds: use it only if you"
        " trust this repository's owner."
    )


def _training(facts: CardFacts) -> str:
    command = f"```bash\n{facts.command}\n```\n\n" if facts.command else ""
    versions = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    rows = "\n".join(f"| `{name}` | `{value}` |" for name, value in facts.hyperparameters.items())
    return (
        f"## Training\n\n{command}{facts.num_timesteps:,} environment steps, seed {facts.seed}.\nVersions: {versions}."
        "\n\n"
        f"<details><summary>All hyperparameters</summary>\n\n| | |\n|---|---|\n{rows}\n\n</details>"
    )


def _results(facts: CardFacts) -> str:
    if not facts.rounds:
        how = ": `sb3_maesn.evaluation.evaluate_adaptation` measures how it adapts" if facts.adapts else ""
        return f"## Results\n\nNot evaluated{how}."
    knows_success = "success" in facts.rounds[-1]
    rows = "\n".join(
        f"| {row['round']} | {row['episodes']} | {row['mean_return']:.1f} ± {row['return_interval']:.1f} |"
        + (
            f" {100 * row['success']:.1f} % ± {100 * row['success_interval']:.1f} | {100 * row['solved']:.0f} % |"
            if knows_success
            else ""
        )
        for row in facts.rounds
    )
    columns = ["round", "episodes so far", "mean return"]
    solved = ""
    if knows_success:
        columns += ["successful episodes", "solved tasks"]
        solved = "; a task is solved if at least\nhalf of a round's episodes succeed"
    header = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    tested, split = facts.tested, facts.tested.get("split", "test")
    tasks = "training tasks" if split == "train" else f"{split} tasks"
    unseen = "" if split == "train" else ", which training never saw"
    rule = "its memory" if tested["rule"] == MEMORY else f"the rule `{tested['rule']}`"
    command = f"\n\n```bash\n{tested['command']}\n```" if tested.get("command") else ""
    shown = "Return and success" if knows_success else "Return"
    picture = f"\n\n![{shown} by adaptation round]({CURVE})" if CURVE in facts.files else ""
    return (
        f"## Results\n\nAdaptation to {tested['tasks']} {tasks} of `{facts.test_env_id}`{unseen}, by {rule}.\n"
        "Round 0 is the policy before adaptation;"
        f" ± is the half width of a 95 % interval over tasks{solved}.\n\n{header}\n{rows}{picture}{command}"
    )


def _contents(facts: CardFacts) -> str:
    shown = [name for name in facts.files if name.endswith(IMAGES) and name != CURVE]
    pictures = "".join(f"![{name}]({name})\n\n" for name in shown)
    known = {
        "model.safetensors": "weights",
        "config.json": "settings, spaces and versions of the safe checkpoint",
        "config.yml": "hyperparameters",
        "args.yml": "arguments of the training script",
        "env_kwargs.yml": "arguments of the environment",
        "results.json": "results as numbers",
        "adaptation.csv": "the adaptation curve",
        "progress.csv": "the learning curve",
    }
    lines = "\n".join(f"- `{name}`: {known[name]}" for name in facts.files if name in known)
    return f"{pictures}## Files\n\n{lines}\n\n## Licence\n\n{facts.licence.upper()}"

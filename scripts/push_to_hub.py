"""Publish a trained agent on the Hugging Face Hub: ``python scripts/push_to_hub.py --env WheeledGoal-v0 -orga ORG``.

The token is that of ``hf auth login`` or of the environment variable HF_TOKEN.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import _flags

#: Arguments that say how an agent's results are measured, and which agent is published under which name.
MEASURING = frozenset({"results", "row", "no_results", "split", "n_tasks", "rounds", "episodes", "rule", "seed"})
CHOOSING = frozenset(
    {"algo", "env", "exp_id", "load_best", "load_checkpoint", "load_last_checkpoint", "repo_name", "video"}
)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    _flags.add_agent_flags(parser)
    _flags.add_test_flags(parser)
    parser.set_defaults(n_tasks=100, episodes=50)
    add = parser.add_argument
    add("-orga", "--organization", "--org", required=True, help="user or organisation of the Hub")
    add("-name", "--repo-name", default="", help="repository ({algo}-{env} if empty)")
    add("-m", "--commit-message", default="", help="message of the commit")
    add("--all-pretrained", action="store_true", help="publish all models that come with the package instead")
    add(
        "--results", default="", help="table of `scripts/evaluate.py learning`, in place of measuring on the test tasks"
    )
    add("--row", default=None, help="the model's name in that table (the first if not given)")
    add("--no-results", action="store_true", help="publish without results")
    add("--video", default="", help="mp4 or gif to show (the run's latest film if empty)")
    add("--license", default="mit", help="licence, as the Hub abbreviates it")
    add("--private", action="store_true", help="make a new repository private")
    add("--revision", default=None, help="branch to commit to")
    add("--create-pr", action="store_true", help="propose the commit instead of making it")
    add("--dry-run", default="", metavar="FOLDER", help="write the files into a folder instead of publishing them")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Publish one agent or all pretrained models."""
    return _flags.run(make_parser(), push, argv)


def push(args: argparse.Namespace) -> None:
    """Publish one repository after the other.

    :param args: parsed arguments
    """
    for publication in publications(args):
        publish(publication, args)


def publications(args: argparse.Namespace) -> Iterator[Any]:
    """Prepare the agents to publish.

    :param args: parsed arguments
    :return: one ``sb3_maesn.hub.Publication`` per repository
    :raises ConfigError: if the algorithm has no checkpoints
    """
    from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
    from sb3_maesn.common.checkpoint.pretrained import list_pretrained
    from sb3_maesn.config import ConfigError
    from sb3_maesn.hub import Publication, pretrained_publication, run_files
    from sb3_maesn.trained import AgentChoice, load_agent

    if args.all_pretrained:
        refuse(args, "all pretrained models are published with their own results", MEASURING | CHOOSING)
        for name in list_pretrained():
            yield pretrained_publication(name, args.organization, args.license)
        return
    agent = load_agent(AgentChoice.from_args(args))
    model = agent.model
    if not isinstance(model, CheckpointMixin):
        raise ConfigError(f"{args.algo} has no checkpoints without code, which a published model needs")
    name = args.repo_name or f"{args.algo}-{args.env.replace('/', '-')}"
    repo_id = f"{args.organization}/{name}"
    clip = {f"replay{Path(args.video).suffix}": video(args.video)} if args.video else {}
    files: dict[str, bytes | Path] = {}
    if agent.folder is None:
        refuse(args, f"{agent.name} comes with results of its own", MEASURING)
        publication = pretrained_publication(agent.name, args.organization)
        rounds, tested, command = publication.rounds, publication.tested, publication.command
    else:
        files, command = run_files(agent.folder, agent.env_id)
        rounds, tested = results(agent, repo_id, args)
    yield Publication(repo_id, model, agent.env_id, rounds, tested, command, {**files, **clip}, args.license)


def refuse(args: argparse.Namespace, reason: str, flags: Set[str]) -> None:
    """Refuse flags that would do nothing.

    :param args: parsed arguments
    :param reason: reason why they would do nothing
    :param flags: names of the flags' arguments
    :raises ConfigError: if one of them has another value than its default
    """
    from sb3_maesn.config import ConfigError

    parser = make_parser()
    given = [f"--{name.replace('_', '-')}" for name in sorted(flags) if getattr(args, name) != parser.get_default(name)]
    if given:
        raise ConfigError(f"{reason}: leave out {' and '.join(given)}")


def results(agent: Any, repo_id: str, args: argparse.Namespace) -> tuple[Sequence[Any], dict[str, Any]]:
    """Read or measure the results of an agent's adaptation.

    :param agent: agent
    :param repo_id: repository that the agent is going to, created before a measurement unless nothing is published
    :param args: parsed arguments
    :return: rows by round, and their origin; both empty without results or for an agent that does not adapt
    :raises ConfigError: if the table of ``--results`` is of another task family
    :raises HubError: if the Hub refuses access to the repository
    """
    from sb3_maesn.benchmarking import EvaluationPlan, measure_adaptation
    from sb3_maesn.checkpoints import read_rounds
    from sb3_maesn.config import ConfigError
    from sb3_maesn.hub import create_repository
    from sb3_maesn.results import adaptation_rows, provenance, rule_name

    if args.no_results or not agent.adapts:
        return (), {}
    rule = rule_name(agent.model, args.rule)
    if args.results:
        rounds, tested = read_rounds(Path(args.results), rule, args.row)
        if family(tested["env"]) != family(agent.env_id):
            raise ConfigError(f"{args.results} holds results on {tested['env']}, not of a model of {agent.env_id}")
        return rounds, tested
    plan = EvaluationPlan.from_args(args)
    if not args.dry_run:
        create_repository(repo_id, args.private or None)  # the measurement takes minutes
    result = measure_adaptation(agent, plan)
    _, n_tasks, n_episodes = result.returns.shape
    about = {"env": agent.test_env_id, "tasks": n_tasks, "episodes": n_episodes, "rule": rule, "split": args.split}
    return adaptation_rows(result.returns, result.success, rule), provenance(args.seed, **about)


def family(env_id: str) -> str:
    """Shorten an environment id to the name of its task family.

    :param env_id: environment id, such as ``"WheeledGoalSparse-v0"``
    :return: name without its version, the same for dense and sparse reward, such as ``"WheeledGoal"``
    """
    return env_id.split("-v")[0].removesuffix("Sparse")


def video(path: str) -> Path:
    """Check that a path is that of a video.

    :param path: value of ``--video``
    :return: path of the video
    :raises ConfigError: if the file is missing, or neither mp4 nor gif
    """
    from sb3_maesn.config import ConfigError

    if Path(path).suffix not in (".mp4", ".gif") or not Path(path).is_file():
        raise ConfigError(f"--video takes an mp4 or gif file that exists, got {path}")
    return Path(path)


def publish(publication: Any, args: argparse.Namespace) -> None:
    """Publish an agent, or write its files to a folder for inspection.

    :param publication: agent with its results and files
    :param args: parsed arguments
    """
    from sb3_maesn.hub import publication_files, push_publication, write_files

    if args.dry_run:
        folder = Path(args.dry_run) / publication.repo_id.rpartition("/")[2]
        write_files(folder, publication_files(publication))
        print(f"Wrote {folder}")
        return
    address = push_publication(
        publication, args.commit_message, args.private or None, revision=args.revision, create_pr=args.create_pr
    )
    print(f"Published {address}")


if __name__ == "__main__":
    sys.exit(main())

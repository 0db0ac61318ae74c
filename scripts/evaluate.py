"""Evaluate meta-trained models on test tasks, and write tables with their origin and figures.

learning: adaptation in rounds of many episodes. few-episodes: success of the adapted policy after 0, 5, 10, 20 and 45
episodes, for each rule. coverage: where episodes with latents of the prior end, by sectors of 30 degrees; only those
count that end beyond 60 % of the goals' distance from the origin, which must be the same for all goals.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _flags

BUDGETS = (0, 5, 10, 20, 45)
EPISODES_A_ROUND = 5
FRESH_EPISODES = 20
#: Mean returns of the authors' policies after rounds 0 to 3 of the paper's rule, on the authors' 30 validation tasks.
AUTHORS = {
    "WheeledGoal": (-398, -370, -360, -350),
    "AntGoal": (321, 357, 362, 378),
    "PusherBlock": (-391, -311, -276, -262),
}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("what", choices=("learning", "few-episodes", "coverage"), help="what to measure")
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model files, or names of pretrained models; several are seeds of one setting",
    )
    add(
        "--env",
        default="",
        help="environment id (if empty, the sparse variant of the family that the model's name tells)",
    )
    add("--split", default="test", choices=("train", "validation", "test"), help="set of tasks")
    add("--tasks", type=int, default=100, help="tasks, the first of the set")
    add("--rounds", type=int, default=3, help="learning: adaptation rounds")
    add("--episodes", type=int, default=50, help="learning: episodes of a round; coverage: episodes for each task")
    add(
        "--rules",
        nargs="+",
        default=[],
        metavar="RULE",
        help="rules (learning: the default one, few-episodes: all that suit the models, if none)",
    )
    add("--seed", type=int, default=0, help="seed")
    add("--out", default="results", help="folder to write to")
    add("--name", default="", help="start of the files' names (the first model's name if empty)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate models."""
    return _flags.run(make_parser(), evaluate, argv)


def evaluate(args: argparse.Namespace) -> None:
    """Check the models and the environment, then run the requested evaluation.

    :param args: parsed arguments
    """
    from sb3_maesn.model_files import find_model_file, guess_test_env
    from sb3_maesn.tasks import check_env_id

    for model in args.models:
        find_model_file(model)
    args.env = args.env or guess_test_env(args.models[0])
    check_env_id(args.env)
    {"learning": learning, "few-episodes": few_episodes, "coverage": coverage}[args.what](args)


def learning(args: argparse.Namespace) -> None:
    """Adapt to all tasks at once and report every round.

    :param args: parsed arguments
    """
    import numpy as np

    from sb3_maesn import plots
    from sb3_maesn.evaluation import evaluate_adaptation
    from sb3_maesn.results import adaptation_rows, rule_name
    from sb3_maesn.tasks import tasks_of

    rows: list[dict[str, Any]] = []
    curves: dict[str, tuple[Any, Any]] = {}
    tasks = tasks_of(args.env, args.split, args.tasks)
    for name, model in load_models(args):
        for rule in args.rules or [None]:
            result = evaluate_adaptation(
                model, args.env, tasks, n_rounds=args.rounds, n_episodes=args.episodes, rule=rule, seed=args.seed
            )
            label = {"model": name, "rule": rule_name(model, rule)}
            rows += [label | row for row in adaptation_rows(result.returns, result.success)]
            curves[f"{name}, {label['rule']}"] = result.returns, result.success
    path = write(args, rows, len(tasks))
    reference = AUTHORS.get(args.env.split("-v")[0].removesuffix("Sparse"))
    lines = {"authors' policy": np.array(reference)} if reference else None
    plots.plot_adaptation_curve(curves, path.with_suffix(".png"), figure_title(args, len(tasks)), lines)


def few_episodes(args: argparse.Namespace) -> None:
    """Evaluate the policy that ``adapt`` would return after a few episodes, on fresh episodes that no rule uses.

    :param args: parsed arguments
    """
    import numpy as np

    from sb3_maesn import plots
    from sb3_maesn.common.adaptation.learners import OWN_RULE
    from sb3_maesn.common.adaptation.rules import RULES
    from sb3_maesn.evaluation import evaluate_adaptation
    from sb3_maesn.tasks import tasks_of

    rows: list[dict[str, Any]] = []
    rounds = [budget // EPISODES_A_ROUND for budget in BUDGETS]
    tasks = tasks_of(args.env, args.split, args.tasks)
    models = load_models(args)
    curves = {}
    have_latents = all(model.policy.latent_dim for _, model in models)
    for rule in args.rules or (RULES if have_latents else [OWN_RULE]):
        by_model = []
        for name, model in models:
            result = evaluate_adaptation(
                model,
                args.env,
                tasks,
                n_rounds=rounds[-1],
                n_episodes=EPISODES_A_ROUND,
                rule=rule,
                seed=args.seed,
                n_eval_episodes=FRESH_EPISODES,
                eval_rounds=rounds,
            )
            by_task = result.eval_success[rounds].mean(axis=2)  # (n_budgets, n_tasks)
            returns = result.eval_returns[rounds].mean(axis=2)
            by_model.append(by_task)
            rows += few_episode_rows({"model": name, "rule": rule}, by_task, returns)
        curves[rule] = np.array(BUDGETS), np.concatenate(by_model, axis=1)
    path = write(args, rows, len(tasks))
    plots.plot_few_episodes(curves, path.with_suffix(".png"), figure_title(args, len(tasks)))


def few_episode_rows(label: dict[str, Any], success: Any, returns: Any) -> list[dict[str, Any]]:
    """Make one row per number of episodes.

    :param label: first columns of every row
    :param success: share of successful fresh episodes (n_budgets, n_tasks)
    :param returns: mean return of the fresh episodes (n_budgets, n_tasks)
    :return: rows of the table
    """
    from sb3_maesn.results import mean_and_interval

    mean, interval = mean_and_interval(success)
    columns = zip(BUDGETS, mean, interval, returns.mean(axis=1), strict=True)
    return [
        label
        | {
            "episodes": episodes,
            "success": round(float(share), 4),
            "success_interval": round(float(half_width), 4),
            "mean_return": round(float(mean_return), 2),
        }
        for episodes, share, half_width, mean_return in columns
    ]


def coverage(args: argparse.Namespace) -> None:
    """Count where episodes with latents of the prior end, by sectors of 30 degrees.

    :param args: parsed arguments
    :raises ValueError: if the environment has no goals in the plane, or they lie at different distances from the origin
    """
    import numpy as np

    from sb3_maesn.results import coverage_radius, sector_shares
    from sb3_maesn.tasks import tasks_of
    from sb3_maesn.trajectories import plane_of, record_paths

    rows = []
    distinct = np.asarray(tasks_of(args.env, args.split, args.tasks))
    radius = coverage_radius(plane_of(args.env).goal(distinct))
    tasks = np.repeat(distinct, args.episodes, axis=0)  # (n_tasks * n_episodes, G)
    for name, model in load_models(args):
        ends = record_paths(model, args.env, tasks, args.seed).end_points
        far = float((np.linalg.norm(ends, axis=1) > radius).mean())
        shares = sector_shares(ends, radius)
        row = {"model": name, "episodes": len(ends), f"beyond_{radius}": round(far, 4)}
        rows.append(row | {f"{30 * i}-{30 * (i + 1)}": round(float(share), 4) for i, share in enumerate(shares)})
    write(args, rows, len(distinct))


def load_models(args: argparse.Namespace) -> list[tuple[str, Any]]:
    """Load the models.

    :param args: parsed arguments
    :return: pairs of a name for the table and a model
    """
    from sb3_maesn.checkpoints import load_model

    return [(name, load_model(model)) for name, model in zip(short_names(args.models), args.models, strict=True)]


def short_names(models: Sequence[str]) -> list[str]:
    """Shorten the paths of models to the file name and the last folders, at least one, that tell them apart.

    :param models: model files or names of pretrained models
    :return: names for tables and legends
    """
    parts = [Path(model).parts for model in models]
    for n in range(2, max(map(len, parts)) + 2):
        names = ["/".join(own[-n:]).removesuffix(".zip") for own in parts]
        if len(set(names)) == len(set(models)):
            break
    return names


def write(args: argparse.Namespace, rows: Sequence[dict[str, Any]], n_tasks: int) -> Path:
    """Print the table and write it with its origin.

    :param args: parsed arguments
    :param rows: rows of the table
    :param n_tasks: number of tasks
    :return: path of the CSV file
    """
    from sb3_maesn.results import format_table, provenance, write_table

    path = Path(args.out) / f"{args.name or Path(args.models[0]).stem}-{args.what}.csv"
    about = provenance(args.seed, env=args.env, models=args.models, split=args.split, tasks=n_tasks)
    write_table(path, rows, about)
    print(f"{figure_title(args, n_tasks)}\n{format_table(rows)}\nWrote {path}")
    return path


def figure_title(args: argparse.Namespace, n_tasks: int) -> str:
    """Make the title of a figure.

    :param args: parsed arguments
    :param n_tasks: number of tasks
    :return: title
    """
    return f"{args.env}, {n_tasks} {args.split} tasks"


if __name__ == "__main__":
    sys.exit(main())

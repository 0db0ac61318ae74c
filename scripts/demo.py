"""Meta-train MAESN on WheeledGoal for a few minutes, adapt it to unseen goals, and draw figures of both."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _flags

N_GOALS = 3  # number of goals in the figure of trajectories
PRIOR_EPISODES = 40  # number of trajectories of the unadapted policy
ADAPTED_EPISODES = 10  # number of trajectories of each adapted policy


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("--env", default="WheeledGoal-v0", help="environment id of a built-in family with goals in the plane")
    add("-n", "--n-timesteps", type=int, default=20_000_000, help="environment steps of meta-training")
    add("--tasks", type=int, default=30, help="unseen tasks to adapt to")
    add("--rounds", type=int, default=3, help="adaptation rounds")
    add("--episodes", type=int, default=20, help="episodes of a round")
    add("--seed", type=int, default=0, help="seed")
    add("--out", default="demo", help="folder to write to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration."""
    return _flags.run(make_parser(), demonstrate, argv)


def demonstrate(args: argparse.Namespace) -> None:
    """Meta-train, adapt to unseen tasks and draw trajectories.

    :param args: parsed arguments
    """
    from sb3_maesn.cli import check_flag
    from sb3_maesn.tasks import check_env_id, sparse_variant, tasks_of
    from sb3_maesn.trajectories import plane_of

    for name in ("n_timesteps", "episodes", "rounds"):
        check_flag(args, name, 1)
    check_env_id(args.env)
    test_env = sparse_variant(args.env)
    plane_of(test_env)  # trajectories are drawn last, after minutes of training
    tasks = tasks_of(test_env, "validation", args.tasks)
    print(f"1. Meta-training on {args.env}: dense reward, 100 training tasks", flush=True)
    model = meta_train(args)
    print(f"2. Adapting to {len(tasks)} unseen tasks of {test_env}: sparse reward", flush=True)
    adapt_to_unseen(model, test_env, tasks, args)
    print("3. Drawing trajectories before and after adaptation", flush=True)
    draw_trajectories(model, test_env, tasks, args)
    print("Wrote " + ", ".join(str(path) for path in sorted(Path(args.out).glob("*.png"))))


def meta_train(args: argparse.Namespace) -> Any:
    """Meta-train with dense reward and draw the learning curve on validation tasks with sparse reward.

    :param args: parsed arguments
    :return: trained model
    """
    from sb3_maesn import plots, training
    from sb3_maesn.config import load_entry
    from sb3_maesn.recipes import TrainingRun
    from sb3_maesn.results import load_evaluations

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(
        algo="maesn",
        env_id=args.env,
        config=load_entry(_flags.default_file("maesn"), args.env),
        folder=out,
        seed=args.seed,
        save_freq=-1,
        eval_freq=max(args.n_timesteps // 8, 1),
        eval_tasks=20,
        eval_episodes=10,
        progress_bar=True,
        verbose=0,
    )
    model = training.build_model(run)
    training.finish(run, model, training.train(run, model, args.n_timesteps))
    training.close(model)
    evaluations = load_evaluations(out / "evaluations.npz")
    title = f"{args.env}: adaptation to 20 validation tasks while meta-training"
    plots.plot_learning_curve(*evaluations, out / "learning_curve.png", title)
    return model


def adapt_to_unseen(model: Any, test_env: str, tasks: Sequence[Any], args: argparse.Namespace) -> None:
    """Adapt to validation tasks, which training has not seen, and write the table and figures of the rounds.

    :param model: trained model
    :param test_env: environment id with sparse reward
    :param tasks: validation tasks
    :param args: parsed arguments
    """
    from sb3_maesn import plots
    from sb3_maesn.evaluation import evaluate_adaptation
    from sb3_maesn.results import adaptation_rows, format_table, provenance, write_table

    out, settings = Path(args.out), {"n_rounds": args.rounds, "n_episodes": args.episodes, "seed": args.seed}
    result = evaluate_adaptation(model, test_env, tasks, **settings)
    rows = adaptation_rows(result.returns, result.success)
    print(format_table(rows))
    write_table(out / "adaptation.csv", rows, provenance(args.seed, env=test_env, tasks=len(tasks)))
    title = f"{test_env}, {len(tasks)} unseen tasks, {args.episodes} episodes a round"
    plots.plot_adaptation_curve({"MAESN": (result.returns, result.success)}, out / "adaptation_curve.png", title)
    if result.mean.shape[2] >= 2:
        first = (result.latents[:, 0], result.returns[:, 0], result.mean[:, 0], result.log_std[:, 0])
        plots.plot_latent_map(*first, out / "latents.png", "one task in latent space; rounds numbered")


def draw_trajectories(model: Any, test_env: str, tasks: Sequence[Any], args: argparse.Namespace) -> None:
    """Draw trajectories before adaptation, and after adaptation to a few goals spread over the directions.

    :param model: trained model
    :param test_env: environment id with sparse reward
    :param tasks: validation tasks
    :param args: parsed arguments
    """
    import numpy as np

    from sb3_maesn import plots
    from sb3_maesn.trajectories import plane_of, record_paths

    plane, values = plane_of(test_env), np.asarray(tasks)
    goals = plane.goal(values)
    by_angle = np.argsort(np.arctan2(goals[:, 1], goals[:, 0]))
    chosen = by_angle[(np.linspace(0.1, 0.9, N_GOALS) * (len(values) - 1)).astype(int)]
    before = record_paths(model, test_env, np.repeat(values[chosen[:1]], PRIOR_EPISODES, axis=0), args.seed)
    after = []
    for i in chosen:
        adapted = model.adapt(test_env, values[i], n_rounds=args.rounds, n_episodes=args.episodes, seed=args.seed)
        paths = record_paths(adapted, test_env, np.repeat(values[[i]], ADAPTED_EPISODES, axis=0), args.seed)
        after.append(list(paths.positions.swapaxes(0, 1)))  # (T + 1, n, 2) -> n paths (T + 1, 2)
    plots.plot_trajectories(
        list(before.positions.swapaxes(0, 1)),
        after,
        goals[chosen],
        Path(args.out) / "trajectories.png",
        plane.radius,
        f"{test_env}: {args.rounds} rounds of {args.episodes} episodes",
    )


if __name__ == "__main__":
    sys.exit(main())

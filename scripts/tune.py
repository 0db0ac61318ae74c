"""Tune the hyperparameters of an algorithm with Optuna by its adaptation to validation tasks, with rl-zoo's flags.

Any number of processes, on any machines that can access the storage, may run trials of one study. A study that was
interrupted continues when the command is repeated.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("--algo", default="maesn", help="algorithm")
    add("--env", default="WheeledGoal-v0", help="environment id")
    add("--task", nargs="+", default=[], help="the task of an algorithm that learns one, as for train.py")
    add("--n-trials", type=int, default=50, help="trials that the study shall have in the end")
    add("--n-jobs", type=int, default=1, help="processes")
    add("--storage", default="", help="journal file or database URL (in the report's folder if empty)")
    add("--study-name", default="", help="name of the study (algorithm and environment if empty)")
    add("--sampler", default="tpe", help="tpe or random")
    add("--pruner", default="median", help="median, halving or none")
    add("-n", "--n-timesteps", type=int, default=2_000_000, help="environment steps that each seed of a trial trains")
    add("--n-evaluations", type=int, default=3, help="evaluations of a trial's first seed; any may prune the trial")
    add("--n-seeds", type=int, default=1, help="seeds, one after the other, of a trial not pruned; their median counts")
    add("--metric", default="success", help="success or return, after the last adaptation round")
    add("--eval-tasks", type=int, default=20, help="validation tasks of an evaluation")
    add("--eval-env", default="", help="environment of the evaluations (as for train.py if empty)")
    add("--eval-rule", default=None, help="adaptation rule of the evaluations (as for train.py if not given)")
    add("--eval-rounds", type=int, default=3, help="adaptation rounds of an evaluation")
    add("--eval-episodes", type=int, default=10, help="episodes of an adaptation round")
    add("--start", nargs="+", default=[], metavar="NAME:VALUE", help="parameters of the search space to begin with")
    add("-params", "--hyperparams", nargs="+", default=[], metavar="KEY:VALUE", help="fixed settings; values are YAML")
    add("-conf", "--conf-file", default="", help="file of hyperparameters to vary (zoo_configs/<algo>.yml if empty)")
    add("--stale-after", type=float, default=120.0, help="seconds of silence after which a worker is taken for dead")
    add("--seed", type=int, default=-1, help="seed of the sampler, -1 for a random one")
    add("-o", "--output", default="", help="folder of the report (logs/studies/<study name> if empty)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study and report it."""
    return _flags.run(make_parser(), tune, argv)


def tune(args: argparse.Namespace) -> int:
    """Run trials of the study and write its report, also after Ctrl-C.

    :param args: parsed arguments
    :return: exit code, 130 if interrupted
    """
    from sb3_maesn.study import open_study, run_study
    from sb3_maesn.study_report import write_report

    request, code = make_request(args), 0
    try:
        run_study(request)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on")
        code = 130
    lines = write_report(open_study(request), request.plan, output_folder(args))
    print("\n".join([*lines, f"Wrote {output_folder(args)}"]))
    return code


def make_request(args: argparse.Namespace) -> Any:
    """Check the arguments and turn them into a request.

    :param args: parsed arguments
    :return: ``study.StudyRequest``
    """
    from sb3_maesn import config as files
    from sb3_maesn.benchmarking import EvaluationPlan
    from sb3_maesn.study import StudyRequest
    from sb3_maesn.training import find_recipe
    from sb3_maesn.tuning import TuningPlan, check_plan, check_start

    recipe = find_recipe(args.algo)  # names an unknown algorithm, before its file is missed
    entry = files.load_entry(args.conf_file or _flags.default_file(args.algo), args.env)
    fixed = files.script_values(files.parse_overrides(args.hyperparams))
    config = files.script_values({**entry, **fixed})
    plan = TuningPlan(
        algo=args.algo,
        env_id=args.env,
        config=config,
        n_timesteps=args.n_timesteps,
        n_evaluations=args.n_evaluations,
        n_seeds=args.n_seeds,
        metric=args.metric,
        test=EvaluationPlan(
            args.eval_tasks,
            args.eval_rounds,
            args.eval_episodes,
            rule=args.eval_rule or config.get("eval_rule"),
            split="validation",
            env_id=args.eval_env or recipe.test_env_id(args.env),
        ),
        task=args.task,
        fixed=fixed,
    )
    check_plan(plan)
    start = files.parse_overrides(args.start, "--start")
    check_start(args.algo, start, fixed)
    return StudyRequest(
        plan=plan,
        storage=args.storage or str(output_folder(args) / "journal.log"),
        name=study_name(args),
        n_trials=args.n_trials,
        n_jobs=args.n_jobs,
        sampler=args.sampler,
        pruner=args.pruner,
        seed=args.seed if args.seed >= 0 else None,
        start=start,
        stale_after=args.stale_after,
        verbose=args.verbose,
    )


def study_name(args: argparse.Namespace) -> str:
    """Choose the name of the study.

    :param args: parsed arguments
    :return: name
    """
    return args.study_name or f"{args.algo}-{args.env}".replace("/", "-")


def output_folder(args: argparse.Namespace) -> Path:
    """Choose the folder of the report.

    :param args: parsed arguments
    :return: folder
    """
    return Path(args.output or Path("logs") / "studies" / study_name(args))


if __name__ == "__main__":
    sys.exit(main())

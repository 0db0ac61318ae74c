"""Train an agent, with rl-zoo's flags and files: ``python scripts/train.py --algo maesn --env WheeledGoal-v0``."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _flags


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    add("--algo", default="maesn", help="algorithm")
    add("--env", default="WheeledGoal-v0", help="environment id")
    add(
        "--task",
        nargs="+",
        default=[],
        help="the task of an algorithm that learns one: index into the training tasks, validation:INDEX, or its values",
    )
    add(
        "-n",
        "--n-timesteps",
        type=int,
        default=-1,
        help="environment steps; -1: as configured, or what is left of it with -i",
    )
    add(
        "--seed",
        type=int,
        default=-1,
        help="seed, -1 for a random one; with -i the agent's own randomness goes on instead",
    )
    add("--eval-freq", type=int, default=0, help="steps between evaluations, 0: every 10 iterations, -1: never")
    add("--eval-episodes", type=int, default=20, help="episodes of an adaptation round in an evaluation")
    add("--eval-tasks", type=int, default=20, help="validation tasks of an evaluation")
    add("--save-freq", type=int, default=0, help="steps between checkpoints, 0: every 10 iterations, -1: never")
    add("-f", "--log-folder", default="logs", help="root of the logs")
    add("-tb", "--tensorboard-log", default="", help="folder for TensorBoard")
    add("--device", default="cpu", help="torch device")
    add(
        "--num-threads",
        type=int,
        default=-1,
        help="threads of physics, of torch and of the meta step, -1 for one per core",
    )
    add("-P", "--progress", action="store_true", help="show a progress bar")
    add("-i", "--trained-agent", default="", help="model to go on with, where it stopped: file, or name")
    add("-params", "--hyperparams", nargs="+", default=[], metavar="KEY:VALUE", help="overrides; the values are YAML")
    add(
        "-conf",
        "--conf-file",
        default="",
        help="file of hyperparameters (zoo_configs/<algo>.yml if empty); with -i the agent keeps its own unless given",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train an agent in the folder of a new run."""
    return _flags.run(make_parser(), partial(run, command=_flags.command_line(__file__, argv)), argv)


def run(args: argparse.Namespace, command: Sequence[str]) -> int:
    """Check the arguments, make the folder of a new run, and train.

    :param args: parsed arguments
    :param command: words of the command, for the record
    :return: exit code, 130 if interrupted
    """
    import torch

    from sb3_maesn import config as files
    from sb3_maesn import recipes, run_folder, training
    from sb3_maesn.cli import check_flag
    from sb3_maesn.model_files import find_model_file
    from sb3_maesn.tasks import check_env_id

    for name in ("n_timesteps", "num_threads"):
        check_flag(args, name, 1, default=-1)
    for name in ("eval_tasks", "eval_episodes"):
        check_flag(args, name, 1)
    algorithm = training.find_recipe(args.algo).algorithm
    check_env_id(args.env)
    if args.trained_agent:
        find_model_file(args.trained_agent)
    overrides = files.parse_overrides(args.hyperparams)
    entry = files.load_entry(args.conf_file or _flags.default_file(args.algo), args.env)
    if args.conf_file:
        overrides = {**entry, **overrides}
    config = files.script_values({**entry, **overrides})
    files.constructor_arguments(config, algorithm)
    if args.num_threads > 0:
        torch.set_num_threads(args.num_threads)
    folder = run_folder.create_run_folder(args.log_folder, args.algo, args.env)
    seed = choose_seed(args.seed)
    request = recipes.TrainingRun(
        algo=args.algo,
        env_id=args.env,
        config=config,
        folder=folder,
        task=args.task,
        overrides=overrides,
        n_timesteps=args.n_timesteps if args.n_timesteps >= 0 else None,
        trained_agent=args.trained_agent or None,
        seed=seed,
        device=args.device,
        n_threads=max(args.num_threads, 0),
        tensorboard_log=args.tensorboard_log or None,
        eval_freq=args.eval_freq,
        eval_tasks=args.eval_tasks,
        eval_episodes=args.eval_episodes,
        save_freq=args.save_freq,
        progress_bar=args.progress,
        verbose=args.verbose,
    )
    return train(request, args, command)


def train(request: Any, args: argparse.Namespace, command: Sequence[str]) -> int:
    """Train; on Ctrl-C print the command that resumes the run.

    :param request: settings of the run, a ``recipes.TrainingRun``
    :param args: parsed arguments
    :param command: words of the command, for the record
    :return: exit code, 130 if interrupted
    """
    from sb3_maesn import training
    from sb3_maesn.run_folder import write_settings

    print(f"Writing to {request.folder}")
    model: Any = None
    try:
        model = training.build_model(request)
        n_timesteps, begun = training.steps_to_train(request, model), model.num_timesteps
        record = {**vars(args), "seed": request.seed, "env_kwargs": None, "steps_before": begun}
        write_settings(request.folder, args.env, training.settings_of(request, model), record, command)
    except BaseException:
        if model is not None:
            training.close(model)
        shutil.rmtree(request.folder)  # the folder is new: a run that cannot start leaves no files
        raise
    path = None
    try:
        path = training.train(request, model, n_timesteps)
        training.finish(request, model, path)
    except KeyboardInterrupt:
        done = f"Interrupted after training; {path} lacks what is learned after it, such as a score prior."
        print("\n" + (resume_advice(request.folder, args, begun + n_timesteps) if path is None else done))
        return 130
    finally:
        training.close(model)
    print(f"Saved {path}")
    return 0


def resume_advice(folder: Path, args: argparse.Namespace, goal: int) -> str:
    """Tell how to resume an interrupted run.

    :param folder: folder of the run
    :param args: parsed arguments of the run
    :param goal: environment steps at which the run would have ended
    :return: text to print
    """
    from sb3_maesn.run_folder import latest_checkpoint

    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return "Interrupted before the first checkpoint; --save-freq sets how often one is written."
    left = goal - int(checkpoint.stem.split("_")[2])
    command = ["python", "scripts/train.py", "--algo", args.algo, "--env", args.env, "-i", str(checkpoint)]
    command += given_flags(args, without=("algo", "env", "trained_agent", "n_timesteps"))
    if left > 0:
        command += ["-n", str(left)]
    return f"Interrupted; go on with\n  {shlex.join(command)}"


def given_flags(args: argparse.Namespace, without: Sequence[str]) -> list[str]:
    """List the flags whose values differ from the defaults.

    :param args: parsed arguments
    :param without: names of arguments to leave out
    :return: words of a command line
    """
    words: list[str] = []
    for name, default in vars(make_parser().parse_args([])).items():
        value = getattr(args, name)
        if value != default and name not in without:
            values = value if isinstance(value, list) else [] if value is True else [str(value)]
            words += [f"--{name.replace('_', '-')}", *values]
    return words


def choose_seed(seed: int) -> int:
    """Draw a random seed if none is given.

    :param seed: seed, negative for none
    :return: seed
    """
    import numpy as np

    return seed if seed >= 0 else int(np.random.default_rng().integers(2**31))


if __name__ == "__main__":
    sys.exit(main())

"""Measure speed as a ratio to bare physics, independent of the machine. Run it on an idle machine."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _flags
from _speed import MUJOCO_FAMILIES, BarePhysics, make_row, ratio_row, seconds_of, speed_of, spread

SECTIONS = ("collect", "iteration", "baselines", "trpo", "memory", "scaling", "single")
N_TASKS, N_EPISODES = 20, 20
TRPO_BATCH, TRPO_STEPS = 16_000, 50
#: Settings of TRPO on both sides. Sub-sampling and large mini-batches keep the time of the optimiser, which is the same
#: on both sides, from hiding the difference.
TRPO_SETTINGS: dict[str, Any] = {"sub_sampling_factor": 10, "n_critic_updates": 5, "batch_size": TRPO_BATCH}
#: Settings of RL2: most of zoo_configs/rl2.yml, with trials of two episodes.
RL2_SETTINGS: dict[str, Any] = {
    "n_episodes": 2,
    "batch_size": 20_000,
    "n_epochs": 5,
    "policy_kwargs": {"lstm_hidden_size": 128, "net_arch": [64]},
}
SCALING_TASKS = (5, 10, 20, 40)
#: Smallest ratios to bare physics (collect, iteration) that the project promises.
TARGETS = {"WheeledGoal-v0": (0.6, 0.45), "AntGoal-v0": (0.75, 0.65), "PusherBlock-v0": (0.6, 0.45)}
MAML_TARGET = 4.0  # largest ratio that the project promises of the times of MAML's and MAESN's meta steps


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = _flags.make_parser(__doc__)
    add = parser.add_argument
    families = list(MUJOCO_FAMILIES)
    add("families", nargs="*", default=families, metavar="FAMILY", help="MuJoCo families, by environment id")
    add("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, help="what to measure")
    add("--repeats", type=int, default=5, help="measurements of which the median counts")
    add("--seed", type=int, default=0, help="seed")
    add("--csv", default="results/speed.csv", help="table to write")
    # used by the section memory, which measures a family in a process of its own
    add("--peak-memory-of", default="", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure speed."""
    return _flags.run(make_parser(), measure, argv)


def measure(args: argparse.Namespace) -> None:
    """Measure, print every row, and write the table.

    :param args: arguments of the command line
    :raises ValueError: if a family is unknown, or there are no repeats
    """
    import torch

    from sb3_maesn.results import format_table, provenance, write_table
    from sb3_maesn.tasks import check_env_id

    if args.peak_memory_of:
        print(peak_memory_gb(args.peak_memory_of, args.seed))
        return
    if args.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {args.repeats}")
    for family in args.families:
        check_env_id(family)
    rows: list[dict[str, Any]] = []
    for family in args.families:
        for section in args.sections:
            for row in MEASUREMENTS[section](family, args):
                print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    threads = torch.get_num_threads()
    settings = {"repeats": args.repeats, "torch_threads": threads, "trpo": TRPO_SETTINGS, "rl2": RL2_SETTINGS}
    write_table(args.csv, rows, provenance(args.seed, **settings))
    print("\n" + format_table(rows))


def measure_collect(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare collection of episodes with the policy to bare ``Batch.step`` of the same model, number and threads.

    :param family: environment id
    :param args: arguments of the command line
    :return: rows of :func:`over_bare_physics`
    """
    import numpy as np
    import torch

    from sb3_maesn.common.distributions import DiagGaussian
    from sb3_maesn.common.rollouts import Behaviour, collect
    from sb3_maesn.common.type_aliases import Adapted

    model = make_model(family, args.seed)
    env = model.env
    assert env is not None
    noise = torch.randn(N_TASKS, N_EPISODES, model.policy.latent_dim)
    zeros = torch.zeros(N_TASKS, model.policy.latent_dim)
    agent = model.agent()
    prior = Adapted(DiagGaussian(zeros, zeros), None)
    behaviour = Behaviour(model.policy, agent.actor, agent.theta, prior, noise, noise)
    tasks = env.task_set("train")[:N_TASKS]
    rng = np.random.default_rng(args.seed)

    def collect_once() -> int:
        n_steps = 0

        def count(_: dict[str, Any]) -> bool:
            nonlocal n_steps
            n_steps += env.num_envs
            return True

        collect(env, tasks, behaviour, rng, count)
        return n_steps

    target = TARGETS.get(family, (None, None))[0]
    yield from over_bare_physics("collect", family, speed_of(collect_once), args, target)


def measure_iteration(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare a meta-iteration of 20 tasks x (20 + 20) episodes to bare physics.

    :param family: environment id
    :param args: arguments of the command line
    :return: rows of :func:`over_bare_physics`
    """
    model = make_model(family, args.seed)
    target = TARGETS.get(family, (None, None))[1]
    yield from over_bare_physics("iteration", family, speed_of(partial(iterate, model)), args, target)


def over_bare_physics(
    section: str, family: str, ours: Callable[[], float], args: argparse.Namespace, target: float | None
) -> Iterator[dict[str, Any]]:
    """Compare a speed to that of bare physics, of the family's model and of the plain one.

    The models of the families list or exclude contacts that MuJoCo would otherwise search for, and disable its islands.
    The results are the same, but physics is faster, so that everything else takes a larger share of the time. The ratio
    to the plain model is therefore measured too. So is, where ``Batch.step`` leaves fields of the observation a step
    behind, the ratio to steps that bring them up to date.

    :param section: name of the section
    :param family: environment id
    :param ours: function that returns environment steps per second
    :param args: arguments of the command line
    :param target: smallest ratio that the project promises
    :return: a row for the model as it is, one for the plain model, and one for steps with all that is observed, if that
        is more than a step computes
    """
    n = N_TASKS * N_EPISODES
    bare = BarePhysics(family, n, args.seed)
    yield ratio_row(section, family, ours, bare.run, args.repeats, target)
    plain = BarePhysics(family, n, args.seed, plain=True)
    yield ratio_row(f"{section}-plain", family, ours, plain.run, args.repeats, target)
    if bare.family.stage != "none":
        observed = BarePhysics(family, n, args.seed, observed=True)
        yield ratio_row(f"{section}-observed", family, ours, observed.run, args.repeats, target)


def measure_baselines(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare iterations of the meta-learning baselines to bare physics, and MAML's meta step to MAESN's.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row per baseline, and one for the meta step
    """
    from sb3_maesn import MAML, RL2, LatentSpace

    bare = BarePhysics(family, N_TASKS * N_EPISODES, args.seed)
    for name, algorithm in (("maml", MAML), ("latent_space", LatentSpace)):
        model = make_model(family, args.seed, algorithm=algorithm)
        yield ratio_row(f"iteration-{name}", family, speed_of(partial(iterate, model)), bare.run, args.repeats, None)
    n_trials = N_TASKS * N_EPISODES // RL2_SETTINGS["n_episodes"]
    rl2 = RL2("MlpLstmPolicy", family, meta_batch_size=n_trials, seed=args.seed, **RL2_SETTINGS)
    yield ratio_row("iteration-rl2", family, speed_of(partial(iterate, rl2)), bare.run, args.repeats, None)
    models = [make_model(family, args.seed, algorithm=algorithm) for algorithm in (MAML, None)]
    for model in models:
        iterate(model)  # to warm up
    pairs = [[meta_step_seconds(model) for model in models] for _ in range(args.repeats)]
    ratios = spread([ours / maesns for ours, maesns in pairs])
    yield make_row("meta-step-maml", family, "seconds over MAESN's", *ratios, MAML_TARGET)


def measure_trpo(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare training of sb3-contrib's TRPO on the batched VecEnv to that on a DummyVecEnv of 8 environments.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row
    """
    from sb3_contrib import TRPO
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_maesn.common.parallel import one_torch_thread
    from sb3_maesn.envs import make_vec

    def make(env: Any) -> Callable[[], float]:
        n_steps = TRPO_BATCH // env.num_envs
        model = TRPO("MlpPolicy", env, n_steps=n_steps, seed=args.seed, device="cpu", **TRPO_SETTINGS)
        model.learn(1)  # one iteration to warm up

        def train_once() -> int:
            before = model.num_timesteps
            model.learn(1, reset_num_timesteps=False)
            return model.num_timesteps - before

        return speed_of(train_once)

    with one_torch_thread():  # faster for both while physics runs on all cores
        native, single = make(make_vec(family, TRPO_BATCH // TRPO_STEPS)), make(make_vec_env(family, 8))
        yield ratio_row("trpo", family, native, single, args.repeats, 5.0)


def measure_single(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Compare iterations of the single-task algorithms, with the episodes of one meta-rollout, to bare physics.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row each for REINFORCE, TRPO and VIME
    """
    from sb3_contrib import TRPO

    from sb3_maesn import REINFORCE, VIME, MultiTaskVecEnv
    from sb3_maesn.envs import make_vec

    n = N_TASKS * N_EPISODES
    bare = BarePhysics(family, n, args.seed)
    settings: dict[str, Any] = {**TRPO_SETTINGS, "n_steps": bare.family.horizon, "device": "cpu"}
    for algorithm, own in ((REINFORCE, {"n_episodes": n}), (TRPO, settings), (VIME, settings)):
        tasks = MultiTaskVecEnv(make_vec(family, n))
        make: Any = algorithm
        model = make("MlpPolicy", tasks.only(tasks.task("train", 0)), seed=args.seed, **own)
        name = f"iteration-{algorithm.__name__.lower()}"
        yield ratio_row(name, family, speed_of(partial(iterate, model)), bare.run, args.repeats, None)


def measure_memory(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the peak memory of a meta-iteration of 20 tasks x 50 episodes, in a process of its own.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--peak-memory-of", family, "--seed", str(args.seed)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    yield make_row("memory", family, "peak GB at 20 x 50", float(output.split()[-1]), None, None, 3.0)


def measure_scaling(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the time of a meta-iteration with 5, 10, 20 and 40 tasks.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row per number of tasks
    """
    for n_tasks in SCALING_TASKS:
        model = make_model(family, args.seed, n_tasks)
        iterate(model)  # to warm up
        seconds = [seconds_of(partial(iterate, model)) for _ in range(args.repeats)]
        yield make_row("scaling", family, f"seconds at {n_tasks} tasks", *spread(seconds), None)


MEASUREMENTS: dict[str, Callable[[str, argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "collect": measure_collect,
    "iteration": measure_iteration,
    "baselines": measure_baselines,
    "trpo": measure_trpo,
    "memory": measure_memory,
    "scaling": measure_scaling,
    "single": measure_single,
}


def make_model(
    family: str, seed: int, n_tasks: int = N_TASKS, n_episodes: int = N_EPISODES, algorithm: Any = None
) -> Any:
    """Make a meta-learner with the paper's settings.

    :param family: environment id
    :param seed: seed
    :param n_tasks: number of tasks of a meta-iteration
    :param n_episodes: number of episodes per task and rollout
    :param algorithm: class of the meta-learner, None for MAESN
    :return: model
    """
    from sb3_maesn import MAESN

    algorithm = MAESN if algorithm is None else algorithm
    policy = next(iter(algorithm.policy_aliases))
    return algorithm(policy, family, meta_batch_size=n_tasks, n_episodes=n_episodes, seed=seed)


def iterate(model: Any) -> int:
    """Run one iteration.

    :param model: model
    :return: number of environment steps of the iteration
    """
    before = model.num_timesteps
    model.learn(1, reset_num_timesteps=False)
    return int(model.num_timesteps - before)


def meta_step_seconds(model: Any) -> float:
    """Run one meta-iteration and read the time of its meta step.

    :param model: model
    :return: seconds of the meta step, without collection
    """
    iterate(model)
    return float(model.logger.name_to_value["time/train_seconds"])


def peak_memory_gb(family: str, seed: int) -> float:
    """Run one meta-iteration of 20 tasks x (50 + 50) episodes in this process.

    :param family: environment id
    :param seed: seed
    :return: peak memory of the process in GiB
    :raises ModuleNotFoundError: on Windows, where Python cannot measure it
    """
    import resource

    iterate(make_model(family, seed, n_episodes=50))
    scale = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


if __name__ == "__main__":
    sys.exit(main())

"""Measure speed against bare physics, in ratios that do not depend on the machine. Run it on an idle machine."""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

MUJOCO_FAMILIES = ("WheeledGoal-v0", "AntGoal-v0", "PusherBlock-v0")
SECTIONS = ("collect", "iteration", "baselines", "trpo", "memory", "scaling", "single")
N_TASKS, N_EPISODES = 20, 20
TRPO_BATCH, TRPO_STEPS = 16_000, 50
#: The same on both sides. Sub-sampling and large mini-batches keep the optimiser's time, equal on both, from hiding
#: the rest.
TRPO_SETTINGS: dict[str, Any] = {"sub_sampling_factor": 10, "n_critic_updates": 5, "batch_size": TRPO_BATCH}
#: Most of zoo_configs/rl2.yml, with a rollout's episodes in trials of two.
RL2_SETTINGS: dict[str, Any] = {
    "n_episodes": 2,
    "batch_size": 20_000,
    "n_epochs": 5,
    "policy_kwargs": {"lstm_hidden_size": 128, "net_arch": [64]},
}
SCALING_TASKS = (5, 10, 20, 40)
#: Least ratios (collect, iteration) to bare physics that the project promises.
TARGETS = {"WheeledGoal-v0": (0.6, 0.45), "AntGoal-v0": (0.75, 0.65), "PusherBlock-v0": (0.6, 0.45)}
MAML_TARGET = 4.0  # most seconds of MAML's meta step, in those of MAESN's


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add(
        "families",
        nargs="*",
        default=list(MUJOCO_FAMILIES),
        metavar="FAMILY",
        help="MuJoCo families, by environment id",
    )
    add("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, help="what to measure")
    add("--repeats", type=int, default=5, help="measurements of which the median counts")
    add("--seed", type=int, default=0, help="seed")
    add("--csv", default="results/speed.csv", help="table to write")
    add("--verbose", type=int, default=1, help="2: tracebacks")
    add(
        "--peak-memory-of", default="", help=argparse.SUPPRESS
    )  # how the memory section runs one family in a new process
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the script.

    :param argv: arguments of the command line
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    import torch

    from sb3_maesn.cli import check_env_id, one_line_errors
    from sb3_maesn.results import format_table, provenance, write_table

    if args.peak_memory_of:
        print(peak_memory_gb(args.peak_memory_of, args.seed))
        return 0
    with one_line_errors(args.verbose):
        rows: list[dict[str, Any]] = []
        for family in args.families:
            check_env_id(family)
            for section in args.sections:
                for row in MEASUREMENTS[section](family, args):
                    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                    rows.append(row)
        threads = torch.get_num_threads()
        settings = {"repeats": args.repeats, "torch_threads": threads, "trpo": TRPO_SETTINGS, "rl2": RL2_SETTINGS}
        write_table(args.csv, rows, provenance(args.seed, **settings))
        print("\n" + format_table(rows))
    return 0


def measure_collect(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """
    Collecting with the policy over bare ``Batch.step`` of the same model, count and threads.

    :param family: environment id
    :param args: arguments of the command line
    :return: a row for the model as it is, and one for the plain model
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
    """
    A whole meta-iteration of 20 tasks x (20 + 20) episodes over bare physics.

    :param family: environment id
    :param args: arguments of the command line
    :return: a row for the model as it is, and one for the plain model
    """
    model = make_model(family, args.seed)
    target = TARGETS.get(family, (None, None))[1]
    yield from over_bare_physics("iteration", family, speed_of(partial(iterate, model)), args, target)


def over_bare_physics(
    section: str, family: str, ours: Callable[[], float], args: argparse.Namespace, target: float | None
) -> Iterator[dict[str, Any]]:
    """
    A speed over that of bare physics.

    The families' models name or leave out contacts that MuJoCo would find by itself, and do without its islands. That
    changes nothing but makes physics faster, so that all else weighs more: the plain model is a second measure.

    :param section: name of the section
    :param family: environment id
    :param ours: returns environment steps a second
    :param args: arguments of the command line
    :param target: least ratio promised
    :return: a row for the model as it is, and one for the plain model
    """
    bare = BarePhysics(family, N_TASKS * N_EPISODES, args.seed)
    yield ratio_row(section, family, ours, bare.run, args.repeats, target)
    plain = BarePhysics(family, N_TASKS * N_EPISODES, args.seed, plain=True)
    yield ratio_row(f"{section}-plain", family, ours, plain.run, args.repeats, target)


def measure_baselines(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """
    A whole iteration of MAESN's meta-learning baselines over bare physics, and MAML's meta step over MAESN's.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row for each baseline, and one for the meta step
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
    """
    Training of sb3-contrib's TRPO on the native VecEnv over the same on a DummyVecEnv of 8 single environments.

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
    """
    An iteration of the algorithms that learn one task, of as many episodes as a rollout of a meta-iteration.

    :param family: environment id
    :param args: arguments of the command line
    :return: a row each for REINFORCE, TRPO and VIME
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
    """
    Peak memory of a meta-iteration at 20 tasks x 50 episodes, in a process of its own.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--peak-memory-of", family, "--seed", str(args.seed)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    yield make_row("memory", family, "peak GB at 20 x 50", float(output.split()[-1]), None, None, 3.0)


def measure_scaling(family: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """
    Seconds of a meta-iteration at 5, 10, 20 and 40 tasks.

    :param family: environment id
    :param args: arguments of the command line
    :return: one row for each number of tasks
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


class BarePhysics:
    """
    The simulator alone: ``Batch.step`` with random controls, an episode from the initial state at each run.

    :param env_id: environment id of a MuJoCo family
    :param n: number of simulations
    :param seed: seed of the controls
    :param plain: simulate the model without what only makes it faster
    """

    def __init__(self, env_id: str, n: int, seed: int, plain: bool = False) -> None:
        import numpy as np

        from sb3_maesn.envs import make_family
        from sb3_maesn.envs.mujoco_family import MujocoFamily
        from sb3_maesn.envs.mujoco_physics import MujocoPhysics, load_plain_model

        family = make_family(env_id)
        if not isinstance(family, MujocoFamily):
            raise ValueError(f"{env_id} has no physics to compare with; expected one of {', '.join(MUJOCO_FAMILIES)}")
        self.family = family
        self.physics = MujocoPhysics(load_plain_model(family.asset) if plain else family.model, n)
        self.rng = np.random.default_rng(seed)
        self.n = n

    def run(self) -> float:
        """
        Run an episode in all simulations; only the steps themselves are timed.

        :return: simulation steps a second
        """
        import numpy as np

        batch, controls = self.physics.batch, self.physics.batch.bind("ctrl")
        tasks = self.family.sample_tasks(self.n, self.rng)
        starts = [self.family.initial_state(task, self.rng) for task in tasks]
        qpos, qvel = (np.array(part) for part in zip(*starts, strict=True))
        self.physics.reset(np.arange(self.n, dtype=np.int32), qpos, qvel)
        seconds = 0.0
        for _ in range(self.family.horizon):
            actions = self.rng.standard_normal((self.n, controls.shape[1])).clip(-1, 1)
            controls[:] = self.family.controls(actions)
            start = time.perf_counter()
            batch.step()
            seconds += time.perf_counter() - start
        return self.n * self.family.horizon / seconds


def make_model(
    family: str, seed: int, n_tasks: int = N_TASKS, n_episodes: int = N_EPISODES, algorithm: Any = None
) -> Any:
    """
    Make a meta-learner with the paper's settings.

    :param family: environment id
    :param seed: seed
    :param n_tasks: tasks of a meta-iteration
    :param n_episodes: episodes of a task in each rollout
    :param algorithm: its class, MAESN where None
    :return: the model
    """
    from sb3_maesn import MAESN

    algorithm = MAESN if algorithm is None else algorithm
    policy = next(iter(algorithm.policy_aliases))
    return algorithm(policy, family, meta_batch_size=n_tasks, n_episodes=n_episodes, seed=seed)


def iterate(model: Any) -> int:
    """
    Run one meta-iteration.

    :param model: the model
    :return: environment steps it took
    """
    before = model.num_timesteps
    model.learn(1, reset_num_timesteps=False)
    return int(model.num_timesteps - before)


def meta_step_seconds(model: Any) -> float:
    """
    Run one meta-iteration.

    :param model: the model
    :return: seconds of its meta step, collection left out
    """
    iterate(model)
    return float(model.logger.name_to_value["time/train_seconds"])


def peak_memory_gb(family: str, seed: int) -> float:
    """
    Run one meta-iteration of 20 tasks x (50 + 50) episodes in this process.

    :param family: environment id
    :param seed: seed
    :return: the process's peak memory
    """
    iterate(make_model(family, seed, n_episodes=50))
    scale = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def seconds_of(run: Callable[[], int]) -> float:
    """
    Time a run.

    :param run: what to time
    :return: seconds
    """
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def speed_of(run: Callable[[], int]) -> Callable[[], float]:
    """
    Turn a run into a measurement.

    :param run: returns the environment steps it took
    :return: returns environment steps a second
    """

    def measure() -> float:
        start = time.perf_counter()
        steps = run()
        return steps / (time.perf_counter() - start)

    return measure


def ratio_row(
    section: str,
    family: str,
    ours: Callable[[], float],
    other: Callable[[], float],
    repeats: int,
    target: float | None,
) -> dict[str, Any]:
    """
    Compare two speeds, measured in turn.

    :param section: name of the section
    :param family: environment id
    :param ours: returns environment steps a second
    :param other: likewise, what to compare with
    :param repeats: number of pairs
    :param target: least ratio promised
    :return: row with the median ratio
    """
    ours()
    other()  # both once to warm up
    pairs = [(ours(), other()) for _ in range(repeats)]
    row = make_row(section, family, "ratio", *spread([a / b for a, b in pairs]), target)
    return {**row, "steps_per_second": round(statistics.median(a for a, _ in pairs))}


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """
    Median, least and greatest value.

    :param values: measurements
    :return: the three
    """
    return statistics.median(values), min(values), max(values)


def make_row(
    section: str, family: str, measure: str, value: float, low: float | None, high: float | None, target: float | None
) -> dict[str, Any]:
    """
    Make one row of the table.

    :param section: name of the section
    :param family: environment id
    :param measure: what the value is
    :param value: median
    :param low: least measurement
    :param high: greatest measurement
    :param target: what the project promises: a least ratio, or the most memory
    :return: row
    """
    numbers = {"value": value, "low": low, "high": high, "target": target}
    rounded = {key: "" if number is None else round(number, 4) for key, number in numbers.items()}
    return {"section": section, "family": family, "measure": measure, **rounded, "steps_per_second": ""}


if __name__ == "__main__":
    sys.exit(main())

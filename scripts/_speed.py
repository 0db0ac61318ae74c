"""Bare physics to compare with, timing, and rows of the table of ``benchmark_speed.py``."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

MUJOCO_FAMILIES = ("WheeledGoal-v0", "AntGoal-v0", "PusherBlock-v0")


class BarePhysics:
    """Simulator without environment: ``Batch.step`` with random controls, one episode per run.

    :param env_id: environment id of a MuJoCo family
    :param n: number of simulations
    :param seed: seed of tasks, initial states and controls
    :param plain: whether to simulate the model without the settings that only make it faster
    :param observed: whether every step also brings up to date what the family observes, as its environment's steps do
    :raises ValueError: if the environment does not use MuJoCo
    """

    def __init__(self, env_id: str, n: int, seed: int, plain: bool = False, observed: bool = False) -> None:
        import numpy as np

        from sb3_maesn.envs import make_family
        from sb3_maesn.envs.mujoco_family import MujocoFamily
        from sb3_maesn.envs.mujoco_physics import STAGES, MujocoPhysics, load_plain_model

        family = make_family(env_id)
        if not isinstance(family, MujocoFamily):
            raise ValueError(f"{env_id} has no physics to compare with; expected one of {', '.join(MUJOCO_FAMILIES)}")
        self.family = family
        model = load_plain_model(family.asset) if plain else family.model
        self.physics = MujocoPhysics(model, n, derived=family.derived if observed else ())
        self.stage = STAGES[family.stage if observed else "none"]
        self.rng = np.random.default_rng(seed)
        self.n = n

    def run(self) -> float:
        """Run an episode in all simulations, timing only the steps.

        :return: simulation steps per second
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
            batch.step(stage=self.stage)
            seconds += time.perf_counter() - start
        return self.n * self.family.horizon / seconds


def seconds_of(run: Callable[[], int]) -> float:
    """Time a function.

    :param run: function to call
    :return: seconds
    """
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def speed_of(run: Callable[[], int]) -> Callable[[], float]:
    """Turn a function that runs environment steps into one that measures its speed.

    :param run: function that returns the number of environment steps it took
    :return: function that returns environment steps per second
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
    """Measure two speeds alternately and make a row of their ratio.

    :param section: name of the section
    :param family: environment id
    :param ours: function that returns environment steps per second
    :param other: function that returns the steps per second to compare with
    :param repeats: number of pairs of measurements
    :param target: smallest ratio that the project promises, None for none
    :return: row with the median ratio
    """
    ours()
    other()  # both run once to warm up
    pairs = [(ours(), other()) for _ in range(repeats)]
    row = make_row(section, family, "ratio", *spread([a / b for a, b in pairs]), target)
    return {**row, "steps_per_second": round(statistics.median(a for a, _ in pairs))}


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Compute the median, the minimum and the maximum of measurements.

    :param values: measurements
    :return: median, minimum and maximum
    """
    return statistics.median(values), min(values), max(values)


def make_row(
    section: str, family: str, measure: str, value: float, low: float | None, high: float | None, target: float | None
) -> dict[str, Any]:
    """Make one row of the table.

    :param section: name of the section
    :param family: environment id
    :param measure: name of the measured quantity
    :param value: median
    :param low: smallest measurement, None if there is only one
    :param high: largest measurement, None if there is only one
    :param target: bound that the project promises: a smallest ratio, or a largest memory or time; None for none
    :return: values by column
    """
    numbers = {"value": value, "low": low, "high": high, "target": target}
    rounded = {key: "" if number is None else round(number, 4) for key, number in numbers.items()}
    return {"section": section, "family": family, "measure": measure, **rounded, "steps_per_second": ""}

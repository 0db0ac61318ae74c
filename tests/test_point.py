"""The best player of PointGoal, against all that random search finds."""

import numpy as np
import pytest

from sb3_maesn.envs import PointGoal, make_vec
from sb3_maesn.envs.point import best_controls


@pytest.mark.parametrize("sparse", [False, True])
def test_nothing_found_beats_the_player_that_knows_the_goal(sparse: bool) -> None:
    family, rng = PointGoal(sparse), np.random.default_rng(0)
    goals = np.repeat(family.task_set("test", 10), 200, axis=0)
    env = make_vec(family.env_id, len(goals))
    env.set_tasks(goals)
    returns = []
    for noise in (0.0, 0.1, 0.5):
        env.seed(0)  # the same starts
        observations, total = env.reset(), np.zeros(len(goals))
        for _ in range(env.horizon):
            controls = best_controls(observations, goals) + noise * rng.standard_normal((len(goals), 2))
            observations, rewards, _, infos = env.step(controls)
            total += rewards
        returns.append(total)
        if noise == 0.0:
            assert all(info["is_success"] for info in infos)
    best, *others = returns
    assert (np.max(others, axis=0) <= best + 1e-5).all()
    assert best.mean() > np.max(others, axis=0).mean() + 0.1

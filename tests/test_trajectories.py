"""Recorded paths agree with what the environment reports."""

import numpy as np
import pytest

from sb3_maesn import MAESN
from sb3_maesn.envs import FAMILIES, make_family
from sb3_maesn.trajectories import plane_of, record_paths

SPARSE = [env_id for env_id in FAMILIES if "Sparse" in env_id]


@pytest.mark.parametrize("env_id", SPARSE)
def test_end_points_tell_success(env_id: str) -> None:
    family = make_family(env_id)
    tasks = family.task_set("validation", 12)
    model = MAESN("LatentMlpPolicy", env_id, meta_batch_size=2, n_episodes=2, seed=0)
    paths = record_paths(model, env_id, tasks, seed=1)
    assert paths.positions.shape == (family.horizon + 1, 12, 2)
    plane = plane_of(env_id)
    reached = np.linalg.norm(paths.end_points - plane.goal(tasks), axis=1) < plane.radius
    whole = np.isfinite(paths.positions[-1]).all(axis=1)  # an episode that fell never succeeds
    np.testing.assert_array_equal(paths.success, reached & whole)


def test_paths_depend_on_the_seed_alone() -> None:
    tasks = make_family("PointGoalSparse-v0").task_set("validation", 5)
    model = MAESN("LatentMlpPolicy", "PointGoal-v0", seed=0)
    first, again, other = (record_paths(model, "PointGoalSparse-v0", tasks, seed).positions for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"paths are known for .*Pendulum-v1"):
        plane_of("Pendulum-v1")

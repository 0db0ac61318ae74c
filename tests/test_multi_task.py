"""MultiTaskVecEnv around native, Dummy, Subproc and third-party VecEnvs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_maesn.common.env_util import as_multi_task, borrowed_env
from sb3_maesn.envs import make_env, make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv, find_multi_task
from tests.toy import ThirdParty, Walk

POINT = "PointGoal-v0"
GOALS = [np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([-0.6, 0.8])]


def native(n: int = 3) -> VecEnv:
    return make_vec(POINT, n)


def dummy(n: int = 3) -> VecEnv:
    return DummyVecEnv([partial(make_env, POINT)] * n)


def subprocess(n: int = 2) -> VecEnv:
    return SubprocVecEnv([partial(make_env, POINT)] * n)


# Members of every kind


@pytest.mark.parametrize("make", [native, dummy, subprocess])
def test_every_kind_of_member_gets_its_own_task(make: Callable[[], VecEnv]) -> None:
    env = MultiTaskVecEnv(make())
    goals = GOALS[: env.num_envs]
    try:
        assert env.horizon == 20
        assert [len(env.task_set(split)) for split in ("train", "validation", "test")] == [100] * 3
        env.set_tasks(goals)
        env.seed(3)
        env.reset()
        assert all((a == b).all() for a, b in zip(env.get_attr("task"), goals, strict=True))
        observations, rewards, dones, infos = env.step(np.ones((env.num_envs, 2), dtype=np.float32))
        assert isinstance(observations, np.ndarray)
        assert rewards == pytest.approx([-np.linalg.norm(o - g) for o, g in zip(observations, goals, strict=True)])
        assert not dones.any()
        for _ in range(19):
            _, _, dones, infos = env.step(np.zeros((env.num_envs, 2), dtype=np.float32))
        assert dones.all()
        assert all("is_success" in info and "terminal_observation" in info for info in infos)
    finally:
        env.close()


def test_all_kinds_of_members_agree() -> None:
    results = []
    for make in (native, dummy):
        env = MultiTaskVecEnv(make())
        env.set_tasks(GOALS)
        env.seed(5)
        observations = [env.reset()]
        rewards = []
        for t in range(45):  # two ends of an episode are passed
            step = env.step(np.full((3, 2), np.sin(t), dtype=np.float32))
            observations.append(step[0])
            rewards.append(step[1])
        results.append((np.array(observations), np.array(rewards)))
    assert (results[0][0] == results[1][0]).all()
    assert np.allclose(results[0][1], results[1][1])


@pytest.mark.parametrize("make", [native, dummy])
def test_a_task_counts_from_the_next_reset(make: Callable[[], VecEnv]) -> None:
    env = MultiTaskVecEnv(make())
    env.set_tasks([GOALS[0]] * 3)
    env.reset()
    env.set_tasks([GOALS[1], GOALS[2]], indices=[0, 2])
    for t in range(20):
        assert all((task == GOALS[0]).all() for task in env.get_attr("task")), t
        env.step(np.zeros((3, 2), dtype=np.float32))
    tasks = env.get_attr("task")  # the episodes that auto-reset started
    assert [next(i for i in range(3) if (task == GOALS[i]).all()) for task in tasks] == [1, 0, 2]


def test_a_third_party_needs_set_task_reset_and_step_only() -> None:
    venv = ThirdParty(3, horizon=4)
    env = MultiTaskVecEnv(venv, horizon=4, train_tasks=[1.0, 2.0, 3.0])
    assert env.seed(0) == [None] * 3
    env.set_tasks([3.0, 1.0, 2.0])
    env.reset()
    assert env.step(np.zeros((3, 1)))[1].tolist() == [3.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="no validation tasks: pass validation_tasks"):
        env.task_set("validation")


def test_a_task_adapter_takes_the_place_of_set_task() -> None:
    class Goals(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))
        goal = 0.0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
            return np.zeros(1, np.float32), self.goal, False, False, {}

    def adapter(venv: VecEnv, member: int, task: Any) -> None:
        venv.set_attr("goal", task["goal"], indices=[member])

    tasks = [{"goal": 4.0}, {"goal": 5.0}]
    env = MultiTaskVecEnv(DummyVecEnv([Goals, Goals]), horizon=3, train_tasks=tasks, task_adapter=adapter)
    env.set_tasks(tasks)
    env.reset()
    assert env.step(np.zeros((2, 1)))[1].tolist() == [4.0, 5.0]


# Members that need a task before their first reset


class Continuous(Walk):
    """Draws its tasks from a continuous distribution, so that no two are equal by chance."""

    def sample_tasks(self, n: int) -> list[float]:
        return self.np_random.normal(size=n).tolist()


class TaskFirst(Continuous):
    """Refuses to be reset before a task was set, as Meta-World's environments do."""

    def __init__(self) -> None:
        super().__init__()
        self.next_task = np.nan

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        assert not np.isnan(self.next_task)
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize, lambda env: as_multi_task(VecNormalize(env), 1)])
def test_the_first_reset_sets_the_first_training_task(wrap: Callable[[VecEnv], VecEnv]) -> None:
    env = wrap(MultiTaskVecEnv(DummyVecEnv([TaskFirst] * 2), train_tasks=[3.0, 4.0]))
    env.reset()
    assert env.get_attr("task") == [3.0, 3.0]


def test_tasks_are_drawn_from_members_that_need_a_task_first() -> None:
    env = MultiTaskVecEnv(DummyVecEnv([TaskFirst] * 2), n_tasks=5)
    assert env.task_set("train") == MultiTaskVecEnv(DummyVecEnv([Continuous]), n_tasks=5).task_set("train")
    env.reset()
    assert env.get_attr("task") == [env.task("train", 0)] * 2


class Maze(Continuous):
    """Draws as many numbers at a reset as its task says."""

    def __init__(self) -> None:
        super().__init__()
        self.next_task = 1.0

    def sample_tasks(self, n: int) -> list[float]:
        return self.np_random.integers(1, 50, n).astype(float).tolist()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        observation, info = super().reset(seed=seed, options=options)
        self.np_random.random(int(self.task))
        return observation, info


class MazeTaskFirst(Maze):
    def __init__(self) -> None:
        super().__init__()
        self.next_task = np.nan

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        if np.isnan(self.next_task):
            raise RuntimeError("no task was set")
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize("make", [Maze, MazeTaskFirst])
def test_sets_are_the_same_although_resets_depend_on_the_task(make: type[Maze]) -> None:
    sets = [MultiTaskVecEnv(make_vec_env(make, 2), n_tasks=8).task_set("train") for _ in range(3)]
    assert sets[0] == sets[1] == sets[2]
    assert len(set(sets[0])) > 3


def test_drawing_tasks_leaves_statistics_alone() -> None:
    normalised = VecNormalize(DummyVecEnv([Maze]))
    before = normalised.obs_rms.count  # type: ignore[attr-defined]  # no Dict
    MultiTaskVecEnv(normalised, n_tasks=8)
    assert normalised.obs_rms.count == before  # type: ignore[attr-defined]  # no Dict
    assert normalised.training


def test_tasks_are_drawn_through_an_adapter_from_members_that_need_a_task_first() -> None:
    def adapter(venv: VecEnv, member: int, task: Any) -> None:
        venv.set_attr("next_task", -task, indices=[member])

    env = MultiTaskVecEnv(DummyVecEnv([TaskFirst]), n_tasks=5, task_adapter=adapter)
    env.reset()
    assert env.get_attr("task") == [-env.task("train", 0)]


def set_outside(env: MultiTaskVecEnv) -> VecEnv:
    outer = env.around(VecNormalize(env))
    outer.set_tasks([5.0, 5.0])
    return outer


def set_inside(env: MultiTaskVecEnv) -> VecEnv:
    env.set_tasks([5.0, 5.0])
    return env.around(VecNormalize(env))


def set_by_method(env: MultiTaskVecEnv) -> VecEnv:
    env.env_method("set_task", 5.0)
    return env


def set_as_the_only_task(env: MultiTaskVecEnv) -> VecEnv:
    env.only(5.0)
    return env


@pytest.mark.parametrize("set_tasks", [set_outside, set_inside, set_by_method, set_as_the_only_task])
def test_the_first_reset_keeps_tasks_that_were_set(set_tasks: Callable[[MultiTaskVecEnv], VecEnv]) -> None:
    env = set_tasks(MultiTaskVecEnv(DummyVecEnv([TaskFirst] * 2), train_tasks=[3.0, 4.0]))
    env.reset()
    assert env.get_attr("task") == [5.0, 5.0]


def test_native_members_draw_tasks_until_one_is_set() -> None:
    env = MultiTaskVecEnv(native(), train_tasks=GOALS[:1])
    env.seed(0)
    env.reset()
    assert len({tuple(task) for task in env.get_attr("task")}) == 3


# The three sets


def test_sets_are_drawn_from_the_members_and_fixed() -> None:
    sets = [
        [MultiTaskVecEnv(make_vec_env(Walk, 2), n_tasks=30, task_seed=seed).task_set(s) for s in ("train", "test")]
        for seed in (1, 1, 2)
    ]
    assert sets[0] == sets[1]
    assert sets[0] != sets[2]
    assert sets[0][0] != sets[0][1]
    assert all(len(tasks) == 30 and set(tasks) == {-1.0, 1.0} for pair in sets for tasks in pair)


def test_sampled_tasks_that_are_no_list_are_refused() -> None:
    class Lazy(Walk):
        def sample_tasks(self, n: int) -> Any:
            return (float(i) for i in range(n))

    with pytest.raises(ValueError, match=r"expected sample_tasks\(100\) to return a list of tasks, got <generator"):
        MultiTaskVecEnv(DummyVecEnv([Lazy]))


def test_an_id_may_name_the_module_that_registers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Walk-v0", EnvSpec("Walk-v0", entry_point="tests.toy:Walk"))
    assert as_multi_task("tests.toy:Walk-v0", 3).num_envs == 3


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    large, small = (MultiTaskVecEnv(DummyVecEnv([Continuous]), n_tasks=n) for n in (50, 20))
    for split in ("train", "validation", "test"):
        assert small.task_set(split) == large.task_set(split)[:20]
    drawn = [task for split in ("train", "validation", "test") for task in large.task_set(split)]
    assert len(set(drawn)) == 150


def test_sets_of_a_family_do_not_depend_on_the_members() -> None:
    sets = [np.stack(MultiTaskVecEnv(venv, n_tasks=7).task_set("test")) for venv in (native(1), dummy(2))]
    assert (sets[0] == sets[1]).all()


def test_passed_sets_are_kept() -> None:
    env = MultiTaskVecEnv(native(), train_tasks=GOALS, test_tasks=GOALS[:1])
    assert len(env.task_set("train")) == 3
    assert (env.task("test", 0) == GOALS[0]).all()


# Horizons


@pytest.mark.parametrize(
    ("make", "horizon"),
    [
        (lambda: Walk(length=9), 9),  # an attribute
        (lambda: Monitor(Walk(length=9)), 9),  # within a wrapper
        (lambda: TimeLimit(NoHorizon(), 7), 7),
        (lambda: TimeLimit(Walk(length=9), 7), 7),  # whichever ends the episode first
    ],
)
def test_the_horizon_is_found(make: Callable[[], gym.Env], horizon: int) -> None:
    assert MultiTaskVecEnv(DummyVecEnv([make])).horizon == horizon


class NoHorizon(Walk):
    """Does not say how long an episode is."""

    def __init__(self) -> None:
        super().__init__()
        del self.horizon


def test_the_horizon_of_a_gymnasium_spec() -> None:
    env = NoHorizon()
    env.spec = gym.envs.registration.EnvSpec("Walk-v0", max_episode_steps=11)
    assert MultiTaskVecEnv(DummyVecEnv([lambda: env])).horizon == 11


def test_an_unknown_horizon_is_refused_unless_passed() -> None:
    with pytest.raises(ValueError, match=r"horizon is unknown: expected members with an attribute `horizon`"):
        MultiTaskVecEnv(DummyVecEnv([NoHorizon]))
    assert MultiTaskVecEnv(DummyVecEnv([NoHorizon]), horizon=5).horizon == 5


# Refusals


def test_an_env_without_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no tasks: expected members with `sample_tasks\(n\)` and `set_task"):
        MultiTaskVecEnv(DummyVecEnv([lambda: gym.make("CartPole-v1")]))


def test_members_without_set_task_are_refused_when_a_task_is_set() -> None:
    env = MultiTaskVecEnv(DummyVecEnv([lambda: gym.make("CartPole-v1")]), train_tasks=[1.0])
    with pytest.raises(ValueError, match=r"expected members with `set_task\(task\)`, or a task_adapter"):
        env.set_tasks([1.0])


@pytest.mark.parametrize("task", [np.nan, [0.0, np.inf], np.array([np.nan]), {"goal": np.nan}, ("a", (1, -np.inf))])
def test_a_task_that_is_not_finite_is_refused(task: Any) -> None:
    with pytest.raises(ValueError, match="expected a finite task, got"):
        MultiTaskVecEnv(ThirdParty(1, 3), horizon=3, train_tasks=[task])
    with pytest.raises(ValueError, match="expected a finite task, got"):
        MultiTaskVecEnv(ThirdParty(1, 3), horizon=3, train_tasks=[0.0]).set_tasks([task])


@pytest.mark.parametrize("task", [("push", b"\x00data"), None, "left", [("a", np.zeros(2)), 1]])
def test_a_task_may_be_anything(task: Any) -> None:
    assert MultiTaskVecEnv(ThirdParty(1, 3), horizon=3, train_tasks=[task]).task("train", 0) is task


@pytest.mark.parametrize("task", [[np.nan, 0.0], [9.0, 0.0], [0.0, 0.0, 0.0], ["left", "right"]])
def test_a_native_family_refuses_tasks_that_are_not_its_own(task: list[Any]) -> None:
    with pytest.raises(ValueError, match="task"):
        MultiTaskVecEnv(native(1)).set_tasks([task])


@pytest.mark.parametrize(("task", "shape"), [([1.0], r"\(1,\)"), ([1.0, 0.0, 0.0], r"\(3,\)"), (1.0, r"\(\)")])
def test_the_shape_of_one_task_is_named(task: Any, shape: str) -> None:
    with pytest.raises(ValueError, match=rf"a task of PointGoal must have shape \(2,\), got {shape}"):
        MultiTaskVecEnv(native(4)).set_tasks([task] * 4)


@pytest.mark.parametrize("make", [lambda: POINT, lambda: gym.make(POINT), lambda: None])
def test_what_is_no_vec_env_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"expected a VecEnv, got .*: make one with sb3_maesn\.envs\.make_vec"):
        MultiTaskVecEnv(make())


@pytest.mark.parametrize("task_id", [-1, 100])
def test_task_ids_out_of_range_are_refused(task_id: int) -> None:
    with pytest.raises(ValueError, match=rf"expected a train task id from 0 to 99, got {task_id}"):
        MultiTaskVecEnv(native()).task("train", task_id)


def test_other_bad_arguments() -> None:
    env = MultiTaskVecEnv(native())
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'dev'"):
        env.task_set("dev")
    with pytest.raises(ValueError, match="expected one task for each of 3 members, got 2"):
        env.set_tasks(GOALS[:2])
    with pytest.raises(ValueError, match="train_tasks is empty"):
        MultiTaskVecEnv(native(), train_tasks=[])
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        MultiTaskVecEnv(native(), horizon=0)


# Members for few episodes


def test_room_for_few_episodes_is_a_smaller_native_environment() -> None:
    env = MultiTaskVecEnv(native(6))
    few = env.with_room_for(2)
    assert few.num_envs == 2
    assert env.with_room_for(2) is few
    assert env.with_room_for(6) is env
    results = []
    for one in (env, few):
        one.set_tasks(GOALS[:2] + [GOALS[2]] * (one.num_envs - 2))
        one.seed(4)
        one.reset()
        step = one.step(np.zeros((one.num_envs, 2), dtype=np.float32))
        results.append((np.asarray(step[0])[:2], step[1][:2]))
    assert (results[0][0] == results[1][0]).all()
    assert (results[0][1] == results[1][1]).all()


def test_a_monitor_counts_the_episodes_that_are_played_and_no_idle_members(tmp_path: Path) -> None:
    env = MultiTaskVecEnv(VecMonitor(native(6), str(tmp_path / "0"), info_keywords=("is_success",)))
    few = env.with_room_for(2)
    for _ in range(2):
        few.reset()
        for _ in range(20):
            _, _, dones, infos = few.step(np.zeros((2, 2)))
        assert dones.all()
        assert all("episode" in info for info in infos)
    env.with_room_for(3)  # closes the smaller one, not the file
    env.reset()
    for _ in range(20):
        env.step(np.zeros((6, 2)))
    env.close()
    rows = (tmp_path / "0.monitor.csv").read_text().splitlines()[2:]  # after the header
    assert len(rows) == 2 * 2 + 6


@pytest.mark.parametrize("make", [dummy, lambda: VecNormalize(native(3)), lambda: VecMonitor(VecNormalize(native(3)))])
def test_other_environments_have_the_members_they_have(make: Callable[[], VecEnv]) -> None:
    env = MultiTaskVecEnv(make())
    assert env.with_room_for(1) is env


# From what a user passes


def test_wrappers_around_a_multi_task_environment_stay() -> None:
    inner = MultiTaskVecEnv(native(2), train_tasks=GOALS)
    wrapped = VecNormalize(inner)
    env = as_multi_task(wrapped, 1)
    assert env.venv is wrapped
    assert len(env.task_set("train")) == 3
    env.set_tasks(GOALS[:2])
    env.reset()
    assert [task.tolist() for task in env.get_attr("task")] == [goal.tolist() for goal in GOALS[:2]]
    assert as_multi_task(env, 1) is env
    assert find_multi_task(VecNormalize(native(1))) is None


def test_the_family_is_known_where_nothing_stands_between() -> None:
    assert MultiTaskVecEnv(native()).family.name == "PointGoal"
    assert MultiTaskVecEnv(VecMonitor(native())).family.name == "PointGoal"
    for venv in (VecNormalize(native()), VecFrameStack(native(), 2), dummy()):
        with pytest.raises(ValueError, match="expected a batched environment of this package"):
            _ = MultiTaskVecEnv(venv).family


def test_ids() -> None:
    env = as_multi_task(POINT, 5000)
    assert env.num_envs == 1000
    gym.register("tests/Walk-v0", entry_point="tests.toy:Walk")
    try:
        walk = as_multi_task("tests/Walk-v0", 5000)
        assert walk.num_envs == 8
        assert isinstance(walk.venv, DummyVecEnv)
    finally:
        del gym.registry["tests/Walk-v0"]
    with pytest.raises(ValueError, match=r"unknown task family 'PointGaol-v0'; did you mean PointGoal-v0"):
        as_multi_task("PointGaol-v0", 1)


def test_a_single_environment_is_wrapped() -> None:
    assert as_multi_task(Walk(), 5).num_envs == 1


def test_what_was_built_for_an_id_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[MultiTaskVecEnv] = []
    monkeypatch.setattr(MultiTaskVecEnv, "close", lambda self: closed.append(self))
    with borrowed_env(POINT, 2, [GOALS[0]]) as own:
        pass
    mine = MultiTaskVecEnv(native())
    with borrowed_env(mine, 2, [GOALS[0]]):
        pass
    assert closed == [own]


def test_a_borrowed_environment_gets_its_tasks_back() -> None:
    env = native()
    env.env_method("set_task", [0.0, 1.0], indices=[1])
    with borrowed_env(env, 1, None) as borrowed:
        borrowed.set_tasks(GOALS)
        borrowed.reset()
    drawn: list[list[Any]] = [[], []]
    for _ in range(2):
        env.reset()
        for member in (0, 1):
            drawn[member].append(env.get_attr("task", indices=[member])[0].tolist())
    assert drawn[0][0] != drawn[0][1]
    assert drawn[1] == [[0.0, 1.0]] * 2


def test_images_of_an_id_are_channel_first() -> None:
    gym.register("Images-v0", partial(Walk, image=True))
    try:
        env = as_multi_task("Images-v0", 2)
        assert env.observation_space.shape == (3, 4, 13)
    finally:
        gym.registry.pop("Images-v0")


def test_a_borrowed_environment_keeps_its_normalisation() -> None:
    inner = VecNormalize(native(), norm_obs=False)
    outer = VecNormalize(inner, training=False)

    def use(error: Exception | None = None) -> None:
        with borrowed_env(outer, 1, None) as env:
            env.set_tasks(GOALS)
            env.reset()
            rewards = env.step(np.zeros((3, 2), dtype=np.float32))[1]
            assert rewards == pytest.approx([-1.0] * 3, abs=0.3)
            if error is not None:
                raise error

    counts = outer.obs_rms.count, inner.ret_rms.count  # type: ignore[attr-defined]  # no Dict
    use()
    with pytest.raises(KeyError):
        use(KeyError())
    assert (outer.obs_rms.count, inner.ret_rms.count) == counts  # type: ignore[attr-defined]  # no Dict
    assert (inner.training, inner.norm_reward, outer.training, outer.norm_reward) == (True, True, False, True)

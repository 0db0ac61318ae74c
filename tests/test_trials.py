"""Trials: what the policy sees, which task it has, and what SB3 is told, against a plain loop over single episodes."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_maesn.envs import make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.trials import Trial, TrialVecEnv, has_trials, single_episodes
from tests.toy import ThirdParty, Walk

SHORT = {2.0: 2, 3.0: 3}


def third_party(n: int = 2, tasks: tuple[float, ...] = (1.0, 2.0, 3.0)) -> MultiTaskVecEnv:
    """Members whose reward is their task; episodes of tasks 2 and 3 end early."""
    return MultiTaskVecEnv(ThirdParty(n, 4, SHORT), 4, train_tasks=list(tasks))


def walks(n: int = 3, **kwargs: Any) -> MultiTaskVecEnv:
    return MultiTaskVecEnv(DummyVecEnv([lambda: Walk(length=4, **kwargs)] * n), train_tasks=[-1.0, 1.0])


@pytest.mark.parametrize("discrete", [True, False])
def test_observations_are_those_of_a_plain_loop_with_previous_action_reward_and_done(discrete: bool) -> None:
    """One member's trial of 3 episodes, and the first steps of the next trial, against the environment by itself."""
    env = TrialVecEnv(walks(1, discrete=discrete), 3, split=None)
    env.set_tasks([1.0])
    env.seed(0)
    plain = Walk(discrete, length=4)
    seen: Any = env.reset()
    plain.set_task(1.0)
    observation = plain.reset()[0]
    size = 2 if discrete else 1
    np.testing.assert_array_equal(seen, [[*observation, *np.zeros(size + 2)]])
    actions = np.random.default_rng(0).integers(2, size=14)
    returns = [0.0]
    for t, action in enumerate(actions):
        chosen: Any = int(action) if discrete else np.array([action - 0.25], np.float32)
        seen, rewards, dones, infos = env.step(np.array([chosen]))
        observation, reward, _, ended, _ = plain.step(chosen)
        assert rewards[0] == pytest.approx(reward)
        returns[-1] += reward
        terminal = observation
        if ended:
            observation = plain.reset()[0]
            returns.append(0.0)
        code = np.eye(2)[action] if discrete else chosen
        last = np.array([*code, reward, float(ended)], np.float32)
        over = t == 11  # three episodes of four steps
        assert dones[0] == over
        np.testing.assert_array_equal(seen[0], np.array([*observation, *(np.zeros(size + 2) if over else last)], "f"))
        if over:
            np.testing.assert_array_equal(infos[0]["terminal_observation"], np.array([*terminal, *last], "f"))
            trial = infos[0]["trial"]
            np.testing.assert_allclose(trial.returns, returns[:3], rtol=1e-6)
            np.testing.assert_array_equal(trial.lengths, [4, 4, 4])
            np.testing.assert_array_equal(trial.success, [float(r > 2.0) for r in trial.returns])
            assert infos[0]["is_success"] == trial.success[-1]
            assert infos[0]["TimeLimit.truncated"] is False
        else:
            assert "trial" not in infos[0]


@pytest.mark.parametrize("n_episodes", [1, 2, 3])
def test_a_trial_has_one_task_and_the_next_one_another_draw(n_episodes: int) -> None:
    env = TrialVecEnv(third_party(), n_episodes)
    env.seed(3)
    env.reset()
    trials: list[Trial] = []
    for _ in range(150):
        dones, infos = env.step(np.zeros((2, 1), np.float32))[2:]
        trials += [infos[i]["trial"] for i in np.flatnonzero(dones)]
        assert not [info for i, info in enumerate(infos) if "trial" in info and not dones[i]]
    drawn = []
    for trial in trials:
        (task,) = set(trial.returns / trial.lengths)  # the reward of every step is the task
        assert (trial.lengths == SHORT.get(task, 4)).all()
        drawn.append(task)
    counts = [drawn.count(task) for task in (1.0, 2.0, 3.0)]
    assert len(trials) >= 300 // (4 * n_episodes)
    assert min(counts) > 0.15 * len(trials)  # a third each


def test_tasks_are_drawn_from_the_seed() -> None:
    def tasks(seed: int) -> list[float]:
        env = TrialVecEnv(third_party(8), 2)
        env.seed(seed)
        env.reset()
        found = []
        for _ in range(20):
            found += env.step(np.zeros((8, 1), np.float32))[1].tolist()
        return found

    assert tasks(1) == tasks(1)
    assert tasks(1) != tasks(2)


def test_members_keep_step_on_their_own() -> None:
    """Members with episodes of different lengths are in different episodes of their trials."""
    env = TrialVecEnv(third_party(), 2, split=None)
    env.set_tasks([1.0, 2.0])  # four and two steps an episode
    env.reset()
    steps = [env.step(np.zeros((2, 1), np.float32)) for _ in range(8)]
    assert [step[2].tolist() for step in steps] == [[t == 7, t in (3, 7)] for t in range(8)]
    # observation, action, reward, done
    np.testing.assert_array_equal(steps[1][0], [[2, 0, 1, 0], [0, 0, 2, 1]])
    np.testing.assert_array_equal(steps[3][0], [[0, 0, 1, 1], [0, 0, 0, 0]])


def test_discrete_observations_are_one_hot_and_images_are_flat() -> None:
    class Corridor(Walk):
        def __init__(self) -> None:
            super().__init__(length=4)
            self.observation_space: Any = spaces.Discrete(5)

        def observe(self) -> Any:
            return min(max(round(self.position) + 2, 0), 4)

    venv = DummyVecEnv([Corridor])
    env = TrialVecEnv(MultiTaskVecEnv(venv, train_tasks=[1.0]), 2)
    np.testing.assert_array_equal(env.reset(), [[0, 0, 1, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(env.step(np.array([1]))[0], [[0, 0, 0, 1, 0, 0, 1, 1, 0]])
    assert TrialVecEnv(walks(1, image=True), 2).reset().shape == (1, 4 * 13 * 3 + 4)


def test_sb3_counts_trials_as_episodes() -> None:
    """Also under a monitor, whose episodes are single."""

    class Always:
        def predict(self, observations: np.ndarray, state: Any = None, **_: Any) -> tuple[np.ndarray, Any]:
            return np.ones(len(observations), dtype=np.int64), state

    monitored = MultiTaskVecEnv(VecMonitor(walks(2).venv), train_tasks=[1.0])
    env = TrialVecEnv(monitored, 3)
    returns, lengths = evaluate_policy(Always(), env, n_eval_episodes=4, return_episode_rewards=True)  # type: ignore[arg-type]  # has predict, which is all that is called
    assert (returns, lengths) == ([12.0] * 4, [12] * 4)


def test_native_members_take_tasks_in_one_call() -> None:
    env = TrialVecEnv(MultiTaskVecEnv(make_vec("PointGoal-v0", 3)), 2)
    env.seed(0)
    env.reset()
    tasks = np.array(env.get_attr("task"))
    for t in range(40):
        assert (np.array(env.get_attr("task")) == tasks).all()
        dones = env.step(np.zeros((3, 2), np.float32))[2]
        assert dones.tolist() == [t == 39] * 3
    assert not (np.array(env.get_attr("task")) == tasks).all(axis=1).any()
    assert env.horizon == 40
    assert single_episodes(env).horizon == 20


class Fragile(ThirdParty):
    """Rewards of 1 - 2 t times the task at step t = 1, 2, ...; episodes that end before the horizon have diverged.

    :param last: reward of a step at which an episode diverges, None for the usual one
    """

    def __init__(self, n: int, horizon: int, short: dict[float, int], last: float | None = None):
        super().__init__(n, horizon, short)
        self.last = last

    def reward(self, member: int) -> float:
        task, t = self.tasks[member], self.elapsed[member]
        if self.last is not None and self.diverges(member):
            return self.last
        return float((1 - 2 * t) * task)

    def diverges(self, member: int) -> bool:
        return bool(self.elapsed[member] == self.short.get(self.tasks[member], 0))

    def end_info(self, member: int) -> dict[str, Any]:
        return {"is_success": False} | ({"diverged": True} if self.diverges(member) else {})


def fragile(n: int, last: float | None = None) -> TrialVecEnv:
    """Trials of two episodes; horizon 5, and the episodes of tasks 2, -2 and 3 diverge at steps 2, 2 and 1."""
    return TrialVecEnv(
        MultiTaskVecEnv(Fragile(n, 5, {2.0: 2, -2.0: 2, 3.0: 1}, last), 5, train_tasks=[1.0]), 2, split=None
    )


def play(env: TrialVecEnv, n_steps: int) -> list[Any]:
    return [env.step(np.zeros((env.num_envs, 1), np.float32)) for _ in range(n_steps)]


def test_an_episode_that_diverges_counts_as_if_its_worst_step_went_on() -> None:
    env = fragile(3)
    env.set_tasks([1.0, 2.0, -2.0])
    env.reset()
    steps = play(env, 10)
    rewards = np.array([step[1] for step in steps])
    np.testing.assert_array_equal(rewards[:, 0], 2 * [-1, -3, -5, -7, -9])  # no divergence
    np.testing.assert_array_equal(rewards[:4, 1], 2 * [-2, -6 - 3 * 6])  # three steps were left
    np.testing.assert_array_equal(rewards[:4, 2], 2 * [2, 6])  # positive rewards do not go on
    np.testing.assert_array_equal(steps[1][0][:, -2], [-3, -6, 6])  # the policy sees the step's own reward
    trial = steps[3][3][1]["trial"]
    np.testing.assert_array_equal(trial.returns, [-26, -26])
    np.testing.assert_array_equal(trial.lengths, [2, 2])
    np.testing.assert_array_equal(trial.diverged, [True, True])
    assert not steps[9][3][0]["trial"].diverged.any()


def test_only_the_episodes_that_diverge_are_marked() -> None:
    env = fragile(1)
    env.set_tasks([2.0])
    env.reset()
    env.set_tasks([1.0])  # from the second episode on
    steps = play(env, 17)
    first, second = steps[6][3][0]["trial"], steps[16][3][0]["trial"]
    np.testing.assert_array_equal(first.diverged, [True, False])
    np.testing.assert_array_equal(first.returns, [-26, -25])
    np.testing.assert_array_equal(second.diverged, [False, False])
    np.testing.assert_array_equal(second.returns, [-25, -25])


def test_a_reward_that_diverged_as_well_is_replaced_by_the_lowest_one() -> None:
    """Of all members, so that diverging at the first step does not pay either."""
    env = fragile(2, last=float("nan"))
    env.set_tasks([1.0, 3.0])
    env.reset()
    steps = play(env, 4)
    rewards = np.array([step[1] for step in steps])
    np.testing.assert_array_equal(rewards[:, 0], [-1, -3, -5, -7])
    # nothing was known before the first step; later five times the lowest reward before the step
    np.testing.assert_array_equal(rewards[:, 1], [0, -5, -15, -25])
    assert all(np.isfinite(step[0]).all() for step in steps)


def test_an_episode_that_goes_on_after_the_horizon_is_refused() -> None:
    env = TrialVecEnv(MultiTaskVecEnv(ThirdParty(2, 4, SHORT), 3, train_tasks=[2.0]), 2, split=None)
    env.set_tasks([2.0, 3.0])  # two steps an episode, and three
    env.reset()
    env.set_tasks([1.0], [1])
    play(env, 5)
    with pytest.raises(ValueError, match=r"at most 3 steps, the horizon .* got one of member 1 that goes on after 3"):
        play(env, 1)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="trials of at least 1 episode, got n_episodes=0"):
        TrialVecEnv(walks(), 0)
    trials = TrialVecEnv(walks(), 2)
    assert has_trials(VecMonitor(trials))
    with pytest.raises(ValueError, match="has trials already"):
        TrialVecEnv(trials, 2)
    named = spaces.Dict({"position": spaces.Box(-20, 20, (1,), np.float32)})
    wrapped = DummyVecEnv([lambda: TransformObservation(Walk(), lambda o: {"position": o}, named)])
    with pytest.raises(ValueError, match="FlattenObservation"):
        TrialVecEnv(MultiTaskVecEnv(wrapped, 6, train_tasks=[1.0]), 2)
    for space in (spaces.MultiBinary(2), spaces.Discrete(3, start=1)):
        other = ThirdParty(2, 4)
        other.action_space = space
        with pytest.raises(ValueError, match=r"expected a Box, a MultiDiscrete, or a Discrete .* got (Multi|Discrete)"):
            TrialVecEnv(MultiTaskVecEnv(other, 4, train_tasks=[1.0]), 2)


def test_a_reward_that_is_not_finite_is_refused() -> None:
    class Broken(ThirdParty):
        def reward(self, member: int) -> float:
            return float("nan") if member == 1 else 0.0

    env = TrialVecEnv(MultiTaskVecEnv(Broken(2, 4), 4, train_tasks=[1.0]), 2)
    env.reset()
    with pytest.raises(ValueError, match="finite rewards, got nan from member 1"):
        env.step(np.zeros((2, 1), np.float32))

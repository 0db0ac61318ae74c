"""Collecting episodes: who plays what, where episodes end, and what is kept of them."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from sb3_maesn.common.distributions import Categorical, DiagGaussian
from sb3_maesn.common.inner_update import apply_actor, sample_z
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.rollouts import Behaviour, StepHook, collect
from sb3_maesn.common.type_aliases import Adapted, NamedParameters, Rollout
from sb3_maesn.envs import make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from tests.toy import ThirdParty, Walk

HORIZON = 4
TASKS = [1.0, 2.0, 3.0, -4.0]


def third_party(n: int = 3, **kwargs: Any) -> tuple[ThirdParty, MultiTaskVecEnv]:
    venv = ThirdParty(n, HORIZON, **kwargs)
    return venv, MultiTaskVecEnv(venv, horizon=HORIZON, train_tasks=TASKS)


class Player:
    """A policy with what a Behaviour needs of it."""

    def __init__(self, env: MultiTaskVecEnv, **kwargs: Any):
        th.manual_seed(0)
        self.policy = LatentActorCriticPolicy(
            env.observation_space, env.action_space, lambda _: 1e-3, net_arch=[8], ortho_init=False, **kwargs
        )
        self.module = self.policy.make_actor()
        self.theta = {name: value.detach() for name, value in self.module.named_parameters()}

    def actor(self, theta: NamedParameters, observations: th.Tensor, latents: th.Tensor) -> Any:
        return th.func.functional_call(self.module, theta, (observations, latents))

    def behaviour(self, n_tasks: int, n_episodes: int, theta: NamedParameters | None = None) -> Behaviour:
        generator = th.Generator().manual_seed(1)
        latents = DiagGaussian(th.randn(n_tasks, 2, generator=generator), th.zeros(n_tasks, 2))
        noise = th.randn(n_tasks, n_episodes, 2, generator=generator)
        return Behaviour(self.policy, self.actor, self.theta, Adapted(latents, theta), noise, sample_z(latents, noise))


def play(
    env: MultiTaskVecEnv, tasks: list[Any], n_episodes: int, seed: int = 0, on_step: StepHook | None = None
) -> Rollout:
    behaviour = Player(env).behaviour(len(tasks), n_episodes)
    rollout = collect(env, tasks, behaviour, np.random.default_rng(seed), on_step)
    assert rollout is not None
    return rollout


# Tasks and waves


@pytest.mark.parametrize("n_members", [1, 3, 5, 8, 20])
def test_every_episode_runs_under_its_task_whatever_the_number_of_members(n_members: int) -> None:
    venv, env = third_party(n_members)
    rollout = play(env, TASKS, n_episodes=2)
    assert rollout.returns.tolist() == [[HORIZON * task] * 2 for task in TASKS]
    assert rollout.success.tolist() == [[float(task > 0)] * 2 for task in TASKS]
    assert rollout.observations[..., 0].tolist() == np.broadcast_to(np.arange(4.0)[:, None, None], (4, 4, 2)).tolist()
    n_waves = -(-8 // n_members)
    assert (venv.n_resets, venv.n_steps) == (n_waves, n_waves * HORIZON)


@pytest.mark.parametrize("n_members", [7, 40])
def test_native_members(n_members: int) -> None:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", n_members))
    goals = env.task_set("train")[:3]
    rollout = play(env, goals, n_episodes=5)
    assert rollout.rewards.shape == (20, 3, 5)
    for task, goal in enumerate(goals):  # the reward of a step is minus the distance that it leads to
        distance = np.linalg.norm(rollout.observations[1:, task].numpy() - goal, axis=-1)
        assert np.allclose(rollout.rewards[:-1, task], -distance, atol=1e-6)
    assert rollout.mask.all()
    moved = rollout.observations[1:] - rollout.observations[:-1]
    assert th.allclose(moved, 0.1 * rollout.actions[:-1].clamp(-1, 1), atol=1e-6)


def test_the_generator_alone_decides() -> None:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", 4))
    goals = env.task_set("train")[:3]
    first = play(env, goals, 3, seed=1)
    th.manual_seed(99)
    again, other = play(env, goals, 3, seed=1), play(env, goals, 3, seed=2)
    assert th.equal(first.observations, again.observations)
    assert th.equal(first.actions, again.actions)
    assert not th.equal(first.observations[0], other.observations[0])
    assert not th.equal(first.actions, other.actions)


# Ends of episodes


def test_after_an_early_end_nothing_counts() -> None:
    _, env = third_party(5, short={2.0: 1, 3.0: 3})
    rollout = play(env, TASKS, n_episodes=2)
    lengths = [4, 1, 3, 4]
    assert rollout.lengths.tolist() == [[length] * 2 for length in lengths]
    for task, length in enumerate(lengths):
        assert (rollout.mask[:length, task] == 1).all()
        assert (rollout.mask[length:, task] == 0).all()
        assert (rollout.rewards[length:, task] == 0).all()
    assert rollout.returns[:, 0].tolist() == [length * task for length, task in zip(lengths, TASKS, strict=True)]


def test_what_comes_after_an_early_end_may_be_anything() -> None:
    class Idle(ThirdParty):
        """Observes NaN after the episode of task 2, which has one step."""

        def step_wait(self) -> Any:
            observations, *rest = super().step_wait()
            observations[(self.tasks == 2.0) & (self.n_steps > 1)] = np.nan
            return observations, *rest

    venv = Idle(8, HORIZON, short={2.0: 1})
    rollout = play(MultiTaskVecEnv(venv, horizon=HORIZON, train_tasks=TASKS), TASKS, n_episodes=2)
    assert rollout.lengths.tolist() == [[HORIZON if task != 2.0 else 1] * 2 for task in TASKS]
    assert bool(th.isfinite(rollout.observations).all())


def test_a_wave_ends_with_its_last_episode() -> None:
    venv, env = third_party(8, short=dict.fromkeys(TASKS, 2))
    rollout = play(env, TASKS, n_episodes=2)
    assert venv.n_steps == 2
    assert (rollout.mask[2:] == 0).all()


def test_success_is_read_where_the_episode_ends() -> None:
    class Twice(ThirdParty):
        """Succeeds in every first episode after a reset, and fails in those that follow by auto-reset."""

        def reset(self) -> np.ndarray:
            self.n_ended = np.zeros(self.num_envs, dtype=int)
            return super().reset()

        def end_info(self, member: int) -> dict[str, Any]:
            self.n_ended[member] += 1
            return {"is_success": self.n_ended[member] == 1}

    env = MultiTaskVecEnv(Twice(4, HORIZON, {2.0: 1}), horizon=HORIZON, train_tasks=TASKS)
    assert play(env, TASKS, n_episodes=1).success.tolist() == [[1.0]] * 4


def test_a_success_of_none_is_unknown() -> None:
    venv, env = third_party(8)
    venv.end_info = lambda member: {"is_success": None if venv.tasks[member] == 2.0 else True}  # type: ignore[method-assign]  # of this env
    success = play(env, TASKS, n_episodes=2).success
    assert np.isnan(success).tolist() == [[task == 2.0] * 2 for task in TASKS]


def test_the_horizon_cuts_longer_episodes() -> None:
    venv = ThirdParty(4, horizon=100)
    env = MultiTaskVecEnv(venv, horizon=HORIZON, train_tasks=TASKS)
    rollout = play(env, TASKS, n_episodes=2)
    assert venv.n_steps == 2 * HORIZON
    assert rollout.mask.all()
    assert np.isnan(rollout.success).all()  # the environment has not said
    assert rollout.returns[:, 0].tolist() == [HORIZON * task for task in TASKS]


class Diverging(ThirdParty):
    """The simulation of task 2 diverges with its first step."""

    def reward(self, member: int) -> float:
        return np.nan if self.tasks[member] == 2.0 else super().reward(member)

    def end_info(self, member: int) -> dict[str, Any]:
        return {"is_success": False, "diverged": bool(self.tasks[member] == 2.0)}


def test_diverged_episodes_are_dropped_and_counted() -> None:
    env = MultiTaskVecEnv(Diverging(3, HORIZON, {2.0: 1}), horizon=HORIZON, train_tasks=TASKS)
    rollout = play(env, TASKS, n_episodes=3)
    assert rollout.n_diverged == 3
    assert (rollout.mask[:, 1] == 0).all()
    assert (rollout.mask[:, [0, 2, 3]] == 1).all()
    assert bool(th.isfinite(rollout.rewards).all())
    summary = rollout.summary()
    assert sorted(set(summary.returns.tolist())) == [-16.0, 4.0, 12.0]
    assert (len(summary.returns), len(summary.lengths), summary.n_episodes, summary.n_diverged) == (9, 9, 12, 3)
    assert summary.success.tolist() == [0.0] * 9


# Bad values


def test_a_reward_that_is_not_finite_is_refused() -> None:
    env = MultiTaskVecEnv(Diverging(8, HORIZON), horizon=HORIZON, train_tasks=TASKS)
    env.venv.end_info = lambda member: {}  # type: ignore[attr-defined]  # which does not say that it diverged
    with pytest.raises(ValueError, match="expected finite rewards, got nan at step 0 of episode 2"):
        play(env, TASKS, n_episodes=2)


def test_an_observation_that_is_not_finite_is_refused() -> None:
    class Blind(ThirdParty):
        def step_wait(self) -> Any:
            observations, *rest = super().step_wait()
            observations[self.tasks == 3.0] = np.inf
            return observations, *rest

    env = MultiTaskVecEnv(Blind(8, HORIZON), horizon=HORIZON, train_tasks=TASKS)
    with pytest.raises(ValueError, match="expected finite observations, got NaN or infinity at step 1 of episode 4"):
        play(env, TASKS, n_episodes=2)


# What is kept of the behaviour


def per_task_theta(player: Player, n_tasks: int) -> NamedParameters:
    generator = th.Generator().manual_seed(2)
    return {
        name: value + 0.3 * th.randn(n_tasks, *value.shape, generator=generator) for name, value in player.theta.items()
    }


@pytest.mark.parametrize("n_members", [4, 12])
@pytest.mark.parametrize("own_theta", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_distributions_and_log_probabilities_are_those_that_acted(
    discrete: bool, own_theta: bool, n_members: int
) -> None:
    env = MultiTaskVecEnv(DummyVecEnv([partial(Walk, discrete=discrete)] * n_members), train_tasks=[-1.0, 1.0])
    player = Player(env)
    behaviour = player.behaviour(3, 4, per_task_theta(player, 3) if own_theta else None)
    rollout = collect(env, [1.0, -1.0, 1.0], behaviour, np.random.default_rng(0))
    assert rollout is not None
    assert isinstance(rollout.distribution, Categorical if discrete else DiagGaussian)
    again = apply_actor(player.actor, player.theta, behaviour.adapted, rollout.observations, behaviour.latents)
    for kept, expected in zip(rollout.distribution, again, strict=True):
        assert th.allclose(kept, expected, atol=1e-6)
    assert th.allclose(rollout.log_prob, again.log_prob(rollout.actions), atol=1e-6)
    steps = 2.0 * rollout.actions - 1.0 if discrete else rollout.actions[..., 0].clamp(-1, 1)
    sides = th.tensor([1.0, -1.0, 1.0]).view(1, 3, 1)
    assert th.allclose(rollout.rewards, sides * steps, atol=1e-6)
    walked = th.cat([th.zeros(1, 3, 4), steps.cumsum(dim=0)[:-1]])
    assert th.allclose(rollout.observations[..., 0], walked, atol=1e-5)


def test_actions_are_clipped_for_the_environment_only() -> None:
    taken: list[np.ndarray] = []

    class Watching(ThirdParty):
        def step_async(self, actions: np.ndarray) -> None:
            taken.append(actions)

    env = MultiTaskVecEnv(Watching(5, HORIZON), horizon=HORIZON, train_tasks=TASKS)
    behaviour = Player(env, log_std_init=2.0).behaviour(4, 1)
    rollout = collect(env, TASKS, behaviour, np.random.default_rng(0))
    assert rollout is not None
    assert np.abs(np.array(taken)).max() == 1.0
    assert rollout.actions.abs().max() > 2.0
    expected = rollout.actions.flatten(1, 2).clamp(-1, 1)
    assert np.allclose(np.array(taken)[:, :4], expected)
    assert np.array(taken).shape == (HORIZON, 5, 1)  # the idle member repeats the last one's action


def test_images_are_preprocessed() -> None:
    venv = VecTransposeImage(DummyVecEnv([partial(Walk, image=True)] * 4))
    env = MultiTaskVecEnv(venv)
    rollout = play(env, [1.0, -1.0], n_episodes=2)
    assert rollout.observations.shape == (6, 2, 2, 3, 4, 13)
    assert rollout.observations.max() == 1.0
    assert rollout.observations.sum(dim=(3, 4, 5)).eq(12.0).all()  # one column of four pixels in three colours


def test_matrix_actions() -> None:
    class Wide(ThirdParty):
        def __init__(self, n: int, horizon: int):
            super().__init__(n, horizon)
            self.action_space = spaces.Box(-1.0, 1.0, (2, 3), np.float32)

        def step_async(self, actions: np.ndarray) -> None:
            assert actions.shape == (self.num_envs, 2, 3)

    rollout = play(MultiTaskVecEnv(Wide(3, HORIZON), horizon=HORIZON, train_tasks=TASKS), TASKS, n_episodes=2)
    assert rollout.actions.shape == (HORIZON, 4, 2, 6)


# The hook


def test_the_hook_sees_every_step_and_can_end_the_collection() -> None:
    seen: list[dict[str, Any]] = []

    def on_step(variables: dict[str, Any]) -> bool:
        seen.append(variables)
        return len(seen) < 6

    _, env = third_party(3)
    behaviour = Player(env).behaviour(4, 2)
    assert collect(env, TASKS, behaviour, np.random.default_rng(0), on_step) is None
    assert len(seen) == 6
    assert [step["n_episodes"] for step in seen] == [3] * 6
    assert {"env", "infos", "dones", "rewards", "new_obs"} <= seen[0].keys()


def test_the_hook_counts_the_episodes_and_not_the_idle_members() -> None:
    counts: list[int] = []
    _, env = third_party(3)
    play(env, TASKS, 1, on_step=lambda variables: not counts.append(variables["n_episodes"]))  # type: ignore[func-returns-value]  # None
    assert counts == [3] * HORIZON + [1] * HORIZON


def test_the_hook_sees_every_end_once_and_never_that_of_an_idle_member() -> None:
    ends: list[list[int]] = []
    _, env = third_party(5, short={2.0: 1, 3.0: 3})
    play(env, TASKS, 1, on_step=lambda variables: not ends.append(variables["dones"].astype(int).tolist()))  # type: ignore[func-returns-value]  # None
    assert ends == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0]]


def test_the_hook_sees_the_ends_at_the_horizon() -> None:
    ends: list[int] = []
    env = MultiTaskVecEnv(ThirdParty(4, horizon=100), horizon=HORIZON, train_tasks=TASKS)
    play(env, TASKS, 1, on_step=lambda variables: not ends.append(variables["dones"].sum()))  # type: ignore[func-returns-value]  # None
    assert ends == [0, 0, 0, 4]


# Parts of a rollout


def test_parts_of_a_rollout() -> None:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", 12))
    rollout = play(env, env.task_set("train")[:3], 4)
    fewer = rollout.first_episodes(2)
    assert th.equal(fewer.rewards, rollout.rewards[:, :, :2])
    assert th.equal(fewer.distribution.log_prob(fewer.actions), rollout.log_prob[:, :, :2])


def test_every_nth_step_begins_with_the_first() -> None:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", 12))
    rollout = play(env, env.task_set("train")[:3], 4)
    thinned = rollout.every_nth_step(7)
    assert th.equal(thinned.observations, rollout.observations[[0, 7, 14]])
    assert th.equal(thinned.distribution.log_prob(thinned.actions), rollout.log_prob[[0, 7, 14]])


def test_every_nth_step_is_of_another_phase_in_every_episode() -> None:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", 12))
    rollout = play(env, env.task_set("train")[:3], 4)
    thinned = rollout.every_nth_step(8, spread=True)
    for episode, steps in enumerate([[1, 9, 17], [3, 11, 19], [5, 13], [7, 15]]):  # of 20
        n = len(steps)
        assert th.equal(thinned.observations[:n, :, episode], rollout.observations[steps][:, :, episode])
        log_prob = thinned.distribution.log_prob(thinned.actions)[:n, :, episode]
        assert th.equal(log_prob, rollout.log_prob[steps][:, :, episode])
        assert thinned.mask[:, 0, episode].tolist() == [1.0] * n + [0.0] * (3 - n)
    assert rollout.every_nth_step(1) is rollout
    assert rollout.every_nth_step(50, spread=True).mask.tolist() == [[[1.0] * 4] * 3]  # no episode has so many

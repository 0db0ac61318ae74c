"""Collecting episodes: tasks and latents in, a :class:`Rollout` out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_maesn.common.distributions import ActionDistribution, Categorical, DiagGaussian
from sb3_maesn.common.inner_update import ActorFunction, apply_actor
from sb3_maesn.common.parallel import one_torch_thread
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.type_aliases import Adapted, NamedParameters, Rollout
from sb3_maesn.envs.multi_task import MultiTaskVecEnv

StepHook: TypeAlias = Callable[[dict[str, Any]], bool]
"""Called after every step of the members with the collector's variables, ``n_episodes`` of which are under way in these
members and SB3's ``env``, ``new_obs``, ``rewards``, ``dones`` and ``infos`` among them; False ends the collection."""


@dataclass(frozen=True)
class Behaviour:
    """Who acts in a rollout.

    :param policy: for its spaces and preprocessing
    :param actor: the actor as a function of its parameters
    :param theta: shared parameters
    :param adapted: the tasks' own values; latents (B, L)
    :param noise: eps of the episodes' latents (B, K, L)
    :param latents: z (B, K, L)
    """

    policy: LatentActorCriticPolicy
    actor: ActorFunction
    theta: NamedParameters
    adapted: Adapted
    noise: th.Tensor
    latents: th.Tensor

    def __call__(self, observations: th.Tensor, episodes: slice) -> ActionDistribution:
        """Distributions (n, A) for the observations (n, *obs_shape) of n episodes, counted task by task."""
        n_tasks, n_episodes = self.latents.shape[:2]
        if self.adapted.theta is None:
            return self.actor(self.theta, observations, self.latents.flatten(0, 1)[episodes])
        grid = observations.new_zeros((n_tasks * n_episodes, *observations.shape[1:]))
        grid[episodes] = observations
        grid = grid.view(1, n_tasks, n_episodes, *observations.shape[1:])  # (1, B, K, *obs_shape)
        parts = apply_actor(self.actor, self.theta, self.adapted, grid, self.latents)
        flat = [part.expand(*grid.shape[:3], part.shape[-1]).flatten(0, 2)[episodes] for part in parts]
        return type(parts)(*flat)


class _Storage:
    """Arrays of a rollout while it is collected, episodes in one flat dimension N = B * K."""

    def __init__(self, horizon: int, n: int, policy: LatentActorCriticPolicy):
        self.discrete = isinstance(policy.action_space, spaces.Discrete)
        size = int(policy.action_space.n) if isinstance(policy.action_space, spaces.Discrete) else _n_actions(policy)
        self.observations = th.zeros(horizon, n, *policy.preprocessed_shape)
        self.actions = th.zeros(horizon, n, dtype=th.int64) if self.discrete else th.zeros(horizon, n, size)
        self.parameters = th.zeros(horizon, n, size)  # mean or logits
        self.rewards = np.zeros((horizon, n), dtype=np.float32)
        self.mask = np.zeros((horizon, n), dtype=np.float32)
        self.success = np.full(n, np.nan)
        self.diverged = np.zeros(n, dtype=bool)


def _n_actions(policy: LatentActorCriticPolicy) -> int:
    assert policy.action_space.shape is not None
    return int(np.prod(policy.action_space.shape))


def collect(
    env: MultiTaskVecEnv,
    tasks: Sequence[Any],
    behaviour: Behaviour,
    rng: np.random.Generator,
    on_step: StepHook | None = None,
) -> Rollout | None:
    """K episodes of each of B tasks, in waves where the environment has fewer than B * K members.

    :param env: the environment
    :param tasks: B tasks
    :param behaviour: who acts; its latents (B, K, L) say how many episodes
    :param rng: source of all randomness of the rollout, the environments' seeds included
    :param on_step: called after every step
    :return: the rollout; None if ``on_step`` ended it
    :raises ValueError: for a reward or an observation that is not finite
    """
    n_tasks, n_episodes = behaviour.latents.shape[:2]
    storage = _Storage(env.horizon, n_tasks * n_episodes, behaviour.policy)
    generator = th.Generator().manual_seed(int(rng.integers(2**62)))
    owners = [task for task in tasks for _ in range(n_episodes)]
    with th.no_grad(), one_torch_thread():
        for start in range(0, len(owners), env.num_envs):
            wave = slice(start, min(start + env.num_envs, len(owners)))
            members = env.with_room_for(wave.stop - wave.start)
            spare = [owners[wave.stop - 1]] * (members.num_envs - (wave.stop - wave.start))
            members.set_tasks(owners[wave] + spare)
            members.seed(int(rng.integers(2**31 - env.num_envs)))
            if not _collect_wave(members, behaviour, storage, wave, generator, on_step):
                return None
        return _finish(storage, behaviour)


def _collect_wave(
    env: MultiTaskVecEnv,
    behaviour: Behaviour,
    storage: _Storage,
    wave: slice,
    generator: th.Generator,
    on_step: StepHook | None,
) -> bool:
    """One episode in each member; members past the wave's size only keep step."""
    n = wave.stop - wave.start
    live = np.ones(n, dtype=bool)
    observations = env.reset()
    for t in range(env.horizon):
        assert isinstance(observations, np.ndarray)
        seen = storage.observations[t, wave]
        behaviour.policy.preprocess_into(seen, observations)
        distribution = behaviour(seen, wave)
        actions = distribution.sample(generator)
        storage.actions[t, wave] = actions
        storage.parameters[t, wave] = distribution[0]
        observations, rewards, dones, infos = env.step(_env_actions(actions, behaviour.policy, env.num_envs))
        storage.mask[t, wave] = live
        storage.rewards[t, wave] = np.where(live, rewards[:n], 0.0)
        over = live & (dones[:n] if t + 1 < env.horizon else True)
        if over.any():
            _note_ends(storage, np.flatnonzero(over), wave.start, infos)
            live &= ~over
        variables = {"env": env, "n_episodes": n, "new_obs": observations}
        if on_step is not None and not on_step({**variables, "rewards": rewards, "dones": dones, "infos": infos}):
            return False
        if not live.any():
            break
    return True


def _env_actions(actions: th.Tensor, policy: LatentActorCriticPolicy, n_members: int) -> np.ndarray:
    """What the environment gets: clipped to a Box and shaped like it, idle members repeating the last action."""
    array = actions.numpy()
    if isinstance(policy.action_space, spaces.Box):
        array = array.reshape(-1, *policy.action_space.shape)
        array = np.clip(array, policy.action_space.low, policy.action_space.high)
    idle = n_members - array.shape[0]
    return np.concatenate([array, np.repeat(array[-1:], idle, axis=0)]) if idle else array


def _note_ends(storage: _Storage, ended: np.ndarray, first: int, infos: list[dict[str, Any]]) -> None:
    for member in ended:
        info = infos[member]
        storage.success[first + member] = float(info.get("is_success", np.nan))
        storage.diverged[first + member] = bool(info.get("diverged", False))


def _drop_diverged(storage: _Storage) -> None:
    """Mask the episodes whose simulation diverged; their values may be anything and must not spread."""
    lost = np.flatnonzero(storage.diverged)
    if lost.size:
        storage.mask[:, lost] = 0.0
        storage.rewards[:, lost] = 0.0
        for tensor in (storage.observations, storage.actions, storage.parameters):
            tensor[:, lost] = 0


def _check_finite(storage: _Storage) -> None:
    if not np.isfinite(storage.rewards).all():
        step, episode = (int(i[0]) for i in np.nonzero(~np.isfinite(storage.rewards)))
        reward = storage.rewards[step, episode]
        raise ValueError(f"expected finite rewards, got {reward} at step {step} of episode {episode}")
    # a sum is finite only if all terms are, and much cheaper; where it overflows, the terms are looked at
    if not math.isfinite(storage.observations.sum()) and not bool(th.isfinite(storage.observations).all()):
        step, episode = (~th.isfinite(storage.observations)).flatten(2).any(dim=2).nonzero()[0].tolist()
        raise ValueError(f"expected finite observations, got NaN or infinity at step {step} of episode {episode}")


def _finish(storage: _Storage, behaviour: Behaviour) -> Rollout:
    _drop_diverged(storage)
    _check_finite(storage)
    grid = behaviour.latents.shape[:2]

    def by_task(flat: th.Tensor) -> th.Tensor:
        return flat.view(flat.shape[0], *grid, *flat.shape[2:])  # (T, N, ...) -> (T, B, K, ...)

    actions, distribution = by_task(storage.actions), _distribution(storage, behaviour, by_task)
    return Rollout(
        observations=by_task(storage.observations),
        actions=actions,
        distribution=distribution,
        log_prob=distribution.log_prob(actions),
        rewards=by_task(th.from_numpy(storage.rewards)),
        mask=by_task(th.from_numpy(storage.mask)),
        latents=behaviour.latents,
        noise=behaviour.noise,
        success=storage.success.reshape(grid),
        n_diverged=int(storage.diverged.sum()),
    )


def _distribution(
    storage: _Storage, behaviour: Behaviour, by_task: Callable[[th.Tensor], th.Tensor]
) -> ActionDistribution:
    """The behaviour's distributions over the whole rollout; a Gaussian's log std does not depend on the state."""
    if storage.discrete:
        return Categorical(by_task(storage.parameters))
    adapted = behaviour.adapted.theta
    log_std = (behaviour.theta if adapted is None else adapted)["log_std"]
    leading = (1, 1, 1) if adapted is None else (1, log_std.shape[0], 1)
    return DiagGaussian(by_task(storage.parameters), log_std.detach().clone().view(*leading, -1))

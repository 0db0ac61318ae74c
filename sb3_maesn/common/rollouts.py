"""Collection of rollouts: episodes of given tasks, played with given latents."""

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
"""Callback of :func:`collect` after every environment step, called with a dictionary of its current variables.

The keys are SB3's ``env``, ``new_obs``, ``rewards``, ``dones`` and ``infos``, and ``n_episodes``, the number of
episodes in the current wave, which the first members of ``env`` play. ``dones`` mark the episodes that end with the
step, by themselves or at the horizon: idle members, and members whose episode is over, are never done. Returning False
ends the collection.
"""


@dataclass(frozen=True)
class Behaviour:
    """Behaviour policy of a rollout: an actor, its parameters and one latent per episode.

    :param policy: policy that provides the spaces and the preprocessing
    :param actor: actor as a function of its parameters
    :param theta: shared policy parameters
    :param adapted: latent distributions of the B tasks, and their own policy parameters where these are adapted
    :param noise: standard normal noise eps of the latents (B, K, L)
    :param latents: latents z, one per episode (B, K, L)
    """

    policy: LatentActorCriticPolicy
    actor: ActorFunction
    theta: NamedParameters
    adapted: Adapted
    noise: th.Tensor
    latents: th.Tensor

    def __call__(self, observations: th.Tensor, episodes: slice) -> ActionDistribution:
        """Compute the action distributions for the current observations of consecutive episodes.

        :param observations: preprocessed observations, one per episode (n, *obs_shape)
        :param episodes: range of n episodes, where number b * K + k is the k-th episode of the b-th task
        :return: action distributions (n, A)
        """
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
    """Arrays of a rollout during its collection, with all episodes in one dimension of size N = B * K.

    :param horizon: maximum episode length T
    :param n: number of episodes N
    :param policy: policy that provides the action space and the shape of preprocessed observations
    """

    def __init__(self, horizon: int, n: int, policy: LatentActorCriticPolicy):
        self.discrete = isinstance(policy.action_space, spaces.Discrete)
        size = int(policy.action_space.n) if isinstance(policy.action_space, spaces.Discrete) else _action_size(policy)
        self.observations = th.zeros(horizon, n, *policy.preprocessed_shape)
        self.actions = th.zeros(horizon, n, dtype=th.int64) if self.discrete else th.zeros(horizon, n, size)
        self.parameters = th.zeros(horizon, n, size)  # mean or logits
        self.rewards = np.zeros((horizon, n), dtype=np.float32)
        self.mask = np.zeros((horizon, n), dtype=np.float32)
        self.success = np.full(n, np.nan)
        self.diverged = np.zeros(n, dtype=bool)
        self.monitor_returns = np.full(n, np.nan)


def _action_size(policy: LatentActorCriticPolicy) -> int:
    """Return the number of entries of a Box action."""
    assert policy.action_space.shape is not None
    return int(np.prod(policy.action_space.shape))


def collect(
    env: MultiTaskVecEnv,
    tasks: Sequence[Any],
    behaviour: Behaviour,
    rng: np.random.Generator,
    on_step: StepHook | None = None,
) -> Rollout | None:
    """Collect K episodes of each of B tasks, in waves if the environment has fewer than B * K members.

    :param env: multi-task environment
    :param tasks: B tasks, as the environment's ``set_tasks`` accepts them
    :param behaviour: behaviour policy, whose latents (B, K, L) determine the number of episodes
    :param rng: source of all randomness, including the environment's seeds
    :param on_step: callback after every environment step
    :return: rollout, or None if ``on_step`` ended the collection
    :raises ValueError: if a reward or an observation is not finite although the simulation did not diverge
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
            members.seed(int(rng.integers(2**31 - members.num_envs)))
            if not _collect_wave(members, behaviour, storage, wave, generator, on_step):
                return None
        return _to_rollout(storage, behaviour)


def _collect_wave(
    env: MultiTaskVecEnv,
    behaviour: Behaviour,
    storage: _Storage,
    wave: slice,
    generator: th.Generator,
    on_step: StepHook | None,
) -> bool:
    """Collect one episode in each of the environment's first members.

    Members beyond the size of the wave are stepped with the others, and their data are discarded.

    :param env: environment with at least as many members as the wave has episodes
    :param behaviour: behaviour policy
    :param storage: arrays to fill
    :param wave: range of episodes to collect
    :param generator: source of the actions' randomness
    :param on_step: callback after every environment step
    :return: False if ``on_step`` ended the collection
    """
    n = wave.stop - wave.start
    live = np.ones(n, dtype=bool)
    observations = env.reset()
    for t in range(env.horizon):
        assert isinstance(observations, np.ndarray)
        seen = storage.observations[t, wave]
        behaviour.policy.preprocess_into(seen, observations)
        if not live.all():
            seen[th.from_numpy(~live)] = 0.0  # of the next episode of a member, which nobody looks at
        distribution = behaviour(seen, wave)
        actions = distribution.sample(generator)
        storage.actions[t, wave] = actions
        storage.parameters[t, wave] = distribution[0]
        observations, rewards, dones, infos = env.step(_env_actions(actions, behaviour.policy, env.num_envs))
        storage.mask[t, wave] = live
        storage.rewards[t, wave] = np.where(live, rewards[:n], 0.0)
        over = live & (dones[:n] if t + 1 < env.horizon else True)
        if over.any():
            _record_ends(storage, np.flatnonzero(over), wave.start, infos)
            live &= ~over
        if on_step is not None:
            ends = np.concatenate([over, np.zeros(env.num_envs - n, dtype=bool)])  # (n,) -> (n_members,)
            variables = {"env": env, "n_episodes": n, "new_obs": observations}
            if not on_step({**variables, "rewards": rewards, "dones": ends, "infos": infos}):
                return False
        if not live.any():
            break
    return True


def _env_actions(actions: th.Tensor, policy: LatentActorCriticPolicy, n_members: int) -> np.ndarray:
    """Convert sampled actions to environment actions, clipped to a Box space and repeated for idle members."""
    array = actions.numpy()
    if isinstance(policy.action_space, spaces.Box):
        array = array.reshape(-1, *policy.action_space.shape)
        array = np.clip(array, policy.action_space.low, policy.action_space.high)
    idle = n_members - array.shape[0]
    return np.concatenate([array, np.repeat(array[-1:], idle, axis=0)]) if idle else array


def _record_ends(storage: _Storage, ended: np.ndarray, first: int, infos: list[dict[str, Any]]) -> None:
    """Store what the infos say about episodes that have just ended."""
    for member in ended:
        info = infos[member]
        success = info.get("is_success")
        storage.success[first + member] = np.nan if success is None else float(success)
        storage.diverged[first + member] = bool(info.get("diverged", False))
        storage.monitor_returns[first + member] = info.get("episode", {}).get("r", np.nan)


def _drop_diverged(storage: _Storage) -> None:
    """Mask out the episodes whose simulation diverged, and zero their data, which may be NaN or infinite."""
    lost = np.flatnonzero(storage.diverged)
    if lost.size:
        storage.mask[:, lost] = 0.0
        storage.rewards[:, lost] = 0.0
        for tensor in (storage.observations, storage.actions, storage.parameters):
            tensor[:, lost] = 0


def _check_finite(storage: _Storage) -> None:
    """Raise an error if a reward or an observation is not finite."""
    if not np.isfinite(storage.rewards).all():
        step, episode = (int(i[0]) for i in np.nonzero(~np.isfinite(storage.rewards)))
        reward = storage.rewards[step, episode]
        raise ValueError(f"expected finite rewards, got {reward} at step {step} of episode {episode}")
    # a sum over all entries is a cheap first check; it can overflow, so the entries themselves decide
    if not math.isfinite(storage.observations.sum()) and not bool(th.isfinite(storage.observations).all()):
        step, episode = (~th.isfinite(storage.observations)).flatten(2).any(dim=2).nonzero()[0].tolist()
        raise ValueError(f"expected finite observations, got NaN or infinity at step {step} of episode {episode}")


def _to_rollout(storage: _Storage, behaviour: Behaviour) -> Rollout:
    """Convert the filled arrays to a rollout, without the episodes that diverged."""
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
        monitor_returns=storage.monitor_returns.reshape(grid),
        n_diverged=int(storage.diverged.sum()),
    )


def _distribution(
    storage: _Storage, behaviour: Behaviour, by_task: Callable[[th.Tensor], th.Tensor]
) -> ActionDistribution:
    """Build the behaviour policy's action distributions over the whole rollout."""
    if storage.discrete:
        return Categorical(by_task(storage.parameters))
    # a Gaussian's log std does not depend on the state: it has a time dimension of 1
    own_theta = behaviour.adapted.theta
    log_std = (behaviour.theta if own_theta is None else own_theta)["log_std"]
    leading = (1, 1, 1) if own_theta is None else (1, log_std.shape[0], 1)
    return DiagGaussian(by_task(storage.parameters), log_std.detach().clone().view(*leading, -1))

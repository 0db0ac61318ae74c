"""Small environments and problems that several tests share."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.inner_update import ActorFunction, sample_z
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.type_aliases import (
    Adapted,
    MetaBatch,
    MetaParameters,
    NamedParameters,
    Rollout,
    StepSizes,
    TaskBatch,
    Tasks,
)


class Walk(gym.Env[np.ndarray, Any]):
    """A walk on a line: move towards the side that the task, -1 or 1, names; the observation is the position.

    :param discrete: two actions in place of a number
    :param length: steps of an episode
    :param image: show the position as a channel-last image
    """

    def __init__(self, discrete: bool = True, length: int = 6, image: bool = False):
        self.horizon = length
        self.image = image
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        shape = (4, 13, 3)
        self.observation_space = (
            spaces.Box(0, 255, shape, np.uint8) if image else spaces.Box(-20.0, 20.0, (1,), np.float32)
        )
        self.task, self.next_task = 1.0, 1.0
        self.position, self.t = 0.0, 0

    def sample_tasks(self, n: int) -> list[float]:
        return [float(side) for side in self.np_random.choice([-1.0, 1.0], n)]

    def set_task(self, task: float) -> None:
        self.next_task = float(task)

    def observe(self) -> np.ndarray:
        if not self.image:
            return np.array([self.position], np.float32)
        pixels = np.zeros((4, 13, 3), np.uint8)
        pixels[:, round(self.position) + 6] = 255
        return pixels

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.task, self.position, self.t = self.next_task, 0.0, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        step = 2.0 * action - 1.0 if isinstance(self.action_space, spaces.Discrete) else float(action[0])
        self.position += float(step)
        self.t += 1
        success = self.task * self.position > 0.5 * self.horizon
        return self.observe(), self.task * float(step), False, self.t == self.horizon, {"is_success": success}


class ThirdParty(VecEnv):
    """A VecEnv that offers ``env_method("set_task", task, indices=[i])``, ``reset`` and ``step``, and nothing else.

    The reward of a step is the task that the member's episode runs under, so a return tells its task; the observation
    is the time step. An episode lasts ``horizon`` steps, or ``short[task]`` where given.

    :param n: number of members
    :param horizon: steps of an episode
    :param short: lengths of the episodes of some tasks
    """

    def __init__(self, n: int, horizon: int, short: dict[float, int] | None = None):
        self.length, self.short = horizon, short or {}
        self.next_tasks, self.tasks = np.zeros(n), np.zeros(n)
        self.elapsed = np.zeros(n, dtype=int)
        self.n_resets, self.n_steps = 0, 0
        super().__init__(n, spaces.Box(-np.inf, np.inf, (1,), np.float64), spaces.Box(-1.0, 1.0, (1,), np.float32))

    def reset(self) -> np.ndarray:
        self.n_resets += 1
        self.tasks[:], self.elapsed[:] = self.next_tasks, 0
        return self.elapsed[:, None].astype(float)

    def step_async(self, actions: np.ndarray) -> None:
        assert actions.shape == (self.num_envs, 1)

    def reward(self, member: int) -> float:
        return float(self.tasks[member])

    def end_info(self, member: int) -> dict[str, Any]:
        return {"is_success": self.tasks[member] > 0}

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        self.n_steps += 1
        self.elapsed += 1
        rewards = np.array([self.reward(i) for i in range(self.num_envs)])
        dones = np.array([e >= self.short.get(t, self.length) for e, t in zip(self.elapsed, self.tasks, strict=True)])
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones).tolist():
            infos[i] = self.end_info(i) | {"terminal_observation": self.elapsed[[i]].astype(float)}
            self.tasks[i], self.elapsed[i] = self.next_tasks[i], 0
        return self.elapsed[:, None].astype(float), rewards, dones, infos

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        if method_name != "set_task":
            raise NotImplementedError(method_name)
        for i in indices:
            (self.next_tasks[i],) = method_args
        return [None for _ in indices]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":  # what SB3's VecEnv itself asks for
            return [None] * self.num_envs
        raise NotImplementedError(attr_name)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        raise NotImplementedError("seed")

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError(attr_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        raise NotImplementedError("env_is_wrapped")

    def close(self) -> None:
        pass


class MetaProblem:
    """Random data of one meta-iteration in float64, on which derivatives can be checked.

    Of N = 4 tasks, B = 3 have K = 5 episodes of T = 4 steps, some cut short, one invalid. The network is smooth.

    :param discrete: categorical actions in place of Gaussian ones
    :param n_inner_steps: inner updates
    :param adapt_policy: whether theta is adapted
    :param latent_dim: L; 0 is MAML's
    """

    n_tasks, batch, episodes, steps = 4, 3, 5, 4

    def __init__(self, discrete: bool = False, n_inner_steps: int = 1, adapt_policy: bool = False, latent_dim: int = 2):
        self.generator = th.Generator().manual_seed(7)
        self.latent_dim = latent_dim
        action_space = spaces.Discrete(3) if discrete else spaces.Box(-1.0, 1.0, (2,), np.float32)
        policy = LatentActorCriticPolicy(
            spaces.Box(-1.0, 1.0, (3,), np.float64),
            action_space,
            lambda _: 1e-3,
            latent_dim,
            net_arch=[4],
            activation_fn=nn.Tanh,
            ortho_init=False,
        )
        self.module = policy.make_actor().double()
        self.discrete = discrete
        self.params = self._parameters(adapt_policy)
        self.batch_of = self._meta_batch(n_inner_steps)

    @property
    def actor(self) -> ActorFunction:
        def act(theta: NamedParameters, observations: th.Tensor, latents: th.Tensor) -> Any:
            return th.func.functional_call(self.module, theta, (observations, latents))

        return act

    def normal(self, *shape: int) -> th.Tensor:
        return th.randn(shape, generator=self.generator, dtype=th.float64)

    def _parameters(self, adapt_policy: bool) -> MetaParameters:
        theta = {name: 0.5 * self.normal(*value.shape) for name, value in self.module.named_parameters()}
        policy_steps = {n: 0.05 + 0.05 * self.normal(*v.shape).abs() for n, v in theta.items()} if adapt_policy else {}
        steps = StepSizes(
            0.3 + 0.1 * self.normal(self.latent_dim).abs(),
            0.2 + 0.1 * self.normal(self.latent_dim).abs(),
            th.tensor(-0.5, dtype=th.float64),
            policy_steps,
        )
        shape = (self.n_tasks, self.latent_dim)
        latents = DiagGaussian(0.5 * self.normal(*shape), 0.2 * self.normal(*shape))
        return MetaParameters(theta, latents, steps)

    def displaced(self, scale: float = 0.05) -> MetaParameters:
        """Parameters a little away from those that acted, so that no ratio is 1 and no KL 0."""
        return self.params.with_leaves([leaf + scale * self.normal(*leaf.shape) for leaf in self.params.leaves()])

    def _meta_batch(self, n_inner_steps: int) -> MetaBatch:
        tasks = Tasks(np.array([0, 2, 3]), ["a", "b", "c"])
        latents = DiagGaussian(*(part[tasks.ids] for part in self.params.omega))
        pre = tuple(self._task_batch(latents) for _ in range(n_inner_steps))
        return MetaBatch(tasks, pre, self._task_batch(latents))

    def _task_batch(self, latents: DiagGaussian) -> TaskBatch:
        shape = (self.steps, self.batch, self.episodes)
        mask = th.ones(shape, dtype=th.float64)
        mask[2:, 0, 1] = 0.0  # cut short
        mask[:, 1, 2] = 0.0  # invalid
        noise = self.normal(self.batch, self.episodes, self.latent_dim)
        z = sample_z(latents, noise)
        observations = self.normal(*shape, 3)
        distribution = self.actor(self.params.theta, observations, z.expand(self.steps, *z.shape))
        actions = distribution.sample(self.generator)
        kept = type(distribution)(*(part.detach() for part in distribution))
        rollout = Rollout(
            observations,
            actions.detach(),
            kept,
            kept.log_prob(actions).detach(),
            self.normal(*shape) * mask,
            mask,
            z,
            noise,
            np.full((self.batch, self.episodes), np.nan),
        )
        advantages = self.normal(*shape) * mask
        return TaskBatch(rollout, advantages, advantages, advantages[0], mask[0], 0.0)


def unadapted(mean: th.Tensor, log_std: th.Tensor) -> Adapted:
    """Tasks' values that share theta."""
    return Adapted(DiagGaussian(mean, log_std), None)


__all__ = ["MetaProblem", "ThirdParty", "Walk", "unadapted"]

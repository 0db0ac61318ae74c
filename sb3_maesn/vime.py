"""VIME: variational information maximising exploration (Houthooft et al. 2016, arXiv:1605.09674)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.common.global_seed import entropy_of, global_seed
from sb3_maesn.common.information_gain import Curiosity, Transitions, action_vectors, as_vectors
from sb3_maesn.common.settings import check_at_least
from sb3_maesn.envs.multi_task import find_multi_task
from sb3_maesn.envs.wrappers import find_horizon

SelfVIME = TypeVar("SelfVIME", bound="VIME")


class VIME(CheckpointMixin, TRPO):
    """TRPO with an intrinsic reward for information gain about the dynamics.

    After each collection, the reward r of a transition becomes r + eta * gain / scale. The gain is the information gain
    of a Bayesian dynamics model from the transition, the scale the mean of the median gains in the last iterations. The
    dynamics model then learns from a replay pool. Episode statistics and evaluations show r alone.

    If the longest episode fits into ``n_steps``, every iteration starts with a reset, and a run that is saved between
    iterations, loaded and continued equals one that was never stopped. Otherwise episodes continue across iterations as
    in SB3.

    :param policy: policy class of TRPO, or its alias
    :param env: environment id, Gymnasium environment or VecEnv; one with several tasks should be narrowed down to one
        of them with ``MultiTaskVecEnv.only(task)``
    :param eta: weight of the intrinsic reward; 0 gives plain TRPO
    :param dynamics_net_arch: units of each hidden layer of the dynamics model
    :param dynamics_learning_rate: learning rate of the dynamics model
    :param n_dynamics_updates: number of gradient steps of the dynamics model in each iteration
    :param dynamics_batch_size: number of transitions in each of these gradient steps
    :param n_dynamics_samples: number of draws of the dynamics model's weights in each estimate
    :param pool_size: largest number of transitions in the replay pool
    :param n_dynamics_data: number of transitions in the bound of Eq. 10, by which the KL to the prior is divided; 50 as
        in the authors' code (5 batches of 10). None for the number in the pool gives the exact bound, but the posterior
        soon becomes so certain that there is little information to gain
    :param prior_std: standard deviation of the weights' prior
    :param likelihood_std: standard deviation of the normalised next observation around the prediction
    :param n_medians: number of iterations over whose median gains the scale of the intrinsic reward averages
    :param seed: seed of all randomness, None for a random one
    :param device: torch device of the policy; the dynamics model is always on the CPU
    :param _init_setup_model: whether to build the networks in the constructor
    :param kwargs: further arguments of ``sb3_contrib.TRPO``
    :raises ValueError: if a setting is out of range, or the observation space is a Dict
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        eta: float = 1e-2,
        dynamics_net_arch: Sequence[int] = (32,),
        dynamics_learning_rate: float = 1e-3,
        n_dynamics_updates: int = 500,
        dynamics_batch_size: int = 10,
        n_dynamics_samples: int = 10,
        pool_size: int = 100_000,
        n_dynamics_data: int | None = 50,
        prior_std: float = 0.5,
        likelihood_std: float = 5.0,
        n_medians: int = 10,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        self.eta = eta
        self.dynamics_net_arch = tuple(dynamics_net_arch)
        self.dynamics_learning_rate = dynamics_learning_rate
        self.n_dynamics_updates = n_dynamics_updates
        self.dynamics_batch_size = dynamics_batch_size
        self.n_dynamics_samples = n_dynamics_samples
        self.pool_size = pool_size
        self.n_dynamics_data = n_dynamics_data
        self.prior_std = prior_std
        self.likelihood_std = likelihood_std
        self.n_medians = n_medians
        self.entropy = entropy_of(seed)
        self._next_observations = NextObservations()
        super().__init__(policy, env, seed=seed, device=device, _init_setup_model=_init_setup_model, **kwargs)

    # Set-up

    def _setup_model(self) -> None:
        self._check_saved_algorithm()
        self._check_settings()
        super()._setup_model()
        self.curiosity = Curiosity(
            get_flattened_obs_dim(self.observation_space),
            get_flattened_obs_dim(self.action_space),
            self.dynamics_net_arch,
            self.pool_size,
            self.dynamics_learning_rate,
            self.prior_std,
            self.likelihood_std,
            self.n_dynamics_samples,
            self.n_dynamics_data,
            self.n_medians,
            self.entropy,
        )

    def _check_settings(self) -> None:
        if isinstance(self.observation_space, spaces.Dict):
            raise ValueError(
                "expected an observation space that is no Dict: wrap the environment in"
                f" gymnasium.wrappers.FlattenObservation; got {self.observation_space}"
            )
        for name in ("dynamics_learning_rate", "prior_std", "likelihood_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        check_at_least(vars(self), {"eta": 0, "n_dynamics_updates": 0})
        numbers = ("dynamics_batch_size", "n_dynamics_samples", "n_dynamics_data", "pool_size", "n_medians")
        check_at_least(vars(self), {name: 1 for name in numbers if getattr(self, name) is not None})
        if any(size < 1 for size in self.dynamics_net_arch):
            raise ValueError(f"dynamics_net_arch must be numbers of at least 1, got {list(self.dynamics_net_arch)}")

    def _excluded_save_params(self) -> list[str]:
        # a run that can resume exactly starts every iteration with a reset: the last observation need not be saved
        return [
            *super()._excluded_save_params(),
            "curiosity",
            "_next_observations",
            "_last_obs",
            "_last_episode_starts",
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, "curiosity", "curiosity.optimizer"], variables

    def _non_inference_tensors(self) -> frozenset[str]:
        return frozenset({"curiosity"})

    def _extra_elements(self) -> int:
        sizes = get_flattened_obs_dim(self.observation_space), get_flattened_obs_dim(self.action_space)
        widths = (sum(sizes), *self.dynamics_net_arch, sizes[0])
        return 2 * sum(a * b for a, b in pairwise(widths))  # mean and rho of every weight

    def _read_training_arrays(self) -> dict[str, th.Tensor]:
        state = self.curiosity.get_extra_state()
        parts = dict(zip(Transitions._fields, state["pool"] or (), strict=False))
        pool = {f"pool/{name}": part for name, part in parts.items()}
        return {
            **self._empty_training_arrays(),
            **super()._read_training_arrays(),
            **pool,
            "medians": th.tensor(state["medians"], dtype=th.float64),
        }

    def _empty_training_arrays(self) -> dict[str, th.Tensor]:
        n_in, n_out = get_flattened_obs_dim(self.observation_space), get_flattened_obs_dim(self.action_space)
        parts = zip(Transitions._fields, (n_in, n_out, n_in), strict=True)
        pool = {f"pool/{name}": th.empty(0, size) for name, size in parts}
        return {**super()._empty_training_arrays(), **pool, "medians": th.empty(0, dtype=th.float64)}

    def _write_training_arrays(self, arrays: Mapping[str, th.Tensor]) -> None:
        super()._write_training_arrays(arrays)
        pool = [arrays[f"pool/{name}"] for name in Transitions._fields]
        if len({len(part) for part in pool}) > 1:
            raise ValueError(f"expected as many transitions in all parts, got {[len(part) for part in pool]}")
        medians = arrays["medians"].tolist()
        self.curiosity.set_extra_state({"pool": pool if len(pool[0]) else None, "medians": medians})

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        given = callback if isinstance(callback, list) else [] if callback is None else [callback]
        converted = [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]
        return super()._init_callback([*converted, self._next_observations], progress_bar)

    # One iteration

    def _iteration_seed(self, purpose: int) -> int:
        """Derive a seed for one part of the current iteration.

        :param purpose: number of the part: 0 reset, 1 collection, 2 dynamics model, 3 policy update
        :return: seed that leaves room for a seed of each member
        """
        return int(np.random.default_rng([self.entropy, self._n_updates, purpose]).integers(2**31 - self.n_envs))

    def _start_episodes(self, env: VecEnv) -> None:
        """Seed and reset the environment if its longest episode fits into an iteration."""
        tasks = find_multi_task(env)
        horizon = find_horizon(env) if tasks is None else tasks.horizon
        if horizon is not None and horizon <= self.n_steps:
            with suppress(NotImplementedError):  # not every VecEnv can be seeded
                env.seed(self._iteration_seed(purpose=0))
            self._last_obs = env.reset()  # type: ignore[assignment]  # SB3's attribute has a narrower type than its VecEnv
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect a rollout, add the intrinsic reward to it, and train the dynamics model.

        :param env: training environment
        :param callback: callback, called at every environment step
        :param rollout_buffer: rollout buffer to fill
        :param n_rollout_steps: number of steps of each member
        :return: whether to go on; False if the callback ended the training
        """
        self._start_episodes(env)
        self._next_observations.clear()
        with global_seed(self._iteration_seed(purpose=1)):
            if not super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps):
                return False
        generator = th.Generator().manual_seed(self._iteration_seed(purpose=2))
        rewards = self.curiosity.rewards(self._transitions(rollout_buffer), generator)
        self._add_rewards(rollout_buffer, self.eta * rewards.numpy().reshape(rollout_buffer.rewards.shape))
        loss = self.curiosity.learn(self.n_dynamics_updates, self.dynamics_batch_size, generator)
        self.logger.record("rollout/intrinsic_reward", self.eta * rewards.mean().item())
        self.logger.record("rollout/median_information_gain", self.curiosity.medians[-1])
        if self.n_dynamics_updates > 0:
            self.logger.record("train/dynamics_loss", loss)
        return True

    def train(self) -> None:
        """Update the policy with TRPO, with randomness that depends on seed and iteration only."""
        with global_seed(self._iteration_seed(purpose=3)):
            super().train()

    def _transitions(self, rollout_buffer: RolloutBuffer) -> Transitions:
        """Turn a rollout into transitions as vectors, ordered by time step, then by member."""
        return Transitions(
            as_vectors(rollout_buffer.observations, self.observation_space),
            action_vectors(rollout_buffer.actions, self.action_space),
            as_vectors(np.stack(self._next_observations.steps), self.observation_space),
        )

    def _add_rewards(self, rollout_buffer: RolloutBuffer, rewards: np.ndarray) -> None:
        """Add intrinsic rewards to a rollout and estimate its returns and advantages again.

        :param rollout_buffer: filled rollout buffer
        :param rewards: weighted intrinsic rewards (T, n_envs)
        """
        rollout_buffer.rewards += rewards
        with th.no_grad():
            last, _ = self.policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]  # not None after a collection
            values = self.policy.predict_values(last)
        assert self._last_episode_starts is not None
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=self._last_episode_starts)

    def learn(
        self: SelfVIME,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "VIME",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfVIME:
        """Train for whole iterations.

        :param total_timesteps: number of environment steps, rounded up to whole iterations
        :param callback: callback or callbacks, as SB3 accepts them
        :param log_interval: number of iterations between logs
        :param tb_log_name: name of the TensorBoard run
        :param reset_num_timesteps: whether to count steps from 0; False continues a run
        :param progress_bar: whether to show a progress bar
        :return: the trained model
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


class NextObservations(BaseCallback):
    """Callback that records the observation after every step, which SB3's rollout buffer lacks.

    ``steps`` holds one array for each step of the rollout (n_envs, *obs_shape).
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[np.ndarray] = []

    def clear(self) -> None:
        """Discard the observations of the last rollout."""
        self.steps = []

    def _on_step(self) -> bool:
        following = np.array(self.locals["new_obs"])
        for member in np.flatnonzero(self.locals["dones"]):
            following[member] = self.locals["infos"][member]["terminal_observation"]
        self.steps.append(following)
        return True

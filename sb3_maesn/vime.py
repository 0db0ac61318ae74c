"""VIME: variational information maximising exploration (Houthooft et al. 2016, arXiv:1605.09674)."""

from collections.abc import Mapping, Sequence
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
from sb3_maesn.envs.multi_task import find_horizon

SelfVIME = TypeVar("SelfVIME", bound="VIME")


class VIME(CheckpointMixin, TRPO):
    """TRPO with an intrinsic reward for what a transition teaches a Bayesian model of the dynamics.

    Between collection and TRPO's update the rewards r become r + eta * gain / scale, where gain is the information gain
    of the transition and scale the mean of the gains' medians in the last iterations; then the model learns from a
    replay pool. Episode statistics and evaluations are those of r alone.

    Where the longest episode fits into ``n_steps``, every iteration starts from a reset and all its randomness comes
    from the seed and the iteration's number, so that a run that is saved between iterations, loaded and continued
    equals one that was never stopped. With fewer steps, episodes go on across iterations as in SB3.

    :param policy: as in TRPO
    :param env: as in TRPO; the members of an environment with tasks should have one task
        (``MultiTaskVecEnv.only(task)``)
    :param eta: weight of the intrinsic reward; 0 leaves TRPO
    :param dynamics_net_arch: hidden units of the dynamics model
    :param dynamics_learning_rate: of the dynamics model
    :param n_dynamics_updates: gradient steps of the dynamics model in each iteration
    :param dynamics_batch_size: transitions of each
    :param n_dynamics_samples: draws of its weights for each estimate
    :param pool_size: transitions in the replay pool
    :param n_dynamics_data: transitions that the model's posterior is to believe to have seen, as the authors' code has
        it (5 batches of 10); None for all in the pool, the exact bound of Eq. 10, with which it soon is so sure of
        itself that little is left to gain
    :param prior_std: standard deviation of the weights' prior
    :param likelihood_std: standard deviation of the next observation, normalised, around the prediction
    :param n_medians: iterations over which the scale of the intrinsic reward averages
    :param seed: of everything random
    :param device: ``"cpu"``, or ``"auto"`` for TRPO's choice; the dynamics model is on the CPU
    :param _init_setup_model: whether to build the networks now
    :param kwargs: further arguments of sb3_contrib.TRPO
    :raises ValueError: for settings out of range and for Dict observations
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
        # an exact continuation starts from a reset, so no observation has to be kept
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

    def _needless_tensors(self) -> frozenset[str]:
        return frozenset({"curiosity"})

    def _extra_elements(self) -> int:
        sizes = get_flattened_obs_dim(self.observation_space), get_flattened_obs_dim(self.action_space)
        widths = (sum(sizes), *self.dynamics_net_arch, sizes[0])
        return 2 * sum(a * b for a, b in pairwise(widths))  # mean and spread of every weight

    def _read_records(self) -> dict[str, th.Tensor]:
        state = self.curiosity.get_extra_state()
        parts = dict(zip(Transitions._fields, state["pool"] or (), strict=False))
        pool = {f"pool/{name}": part for name, part in parts.items()}
        return {
            **self._empty_records(),
            **super()._read_records(),
            **pool,
            "medians": th.tensor(state["medians"], dtype=th.float64),
        }

    def _empty_records(self) -> dict[str, th.Tensor]:
        n_in, n_out = get_flattened_obs_dim(self.observation_space), get_flattened_obs_dim(self.action_space)
        parts = zip(Transitions._fields, (n_in, n_out, n_in), strict=True)
        pool = {f"pool/{name}": th.empty(0, size) for name, size in parts}
        return {**super()._empty_records(), **pool, "medians": th.empty(0, dtype=th.float64)}

    def _write_records(self, records: Mapping[str, th.Tensor]) -> None:
        super()._write_records(records)
        pool = [records[f"pool/{name}"] for name in Transitions._fields]
        if len({len(part) for part in pool}) > 1:
            raise ValueError(f"expected as many transitions in all parts, got {[len(part) for part in pool]}")
        medians = records["medians"].tolist()
        self.curiosity.set_extra_state({"pool": pool if len(pool[0]) else None, "medians": medians})

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        given = callback if isinstance(callback, list) else [] if callback is None else [callback]
        converted = [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]
        return super()._init_callback([*converted, self._next_observations], progress_bar)

    # One iteration

    def _iteration_seed(self, purpose: int) -> int:
        """A seed for one of the parts of the current iteration."""
        return int(np.random.default_rng([self.entropy, self._n_updates, purpose]).integers(2**31 - self.n_envs))

    def _start_episodes(self, env: VecEnv) -> None:
        horizon = find_horizon(env)
        if horizon is not None and horizon <= self.n_steps:
            env.seed(self._iteration_seed(purpose=0))
            self._last_obs = env.reset()  # type: ignore[assignment]  # SB3's own type is narrower than its VecEnv's
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect as TRPO does, then add the intrinsic reward and let the dynamics model learn.

        :param env: as in SB3
        :param callback: as in SB3
        :param rollout_buffer: as in SB3
        :param n_rollout_steps: as in SB3
        :return: False if the callback ended the training
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
        """TRPO's update, whose randomness comes from the iteration alone."""
        with global_seed(self._iteration_seed(purpose=3)):
            super().train()

    def _transitions(self, rollout_buffer: RolloutBuffer) -> Transitions:
        """The rollout as vectors, step by step and member by member."""
        return Transitions(
            as_vectors(rollout_buffer.observations, self.observation_space),
            action_vectors(rollout_buffer.actions, self.action_space),
            as_vectors(np.stack(self._next_observations.steps), self.observation_space),
        )

    def _add_rewards(self, rollout_buffer: RolloutBuffer, rewards: np.ndarray) -> None:
        """Add to the rewards (T, n_envs), and estimate returns and advantages again."""
        rollout_buffer.rewards += rewards
        with th.no_grad():
            last, _ = self.policy.obs_to_tensor(self._last_obs)  # type: ignore[arg-type]  # SB3 has observed by now
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
        """Train; see SB3.

        :param total_timesteps: environment steps, rounded up to whole iterations
        :param callback: as in SB3
        :param log_interval: iterations between logs
        :param tb_log_name: name of the TensorBoard run
        :param reset_num_timesteps: False continues a run
        :param progress_bar: show one
        """
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


class NextObservations(BaseCallback):
    """Keeps where every step of a rollout led, which SB3's rollout buffer does not: (n_envs, *obs_shape) a step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[np.ndarray] = []

    def clear(self) -> None:
        """Forget the last rollout."""
        self.steps = []

    def _on_step(self) -> bool:
        following = np.array(self.locals["new_obs"])
        for member in np.flatnonzero(self.locals["dones"]):
            following[member] = self.locals["infos"][member]["terminal_observation"]
        self.steps.append(following)
        return True

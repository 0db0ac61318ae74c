"""VIME's intrinsic reward as a map from rollouts to rollouts, for the package's own collector of episodes."""

from dataclasses import replace

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_maesn.common.information_gain import Curiosity, Transitions, action_vectors
from sb3_maesn.common.type_aliases import Rollout


class CuriousRewards:
    """Reward map that adds VIME's intrinsic reward and trains the dynamics model after each rollout.

    The last step of an episode gets no intrinsic reward, since a rollout does not hold the observation after it. The
    dynamics model has the default settings of :class:`Curiosity`.

    :param eta: weight of the intrinsic reward
    :param action_space: action space of the environment
    :param rng: random generator that seeds all randomness of the map
    :param n_updates: number of gradient steps of the dynamics model after each rollout
    :param batch_size: number of transitions in each gradient step
    :raises ValueError: if ``eta`` is not positive
    """

    def __init__(
        self,
        eta: float,
        action_space: spaces.Space,
        rng: np.random.Generator,
        n_updates: int = 500,
        batch_size: int = 10,
    ) -> None:
        if not eta > 0:
            raise ValueError(f"expected a positive weight of the intrinsic reward, got eta={eta}")
        self.eta = eta
        self.action_space = action_space
        self.n_updates, self.batch_size = n_updates, batch_size
        self.generator = th.Generator().manual_seed(int(rng.integers(2**62)))
        self.curiosity: Curiosity | None = None

    def __call__(self, rollout: Rollout) -> Rollout:
        """Add intrinsic rewards to a rollout, then train the dynamics model.

        :param rollout: collected episodes
        :return: new rollout with the sum of both rewards
        """
        known = rollout.mask[1:] > 0  # (T - 1, B, K): steps after which the episode goes on
        if not known.any():
            return rollout
        actions = action_vectors(rollout.actions[:-1][known].numpy(), self.action_space)
        observations = rollout.observations.flatten(3)  # (T, B, K, *obs_shape) -> (T, B, K, O)
        transitions = Transitions(observations[:-1][known], actions, observations[1:][known])
        rewards = rollout.rewards.clone()
        rewards[:-1][known] += self.eta * self._model(transitions).rewards(transitions, self.generator)
        self._model(transitions).learn(self.n_updates, self.batch_size, self.generator)
        return replace(rollout, rewards=rewards)

    def _model(self, transitions: Transitions) -> Curiosity:
        """Return the dynamics model, which is built when the sizes of the first transitions are known."""
        if self.curiosity is None:
            sizes = (transitions.observations.shape[1], transitions.actions.shape[1])
            seed = int(th.randint(2**31, (), generator=self.generator))
            self.curiosity = Curiosity(*sizes, seed=seed)
        return self.curiosity

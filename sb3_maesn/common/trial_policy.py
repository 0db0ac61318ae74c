"""Recurrent policy whose memory lasts for a trial of several episodes."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_maesn.envs.trials import transition_size

LstmState = tuple[np.ndarray, np.ndarray]
"""Hidden and cell state, the ``state`` of ``predict``, (layers, n, hidden) each."""


class Memory(NamedTuple):
    """Knowledge of a task that a policy carries from one episode to the next.

    :param state: hidden and cell state after the last step's input, (layers, 1, hidden) each
    :param transition: last action, reward and done, which are part of the next input (A + 2,)
    """

    state: LstmState
    transition: np.ndarray


class TrialLstmPolicy(RecurrentActorCriticPolicy):
    """Recurrent policy of sb3-contrib for observations of a :class:`~sb3_maesn.envs.trials.TrialVecEnv`.

    ``predict(obs, state, episode_start)`` follows SB3's recurrent convention, where ``episode_start`` marks the starts
    of trials. A call within a trial must pass the state, without which the policy would forget the trial. Predictions
    start a trial with an empty memory, or with the one that :meth:`set_memory` installs, so that they continue where
    another trial stopped; training always starts with an empty memory.

    :param observation_space: observation space of the TrialVecEnv
    :param action_space: action space of the TrialVecEnv
    :param lr_schedule: learning rate schedule
    :param kwargs: further arguments of RecurrentActorCriticPolicy
    :raises ValueError: for ``use_sde``
    """

    memory_hidden: th.Tensor
    memory_cell: th.Tensor
    memory_transition: th.Tensor

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Schedule, **kwargs: Any
    ):
        if kwargs.get("use_sde"):
            raise ValueError("expected use_sde=False: a trial's memory is the exploration that lasts; got True")
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.register_buffer("memory_hidden", th.zeros(self.lstm_hidden_state_shape))
        self.register_buffer("memory_cell", th.zeros(self.lstm_hidden_state_shape))
        self.register_buffer("memory_transition", th.zeros(transition_size(action_space)))

    def __getstate__(self) -> dict[str, Any]:
        # the distribution of the last training batch holds a graph, which cannot be copied
        return {**self.__dict__, "action_dist": make_proba_distribution(self.action_space)}

    def set_memory(self, memory: Memory) -> None:
        """Install the memory with which later predictions start every trial.

        :param memory: memory at the start of a trial
        """
        for buffer, value in zip(
            (self.memory_hidden, self.memory_cell, self.memory_transition),
            (*memory.state, memory.transition),
            strict=True,
        ):
            buffer.copy_(th.as_tensor(value))

    @staticmethod
    def _process_sequence(
        features: th.Tensor, lstm_states: tuple[th.Tensor, th.Tensor], episode_starts: th.Tensor, lstm: nn.LSTM
    ) -> tuple[th.Tensor, th.Tensor]:
        """Run the LSTM over whole sequences in one call, where sb3-contrib makes one call per step.

        sb3-contrib's buffer cuts its sequences where trials start, so only the first step of a sequence can reset the
        state.

        :param features: features, sequence by sequence (n * T, F)
        :param lstm_states: hidden and cell state before the sequences, (layers, n, hidden) each
        :param episode_starts: 1 where a trial starts, else 0 (n * T,)
        :param lstm: LSTM to run
        :return: outputs of the LSTM (n * T, hidden), and hidden and cell state after the sequences
        """
        n = lstm_states[0].shape[1]
        starts = episode_starts.reshape(n, -1)  # (n * T,) -> (n, T)
        if starts[:, 1:].any():
            return RecurrentActorCriticPolicy._process_sequence(features, lstm_states, episode_starts, lstm)
        keep = (1.0 - starts[:, 0]).view(1, n, 1)
        hidden, cell = lstm_states
        no_starts = th.zeros_like(episode_starts)
        # a pair of outputs and states, although sb3-contrib annotates the return value otherwise
        return RecurrentActorCriticPolicy._process_sequence(features, (keep * hidden, keep * cell), no_starts, lstm)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions, with the memory of the trial carried in ``state``.

        :param observation: one observation of a TrialVecEnv (O + A + 2,), or a batch (n, O + A + 2)
        :param state: hidden and cell state that the last call returned, (layers, n, hidden) each; None only if all
            trials start
        :param episode_start: true where a trial starts (n,)
        :param deterministic: whether to take the most likely actions
        :return: actions and state
        :raises ValueError: if there is no state within a trial, or the observation is not that of a TrialVecEnv
        """
        assert isinstance(observation, np.ndarray)  # a TrialVecEnv's space is a Box
        batch = self._check_observation(observation)
        starts = np.zeros(len(batch), dtype=bool)
        if episode_start is not None:
            starts |= np.asarray(episode_start, dtype=bool).ravel()
        if state is None and not starts.all():
            raise ValueError(
                "expected the state that the last predict returned, got None: without it the policy forgets its trial."
                " Where all trials start, say so with episode_start=numpy.ones(n_envs, dtype=bool)"
            )
        memory = self.memory_hidden.cpu().numpy(), self.memory_cell.cpu().numpy()
        before = memory if state is None else state
        carried = tuple(np.where(starts[None, :, None], *pair) for pair in zip(memory, before, strict=True))
        batch[starts, -self.memory_transition.numel() :] = self.memory_transition.cpu().numpy()
        actions, after = super().predict(batch, carried, None, deterministic)
        return (actions[0] if observation.ndim == 1 else actions), after

    def _check_observation(self, observation: np.ndarray) -> np.ndarray:
        """Copy the observations to a batch (n, O + A + 2), or raise an error if their size is wrong."""
        assert self.observation_space.shape is not None
        (size,) = self.observation_space.shape
        batch = np.array(observation, dtype=np.float32, ndmin=2)
        if batch.ndim != 2 or batch.shape[1] != size:
            raise ValueError(
                f"expected observations of size {size}, each followed by the previous action, reward and done as a"
                f" TrialVecEnv gives them, got shape {observation.shape}"
            )
        return batch

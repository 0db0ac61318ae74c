"""Latent-conditioned actor-critic policies, whose recurrent state is the latent."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_maesn.common.distributions import ActionDistribution, Categorical, DiagGaussian, check_action_space


class LatentActor(nn.Module):
    """Actor of a policy as a module of its own, whose parameters are theta.

    :param policy: policy whose modules the actor shares
    """

    def __init__(self, policy: "LatentActorCriticPolicy"):
        super().__init__()
        self.features_extractor = policy.pi_features_extractor
        self.policy_net = policy.mlp_extractor.policy_net
        self.action_net = policy.action_net
        self.observation_shape = policy.preprocessed_shape
        self.log_std = policy.log_std if isinstance(policy.action_dist, DiagGaussianDistribution) else None

    def forward(self, observations: th.Tensor, latents: th.Tensor) -> ActionDistribution:
        """Compute action distributions.

        :param observations: preprocessed observations (..., *obs_shape)
        :param latents: latents (..., L); if they have fewer leading dimensions, they are broadcast over the first ones
        :return: action distributions (..., A)
        """
        leading = observations.shape[: observations.ndim - len(self.observation_shape)]
        features = self.features_extractor(observations.reshape(-1, *self.observation_shape))  # (N, F)
        first, *others = [*self.policy_net, self.action_net]
        assert isinstance(first, nn.Linear)  # the first layer of an MlpExtractor, or the action net
        hidden = first_layer(first, features.view(*leading, features.shape[-1]), latents)  # (..., H)
        output = hidden.flatten(0, -2) if leading else hidden  # (N, H)
        for layer in others:
            output = layer(output)
        output = output.view(*leading, output.shape[-1])  # (N, A) -> (..., A)
        if self.log_std is None:
            return Categorical(output)
        return DiagGaussian(output, self.log_std.view(*(1,) * len(leading), -1))


def first_layer(layer: nn.Linear, features: th.Tensor, latents: th.Tensor) -> th.Tensor:
    """Apply a linear layer to features and latents without concatenating them.

    The contribution of a latent is computed once for all steps that share it, and observations need no gradient.

    :param layer: linear layer with F + L inputs
    :param features: features of the observations (..., F)
    :param latents: latents (..., L); if they have fewer leading dimensions, they are broadcast over the first ones
    :return: outputs of the layer (..., H)
    """
    size = features.shape[-1]
    hidden = nn.functional.linear(features, layer.weight[:, :size], layer.bias)
    return hidden if latents.shape[-1] == 0 else hidden + nn.functional.linear(latents, layer.weight[:, size:])


class LatentActorCriticPolicy(ActorCriticPolicy):
    """Actor-critic policy that also observes a latent z, drawn once per episode (Gupta et al. 2018, section 4.1).

    ``predict(obs, state, episode_start)`` draws z from N(latent_mean, exp(latent_log_std)) at the start of an episode
    and carries it in ``state``, as SB3's recurrent policies carry their state. It draws z for deterministic predictions
    too: ``deterministic`` refers to the action given z. The latent distribution is the prior N(0, I) until
    :meth:`set_latent_distribution` installs an adapted one.

    :param observation_space: observation space, which must not be a Dict
    :param action_space: action space, a Box or a Discrete space that starts at 0
    :param lr_schedule: learning rate schedule of the critic
    :param latent_dim: number of latent dimensions, L; 0 gives a policy without a latent
    :param net_arch: hidden layers, as in SB3; None for the paper's two layers of 100 units
    :param activation_fn: activation function; the paper uses ReLU
    :param glorot_init: whether to initialise the actor's weights as the paper's authors did (uniform, Glorot and Bengio
        2010) instead of by ``ortho_init``; the action then depends on the latent from the start, so that tasks with
        different latents diverge before the prior draws them together
    :param kwargs: further arguments of ActorCriticPolicy
    :raises ValueError: for a space that is not supported, ``use_sde`` or a negative ``latent_dim``
    """

    latent_mean: th.Tensor
    latent_log_std: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        latent_dim: int = 2,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        glorot_init: bool = False,
        **kwargs: Any,
    ):
        if isinstance(observation_space, spaces.Dict | spaces.Tuple):
            raise ValueError(
                "expected an observation space that is no Dict and no Tuple: wrap the environment in"
                f" gymnasium.wrappers.FlattenObservation; got {observation_space}"
            )
        if kwargs.get("use_sde"):
            raise ValueError(
                "expected use_sde=False: the latent takes the place of state-dependent exploration; got True"
            )
        if latent_dim < 0:
            raise ValueError(f"latent_dim must not be negative, got {latent_dim}")
        check_action_space(action_space)
        self.latent_dim = latent_dim
        self.glorot_init = glorot_init
        net_arch = {"pi": [100, 100], "vf": [100, 100]} if net_arch is None else net_arch
        super().__init__(observation_space, action_space, lr_schedule, net_arch, activation_fn, **kwargs)
        self.register_buffer("latent_mean", th.zeros(latent_dim))
        self.register_buffer("latent_log_std", th.zeros(latent_dim))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"latent_dim": self.latent_dim, "glorot_init": self.glorot_init}
        return {**super()._get_constructor_parameters(), **own}

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.glorot_init:
            for module in (*self.mlp_extractor.policy_net.modules(), self.action_net):
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MlpExtractor(
            self.features_dim + self.latent_dim,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            device=self.device,
        )

    @property
    def preprocessed_shape(self) -> tuple[int, ...]:
        """Shape of one observation after SB3's preprocessing (one-hot for discrete spaces)."""
        space = self.observation_space
        if isinstance(space, spaces.Discrete):
            return (int(space.n),)
        if isinstance(space, spaces.MultiDiscrete):
            return (int(sum(space.nvec)),)
        assert space.shape is not None
        return space.shape

    def make_actor(self) -> LatentActor:
        """Create the actor as a module that shares this policy's parameters.

        :return: actor
        """
        return LatentActor(self)

    def critic_parameters(self) -> list[nn.Parameter]:
        """List the parameters that only the critic uses.

        :return: parameters of the critic
        """
        modules: list[nn.Module] = [self.mlp_extractor.value_net, self.value_net]
        if not self.share_features_extractor:
            modules.append(self.vf_features_extractor)
        return [parameter for module in modules for parameter in module.parameters()]

    def preprocess(self, observations: np.ndarray) -> th.Tensor:
        """Preprocess observations as SB3 does.

        :param observations: raw observations (N, ...)
        :return: preprocessed observations, float (N, *preprocessed_shape)
        """
        tensor = th.as_tensor(observations, device=self.device)
        processed = preprocess_obs(tensor, self.observation_space, normalize_images=self.normalize_images)
        assert isinstance(processed, th.Tensor)
        return processed

    def preprocess_into(self, out: th.Tensor, observations: np.ndarray) -> None:
        """Preprocess observations into an existing tensor.

        :param out: float tensor to fill (n, *preprocessed_shape)
        :param observations: at least n raw observations, of which the first n are used
        """
        space = self.observation_space
        if isinstance(space, spaces.Box) and space.dtype != np.uint8:  # not an image: only the dtype changes
            out.copy_(th.as_tensor(observations)[: len(out)])
        else:
            out.copy_(self.preprocess(observations)[: len(out)])

    def set_latent_distribution(self, mean: np.ndarray | th.Tensor, log_std: np.ndarray | th.Tensor) -> None:
        """Install the distribution from which :meth:`predict` draws latents.

        :param mean: mean (L,)
        :param log_std: log standard deviation (L,)
        :raises ValueError: unless both are finite and of shape (L,)
        """
        for name, value in (("mean", mean), ("log_std", log_std)):
            tensor = th.as_tensor(value, dtype=self.latent_mean.dtype, device=self.device)
            if tensor.shape != (self.latent_dim,) or not bool(th.isfinite(tensor).all()):
                raise ValueError(f"expected a finite latent {name} of shape ({self.latent_dim},), got {value}")
            getattr(self, f"latent_{name}").copy_(tensor)

    def draw_latents(self, n: int) -> th.Tensor:
        """Draw latents from the current latent distribution.

        The draws come from torch's global generator, as SB3's actions do.

        :param n: number of latents
        :return: latents (n, L)
        """
        noise = th.randn(n, self.latent_dim, device=self.device)
        return self.latent_mean + th.exp(self.latent_log_std) * noise

    def _conditioned(self, obs: PyTorchObs, latents: th.Tensor | None, extractor: nn.Module) -> th.Tensor:
        """Extract the features of observations and append the latents, or the latent mean if there are none."""
        features = super(ActorCriticPolicy, self).extract_features(obs, extractor)  # type: ignore[arg-type]  # an extractor is a module
        if latents is None:
            latents = self.latent_mean.expand(features.shape[0], -1)
        return th.cat([features, latents], dim=-1)

    def get_distribution(self, obs: PyTorchObs, latents: th.Tensor | None = None) -> Distribution:
        """Compute the action distribution.

        :param obs: observations (N, *obs_shape)
        :param latents: latents (N, L); None for the mean of the latent distribution
        :return: action distribution, SB3's object
        """
        features = self._conditioned(obs, latents, self.pi_features_extractor)
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(features))

    def predict_values(self, obs: PyTorchObs, latents: th.Tensor | None = None) -> th.Tensor:
        """Compute the critic's values.

        :param obs: observations (N, *obs_shape)
        :param latents: latents (N, L); None for the mean of the latent distribution
        :return: values (N, 1)
        """
        features = self._conditioned(obs, latents, self.vf_features_extractor)
        values: th.Tensor = self.value_net(self.mlp_extractor.forward_critic(features))
        return values

    def forward(
        self, obs: th.Tensor, deterministic: bool = False, latents: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Compute actions, values and log probabilities.

        :param obs: observations (N, *obs_shape)
        :param deterministic: whether to take the most likely actions
        :param latents: latents (N, L); None for the mean of the latent distribution
        :return: actions (N, A), values (N, 1) and log probabilities of the actions (N,)
        """
        distribution = self.get_distribution(obs, latents)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        return actions.reshape(-1, *(self.action_space.shape or ())), self.predict_values(obs, latents), log_prob

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor, latents: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """Compute values, and log probabilities and entropies of given actions.

        :param obs: observations (N, *obs_shape)
        :param actions: actions (N, A)
        :param latents: latents (N, L); None for the mean of the latent distribution
        :return: values (N, 1), log probabilities of the actions (N,) and entropies (N,)
        """
        distribution = self.get_distribution(obs, latents)
        return self.predict_values(obs, latents), distribution.log_prob(actions), distribution.entropy()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions, with one latent per episode carried in ``state``.

        :param observation: one observation, or a batch of n
        :param state: state that the last call returned, a tuple of one array (n, L); None to draw new latents
        :param episode_start: true where an episode starts and a new latent is drawn (n,)
        :param deterministic: whether to take the most likely actions given the latents
        :return: actions and state
        :raises ValueError: if the state's shape does not fit the observations
        """
        self.set_training_mode(False)
        obs, vectorized = self.obs_to_tensor(observation)
        assert isinstance(obs, th.Tensor)
        latents = self._next_latents(obs.shape[0], state, episode_start)
        with th.no_grad():
            distribution = self.get_distribution(obs, latents)
            actions = distribution.get_actions(deterministic=deterministic).cpu().numpy()
        actions = actions.reshape(-1, *(self.action_space.shape or ()))
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return (actions if vectorized else actions.squeeze(axis=0)), (latents.cpu().numpy(),)

    def _next_latents(
        self, n: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None
    ) -> th.Tensor:
        """Return the carried latents, with new ones where an episode starts (n, L)."""
        if state is None:
            return self.draw_latents(n)
        latents = th.tensor(np.asarray(state[0]), dtype=self.latent_mean.dtype, device=self.device)
        if latents.shape != (n, self.latent_dim):
            raise ValueError(
                f"expected a state of shape {(n, self.latent_dim)} for {n} environments, got {tuple(latents.shape)}"
            )
        if episode_start is not None:
            starts = np.flatnonzero(np.broadcast_to(np.asarray(episode_start, dtype=bool).ravel(), (n,)))
            latents[starts] = self.draw_latents(len(starts))
        return latents


class PlainActorCriticPolicy(LatentActorCriticPolicy):
    """Actor-critic policy without a latent and without a state.

    :param observation_space: observation space, which must not be a Dict
    :param action_space: action space, a Box or a Discrete space that starts at 0
    :param lr_schedule: learning rate schedule of the critic
    :param net_arch: hidden layers, as in SB3; None for two layers of 100 units
    :param activation_fn: activation function
    :param kwargs: further arguments of ActorCriticPolicy
    :raises ValueError: for a ``latent_dim`` other than 0, and as in :class:`LatentActorCriticPolicy`
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        **kwargs: Any,
    ):
        latent_dim = kwargs.pop("latent_dim", 0)  # a saved policy passes it among its parameters
        if latent_dim != 0:
            raise ValueError(f"expected a policy without a latent (latent_dim=0), got latent_dim={latent_dim}")
        super().__init__(observation_space, action_space, lr_schedule, 0, net_arch, activation_fn, **kwargs)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions as SB3's feed-forward policies do.

        :param observation: one observation, or a batch of n
        :param state: ignored state, which is returned unchanged
        :param episode_start: ignored
        :param deterministic: whether to take the most likely actions
        :return: actions and ``state``
        """
        return super().predict(observation, None, None, deterministic)[0], state


LatentMlpPolicy = LatentActorCriticPolicy
MlpPolicy = PlainActorCriticPolicy

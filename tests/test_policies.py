"""The latent as the policy's recurrent state, and the spaces that the policy takes."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn

from sb3_maesn.common.distributions import Categorical, DiagGaussian
from sb3_maesn.common.policies import LatentActorCriticPolicy, LatentMlpPolicy
from sb3_maesn.envs import make_vec

OBSERVATION = spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTION = spaces.Box(-1.0, 1.0, (2,), np.float32)
SPACES: dict[str, spaces.Space] = {
    "vector": OBSERVATION,
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "image": spaces.Box(0, 255, (3, 8, 6), np.uint8),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(5),
}
ACTIONS: dict[str, spaces.Space] = {
    "numbers": ACTION,
    "matrix": spaces.Box(-2.0, 1.0, (2, 2), np.float32),
    "choice": spaces.Discrete(3),
}


def make_policy(
    observation: spaces.Space = OBSERVATION, action: spaces.Space = ACTION, **kwargs: Any
) -> LatentActorCriticPolicy:
    th.manual_seed(0)
    return LatentMlpPolicy(observation, action, lambda _: 1e-3, **{"net_arch": [8], **kwargs})


class CountingPolicy(LatentActorCriticPolicy):
    """Counts the latents it draws."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.n_drawn = 0

    def draw_latents(self, n: int) -> th.Tensor:
        self.n_drawn += n
        return super().draw_latents(n)


def observations(policy: LatentActorCriticPolicy, n: int) -> np.ndarray:
    policy.observation_space.seed(0)
    return np.stack([policy.observation_space.sample() for _ in range(n)])


# The state of predict


def test_a_latent_lasts_from_one_episode_start_to_the_next() -> None:
    policy = make_policy()
    obs = np.zeros((4, 3))
    _, first = policy.predict(obs, None, np.ones(4, dtype=bool))
    assert first is not None
    assert first[0].shape == (4, 2)
    assert len(np.unique(first[0])) == 8  # each episode has a latent of its own
    _, second = policy.predict(obs, first, np.zeros(4, dtype=bool))
    assert second is not None
    assert (second[0] == first[0]).all()
    starts = np.array([False, True, False, True])
    _, third = policy.predict(obs, second, starts)
    assert third is not None
    assert ((third[0] == second[0]).all(axis=1) == ~starts).all()
    assert (first[0] == second[0]).all()  # a state that was handed out is not changed


@pytest.mark.parametrize("episode_start", [None, np.zeros(2, dtype=bool), np.array([0.0, 0.0])])
def test_the_state_decides_the_action(episode_start: np.ndarray | None) -> None:
    policy, obs = make_policy(), np.ones((2, 3))
    states = [(np.full((2, 2), value, dtype=np.float32),) for value in (-2.0, 2.0)]
    left, right = (policy.predict(obs, state, episode_start, deterministic=True)[0] for state in states)
    assert not np.allclose(left, right)
    assert np.allclose(left, policy.predict(obs, states[0], episode_start, deterministic=True)[0])


def test_deterministic_speaks_of_the_action_and_not_of_the_latent() -> None:
    policy, obs = make_policy(), np.ones(3)
    states = [policy.predict(obs, deterministic=True)[1] for _ in range(2)]
    assert states[0] is not None
    assert states[1] is not None
    assert not np.allclose(states[0][0], states[1][0])
    actions = [policy.predict(obs, states[0], deterministic=False)[0] for _ in range(2)]
    assert not np.allclose(actions[0], actions[1])


def test_one_observation_gives_one_action() -> None:
    policy = make_policy()
    action, state = policy.predict(np.zeros(3))
    assert action.shape == (2,)
    assert state is not None
    assert state[0].shape == (1, 2)


@pytest.mark.parametrize("shape", [(2,), (1, 3), (2, 2)])
def test_a_state_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a state of shape \(1, 2\) for 1 environments, got \("):
        make_policy().predict(np.zeros((1, 3)), (np.zeros(shape),), np.zeros(1, dtype=bool))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_evaluate_policy_draws_one_latent_an_episode(n_envs: int) -> None:
    env = make_vec("PointGoal-v0", n_envs)
    policy = CountingPolicy(env.observation_space, env.action_space, lambda _: 1e-3)
    returns, lengths = evaluate_policy(policy, env, n_eval_episodes=6, return_episode_rewards=True, warn=False)
    assert len(returns) == 6  # type: ignore[arg-type]  # lists, as asked for
    assert lengths == [20] * 6
    assert policy.n_drawn == 6


def test_draws_follow_the_installed_distribution() -> None:
    policy = make_policy()
    prior = policy.draw_latents(20_000)
    assert th.allclose(prior.mean(dim=0), th.zeros(2), atol=0.03)
    assert th.allclose(prior.std(dim=0), th.ones(2), atol=0.03)
    policy.set_latent_distribution(np.array([2.0, -1.0]), np.log([0.1, 3.0]))
    adapted = policy.draw_latents(20_000)
    assert th.allclose(adapted.mean(dim=0), th.tensor([2.0, -1.0]), atol=0.1)
    assert th.allclose(adapted.std(dim=0), th.tensor([0.1, 3.0]), rtol=0.03)
    copy = make_policy()
    copy.load_state_dict(policy.state_dict())  # the distribution is saved with the policy
    assert th.equal(copy.latent_mean, policy.latent_mean)


@pytest.mark.parametrize("mean", [np.zeros(3), np.array([0.0, np.nan]), 0.0])
def test_a_bad_distribution_is_refused(mean: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a finite latent mean of shape \(2,\), got"):
        make_policy().set_latent_distribution(mean, np.zeros(2))


# Spaces and shapes


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", SPACES)
@pytest.mark.parametrize("latent_dim", [0, 2, 5])
def test_spaces(observation: str, action: str, latent_dim: int) -> None:
    policy = make_policy(SPACES[observation], ACTIONS[action], latent_dim=latent_dim)
    obs = observations(policy, 5)
    actions, state = policy.predict(obs)
    assert state is not None
    assert state[0].shape == (5, latent_dim)
    assert all(policy.action_space.contains(one) for one in actions.astype(policy.action_space.dtype))
    taken, values, log_prob = policy(th.as_tensor(obs), latents=th.as_tensor(state[0]))
    assert taken.shape == (5, *(policy.action_space.shape or ()))
    assert values.shape == (5, 1)
    assert log_prob.shape == (5,)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", SPACES)
def test_the_actor_alone_is_the_policy(observation: str, action: str) -> None:
    policy = make_policy(SPACES[observation], ACTIONS[action])
    obs = observations(policy, 6)
    latents = th.randn(6, 2)
    got = policy.make_actor()(policy.preprocess(obs).reshape(2, 3, *policy.preprocessed_shape), latents.view(2, 3, 2))
    assert isinstance(got, Categorical if action == "choice" else DiagGaussian)
    expected = policy.get_distribution(th.as_tensor(obs), latents).distribution
    if isinstance(got, Categorical):
        mine, theirs = th.log_softmax(got.logits, dim=-1), expected.logits  # type: ignore[union-attr]  # SB3's union
    else:
        mine, theirs = got.mean, expected.mean  # type: ignore[union-attr]  # SB3's union
    assert mine.shape[:2] == (2, 3)
    assert th.allclose(mine.flatten(0, 1), theirs, atol=1e-6)


@pytest.mark.parametrize("net_arch", [[], [5, 4]])
def test_steps_that_share_their_latents_need_them_once(net_arch: list[int]) -> None:
    actor = make_policy(net_arch=net_arch, ortho_init=False).make_actor()
    obs, latents = th.randn(7, 2, 3, 3), th.randn(2, 3, 2, requires_grad=True)
    shared, repeated = actor(obs, latents).mean, actor(obs, latents.expand(7, 2, 3, 2)).mean
    assert shared.shape == (7, 2, 3, 2)
    assert th.allclose(shared, repeated, atol=1e-6)
    for mean in (shared, repeated):
        assert not th.allclose(mean, actor(obs, 1.0 + latents).mean, atol=1e-3)
    weights = th.randn(shared.shape)
    gradients = [th.autograd.grad((weights * mean).sum(), latents)[0] for mean in (shared, repeated)]
    assert th.allclose(gradients[0], gradients[1], atol=1e-5)


def test_values_and_log_probabilities_depend_on_the_latent() -> None:
    policy = make_policy(ortho_init=False)  # which would make the first actions nearly independent of everything
    obs, actions = th.zeros(2, 3), th.zeros(2, 2)
    low, high = (policy.evaluate_actions(obs, actions, th.full((2, 2), value)) for value in (-1.0, 1.0))
    for first, second in zip(low[:2], high[:2], strict=True):  # values and log probabilities
        assert first is not None
        assert second is not None
        assert not th.allclose(first, second)
    mean = policy.latent_mean.expand(2, -1)
    assert th.allclose(policy.predict_values(obs), policy.predict_values(obs, mean))  # the mean where none is given


def test_glorot_init_is_the_authors() -> None:
    policy = make_policy(glorot_init=True, net_arch=[50, 50])
    layers = [module for module in policy.make_actor().modules() if isinstance(module, nn.Linear)]
    assert [layer.in_features for layer in layers] == [5, 50, 50]
    for layer in layers:
        bound = (6.0 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max().item() <= bound
        assert not bool(layer.bias.any())
    obs, latents = th.zeros(200, 3), th.randn(200, 2, generator=th.Generator().manual_seed(0))
    spread = [
        one.get_distribution(obs, latents).mode().std().item() for one in (make_policy(glorot_init=True), make_policy())
    ]
    assert spread[0] > 10.0 * spread[1]  # the latent tells actions apart from the start


def test_a_convolutional_extractor_sees_images() -> None:
    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    policy = make_policy(space, features_extractor_class=NatureCNN, features_extractor_kwargs={"features_dim": 16})
    obs = observations(policy, 4)
    actor = policy.make_actor()
    got = actor(policy.preprocess(obs).view(2, 2, 3, 36, 36), th.zeros(2, 2, 2))
    assert got.mean.shape == (2, 2, 2)
    assert policy.preprocess(obs).max() <= 1.0
    expected = preprocess_obs(th.as_tensor(obs), space)
    assert isinstance(expected, th.Tensor)
    assert th.equal(policy.preprocess(obs), expected)


@pytest.mark.parametrize("observation", [*SPACES, "image"])
def test_preprocessing_in_place_takes_the_first_observations(observation: str) -> None:
    policy = make_policy({**SPACES, "image": spaces.Box(0, 255, (3, 36, 36), np.uint8)}[observation])
    obs = observations(policy, 5)
    out = th.full((4, *policy.preprocessed_shape), th.nan)
    policy.preprocess_into(out, obs)
    assert th.equal(out, policy.preprocess(obs)[:4])


def test_dict_observations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"FlattenObservation; got Dict"):
        make_policy(spaces.Dict({"a": OBSERVATION}))


def test_state_dependent_exploration_is_refused() -> None:
    with pytest.raises(ValueError, match="expected use_sde=False"):
        make_policy(use_sde=True)


def test_a_negative_latent_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="latent_dim must not be negative, got -1"):
        make_policy(latent_dim=-1)


def test_a_saved_policy_comes_back(tmp_path: Any) -> None:
    policy = make_policy(latent_dim=3)
    policy.set_latent_distribution(np.ones(3), np.zeros(3))
    policy.save(tmp_path / "policy")
    loaded = LatentActorCriticPolicy.load(tmp_path / "policy")
    assert loaded.latent_dim == 3
    state = (np.ones((1, 3), dtype=np.float32),)
    results = [one.predict(np.ones(3), state, deterministic=True)[0] for one in (policy, loaded)]
    assert (results[0] == results[1]).all()

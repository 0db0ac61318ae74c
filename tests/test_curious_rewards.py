"""The intrinsic reward of the package's own rollouts, and adaptation with it."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_maesn import MultiTaskVecEnv
from sb3_maesn.common.curious_rewards import CuriousRewards
from sb3_maesn.common.distributions import Categorical, DiagGaussian
from sb3_maesn.common.type_aliases import Rollout
from sb3_maesn.envs import make_vec
from tests.tiny import tiny

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def rollout(seed: int = 0, discrete: bool = False) -> Rollout:
    """6 steps of 2 tasks x 5 episodes, the first episode cut short after 3 steps."""
    source = th.Generator().manual_seed(seed)
    steps = (6, 2, 5)
    mask = th.ones(steps)
    mask[3:, 0, 0] = 0.0
    actions = th.randn(*steps, 2, generator=source)
    mean = th.zeros(*steps, 2)
    positions = 0.1 * actions.cumsum(dim=0) * mask.unsqueeze(-1)
    return Rollout(
        observations=positions,
        actions=th.randint(2, steps, generator=source) if discrete else actions,
        distribution=Categorical(mean) if discrete else DiagGaussian(mean, th.zeros(1, 1, 1, 2)),
        log_prob=th.zeros(steps),
        rewards=-1.0 * mask,
        mask=mask,
        latents=th.zeros(2, 5, 2),
        noise=th.zeros(2, 5, 2),
        success=np.full((2, 5), np.nan),
    )


@pytest.mark.parametrize("discrete", [False, True])
def test_every_step_but_an_episodes_last_gains(discrete: bool) -> None:
    before = rollout(discrete=discrete)
    space = spaces.Discrete(2) if discrete else BOX
    after = CuriousRewards(0.5, space, np.random.default_rng(0), n_updates=2)(before)
    gained = after.rewards - before.rewards
    assert (gained[:2] > 0).all()
    assert (gained[:5, 1] > 0).all()
    assert (gained[2:, 0, 0] == 0).all()  # the third step is that episode's last
    assert (gained[5] == 0).all()
    assert th.equal(before.rewards, -1.0 * before.mask)  # the rollout that came in is as it was
    assert replace(after, rewards=before.rewards).observations is before.observations
    known = before.mask[1:] > 0
    assert gained[:-1][known].median().item() == pytest.approx(0.5, rel=1e-4)


def test_episodes_of_one_step_teach_nothing() -> None:
    short = rollout()
    short.mask[1:] = 0.0
    curious = CuriousRewards(0.5, BOX, np.random.default_rng(0))
    assert th.equal(curious(short).rewards, short.rewards)
    assert curious(rollout()).rewards.isfinite().all()


def test_the_model_learns_from_call_to_call() -> None:
    """What is seen again and again teaches ever less, so a rollout elsewhere stands out."""
    curious = CuriousRewards(1.0, BOX, np.random.default_rng(0), n_updates=200, batch_size=20)
    for seed in range(5):
        curious(rollout(seed))
    assert curious.curiosity is not None
    medians = list(curious.curiosity.medians)
    assert medians[-1] < 0.5 * medians[0]
    known = rollout(6)
    far = replace(known, observations=known.observations + 3.0)
    usual = (curious(known).rewards - known.rewards).mean()
    assert (curious(far).rewards - far.rewards).mean() > 3.0 * usual


def test_adaptation_takes_an_intrinsic_reward() -> None:
    model = tiny(MultiTaskVecEnv(make_vec("PointGoalSparse-v0", 12)))
    goal = np.array([0.0, -1.5])  # behind, where no reward tells anything
    plain, curious, again = (
        model.adapt(task=goal, n_rounds=1, n_episodes=5, n_policy_rounds=2, eta=eta) for eta in (0.0, 1.0, 1.0)
    )
    assert plain.policy_adaptation == curious.policy_adaptation  # the environment's own returns, and no hit yet
    weights = [dict(one.policy.named_parameters())["action_net.weight"] for one in (plain, curious, again)]
    assert not th.equal(weights[0], weights[1])
    assert th.equal(weights[1], weights[2])
    with pytest.raises(ValueError, match="eta=-1"):
        model.adapt(task=goal, n_rounds=0, n_episodes=5, n_policy_rounds=1, eta=-1.0)

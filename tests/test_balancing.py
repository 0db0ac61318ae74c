"""Even division of shared episodes: equal use, and the slope of the prices against finite differences."""

import pytest
import torch as th

from sb3_maesn.common import balancing
from sb3_maesn.common.balancing import episode_prices

GROUPS = th.tensor([0, 0, 0, 0, 1, 1])


def random_advantages(seed: int = 0) -> th.Tensor:
    return th.randn((6, 12), generator=th.Generator().manual_seed(seed), dtype=th.float64)


def one_invalid_episode() -> th.Tensor:
    mask = th.ones(6, 12, dtype=th.float64)
    mask[:4, 3] = 0.0
    return mask


@pytest.mark.parametrize("temperature", [0.5, 0.033])
def test_balanced_weights_use_every_shared_episode_equally(temperature: float) -> None:
    advantages, mask = random_advantages(), one_invalid_episode()
    prices = episode_prices(advantages, th.tensor(temperature).double().log(), mask, GROUPS).value
    weights = th.softmax((advantages / temperature - prices).masked_fill(mask == 0.0, -th.inf), dim=1)
    for group, n_valid in ((0, 11), (1, 12)):
        members = th.eq(GROUPS, group)
        usage = weights[members].sum(dim=0)[mask[members][0] > 0]
        assert th.allclose(usage, th.tensor(members.sum().item() / n_valid).double(), rtol=0.055)
        assert bool((prices[members] == prices[members][0]).all())


def test_an_episode_of_another_layout_that_diverged_disturbs_nobody() -> None:
    """Episodes of equal latents in two layouts, of tasks 0 to 2 and 3 to 5, that all six tasks divide among them."""
    advantages, mask, group = random_advantages(), th.ones(6, 12, dtype=th.float64), th.zeros(6)
    mask[:3, 3] = 0.0
    temperature = th.tensor(0.2).double().log()
    prices = episode_prices(advantages, temperature, mask, group).value
    weights = th.softmax((advantages / 0.2 - prices).masked_fill(mask == 0.0, -th.inf), dim=1)
    assert th.allclose(weights.sum(dim=0), th.tensor(0.5).double(), rtol=0.055)
    mask[:3] = 0.0  # a layout whose episodes have all diverged
    prices = episode_prices(advantages, temperature, mask, group).value
    usage = th.softmax(advantages[3:] / 0.2 - prices[3:], dim=1).sum(dim=0)
    assert th.allclose(usage, th.tensor(0.25).double(), rtol=0.055)
    assert bool((prices[:3] == 0.0).all())


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_slope_is_the_derivative_of_the_balanced_weights(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights, not of the prices themselves, which are defined up to a constant."""
    monkeypatch.setattr(balancing, "BALANCE_TOLERANCE", 1e-13)
    monkeypatch.setattr(balancing, "MAX_BALANCE_ITERATIONS", 100_000)
    monkeypatch.setattr(balancing, "RIDGE", 0.0)
    advantages, mask = random_advantages(), one_invalid_episode()

    def weights(log_temperature: th.Tensor) -> th.Tensor:
        prices = episode_prices(advantages, log_temperature.detach(), mask, GROUPS).at(log_temperature)
        scores = advantages * th.exp(-log_temperature) - prices
        return th.softmax(scores.masked_fill(mask == 0, -th.inf), dim=1)

    at, step = th.tensor(temperature).double().log(), 1e-5
    valid = mask[0] > 0  # the use of the other episode is not balanced
    expected = (weights(at + step) - weights(at - step)) / (2 * step)
    leaf = at.clone().requires_grad_()
    got = th.stack([th.autograd.grad(w, leaf, retain_graph=True)[0] for w in weights(leaf).flatten()]).view(6, 12)
    assert expected.abs().max() > 0.01
    assert th.allclose(got[:, valid], expected[:, valid], rtol=1e-6, atol=1e-9)

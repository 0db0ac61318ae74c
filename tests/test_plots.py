"""The figures show the numbers they are given, and become image files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from sb3_maesn import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects the figures, which are still written."""
    figures: list[Figure] = []
    save = plots.save

    def keep(figure: Figure, path: str | Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return figures


def assert_is_picture(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


def line(ax: Any, label: str) -> np.ndarray:
    (found,) = [drawn_line for drawn_line in ax.get_lines() if drawn_line.get_label() == label]
    return np.asarray(found.get_ydata(), dtype=float)


def test_learning_curve_averages_each_round(tmp_path: Path, drawn: list[Figure]) -> None:
    returns = np.arange(2 * 3 * 4 * 5, dtype=float).reshape(2, 3, 4, 5)
    plots.plot_learning_curve(np.array([100, 200]), returns, returns > 50, tmp_path / "new" / "curve.png", "title")
    left, right = drawn[0].axes
    np.testing.assert_allclose(line(left, "after round 2"), returns[:, 2].mean(axis=(1, 2)))
    np.testing.assert_allclose(line(right, "after round 2"), 100 * (returns[:, 2] > 50).mean(axis=(1, 2)))
    assert_is_picture(tmp_path / "new" / "curve.png")


def test_adaptation_curve_has_a_line_a_rule_and_the_reference(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    returns, success = rng.normal(size=(4, 6, 5)), rng.random((4, 6, 5)) < 0.5
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    plots.plot_adaptation_curve({"rule": (returns, success)}, tmp_path / "a.png", reference={"others": reference})
    left, right = drawn[0].axes
    np.testing.assert_allclose(line(left, "rule"), returns.mean(axis=(1, 2)))
    np.testing.assert_allclose(line(left, "others"), reference)
    np.testing.assert_allclose(line(right, "rule"), 100 * success.mean(axis=(1, 2)))
    assert_is_picture(tmp_path / "a.png")


def test_few_episodes_against_budget(tmp_path: Path, drawn: list[Figure]) -> None:
    success = np.array([[0.0, 0.5], [1.0, 0.5]])
    plots.plot_few_episodes({"kernel": (np.array([0, 5]), success)}, tmp_path / "f.png")
    np.testing.assert_allclose(line(drawn[0].axes[0], "kernel"), [25.0, 75.0])
    assert_is_picture(tmp_path / "f.png")


def test_trajectories_mark_goal_and_success_disc_on_shared_axes(tmp_path: Path, drawn: list[Figure]) -> None:
    path = np.cumsum(np.ones((10, 2)), axis=0) / 10
    goals = np.array([[1.0, 1.0], [-2.0, 0.5]])
    plots.plot_trajectories([path], [[path], [path, path]], goals, tmp_path / "t.png", radius=0.3)
    axes = drawn[0].axes
    discs = [patch for patch in axes[2].patches if isinstance(patch, Circle)]
    assert [(disc.center, disc.radius) for disc in discs] == [((-2.0, 0.5), 0.3)]
    assert len({ax.get_xlim() for ax in axes}) == 1
    assert_is_picture(tmp_path / "t.png")


def test_latent_map_shows_every_episode(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    latents, returns = rng.normal(size=(3, 7, 2)), rng.normal(size=(3, 7))
    plots.plot_latent_map(latents, returns, latents.mean(axis=1), np.zeros((3, 2)), tmp_path / "l.png")
    offsets = np.asarray(drawn[0].axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(offsets, latents.reshape(-1, 2))
    assert_is_picture(tmp_path / "l.png")

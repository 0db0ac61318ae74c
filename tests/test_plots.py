"""The figures show the numbers they are given, and become image files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from sb3_maesn import plots, study_plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collects the figures, which are still written."""
    figures: list[Figure] = []
    save = plots.save

    def keep(figure: Figure, path: str | Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    monkeypatch.setattr(study_plots, "save", keep)
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


def test_a_single_evaluation_is_a_visible_point(tmp_path: Path, drawn: list[Figure]) -> None:
    points = {"one": (np.array([10]), np.array([1.0]), np.array([0.1])), "two": (np.arange(2), np.arange(2.0), None)}
    plots.plot_curves(points, tmp_path / "c.png", "steps", "return")
    assert [drawn_line.get_marker() for drawn_line in drawn[0].axes[0].get_lines()] == ["o", "None"]


@pytest.mark.parametrize("name", ["algo", "latent_space/PointGoal-v0_1/PointGoal-v0, posterior", "x" * 200])
def test_a_legend_of_four_names_fits_into_the_figure(tmp_path: Path, drawn: list[Figure], name: str) -> None:
    row = {"mean_return": 1.0, "return_interval": 0.1, "success": 0.5, "success_interval": 0.1}
    plots.plot_adaptation_tables({f"{name}{i}": [row, row] for i in range(4)}, tmp_path / "l.png")
    (legend,) = drawn[0].legends
    box, figure = legend.get_window_extent(), drawn[0].bbox
    assert len(legend.get_texts()) == 4
    assert figure.x0 <= box.x0 < box.x1 <= figure.x1
    assert box.y1 < drawn[0].axes[0].get_window_extent().y0


def test_labels_of_categories_do_not_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ("policy_gradient", "natural_gradient", "reward_weighted")
    slices: dict[str, list[tuple[Any, float]]] = {"rate": [(0.001, 1.0), (0.1, 2.0)]}
    slices["inner_update"] = [(name, 1.0) for name in names]
    study_plots.plot_slices(slices, tmp_path / "s.png")
    labels = drawn[0].axes[1].get_xticklabels()
    assert [label.get_text() for label in labels] == list(names)
    assert all(label.get_rotation() == 30 and label.get_horizontalalignment() == "right" for label in labels)
    assert_is_picture(tmp_path / "s.png")


def test_an_image_without_an_ending_is_a_png(tmp_path: Path) -> None:
    assert plots.image_path("a/b") == Path("a/b.png")
    assert plots.image_path("a/b.pdf") == Path("a/b.pdf")
    with pytest.raises(ValueError, match=r"the name of an image must end in one of .*png.*, got b\.csv"):
        plots.image_path("b.csv")
    plots.save(Figure(), tmp_path / "figure")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]

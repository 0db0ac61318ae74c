"""Figures of results. No global state of matplotlib is used, so that no display is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Ellipse
from matplotlib.ticker import MaxNLocator

from sb3_maesn.results import Row, mean_and_interval

Array: TypeAlias = np.ndarray

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")  # Okabe and Ito
ROUND_COLORS = ("#B9C4CE", "#7FB2D6", "#2F7FBF", "#0B3C6F", "#05213F")  # pale at first, darker with every round
INK, GRID = "#333333", "#E3E3E3"


def plot_learning_curve(timesteps: Array, returns: Array, success: Array, path: str | Path, title: str = "") -> None:
    """Draw mean return and success after every adaptation round over the course of meta-training.

    :param timesteps: environment steps trained at each evaluation (n_evals,)
    :param returns: returns of episodes; trailing dimensions are averaged (n_evals, n_rounds + 1, ...)
    :param success: success of episodes, 0 or 1; trailing dimensions are averaged (n_evals, n_rounds + 1, ...)
    :param path: image file to write
    :param title: title of the figure
    """
    figure, axes = panels(2, title)
    quantities = (("mean return", returns, 1.0), ("successful episodes (%)", success, 100.0))
    for ax, (label, values, unit) in zip(axes, quantities, strict=True):
        flat = np.asarray(values, dtype=float).reshape(*values.shape[:2], -1)  # (n_evals, n_rounds + 1, episodes)
        by_round = unit * flat.mean(axis=2)
        for r in range(by_round.shape[1]):
            ax.plot(timesteps, by_round[:, r], color=_round_color(r), label=_round_name(r), marker="o", markersize=3)
        ax.set(xlabel="environment steps", ylabel=label)
    axes[1].set_ylim(0, 100)
    axes[0].legend(frameon=False)
    save(figure, path)


def plot_adaptation_curve(
    curves: Mapping[str, tuple[Array, Array]],
    path: str | Path,
    title: str = "",
    reference: Mapping[str, Array] | None = None,
) -> None:
    """Draw mean return and success by adaptation round, with 95 % confidence intervals over tasks.

    :param curves: returns and success of all episodes, by name (both (n_rounds + 1, n_tasks, n_episodes))
    :param path: image file to write
    :param title: title of the figure
    :param reference: mean returns to compare with, by name, drawn as dashed lines (n_rounds + 1,)
    """
    by_task = {
        name: [np.asarray(array, dtype=float).mean(axis=2) for array in arrays] for name, arrays in curves.items()
    }
    lines = {name: [mean_and_interval(values) for values in arrays] for name, arrays in by_task.items()}
    _draw_adaptation(lines, path, title, reference or {})


def plot_adaptation_tables(tables: Mapping[str, Sequence[Row]], path: str | Path, title: str = "") -> None:
    """Draw mean return and success by adaptation round from tables of rounds.

    :param tables: rows of ``results.adaptation_rows`` by name, with numbers or, as read from a CSV file, text
    :param path: image file to write
    :param title: title of the figure
    """

    def column(rows: Sequence[Row], key: str) -> Array:
        return np.array([float(row[key]) for row in rows])

    keys = (("mean_return", "return_interval"), ("success", "success_interval"))
    lines = {name: [(column(rows, key), column(rows, band)) for key, band in keys] for name, rows in tables.items()}
    _draw_adaptation(lines, path, title, {})


def plot_curves(curves: Mapping[str, tuple[Array, Array, Array | None]], path: str | Path, x: str, y: str) -> None:
    """Draw learning curves in one panel.

    :param curves: x, y and half width of the band, None for no band, by name (each (n_points,))
    :param path: image file to write
    :param x: label of the x axis
    :param y: label of the y axis
    """
    figure, (ax,) = panels(1, "", width=6.2)
    for i, (name, (positions, line, half_width)) in enumerate(curves.items()):
        color = PALETTE[i % len(PALETTE)]
        marker = "o" if len(positions) == 1 else None  # a line through a single point is invisible
        ax.plot(positions, line, color=color, label=name, linewidth=1.5, marker=marker, markersize=4)
        if half_width is not None:
            ax.fill_between(positions, line - half_width, line + half_width, color=color, alpha=0.15, linewidth=0)
    ax.set(xlabel=x, ylabel=y)
    _legend_below(figure, ax, always=True)
    save(figure, path)


def plot_few_episodes(curves: Mapping[str, tuple[Array, Array]], path: str | Path, title: str = "") -> None:
    """Draw the success of adapted policies against the number of episodes of the adaptation, one line per rule.

    :param curves: numbers of episodes (n_points,) and shares of successful fresh episodes (n_points, n_tasks), by rule
    :param path: image file to write
    :param title: title of the figure
    """
    figure, (ax,) = panels(1, title, width=6.2)
    best_first = sorted(curves.items(), key=lambda curve: -float(np.mean(curve[1][1][-1])))
    for i, (rule, (episodes, success)) in enumerate(best_first):
        mean, half_width = mean_and_interval(100 * np.asarray(success, dtype=float))
        _line_with_band(ax, np.asarray(episodes), mean, half_width, PALETTE[i % len(PALETTE)], rule)
    ax.set(xlabel="episodes of the new task", ylabel="successful episodes (%)", ylim=(0, 100))
    figure.legend(loc="outside right center", frameon=False)
    save(figure, path)


def plot_trajectories(
    before: Sequence[Array],
    after: Sequence[Sequence[Array]],
    goals: Array,
    path: str | Path,
    radius: float = 0.8,
    title: str = "",
) -> None:
    """Draw trajectories of the policy before adaptation and of policies adapted to a few goals, one panel each.

    :param before: trajectories of the policy before adaptation (each (T, 2))
    :param after: trajectories of the policy adapted to each goal (each (T, 2))
    :param goals: goals (n_goals, 2)
    :param path: image file to write
    :param radius: distance from the goal within which an episode has to end in order to succeed
    :param title: title of the figure
    """
    figure, axes = panels(1 + len(goals), title)
    for trajectory in before:
        axes[0].plot(trajectory[:, 0], trajectory[:, 1], color=INK, alpha=0.35, linewidth=1.0)
    for i, goal in enumerate(goals):
        color = PALETTE[i % len(PALETTE)]
        for ax in (axes[0], axes[1 + i]):
            ax.add_patch(Circle((float(goal[0]), float(goal[1])), radius, facecolor=color, alpha=0.18, edgecolor=color))
            ax.plot(goal[0], goal[1], marker="x", color=color, markersize=7)
        for trajectory in after[i]:
            axes[1 + i].plot(trajectory[:, 0], trajectory[:, 1], color=color, alpha=0.6, linewidth=1.2)
        axes[1 + i].set_title(f"adapted to goal {i + 1}", color=color, fontsize=10)
    axes[0].set_title("before adaptation", fontsize=10)
    for ax in axes:
        ax.plot(0, 0, marker="o", color=INK, markersize=4)
        ax.set_aspect("equal")
    x_range, y_range = _share_limits(axes)
    figure.set_size_inches(3.0 * len(axes), 1.1 + 2.6 * y_range / x_range)
    save(figure, path)


def plot_latent_map(
    latents: Array, returns: Array, mean: Array, log_std: Array, path: str | Path, title: str = ""
) -> None:
    """Draw the latents of a task's episodes, coloured by return, and the latent distribution of each round.

    Only the first two components of the latent are shown.

    :param latents: latents of the episodes (n_rounds + 1, n_episodes, L), L >= 2
    :param returns: returns of the episodes (n_rounds + 1, n_episodes)
    :param mean: mean of the latent distribution by round (n_rounds + 1, L)
    :param log_std: log standard deviation of the latent distribution by round (n_rounds + 1, L)
    :param path: image file to write
    :param title: title of the figure
    """
    figure, (ax,) = panels(1, title, width=5.2, height=4.4)
    scale = Normalize(float(np.min(returns)), float(np.max(returns)))
    flat = latents.reshape(-1, latents.shape[-1])  # ((R + 1) * K, 2)
    ax.scatter(flat[:, 0], flat[:, 1], c=returns.reshape(-1), norm=scale, cmap="viridis", s=18, linewidths=0)
    for r, (center, spread) in enumerate(zip(mean, np.exp(log_std), strict=True)):
        width, height = 4 * spread[:2]  # two standard deviations to either side
        ellipse = Ellipse((center[0], center[1]), width, height, fill=False, edgecolor=PALETTE[1], linewidth=1.5)
        ellipse.set_alpha(0.35 + 0.65 * r / max(len(mean) - 1, 1))
        ax.add_patch(ellipse)
        edge = (center[0], center[1] + height / 2)
        ax.annotate(f"{r}", edge, xytext=(0, 3), textcoords="offset points", color=PALETTE[1], ha="center")
    ax.set(xlabel="$z_1$", ylabel="$z_2$")
    ax.set_aspect("equal", adjustable="datalim")
    figure.colorbar(ScalarMappable(scale, "viridis"), ax=ax, label="return of the episode")
    save(figure, path)


def _draw_adaptation(
    lines: Mapping[str, Sequence[tuple[Array, Array]]], path: str | Path, title: str, reference: Mapping[str, Array]
) -> None:
    """Draw return and, if any is known, success by adaptation round.

    :param lines: mean and half width by round (both (n_rounds + 1,)), of the return and of the success, by name
    :param path: image file to write
    :param title: title of the figure
    :param reference: mean returns to compare with, by name, drawn as dashed lines (n_rounds + 1,)
    """
    knows_success = any(np.isfinite(bands[1][0]).any() for bands in lines.values())
    figure, axes = panels(2 if knows_success else 1, title)
    for i, (name, bands) in enumerate(lines.items()):
        for ax, (mean, half_width), unit in zip(axes, bands, (1.0, 100.0), strict=False):
            color = PALETTE[i % len(PALETTE)]
            _line_with_band(ax, np.arange(len(mean)), unit * mean, unit * half_width, color, name)
    for name, line in reference.items():
        axes[0].plot(np.arange(len(line)), line, linestyle="--", color=INK, linewidth=1.2, label=name)
    for ax, label in zip(axes, ("mean return", "successful episodes (%)"), strict=False):
        ax.set(xlabel="adaptation round", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if knows_success:
        axes[1].set_ylim(0, 100)
    _legend_below(figure, axes[0])
    save(figure, path)


def panels(n: int, title: str, width: float = 4.6, height: float = 3.6, n_rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a figure with rows of panels in a common style.

    :param n: number of panels in a row
    :param title: title of the figure
    :param width: width of a panel in inches
    :param height: height of the figure in inches
    :param n_rows: number of rows
    :return: figure and its panels
    """
    figure = Figure(figsize=(width * n, height), layout="constrained")
    axes = [figure.add_subplot(n_rows, n, i + 1) for i in range(n_rows * n)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(GRID)
        ax.grid(color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(colors=INK, length=0)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return figure, axes


def _line_with_band(ax: Axes, x: Array, mean: Array, half_width: Array, color: str, label: str) -> None:
    """Draw a line with a band around it.

    :param ax: panel
    :param x: positions (n,)
    :param mean: line (n,)
    :param half_width: half width of the band (n,)
    :param color: colour of the line and the band
    :param label: name in the legend
    """
    ax.plot(x, mean, color=color, label=label, marker="o", markersize=4)
    ax.fill_between(x, mean - half_width, mean + half_width, color=color, alpha=0.15, linewidth=0)


def _legend_below(figure: Figure, ax: Axes, always: bool = False) -> None:
    """Put the legend of a panel below the figure, in as many columns as fit, and enlarge the figure where needed.

    :param figure: figure
    :param ax: panel of the figure
    :param always: whether to show the legend for a single line too
    """
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) < 2 and not (always and labels):
        return
    for n_columns in (3, 2, 1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, frameon=False)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or n_columns == 1:
            break
        legend.remove()
    n_rows = -(-len(labels) // n_columns)
    further_rows = box.height * (1 - 1 / n_rows)
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, box.width / figure.dpi), height + further_rows / figure.dpi)


def _share_limits(axes: Sequence[Axes]) -> tuple[float, float]:
    """Give all panels the same limits, wide enough for each of them.

    :param axes: panels
    :return: lengths of the ranges of x and y
    """
    x, y = np.array([ax.get_xlim() for ax in axes]), np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_xlim(x.min(), x.max())
        ax.set_ylim(y.min(), y.max())
    return float(np.ptp(x)), float(np.ptp(y))


def _round_color(r: int) -> str:
    return ROUND_COLORS[min(r, len(ROUND_COLORS) - 1)]


def _round_name(r: int) -> str:
    return "before adaptation" if r == 0 else f"after round {r}"


def image_path(path: str | Path) -> Path:
    """Complete the name of an image file, so that it can be checked before the figure is made.

    :param path: name that the user chose
    :return: path of the image, which ends in ``.png`` if the name has no ending
    :raises ValueError: if matplotlib cannot write such files
    """
    ending = Path(path).suffix.removeprefix(".")
    if not ending:
        return Path(f"{str(path).rstrip('.')}.png")
    known = FigureCanvasBase.get_supported_filetypes()
    if ending.lower() not in known:
        raise ValueError(f"the name of an image must end in one of {', '.join(sorted(known))}, got {path}")
    return Path(path)


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file.

    :param figure: figure
    :param path: image file, ``.png`` if the name has no ending; its folder is created if missing
    """
    path = image_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

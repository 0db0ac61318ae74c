"""Figures of studies, in the style of :mod:`sb3_maesn.plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter

from sb3_maesn.plots import INK, PALETTE, panels, save

PANELS_A_ROW = 4


def plot_study_history(trials: Sequence[tuple[int, float, bool]], path: str | Path) -> None:
    """Draw the value of every trial and the best value so far.

    :param trials: number, value and completeness of each trial, sorted by number; a trial that is not complete was
        pruned
    :param path: image file to write
    """
    figure, (ax,) = panels(1, "", width=6.2)
    for is_complete, color, label in ((True, PALETTE[0], "complete"), (False, "#B9C4CE", "pruned")):
        chosen = np.array([(number, value) for number, value, ended in trials if ended == is_complete]).reshape(-1, 2)
        if len(chosen):
            ax.scatter(chosen[:, 0], chosen[:, 1], color=color, s=18, label=label)
    complete = np.array([(number, value) for number, value, ended in trials if ended])
    ax.step(complete[:, 0], np.maximum.accumulate(complete[:, 1]), where="post", color=PALETTE[1], label="best so far")
    ax.set(xlabel="trial", ylabel="score")
    ax.legend(frameon=False)
    save(figure, path)


def plot_importances(importances: Mapping[str, float], path: str | Path) -> None:
    """Draw the importance of each parameter.

    :param importances: shares by parameter
    :param path: image file to write
    """
    figure, (ax,) = panels(1, "", width=6.2, height=1.0 + 0.28 * len(importances))
    rising = sorted(importances.items(), key=lambda pair: pair[1])
    ax.barh([name for name, _ in rising], [share for _, share in rising], color=PALETTE[0])
    ax.set(xlabel="share of what matters")
    save(figure, path)


def plot_slices(slices: Mapping[str, Sequence[tuple[Any, float]]], path: str | Path) -> None:
    """Draw the values of trials against those of each parameter, one panel per parameter.

    :param slices: pairs of parameter value and trial value, by parameter
    :param path: image file to write
    """
    n_rows = -(-len(slices) // PANELS_A_ROW)
    figure, axes = panels(PANELS_A_ROW, "", width=2.8, height=2.6 * n_rows, n_rows=n_rows)
    for ax, (name, pairs) in zip(axes, slices.items(), strict=False):
        values, outcomes = zip(*pairs, strict=True)
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        ax.scatter(
            values if is_number else [str(value) for value in values], outcomes, s=12, color=PALETTE[0], alpha=0.7
        )
        if not is_number:
            ax.tick_params(axis="x", labelrotation=30, labelsize=8)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        if is_number and min(values) > 0 and max(values) > 20 * min(values):
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())  # labels between the powers of ten would overlap
        ax.set_title(name, fontsize=9, color=INK)
    for ax in axes[len(slices) :]:
        ax.set_axis_off()
    save(figure, path)

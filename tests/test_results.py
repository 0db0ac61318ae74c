"""Tables of results."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sb3_maesn.results import (
    adaptation_rows,
    format_table,
    mean_and_interval,
    provenance,
    sector_shares,
    write_table,
)


def test_adaptation_rows_by_hand() -> None:
    success = np.array([[[0, 0], [0, 1]], [[1, 1], [0, 0]]])  # 2 rounds, 2 tasks, 2 episodes
    returns = np.array([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 1.0], [1.0, 1.0]]])
    first, second = adaptation_rows(returns, success)
    assert (first["episodes"], first["mean_return"], first["success"], first["solved"]) == (0, 3.0, 0.25, 0.5)
    assert (second["episodes"], second["mean_return"], second["success"], second["solved"]) == (2, 1.0, 0.5, 0.5)
    assert second["return_interval"] == 0.0


def test_interval_is_that_of_the_normal_distribution() -> None:
    mean, half_width = mean_and_interval(np.array([[1.0, 3.0]]))
    np.testing.assert_allclose((mean[0], half_width[0]), (2.0, 1.96 * np.sqrt(2) / np.sqrt(2)))


def test_interval_of_one_task_is_zero() -> None:
    mean, half_width = mean_and_interval(np.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(mean, [1.0, 2.0])
    np.testing.assert_array_equal(half_width, [0.0, 0.0])


def test_sectors_count_far_end_points_only() -> None:
    degrees = np.radians([10, 20, 100, 170, 200, 45])
    radius = np.array([2.0, 2.0, 2.0, 2.0, 2.0, 1.0])  # the last is near, the one before in the lower half
    points = radius[:, None] * np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    np.testing.assert_allclose(sector_shares(points), np.array([2, 0, 0, 1, 0, 1]) / 5)


def test_sectors_of_no_far_end_point_are_empty() -> None:
    np.testing.assert_array_equal(sector_shares(np.zeros((3, 2))), np.zeros(6))


def test_table_is_written_with_its_origin_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_table(path, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], provenance(7, env="PointGoal-v0"))
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["seed"] == 7
    assert about["env"] == "PointGoal-v0"
    assert {"command", "versions", "machine"} <= set(about)
    assert about["versions"]["torch"]


@pytest.mark.parametrize("text", ["round", "0.500", "-3"])
def test_format_table_shows_header_and_cells(text: str) -> None:
    assert text in format_table([{"round": 0, "success": 0.5, "n": -3}])

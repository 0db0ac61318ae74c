"""Tables of results."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from sb3_maesn.envs import make_family
from sb3_maesn.results import (
    adaptation_rows,
    coverage_radius,
    format_table,
    mean_and_interval,
    provenance,
    read_adaptation_tables,
    rule_name,
    sector_shares,
    write_table,
)
from tests.test_playing import tiny_rl2
from tests.tiny import tiny


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
    np.testing.assert_allclose(sector_shares(points, 1.2), np.array([2, 0, 0, 1, 0, 1]) / 5)


def test_sectors_of_no_far_end_point_are_empty() -> None:
    np.testing.assert_array_equal(sector_shares(np.zeros((3, 2)), 1.2), np.zeros(6))


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


def test_radius_of_coverage_is_a_share_of_the_distance_of_the_goals() -> None:
    radii = {name: coverage_radius(make_family(f"{name}-v0").task_set("test")) for name in ("WheeledGoal", "PointGoal")}
    assert radii == {"WheeledGoal": 1.2, "PointGoal": 0.6}
    with pytest.raises(ValueError, match="expected goals at the same distance from it, got distances from 1 to 2"):
        coverage_radius(np.array([[1.0, 0.0], [0.0, 2.0]]))


@pytest.mark.parametrize("name", ["table.png", "table.json", "table"])
def test_a_table_that_other_files_would_overwrite_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"the name of a table must end in .csv, got .*{name}"):
        write_table(tmp_path / name, [{"a": 1}], {})
    assert not list(tmp_path.iterdir())


HEADER = "model,rule,round,mean_return,return_interval,success,success_interval"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# Title\n\nText, with, commas, that, is, no, table.\n", "it has no column model"),
        ("", "it has no column model"),
        ("model,rule,round\na,b,0\n", "it has no column mean_return"),
        (f"{HEADER}\n", "it has no rows"),
        (f"{HEADER}\na,b,0,1\n", "it has incomplete rows"),
        (f"{HEADER}\na,b,0,1,2,3,4,5\n", "it has incomplete rows"),
        (b"\x89PNG", "can't decode"),
    ],
)
def test_a_file_that_is_no_table_of_rounds_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"README.md is no table of adaptation rounds: .*{message}"):
        read_adaptation_tables([path])


def test_the_rule_of_a_model_has_a_name() -> None:
    assert rule_name(tiny(), None) == "posterior"
    assert rule_name(tiny(), "kernel") == "kernel"
    assert rule_name(tiny(policy_kwargs={"latent_dim": 0}), None) == "policy_gradient"
    assert rule_name(tiny_rl2(), None) == "memory"

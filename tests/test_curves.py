"""Learning curves, from files as training writes them."""

from pathlib import Path

import numpy as np
import pytest

from sb3_maesn.config import ConfigError
from sb3_maesn.curves import last_row, markdown_table, merge_evaluations, read_monitor, training_curve
from sb3_maesn.run_folder import write_settings


def monitor(folder: Path, name: str, rows: list[str], columns: str = "r,l,t,is_success") -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.monitor.csv").write_text("\n".join(['#{"t_start": 0}', columns, *rows]) + "\n")


def evaluations(folder: Path, timesteps: list[int], results: list[list[float]]) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "evaluations.npz", timesteps=np.array(timesteps), results=np.array(results))
    return folder


def test_episodes_of_all_files_come_in_order_of_time(tmp_path: Path) -> None:
    monitor(tmp_path, "0", ["1.0,10,0.5,True", "3.0,10,2.5,False"])
    monitor(tmp_path, "1", ["2.0,10,1.5,True"])
    columns = read_monitor(tmp_path)
    np.testing.assert_array_equal(columns["r"], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(columns["is_success"], [1.0, 1.0, 0.0])
    assert read_monitor(tmp_path / "nowhere") == {}


def test_training_curve_is_a_moving_average(tmp_path: Path) -> None:
    monitor(tmp_path, "0", [f"{r}.0,10,{3600 * (r + 1)}.0,{r > 2}" for r in range(5)])
    steps, returns = training_curve(tmp_path, window=2) or pytest.fail("no curve")
    np.testing.assert_allclose(steps, [20, 30, 40, 50])
    np.testing.assert_allclose(returns, [0.5, 1.5, 2.5, 3.5])
    hours, success = training_curve(tmp_path, "time", "success", window=2) or pytest.fail("no curve")
    np.testing.assert_allclose(hours, [2, 3, 4, 5])
    np.testing.assert_allclose(success, [0, 0, 0.5, 1])
    episodes, _ = training_curve(tmp_path, "episodes", "length", window=2, max_steps=30) or pytest.fail("no curve")
    np.testing.assert_allclose(episodes, [2, 3])
    assert training_curve(tmp_path, window=6) is None
    monitor(tmp_path / "old", "0", ["1.0,10,0.5"], columns="r,l,t")
    assert training_curve(tmp_path / "old", y_axis="success", window=1) is None


def test_evaluations_of_runs_are_averaged_where_the_coarsest_was_evaluated(tmp_path: Path) -> None:
    fine = evaluations(tmp_path / "fine", [10, 20, 30, 40], [[0, 2], [1, 3], [2, 4], [3, 5]])
    coarse = evaluations(tmp_path / "coarse", [15, 35], [[5, 5], [7, 7]])
    (tmp_path / "none").mkdir()
    merged = merge_evaluations([fine, coarse, tmp_path / "none"])
    assert merged is not None
    np.testing.assert_allclose(merged.timesteps, [15, 35])
    np.testing.assert_allclose(merged.mean, [(1.5 + 5) / 2, (3.5 + 7) / 2])
    np.testing.assert_allclose(merged.std_error, [1.75, 1.75])  # of two values 3.5 apart
    np.testing.assert_allclose(merged.last, [3.5, 7])
    assert merge_evaluations([fine], key="successes") is None
    assert merge_evaluations([tmp_path / "none"]) is None
    longest = merge_evaluations([fine, coarse], min_steps=40, max_steps=30)
    assert longest is not None
    np.testing.assert_allclose(longest.mean, [1, 2, 3])
    later = evaluations(tmp_path / "later", [25, 35, 45], [[1, 1], [1, 1], [1, 1]])
    both = merge_evaluations([coarse, later])
    assert both is not None
    np.testing.assert_allclose(both.timesteps, [35])  # at 15 the second run had not been evaluated
    with pytest.raises(ConfigError, match=r"short from 5 to 5, .*fine from 10 to 40"):
        merge_evaluations([evaluations(tmp_path / "short", [5], [[1, 1]]), fine])


def resumed(folder: Path, agent: str, steps_before: int | None = None) -> Path:
    """Note in a run's folder that it went on with the model of another."""
    args = {"env": "Env-v0", "trained_agent": agent} | ({} if steps_before is None else {"steps_before": steps_before})
    write_settings(folder, "Env-v0", {}, args, ["train"])
    return folder


@pytest.mark.parametrize("steps_before", [20, None])  # older runs did not record it
def test_a_resumed_run_is_joined_to_the_one_that_it_went_on_with(tmp_path: Path, steps_before: int | None) -> None:
    names = [tmp_path / "maesn" / f"Env-v0_{n}" for n in range(1, 5)]
    for name in names:
        (name / "Env-v0").mkdir(parents=True)
    first = evaluations(names[0], [10, 20], [[1.0], [2.0]])
    other = evaluations(names[1], [10, 20, 30, 40], [[2.0], [2.0], [2.0], [2.0]])
    second = evaluations(resumed(names[2], "logs/maesn/Env-v0_1/Env-v0.zip", steps_before), [30], [[3.0]])
    third = evaluations(resumed(names[3], "logs/maesn/Env-v0_3/rl_model_30_steps.zip", 30), [40], [[4.0]])
    merged = merge_evaluations([first, other, second, third])
    assert merged is not None
    assert merged.timesteps.tolist() == [10, 20, 30, 40]
    assert merged.mean.tolist() == [1.5, 2.0, 2.5, 3.0]
    assert merged.last.tolist() == [2.0, 4.0]
    resumed(names[2], "maesn-Env-v0")  # a model that was published: its evaluations are not here
    with pytest.raises(ConfigError, match=r"no steps in common: .*Env-v0_1 from 10 to 20, .*Env-v0_3 from 30 to 30"):
        merge_evaluations([first, second])


def test_the_curve_of_a_resumed_run_begins_where_the_other_ended(tmp_path: Path) -> None:
    (tmp_path / "Env-v0").mkdir()
    monitor(resumed(tmp_path, "logs/maesn/Env-v0_1/Env-v0.zip", 100), "0", ["1,5,1,True", "2,5,2,True"])
    curve = training_curve(tmp_path, window=1)
    assert curve is not None
    assert curve[0].tolist() == [105, 110]


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="the key must be one of results, successes, ep_lengths, got 'success'"):
        merge_evaluations([], key="success")


def test_rows_of_the_table(tmp_path: Path) -> None:
    merged = merge_evaluations([evaluations(tmp_path / str(i), [10], [[float(i)]]) for i in (0, 1, 5)])
    assert merged is not None
    assert last_row("PointGoal-v0", "maesn-logs", merged)["mean"] == 2.0
    row = last_row("PointGoal-v0", "maesn-logs", merged, median=True)
    assert (row["median"], row["runs"], row["timesteps"]) == (1.0, 3, 10)
    assert markdown_table([{"a": 1, "b": "x"}]) == "| a | b |\n| --- | --- |\n| 1 | x |"

"""The models that come with the package: they load without a network, act, and come with their scores."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sb3_maesn import MAESN, list_pretrained
from sb3_maesn.checkpoints import MAX_BYTES
from sb3_maesn.common.checkpoint.pretrained import FOLDER, find_pretrained
from sb3_maesn.envs import FAMILIES


@pytest.mark.parametrize("name", list_pretrained())
def test_every_shipped_policy_loads_acts_and_fits_its_family(name: str) -> None:
    shipped, about = MAESN.from_pretrained(name), list_pretrained()[name]
    family = FAMILIES[str(about.env_id)]()
    assert shipped.env_id == about.env_id
    assert (shipped.observation_space, shipped.action_space) == (family.observation_space, family.action_space)
    action, state = shipped.predict(np.zeros_like(family.observation_space.sample()))
    assert shipped.action_space.contains(action)
    assert state is not None
    assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) < MAX_BYTES


def test_the_list_has_the_scores_of_every_round() -> None:
    found = list_pretrained()
    assert {"maesn-AntGoal-v0", "maesn-PusherBlock-v0", "maesn-WheeledGoal-v0"} <= set(found)
    for about in found.values():
        assert about.n_tasks == 100
        assert "Sparse" in about.test_env_id
        assert len(about.success) == len(about.solved) == len(about.mean_return) == 4
        assert about.success[0] < about.success[-1]


def test_a_shipped_model_needs_no_network(tmp_path: Path) -> None:
    """Nor anything of huggingface_hub: a name of the package's own is found first."""
    code = (
        "import socket, sys; socket.socket.connect = socket.getaddrinfo = None\n"
        "from sb3_maesn import MAESN; MAESN.from_pretrained('maesn-WheeledGoal-v0')\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_path_is_a_name_too(tmp_path: Path) -> None:
    MAESN.from_pretrained("maesn-WheeledGoal-v0").save_checkpoint(tmp_path / "mine.zip")
    for path in (tmp_path / "mine.zip", str(tmp_path / "mine")):
        assert MAESN.from_pretrained(path).num_timesteps > 0


@pytest.mark.parametrize("name", ["maesn-WheelGoal-v0", "nowhere/maesn.zip", "./no/where", "a/b/c"])
def test_an_unknown_name_is_met_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"There are: .*maesn-WheeledGoal-v0"):
        find_pretrained(name)


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean maesn-WheeledGoal-v0"):
        MAESN.from_pretrained("maesn-WheelGoal-v0")

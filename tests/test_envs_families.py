"""The task families: tasks, reward, success and termination against values worked out by hand, and the physics."""

from collections.abc import Callable

import mujoco
import numpy as np
import pytest

from sb3_maesn.envs import FAMILIES, TaskFamily, make_family, make_vec
from sb3_maesn.envs.ant import AntGoal
from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.mujoco_physics import load_plain_model
from sb3_maesn.envs.point import PointGoal
from sb3_maesn.envs.pusher import PusherBlock
from sb3_maesn.envs.task_family import Array, State
from sb3_maesn.envs.wheeled import WheeledGoal

DENSE = ["WheeledGoal-v0", "AntGoal-v0", "PusherBlock-v0", "PointGoal-v0"]
SPLITS = ["train", "validation", "test"]


# Tasks


@pytest.mark.parametrize("env_id", DENSE)
def test_task_sets_are_deterministic_disjoint_and_growing(env_id: str) -> None:
    sets = {split: make_family(env_id).task_set(split) for split in SPLITS}
    for split, tasks in sets.items():
        family = FAMILIES[env_id.replace("-v0", "Sparse-v0")]()
        np.testing.assert_array_equal(family.task_set(split), tasks)
        np.testing.assert_array_equal(family.task_set(split, 7), tasks[:7])
        np.testing.assert_array_equal(family.check_tasks(tasks), tasks)
    everything = np.concatenate(list(sets.values()))
    assert len(np.unique(everything, axis=0)) == 300


@pytest.mark.parametrize(("env_id", "radius"), [("WheeledGoal-v0", 2.0), ("AntGoal-v0", 2.0), ("PointGoal-v0", 1.0)])
@pytest.mark.parametrize("split", SPLITS)
def test_goals_cover_the_half_circle(env_id: str, radius: float, split: str) -> None:
    goals = make_family(env_id).task_set(split)
    np.testing.assert_allclose(np.hypot(goals[:, 0], goals[:, 1]), radius)
    angles = np.arctan2(goals[:, 1], goals[:, 0]) / np.pi
    assert (angles >= 0).all()
    # uniform on (0, 1): the largest gap between empirical and true distribution exceeds 0.163 once in a hundred draws
    gap = np.abs(np.sort(angles) - (np.arange(100) + 0.5) / 100).max()
    assert gap < 0.163


@pytest.mark.parametrize("split", SPLITS)
def test_pusher_sets_are_20_layouts_of_5_blocks(split: str) -> None:
    tasks = PusherBlock().task_set(split)
    layouts = tasks[:, 3:].reshape(20, 5, 10)
    np.testing.assert_array_equal(layouts, np.broadcast_to(layouts[:, :1], layouts.shape))
    assert len(np.unique(layouts[:, 0], axis=0)) == 20
    np.testing.assert_array_equal(np.sort(tasks[:, 0].reshape(20, 5), axis=1), np.tile(np.arange(5), (20, 1)))
    check_pusher_tasks(tasks)


def check_pusher_tasks(tasks: Array) -> None:
    blocks = tasks[:, 3:].reshape(-1, 5, 2)
    assert ((blocks[..., 0] > 0.35) & (blocks[..., 0] < 0.65)).all()
    bands = np.floor((blocks[..., 1] + 0.5) / 0.2)
    np.testing.assert_array_equal(np.sort(bands, axis=1), np.tile(np.arange(5), (len(tasks), 1)))
    assert ((tasks[:, 1] > 0.75) & (tasks[:, 1] < 0.95)).all()
    goal_bands = np.floor((tasks[:, 2] + 0.5) / 0.2)
    np.testing.assert_array_equal(goal_bands, bands[np.arange(len(tasks)), tasks[:, 0].astype(int)])


def test_sampled_pusher_tasks_are_uniform_over_blocks_and_bands() -> None:
    tasks = PusherBlock().sample_tasks(2000, np.random.default_rng(0))
    check_pusher_tasks(tasks)
    bands = np.floor((tasks[:, 2] + 0.5) / 0.2).astype(int)
    counts = np.zeros((5, 5))
    np.add.at(counts, (tasks[:, 0].astype(int), bands), 1)
    # 80 expected in each of the 25 cells, standard deviation 9
    assert counts.min() > 45
    assert counts.max() < 115


@pytest.mark.parametrize("env_id", DENSE)
def test_sample_tasks_uses_only_the_generator_given(env_id: str) -> None:
    family = make_family(env_id)
    first, second = (family.sample_tasks(6, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert family.sample_tasks(0, np.random.default_rng(3)).shape == (0, family.task_space.shape[0])


@pytest.mark.parametrize("env_id", DENSE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_check_tasks_names_the_task_and_what_was_expected(env_id: str, bad: float) -> None:
    family = make_family(env_id)
    tasks = family.task_set("train", 3)
    tasks[1, -1] = bad
    with pytest.raises(ValueError, match=r"tasks must (be finite|lie in \[).*got task 1 = "):
        family.check_tasks(tasks)
    with pytest.raises(ValueError, match=r"tasks must have shape \(n, \d+\), got \(\d+,\)"):
        family.check_tasks(tasks[0])


def test_check_tasks_copies_and_rejects_what_is_no_block() -> None:
    family = PusherBlock()
    tasks = family.task_set("train", 2)
    assert not np.shares_memory(family.check_tasks(tasks), tasks)
    tasks[1, 0] = 1.5
    with pytest.raises(ValueError, match=r"block index, one of 0\.\.4, got 1\.5 in task 1"):
        family.check_tasks(tasks)
    tasks[1, 0] = 5
    with pytest.raises(ValueError, match=r"must lie in \[0, 4\] in component 0"):
        family.check_tasks(tasks)


def test_task_set_rejects_other_splits_and_sizes() -> None:
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'eval'"):
        PointGoal().task_set("eval")
    with pytest.raises(ValueError, match="n_tasks must not be negative, got -1"):
        PointGoal().task_set("train", -1)


def test_unknown_ids_get_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"'WheeledGaol-v0'; did you mean WheeledGoal-v0 or WheeledGoalSparse-v0"):
        make_vec("WheeledGaol-v0", 2)
    with pytest.raises(ValueError, match="Known: WheeledGoal-v0, "):
        make_family("Hopper-v5")


# Reward, success and termination, by hand


def wheeled_state() -> State:
    qpos = np.zeros((4, 6))
    qpos[:, :2] = [[0.6, 0.0], [2.0, 0.5], [2.0, 0.79], [2.0, 0.81]]
    return {"qpos": qpos, "qvel": np.zeros((4, 6))}


@pytest.mark.parametrize(
    ("sparse", "expected"),
    [
        # -(1.4, 0.5, 0.79, 0.81), and 0.05 * (4 + 1), 0, 0, 0.05 * (4 + 4) for the controls
        (False, [-1.4 - 0.25, -0.5, -0.79, -0.81 - 0.4]),
        # beyond 0.8 the distance of the goal from the origin, 2
        (True, [-2.0 - 0.25, -0.5, -0.79, -2.0 - 0.4]),
    ],
)
def test_wheeled_reward(sparse: bool, expected: list[float]) -> None:
    family = WheeledGoal(sparse)
    actions = np.array([[1.0, -0.5], [0.0, 0.0], [0.0, 0.0], [-1.0, 7.0]])
    controls = family.controls(actions)
    np.testing.assert_array_equal(controls, [[2.0, -1.0], [0.0, 0.0], [0.0, 0.0], [-2.0, 2.0]])
    goals = np.tile([2.0, 0.0], (4, 1))
    state = wheeled_state()
    np.testing.assert_allclose(family.reward(state, controls, goals), expected, rtol=1e-12)
    np.testing.assert_array_equal(family.success(state, goals), [False, True, True, False])
    assert not family.terminated(state).any()


@pytest.mark.parametrize(
    ("sparse", "expected"),
    # the point at (0.6, 0.8), (0, 0.71), (0, 0.69), (0, 0); the goal at (0, 1): distances sqrt(0.4), 0.29, 0.31, 1
    [(False, [-(0.4**0.5), -0.29, -0.31, -1.0]), (True, [-1.0, -0.29, -1.0, -1.0])],
)
def test_point_reward(sparse: bool, expected: list[float]) -> None:
    family = PointGoal(sparse)
    state = {"qpos": np.array([[0.6, 0.8], [0.0, 0.71], [0.0, 0.69], [0.0, 0.0]]), "qvel": np.zeros((4, 2))}
    goals = np.tile([0.0, 1.0], (4, 1))
    np.testing.assert_allclose(family.reward(state, np.ones((4, 2)), goals), expected, rtol=1e-12)
    np.testing.assert_array_equal(family.success(state, goals), [False, True, False, False])


@pytest.mark.parametrize(
    ("sparse", "expected"),
    # block 2 at (0.5, 0.1), (0.9, 0.19), (0.9, 0.21); the goal at (0.9, 0): distances sqrt(0.17), 0.19, 0.21
    [(False, [-5 * 0.17**0.5, -0.95, -1.05]), (True, [-4.5, -0.95, -4.5])],
)
def test_pusher_reward(sparse: bool, expected: list[float]) -> None:
    family = PusherBlock(sparse)
    qpos = np.full((3, 13), 5.0)  # hand and other blocks far away
    qpos[:, 7:9] = np.array([[0.5, 0.1], [0.9, 0.19], [0.9, 0.21]]) - [0.6, 0.0]  # block 2's joints, body at x 0.6
    state = {"qpos": qpos, "qvel": np.zeros((3, 13))}
    tasks = np.zeros((3, 13))
    tasks[:, :3] = [2, 0.9, 0.0]
    np.testing.assert_allclose(family.reward(state, np.ones((3, 3)), tasks), expected, rtol=1e-12)
    np.testing.assert_array_equal(family.success(state, tasks), [False, True, False])
    np.testing.assert_array_equal(family.controls(np.array([[0.5, -1.0, 3.0]])), [[1.0, -2.0, 2.0]])


def ant_state() -> State:
    com = np.zeros((3, 14, 3))
    com[:, 1] = [[0.5, 0.5, 0.6], [0.5, 1.5, 0.6], [0.0, 1.25, 0.6]]
    forces = np.zeros((3, 14, 6))
    forces[0, 3] = [3.0, -2.0, 0.5, 0.0, 0.0, 0.0]  # clipped to 1, -1, 0.5: squares 2.25
    xmat = np.tile(np.eye(3).ravel(), (3, 14, 1))
    qpos = np.zeros((3, 15))
    qpos[:, 2] = 0.5
    return {"qpos": qpos, "qvel": np.zeros((3, 14)), "cfrc_ext": forces, "xmat": xmat, "subtree_com": com}


@pytest.mark.parametrize(
    ("sparse", "expected"),
    [
        # the goal at (0, 2): |com - goal|_1 = 2, 1 and 0.75; |com - goal|_2 = 1.58, 0.71 and 0.75
        (False, [4.05 - 2.0 - 0.005 * 8 - 0.0005 * 2.25, 4.05 - 1.0, 4.05 - 0.75 - 0.005 * 0.25]),
        (True, [4.05 - 2.0 - 0.005 * 8 - 0.0005 * 2.25, 4.05 - 1.0, 4.05 - 0.75 - 0.005 * 0.25]),
    ],
)
def test_ant_reward(sparse: bool, expected: list[float]) -> None:
    family = AntGoal(sparse)
    actions = np.zeros((3, 8))
    actions[0] = 1.5  # clipped to 1
    actions[2, 0] = 0.5
    goals = np.tile([0.0, 2.0], (3, 1))
    reward = family.reward(ant_state(), family.controls(actions), goals)
    np.testing.assert_allclose(reward, expected, rtol=1e-12)
    np.testing.assert_array_equal(family.success(ant_state(), goals), [False, True, True])


def test_ant_sparse_reward_outside_the_radius() -> None:
    goals = np.tile([2**0.5, 2**0.5], (3, 1))  # at distance 1.29, 0.92 and 1.42: all outside 0.8
    reward = AntGoal(sparse=True).reward(ant_state(), np.zeros((3, 8)), goals)
    survival = 4.05 - 2 * 2**0.5
    np.testing.assert_allclose(reward, [survival - 0.0005 * 2.25, survival, survival], rtol=1e-12)


def test_ant_terminates_outside_its_heights() -> None:
    state = dict(ant_state())
    for height, terminated in [(0.2, False), (1.0, False), (0.199, True), (1.001, True), (np.nan, True)]:
        state["qpos"][:, 2] = height
        assert (AntGoal().terminated(state) == terminated).all()


def test_ant_observation_layout() -> None:
    state = ant_state()
    state["qpos"][:] += np.arange(15)
    state["qvel"][:] += np.arange(14) + 100
    observation = AntGoal().observation(state)
    assert observation.shape == (3, 125)
    np.testing.assert_array_equal(observation[:, :15], state["qpos"])
    np.testing.assert_array_equal(observation[:, 15:29], state["qvel"])
    np.testing.assert_array_equal(observation[0, 29 + 18 : 29 + 24], [1.0, -1.0, 0.5, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(observation[:, 113:122], np.tile(np.eye(3).ravel(), (3, 1)))
    np.testing.assert_array_equal(observation[:, 122:], state["subtree_com"][:, 1])


# Models


def simulate(model: mujoco.MjModel, start: Array, controls: Array) -> tuple[Array, int]:
    """The state (nq + nv,) at the end of an episode with these controls (T, nu), and how many contacts there were."""
    data = mujoco.MjData(model)
    data.qpos[:] = start
    contacts = 0
    for control in controls:
        data.ctrl[:] = control
        mujoco.mj_step(model, data)
        contacts += data.ncon
    return np.concatenate([data.qpos, data.qvel]), contacts


@pytest.mark.parametrize("family", [WheeledGoal, AntGoal, PusherBlock])
def test_a_plain_model_has_nothing_that_only_makes_it_faster(family: type[MujocoFamily]) -> None:
    model = load_plain_model(family.asset)
    assert (model.npair, model.nexclude, model.opt.disableflags) == (0, 0, 0)


def test_the_wheeled_model_moves_as_the_plain_one() -> None:
    controls = np.random.default_rng(0).uniform(-2, 2, (200, 2))
    models = WheeledGoal().model, load_plain_model(WheeledGoal.asset)
    ends = [simulate(model, WheeledGoal().initial_qpos, controls)[0] for model in models]
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-9)


def test_wheeled_model() -> None:
    model = WheeledGoal().model
    np.testing.assert_allclose(model.body_mass[1:], [4.98924, 2.61236, 2.61236], rtol=0, atol=5e-6)
    assert (model.opt.timestep, model.nq, model.nv, model.nu) == (0.01, 6, 6, 2)
    assert not model.dof_damping.any()
    assert not model.dof_armature.any()
    np.testing.assert_array_equal(model.geom_contype, 1)
    np.testing.assert_array_equal(model.geom_conaffinity, [1, 0, 0, 0])
    np.testing.assert_array_equal(model.geom_condim, 3)
    np.testing.assert_array_equal(model.geom_friction, 0.4)
    np.testing.assert_array_equal(model.geom_solimp[:, :3], np.tile([0.0, 0.8, 0.01], (4, 1)))
    np.testing.assert_array_equal(model.jnt_limited, [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(model.jnt_range[2], [-1.0, 0.03])
    np.testing.assert_array_equal(model.jnt_margin, 0.01)


def test_ant_model() -> None:
    model = AntGoal().model
    assert (model.opt.timestep, model.nq, model.nv, model.nu, model.nbody) == (0.01, 15, 14, 8, 14)
    assert int(model.opt.integrator) == int(mujoco.mjtIntegrator.mjINT_RK4)
    names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(8)]
    assert names == ["hip_4", "ankle_4", "hip_1", "ankle_1", "hip_2", "ankle_2", "hip_3", "ankle_3"]
    np.testing.assert_array_equal(model.actuator_gear[:, 0], 30.0)
    np.testing.assert_array_equal(model.dof_armature, [0.0] * 6 + [1.0] * 8)
    np.testing.assert_array_equal(model.dof_damping, [0.0] * 6 + [1.0] * 8)
    limits = np.degrees(model.jnt_range[1:]).reshape(4, 2, 2)  # (leg, hip or ankle, low or high)
    np.testing.assert_allclose(limits[:, 0], np.tile([-30.0, 30.0], (4, 1)))
    np.testing.assert_allclose(limits[:, 1], [[30.0, 70.0], [-70.0, -30.0], [-70.0, -30.0], [30.0, 70.0]])


def test_ant_contact_pairs_are_what_mujoco_finds_by_itself() -> None:
    """The named pairs give bit for bit the contacts of geoms that collide with the floor by their bit masks."""
    controls = np.random.default_rng(0).uniform(-1, 1, (300, 8))
    models = AntGoal().model, load_plain_model(AntGoal.asset)
    ends, contacts = zip(*(simulate(model, AntGoal().initial_qpos, controls) for model in models), strict=True)
    assert contacts[0] == contacts[1] > 100
    np.testing.assert_array_equal(*ends)


def test_pusher_model() -> None:
    model = PusherBlock().model
    assert (model.opt.timestep, model.opt.iterations, model.nq, model.nv, model.nu) == (0.01, 20, 13, 13, 3)
    np.testing.assert_array_equal(model.opt.gravity, 0.0)
    np.testing.assert_array_equal(model.dof_damping, [0.5] * 3 + [1.5] * 10)
    np.testing.assert_array_equal(model.dof_armature, 0.04)
    np.testing.assert_array_equal(model.jnt_range, np.tile([-10.3, 10.3], (13, 1)))
    np.testing.assert_array_equal([model.geom_contype, model.geom_conaffinity, model.geom_condim], 1)
    # 0.06 x 0.06 x 0.1 of density 0.0005
    np.testing.assert_allclose(model.body_mass[2:], 0.0005 * 0.06 * 0.06 * 0.1)


def test_the_pusher_table_acts_on_nothing() -> None:
    """Leaving out contacts with the table changes the trajectories by rounding only, though blocks are pushed."""
    models = PusherBlock().model, load_plain_model(PusherBlock.asset)
    pushed = 0
    for seed, task in enumerate(PusherBlock().task_set("train", 20)):
        rng = np.random.default_rng(seed)
        start, _ = PusherBlock().initial_state(task, rng)
        controls = np.clip(rng.normal([1.0, 0.0, 0.0], 1.0, (100, 3)), -2.0, 2.0)
        ends = [simulate(model, start, controls)[0] for model in models]
        pushed += int(np.abs(ends[0][3:13] - start[3:]).max() > 0.05)
        np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-9)
    assert pushed > 10


def test_pusher_starts_exactly_at_the_layout() -> None:
    family = PusherBlock()
    task = family.task_set("validation", 1)[0]
    qpos, qvel = family.initial_state(task, np.random.default_rng(0))
    data = mujoco.MjData(family.model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(family.model, data)
    np.testing.assert_allclose(data.xpos[2:, :2], task[3:].reshape(5, 2), rtol=0, atol=1e-15)
    np.testing.assert_allclose(data.xpos[1], [0.0, 0.0, -0.263])
    assert not qvel.any()
    observation = family.observation({"qpos": qpos[None], "qvel": qvel[None]})[0]
    np.testing.assert_allclose(observation[3:13], task[3:], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("env_id", "n_zero"), [("WheeledGoal-v0", 6), ("AntGoal-v0", 15)])
def test_initial_noise(env_id: str, n_zero: int) -> None:
    env = make_vec(env_id, 400, 2)
    env.seed(0)
    state = env.reset()
    qpos, qvel = state[:, :n_zero], state[:, n_zero : 2 * n_zero - (n_zero == 15)]
    np.testing.assert_allclose(qpos.std(axis=0), 0.01, rtol=0.2)
    np.testing.assert_allclose(qvel.std(axis=0), 0.1, rtol=0.2)
    expected = np.zeros(6) if n_zero == 6 else [0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
    np.testing.assert_allclose(qpos.mean(axis=0), expected, rtol=0, atol=0.003)


# Behaviour


def drive(env_id: str, policy: Callable[[int], list[float]], n_steps: int, task: Array) -> tuple[Array, Array]:
    """First and last observation of an episode."""
    env = make_vec(env_id, 1, 1)
    env.set_tasks(task[None])
    env.seed(0)
    first = last = env.reset()
    for t in range(n_steps):
        last, _, dones, _ = env.step(np.array([policy(t)], dtype=np.float32))
        assert not dones.any()
    return first[0], last[0]


def test_wheels_forward_drive_the_cart_forward() -> None:
    first, last = drive("WheeledGoal-v0", lambda t: [1.0, 1.0], 199, np.array([2.0, 0.0]))
    yaw = first[3]
    forward = (last[:2] - first[:2]) @ [np.cos(yaw), np.sin(yaw)]
    assert forward > 2.0


def test_wheels_against_each_other_turn_the_cart() -> None:
    first, last = drive("WheeledGoal-v0", lambda t: [0.5, -0.5], 100, np.array([2.0, 0.0]))
    assert last[3] - first[3] > np.pi / 2  # the right wheel forward, the left one backward: counter-clockwise
    assert np.abs(last[:2] - first[:2]).max() < 0.5


def test_the_hand_pushes_a_block() -> None:
    task = PusherBlock().task_set("train", 1)[0].copy()
    task[3:5] = [0.4, 0.0]  # block 0 straight ahead
    task[5:] = np.stack([np.full(4, 0.5), [-0.4, -0.25, 0.25, 0.4]], axis=1).ravel()
    first, last = drive("PusherBlock-v0", lambda t: [0.5, 0.0, 0.0], 99, task)
    assert last[3] - first[3] > 0.3
    np.testing.assert_allclose(last[5:13], first[5:13], rtol=0, atol=1e-12)


def test_family_names() -> None:
    for env_id, make in FAMILIES.items():
        family: TaskFamily = make()
        assert family.env_id == env_id
        assert family.sparse == ("Sparse" in env_id)

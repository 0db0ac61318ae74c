"""A model so small that a meta-iteration takes milliseconds, and ways to compare such models."""

from typing import Any

import torch as th
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_maesn import MAESN, MetaOnPolicyAlgorithm, MultiTaskVecEnv
from sb3_maesn.envs import make_vec

POINT = "PointGoal-v0"
# environment steps of a tiny meta-iteration: 3 tasks, 4 episodes, before and after, horizon 20
ITERATION = 3 * 4 * 2 * 20


def tiny(env: Any = None, **kwargs: Any) -> MAESN:
    defaults: dict[str, Any] = {"meta_batch_size": 3, "n_episodes": 4, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    env = MultiTaskVecEnv(make_vec(POINT, 12)) if env is None else env
    return MAESN("LatentMlpPolicy", env, **{**defaults, **kwargs})


def state(model: MetaOnPolicyAlgorithm) -> dict[str, Any]:
    """Everything that training changes."""
    found = model.get_parameters()
    tensors = {f"{part}.{n}": v for part in ("policy", "task_latents") for n, v in found[part].items()}
    moments = found["policy.optimizer"]["state"]
    tensors |= {f"adam.{i}.{n}": th.as_tensor(v) for i, slots in moments.items() for n, v in slots.items()}
    return tensors | {"counters": th.tensor([model.num_timesteps, model._n_updates, model._episode_num])}


def assert_same(first: MetaOnPolicyAlgorithm, second: MetaOnPolicyAlgorithm) -> None:
    mine, theirs = state(first), state(second)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert th.equal(mine[name], theirs[name]), name


def differ(first: MetaOnPolicyAlgorithm, second: MetaOnPolicyAlgorithm) -> bool:
    mine, theirs = (one.policy.state_dict() for one in (first, second))
    return any(not th.equal(mine[name], theirs[name]) for name in mine)


class Memory(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows.append({**key_values, "step": step})

    def close(self) -> None:
        pass


def log_of(model: MetaOnPolicyAlgorithm, n: int, **kwargs: Any) -> list[dict[str, Any]]:
    memory = Memory()
    model.set_logger(Logger(None, [memory]))
    model.learn(n * model.timesteps_per_iteration, **kwargs)
    return memory.rows

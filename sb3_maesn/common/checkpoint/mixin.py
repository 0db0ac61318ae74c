"""``save_checkpoint``, ``load_checkpoint``, ``from_pretrained`` and ``push_to_hub``, for every algorithm."""

import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_maesn.common.checkpoint.archive import CheckpointError, shown
from sb3_maesn.common.checkpoint.file import Checkpoint, CheckpointConfig, read_checkpoint, write_checkpoint
from sb3_maesn.common.checkpoint.model_state import check_sizes, count_elements, read_state, write_state
from sb3_maesn.common.checkpoint.plain_settings import (
    decode_policy_kwargs,
    decode_value,
    encode_policy_kwargs,
    encode_value,
)
from sb3_maesn.common.checkpoint.plain_spaces import count, decode_space, encode_space
from sb3_maesn.common.checkpoint.pretrained import find_pretrained
from sb3_maesn.common.checkpoint.tensor_file import StoredTensor, to_tensor
from sb3_maesn.common.constructors import constructor_parameters

if TYPE_CHECKING:
    Base = BaseAlgorithm
else:
    Base = object

SelfCheckpoints = TypeVar("SelfCheckpoints", bound="CheckpointMixin")

#: Constructor arguments that belong to the place where a model runs, or have their own place in the file.
NOT_KEPT = (
    "policy_kwargs",
    "tensorboard_log",
    "verbose",
    "seed",
    "device",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "_init_setup_model",
)
#: Constructor arguments that SB3 keeps under another name.
OTHER_NAMES = {"stats_window_size": "_stats_window_size"}
EPISODE_KEYS = ("r", "l", "t")  # of SB3's record of the last episodes
MAX_TASKS = 2**20
MAX_BUFFER = 2**28  # numbers in a rollout's observations
MAX_EXTRA = 2**25  # numbers that a model may hold which its file does not


class CheckpointMixin(Base):
    """Checkpoints that hold numbers and settings and nothing that could run.

    What is state is what SB3's ``save`` takes it to be: the tensors of ``_get_torch_save_params``, the constructor's
    arguments, and the attributes of ``checkpoint_progress``; further state of an algorithm goes by ``_read_findings``
    and, if only training needs it, by ``_read_records``.

    Place it before SB3's class among the bases.
    """

    #: Attributes of a run that are single numbers or None, where a model has them.
    checkpoint_progress: ClassVar[tuple[str, ...]] = (
        "seed",
        "num_timesteps",
        "_n_updates",
        "_episode_num",
        "_whole_timesteps",
        "n_train_tasks",
        "n_steps",
        "n_envs",
        "entropy",
    )
    #: Id of the built-in task family that the model was trained on, None for another environment.
    env_id: str | None = None

    def _needless_tensors(self) -> frozenset[str]:
        """Tensors, as ``holder/name``, that neither act nor adapt and that training does without as well."""
        return frozenset()

    def _extra_elements(self) -> int:
        """Numbers that setting up the model allocates beside its policy and its rollouts."""
        return 0

    def _read_records(self) -> dict[str, th.Tensor]:
        """State of no fixed length, by name, the length being the first dimension; here SB3's last episodes."""
        if self.ep_info_buffer is None or self.ep_success_buffer is None:
            return {}
        rows = [[float(episode[key]) for key in EPISODE_KEYS] for episode in self.ep_info_buffer]
        return {
            "episodes/info": th.tensor(rows, dtype=th.float64).reshape(-1, len(EPISODE_KEYS)),  # (n, 3)
            "episodes/success": th.tensor([float(success) for success in self.ep_success_buffer], dtype=th.float64),
        }

    def _empty_records(self) -> dict[str, th.Tensor]:
        """What :meth:`_read_records` may return, with length 0, for the types and the other dimensions."""
        info = th.empty(0, len(EPISODE_KEYS), dtype=th.float64)
        return {"episodes/info": info, "episodes/success": th.empty(0, dtype=th.float64)}

    def _write_records(self, records: Mapping[str, th.Tensor]) -> None:
        """Restore what :meth:`_read_records` returned.

        :param records: all of them or none
        """
        rows = records["episodes/info"].tolist()
        episodes = [{"r": episode_return, "l": round(length), "t": time} for episode_return, length, time in rows]
        self.ep_info_buffer = deque(episodes, maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(records["episodes/success"].tolist(), maxlen=self._stats_window_size)

    def _read_findings(self) -> dict[str, th.Tensor]:
        """What else acts or adapts, of no fixed length as records are; empty where there is nothing of the kind."""
        return {}

    def _empty_findings(self) -> dict[str, th.Tensor]:
        """What :meth:`_read_findings` may return, with length 0, for the types and the other dimensions."""
        return {}

    def _write_findings(self, findings: Mapping[str, th.Tensor]) -> None:
        """Restore what :meth:`_read_findings` returned.

        :param findings: all of them
        """

    def save_checkpoint(self, path: str | Path, contents: str = "training") -> None:
        """Write a checkpoint from which :meth:`load_checkpoint` makes the model again, and goes on bit for bit.

        :param path: a zip file if it ends in ``.zip``, else a folder, for ``model.safetensors`` and ``config.json``
        :param contents: ``"training"`` for everything, ``"agent"`` for what acts and adapts: no optimiser, no critic
            that nothing uses, no statistics of the last episodes
        :raises ValueError: if a setting has no plain form (a policy class of your own, a schedule that is a function),
            or a weight is not finite
        """
        without = self._left_out(contents)
        tensors, groups = read_state(self, without)
        config = CheckpointConfig(
            algorithm=type(self).__name__,
            policy=self._policy_alias(),
            policy_kwargs=encode_policy_kwargs(self.policy_kwargs),
            hyperparameters=self._plain_hyperparameters(),
            observation_space=encode_space(self.observation_space),
            action_space=encode_space(self.action_space),
            task_family={} if self.env_id is None else {"id": self.env_id, "sparse": "Sparse" in self.env_id},
            progress={name: _plain_number(self, name) for name in self.checkpoint_progress if hasattr(self, name)},
            optimizers=groups,
            contents=contents,
        )
        records = self._read_records() if contents == "training" else {}
        write_checkpoint(Path(path), config, tensors | self._read_findings() | records)

    @classmethod
    def load_checkpoint(
        cls: type[SelfCheckpoints],
        path: str | Path,
        env: GymEnv | str | None = None,
        device: th.device | str = "cpu",
        **kwargs: Any,
    ) -> SelfCheckpoints:
        """Load a checkpoint. Nothing in it is run, and no name in it is imported.

        :param path: folder or zip file of :meth:`save_checkpoint`, with or without ``.zip``
        :param env: environment to go on training with; none is needed to predict or to adapt elsewhere
        :param device: torch device
        :param kwargs: arguments to change, as in SB3's ``load``
        :raises CheckpointError: a ValueError that says what is wrong with the file
        :raises ValueError: if the environment does not fit
        """
        model = cls.from_checkpoint(read_checkpoint(path), device, **kwargs)
        if env is not None:
            model.set_env(cast(GymEnv, env))
        return model

    @classmethod
    def from_checkpoint(
        cls: type[SelfCheckpoints], checkpoint: Checkpoint, device: th.device | str = "cpu", **kwargs: Any
    ) -> SelfCheckpoints:
        """Make the model that a checkpoint describes.

        :param checkpoint: as read; nothing in it is trusted
        :param device: torch device
        :param kwargs: arguments to change
        :raises CheckpointError: if anything in it is not what :meth:`save_checkpoint` writes
        :raises ValueError: for an argument that cannot be changed
        """
        config, fixed_arguments = checkpoint.config, set(kwargs) & {"policy", "env", *NOT_KEPT}
        if fixed_arguments:
            raise ValueError(f"cannot change {', '.join(sorted(fixed_arguments))} of a checkpoint")
        if config.algorithm != cls.__name__:
            raise CheckpointError(f"expected a model of {cls.__name__}, got one of {shown(config.algorithm)}")
        with _refused():
            model = cls._unset_model(config, device, kwargs)
            model._take_progress(config, count_elements(checkpoint.tensors))
            model._setup_model()
            records, findings = model._empty_records(), model._empty_findings()
            tensors = checkpoint.tensors
            fixed = {name: stored for name, stored in tensors.items() if name not in records | findings}
            write_state(model, fixed, config.optimizers, model._left_out(config.contents))
            for empty, write in ((records, model._write_records), (findings, model._write_findings)):
                if any(name in tensors for name in empty):
                    write({name: _record(name, tensors, like) for name, like in empty.items()})
        return model

    @classmethod
    def from_pretrained(
        cls: type[SelfCheckpoints],
        name: str | Path,
        env: GymEnv | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> SelfCheckpoints:
        """Load a model that comes with the package, a checkpoint, or one from the Hugging Face Hub. No code in it runs.

        :param name: one of ``sb3_maesn.list_pretrained()``, which needs no network; a path; or a repository of the Hub,
            ``"org/maesn-WheeledGoal-v0"``
        :param env: environment to go on training with; none is needed to predict or to adapt elsewhere
        :param revision: branch, tag or commit of the repository
        :param token: as in ``huggingface_hub``: the stored one where None
        :param cache_dir: likewise
        :param local_files_only: likewise
        :raises ValueError: for an unknown name, a damaged file, another algorithm's file
        :raises HubError: an OSError, if the Hub cannot be reached or refuses
        """
        where = find_pretrained(name, revision, token, cache_dir, local_files_only)
        try:
            return cls.load_checkpoint(where, env)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Publish this model on the Hugging Face Hub, in one commit.

        :param repo_id: ``"org/maesn-WheeledGoal-v0"``
        :param kwargs: see :func:`sb3_maesn.hub.push_to_hub`
        :return: address of the commit
        """
        from sb3_maesn.hub import push_to_hub  # which stands above the algorithms, as it evaluates and draws

        return push_to_hub(self, repo_id, **kwargs)

    # What a file says

    def _policy_alias(self) -> str:
        for name, policy in self.policy_aliases.items():
            if policy is self.policy_class:
                return name
        known = ", ".join(self.policy_aliases)
        raise ValueError(f"expected one of the policies {known}, got {self.policy_class}: `save` keeps that")

    def _plain_hyperparameters(self) -> dict[str, Any]:
        names = self._hyperparameter_names()
        return {name: encode_value(name, getattr(self, OTHER_NAMES.get(name, name))) for name in names}

    @classmethod
    def _hyperparameter_names(cls) -> list[str]:
        elsewhere = (*NOT_KEPT, *cls.checkpoint_progress)
        return [name for name in constructor_parameters(cls) if name not in elsewhere]

    def _left_out(self, contents: str) -> frozenset[str]:
        if contents == "training":
            return frozenset()
        if contents != "agent":
            raise ValueError(f"contents must be 'training' or 'agent', got {contents!r}")
        state_dicts, _ = self._get_torch_save_params()
        return self._needless_tensors() | {name for name in state_dicts if name.endswith("optimizer")}

    def lacking_to_train(self, contents: str) -> list[str]:
        """What a checkpoint lacks of what training uses, so that it has to begin anew: optimisers, further models.

        :param contents: of the checkpoint
        """
        return sorted(name for name in self._left_out(contents) if "/" not in name)  # whole holders

    @classmethod
    def _unset_model(
        cls: type[SelfCheckpoints], config: CheckpointConfig, device: th.device | str, changes: Mapping[str, Any]
    ) -> SelfCheckpoints:
        """The model without networks, of settings that have been checked."""
        defaults = _constructor_defaults(cls)
        unknown = set(config.hyperparameters) - set(defaults)
        if unknown:  # one that is missing is newer than the file, and takes its default
            raise CheckpointError(f"expected the hyperparameters of {cls.__name__}, not known {shown(sorted(unknown))}")
        settings = {name: decode_value(name, v, defaults[name]) for name, v in config.hyperparameters.items()}
        if config.policy not in cls.policy_aliases:
            raise CheckpointError(
                f"expected one of the policies {', '.join(cls.policy_aliases)}, got {shown(config.policy)}"
            )
        seed = _number_or_none(config.progress.get("seed"), 2**32 - 1)
        construct: Any = cls
        model: SelfCheckpoints = construct(
            policy=config.policy,
            env=None,
            policy_kwargs=decode_policy_kwargs(config.policy_kwargs),
            seed=seed,
            device=device,
            _init_setup_model=False,
            **{**settings, **changes},
        )
        return model

    def _take_progress(self, config: CheckpointConfig, n_elements: int) -> None:
        """Spaces and counters, bounded by what the file's tensors can fill."""
        self.observation_space = decode_space(config.observation_space)
        self.action_space = decode_space(config.action_space)
        check_sizes(self.observation_space, self.action_space, self.policy_kwargs, n_elements)
        unknown = set(config.progress) - set(self.checkpoint_progress)
        if unknown:
            raise CheckpointError(f"expected progress of {self.checkpoint_progress}, got {shown(sorted(unknown))}")
        for name, value in config.progress.items():
            setattr(self, name, _number_or_none(value, 2**62))
        self.env_id = _family_id(config.task_family)
        self._check_room(config.progress, n_elements)

    def _check_room(self, progress: Mapping[str, Any], n_elements: int) -> None:
        """Refuse numbers of tasks and steps that would fill the memory."""
        n_tasks = count(progress.get("n_train_tasks", 0), 0, MAX_TASKS)
        steps = count(progress.get("n_steps", 1), 0) * count(progress.get("n_envs", 1), 0)
        size = int(np.prod(self.observation_space.shape or ()))
        extra = n_tasks * self.policy_kwargs.get("latent_dim", 2) + self._extra_elements()
        if steps * size > MAX_BUFFER or extra > max(n_elements, MAX_EXTRA):
            raise CheckpointError(f"expected a smaller model, got {n_tasks} tasks, {steps} steps and {extra} numbers")


def _constructor_defaults(cls: type[CheckpointMixin]) -> dict[str, Any]:
    """What the hyperparameters of a class are where nothing is said, for the types that they may have."""
    defaults: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if "__init__" in vars(owner):
            defaults |= {name: p.default for name, p in inspect.signature(vars(owner)["__init__"]).parameters.items()}
    names = cls._hyperparameter_names()
    return {name: None if defaults[name] is inspect.Parameter.empty else defaults[name] for name in names}


@contextmanager
def _refused() -> Iterator[None]:
    """Whatever a file provokes in a constructor, in torch or in Gymnasium is the file's fault."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the checkpoint cannot be made into a model: {shown(str(error))}") from error


def _plain_number(model: BaseAlgorithm, name: str) -> int | None:
    value = getattr(model, name)
    return None if value is None else int(value)  # which may be a NumPy integer


def _number_or_none(value: Any, most: int) -> int | None:
    return None if value is None else count(value, -1, most)


def _family_id(content: Mapping[str, Any]) -> str | None:
    if not content:
        return None
    env_id, sparse = content.get("id"), content.get("sparse")
    if len(content) != 2 or not isinstance(env_id, str) or len(env_id) > 100 or sparse is not ("Sparse" in env_id):
        raise CheckpointError(f"expected a task family, got {shown(content)}")
    return env_id


def _record(name: str, tensors: Mapping[str, StoredTensor], like: th.Tensor) -> th.Tensor:
    if name not in tensors:
        raise CheckpointError(f"expected {name}, which is missing")
    stored = tensors[name]
    return to_tensor(name, stored, like.dtype, (*stored.shape[:1], *like.shape[1:]))

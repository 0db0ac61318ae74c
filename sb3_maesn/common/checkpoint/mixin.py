"""Mixin that gives an algorithm ``save_checkpoint``, ``load_checkpoint``, ``from_pretrained`` and ``push_to_hub``."""

import inspect
import io
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_maesn.common.checkpoint.archive import CheckpointError, is_checkpoint, shown
from sb3_maesn.common.checkpoint.file import Checkpoint, CheckpointConfig, read_checkpoint, write_checkpoint
from sb3_maesn.common.checkpoint.model_state import check_sizes, count_elements, read_state, write_state
from sb3_maesn.common.checkpoint.plain_settings import (
    decode_policy_kwargs,
    decode_value,
    encode_policy_kwargs,
    encode_value,
)
from sb3_maesn.common.checkpoint.plain_spaces import checked_int, decode_space, encode_space
from sb3_maesn.common.checkpoint.pretrained import find_pretrained
from sb3_maesn.common.checkpoint.tensor_file import StoredTensor, to_tensor
from sb3_maesn.common.constructors import constructor_parameters
from sb3_maesn.common.suggestions import did_you_mean

if TYPE_CHECKING:
    Base = BaseAlgorithm
else:
    Base = object

SelfCheckpoints = TypeVar("SelfCheckpoints", bound="CheckpointMixin")

#: Constructor arguments that ``hyperparameters`` excludes: they depend on the machine or are stored elsewhere.
EXCLUDED_ARGUMENTS = (
    "policy_kwargs",
    "tensorboard_log",
    "verbose",
    "seed",
    "device",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "_init_setup_model",
)
#: Attributes that SB3 names differently from the constructor's arguments.
ATTRIBUTE_NAMES = {"stats_window_size": "_stats_window_size"}
EPISODE_KEYS = ("r", "l", "t")  # return, length and time in SB3's records of episodes
MAX_TASKS = 2**20
MAX_BUFFER = 2**28  # numbers in the observations and hidden states of a rollout
MAX_EXTRA = 2**25  # numbers outside the policy that a model may allocate whatever the size of its file


class CheckpointMixin(Base):
    """Mixin for checkpoints that hold numbers and settings only, and no code.

    A checkpoint holds the tensors that SB3's ``_get_torch_save_params`` lists, the constructor's arguments, and the
    attributes listed in ``checkpoint_progress``. An algorithm adds further state with ``_read_inference_arrays`` and,
    if only training needs it, with ``_read_training_arrays``.

    The mixin must come before SB3's class among the base classes.
    """

    #: Attributes with a single integer or None; those that a model lacks are left out.
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
    #: Environment id of the built-in task family that the model was trained on, None for other environments.
    env_id: str | None = None

    entropy: int  # seed of the iterations, random where ``seed`` is None

    #: Class that saved the model; SB3's files keep it with the other attributes.
    algorithm_name: str | None = None

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed all generators as SB3 does, and all further iterations, whose randomness depends on this seed alone.

        :param seed: new seed; None for no change
        """
        super().set_random_seed(seed)
        if seed is not None:
            self.seed = self.entropy = seed

    def _check_saved_algorithm(self) -> None:
        """Note the class of a new model, and check that of a model from a file of SB3's ``save``.

        A base class may load what its subclasses saved, and the other way round.

        :raises ValueError: if another algorithm of the package saved the model
        """
        if self.algorithm_name is None:
            self.algorithm_name = type(self).__name__
        related = {cls.__name__ for cls in (*type(self).__mro__, *_subclasses(type(self)))}
        if self.algorithm_name in {cls.__name__ for cls in _subclasses(CheckpointMixin)} - related:
            raise ValueError(f"expected a model of {type(self).__name__}, got one of {self.algorithm_name}")

    def _non_inference_tensors(self) -> frozenset[str]:
        """List what neither acting nor adapting uses, apart from optimisers.

        :return: names of tensors (``module/name``) and of whole modules
        """
        return frozenset()

    def _extra_elements(self) -> int:
        """Count the numbers that building the model allocates apart from policy, rollouts and latents of the tasks."""
        return 0

    def _read_training_arrays(self) -> dict[str, th.Tensor]:
        """Read state that only training needs and whose length varies; here SB3's record of the last episodes.

        :return: arrays by name; the first dimension is the variable length
        """
        if self.ep_info_buffer is None or self.ep_success_buffer is None:
            return {}
        rows = [[float(episode[key]) for key in EPISODE_KEYS] for episode in self.ep_info_buffer]
        return {
            "episodes/info": th.tensor(rows, dtype=th.float64).reshape(-1, len(EPISODE_KEYS)),  # (n, 3)
            "episodes/success": th.tensor([float(success) for success in self.ep_success_buffer], dtype=th.float64),
        }

    def _empty_training_arrays(self) -> dict[str, th.Tensor]:
        """Make arrays of length 0 with the names, types and other dimensions of :meth:`_read_training_arrays`."""
        info = th.empty(0, len(EPISODE_KEYS), dtype=th.float64)
        return {"episodes/info": info, "episodes/success": th.empty(0, dtype=th.float64)}

    def _write_training_arrays(self, arrays: Mapping[str, th.Tensor]) -> None:
        """Restore state that only training needs.

        :param arrays: arrays with all names of :meth:`_empty_training_arrays`
        """
        rows = arrays["episodes/info"].tolist()
        episodes = [{"r": episode_return, "l": round(length), "t": time} for episode_return, length, time in rows]
        self.ep_info_buffer = deque(episodes, maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(arrays["episodes/success"].tolist(), maxlen=self._stats_window_size)

    def _read_inference_arrays(self) -> dict[str, th.Tensor]:
        """Read state that acting or adapting needs and whose length varies; empty if there is none.

        :return: arrays by name; the first dimension is the variable length
        """
        return {}

    def _empty_inference_arrays(self) -> dict[str, th.Tensor]:
        """Make arrays of length 0 with the names, types and other dimensions of :meth:`_read_inference_arrays`."""
        return {}

    def _write_inference_arrays(self, arrays: Mapping[str, th.Tensor]) -> None:
        """Restore state that acting or adapting needs.

        :param arrays: arrays with all names of :meth:`_empty_inference_arrays`
        """

    def save_checkpoint(self, path: str | Path, contents: str = "training") -> None:
        """Write a checkpoint that :meth:`load_checkpoint` restores.

        A ``"training"`` checkpoint continues bit for bit like the model itself.

        :param path: path of a zip file if it ends in ``.zip``, else of a folder, which gets the files
            ``model.safetensors`` and ``config.json``
        :param contents: kind of checkpoint: ``"training"`` for everything, ``"agent"`` for what acting and adapting
            need, without optimisers, an unused critic and the statistics of the last episodes
        :raises ValueError: if a setting has no plain form (a custom policy class, a schedule that is a function), a
            weight is not finite, or ``contents`` is unknown
        """
        tensors, groups = read_state(self, self._excluded_tensors(contents))
        config = CheckpointConfig(
            algorithm=type(self).__name__,
            policy=self._policy_alias(),
            policy_kwargs=encode_policy_kwargs(self.policy_kwargs),
            hyperparameters=self._plain_hyperparameters(),
            observation_space=encode_space(self.observation_space),
            action_space=encode_space(self.action_space),
            task_family={} if self.env_id is None else {"id": self.env_id, "sparse": "Sparse" in self.env_id},
            progress={name: _plain_int(self, name) for name in self.checkpoint_progress if hasattr(self, name)},
            optimizers=groups,
            contents=contents,
        )
        training_arrays = self._read_training_arrays() if contents == "training" else {}
        write_checkpoint(Path(path), config, tensors | self._read_inference_arrays() | training_arrays)

    @classmethod
    def load(
        cls: type[SelfCheckpoints], path: str | Path | io.BufferedIOBase, *args: Any, **kwargs: Any
    ) -> SelfCheckpoints:
        """Load a file that ``save`` wrote, see SB3's ``BaseAlgorithm.load``.

        :param path: path of the file, with or without ``.zip``, or an open binary file
        :param args: further arguments of SB3's ``load``, the first of which is the environment
        :param kwargs: further arguments of SB3's ``load``, and constructor arguments that replace those in the file
        :return: the model
        :raises CheckpointError: a ValueError, if :meth:`save_checkpoint` wrote the file
        """
        paths = () if isinstance(path, io.BufferedIOBase) else (Path(path), Path(f"{path}.zip"))
        if any(is_checkpoint(candidate) for candidate in paths):
            raise CheckpointError(f"{path} is a checkpoint: load it with {cls.__name__}.load_checkpoint")
        return super().load(path, *args, **kwargs)

    @classmethod
    def load_checkpoint(
        cls: type[SelfCheckpoints],
        path: str | Path,
        env: GymEnv | str | None = None,
        device: th.device | str = "cpu",
        **kwargs: Any,
    ) -> SelfCheckpoints:
        """Load a checkpoint without running or importing anything that it names.

        :param path: path of a folder or zip file written by :meth:`save_checkpoint`, with or without ``.zip``
        :param env: environment to continue training in; not needed to predict or to adapt in another one
        :param device: torch device
        :param kwargs: constructor arguments that replace those in the checkpoint
        :return: the model
        :raises CheckpointError: a ValueError that says what is wrong with the checkpoint
        :raises ValueError: if an argument cannot be changed, or the environment is unsuitable
        """
        model = cls.from_checkpoint(read_checkpoint(path), device, **kwargs)
        if env is not None:
            model.set_env(cast(GymEnv, env))
        return model

    @classmethod
    def from_checkpoint(
        cls: type[SelfCheckpoints], checkpoint: Checkpoint, device: th.device | str = "cpu", **kwargs: Any
    ) -> SelfCheckpoints:
        """Build the model that a checkpoint describes.

        :param checkpoint: checkpoint as read from its files; its values are checked here
        :param device: torch device
        :param kwargs: constructor arguments that replace those in the checkpoint
        :return: the model, without an environment
        :raises CheckpointError: if the checkpoint holds anything that :meth:`save_checkpoint` would not write
        :raises ValueError: if an argument cannot be changed
        """
        config, fixed_arguments = checkpoint.config, set(kwargs) & {"policy", "env", *EXCLUDED_ARGUMENTS}
        if fixed_arguments:
            raise ValueError(f"cannot change {', '.join(sorted(fixed_arguments))} of a checkpoint")
        known = constructor_parameters(cls)
        for name in kwargs:
            if name not in known:
                raise ValueError(f"{cls.__name__} has no argument {name!r}{did_you_mean(name, known)}")
        if config.algorithm != cls.__name__:
            raise CheckpointError(f"expected a model of {cls.__name__}, got one of {shown(config.algorithm)}")
        with _as_checkpoint_errors():
            model = cls._construct_unbuilt(config, device, kwargs)
            model._restore_spaces_and_counters(config, count_elements(checkpoint.tensors))
            model._setup_model()
            model._restore_tensors(checkpoint)
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
        """Load a model shipped with the package, a checkpoint, or a model from the Hugging Face Hub.

        No code in the model's files runs.

        :param name: one of ``sb3_maesn.list_pretrained()``, which needs no network; a path; or a repository on the Hub
            such as ``"org/maesn-WheeledGoal-v0"``
        :param env: environment to continue training in; not needed to predict or to adapt in another one
        :param revision: branch, tag or commit of the repository, None for its main branch
        :param token: access token of the Hub; None for the one that huggingface_hub has stored
        :param cache_dir: folder of the download cache, None for huggingface_hub's own
        :param local_files_only: whether to use the download cache only, without network access
        :return: the model
        :raises ValueError: if the name is unknown, or the checkpoint is damaged or of another algorithm
        :raises HubError: an OSError, if the Hub cannot be reached or refuses access
        """
        where = find_pretrained(name, revision, token, cache_dir, local_files_only)
        try:
            return cls.load_checkpoint(where, env)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Publish this model on the Hugging Face Hub in one commit.

        :param repo_id: name of the repository, such as ``"org/maesn-WheeledGoal-v0"``
        :param kwargs: further arguments of :func:`sb3_maesn.hub.push_to_hub`
        :return: URL of the commit
        """
        from sb3_maesn.hub import push_to_hub  # imported here because hub.py itself imports the algorithms

        return push_to_hub(self, repo_id, **kwargs)

    def plain_settings(self) -> dict[str, Any]:
        """Describe policy and hyperparameters as plain values, in the notation of hyperparameter files.

        :return: arguments of the constructor by name
        :raises ValueError: if a setting has no plain form
        """
        named = {"policy": self._policy_alias(), "policy_kwargs": encode_policy_kwargs(self.policy_kwargs)}
        return {**named, **self._plain_hyperparameters()}

    # Writing: the parts of the configuration

    def _policy_alias(self) -> str:
        for name, policy in self.policy_aliases.items():
            if policy is self.policy_class:
                return name
        known = ", ".join(self.policy_aliases)
        raise ValueError(f"expected one of the policies {known}, got {self.policy_class}: `save` keeps that")

    def _plain_hyperparameters(self) -> dict[str, Any]:
        names = self._hyperparameter_names()
        return {name: encode_value(name, getattr(self, ATTRIBUTE_NAMES.get(name, name))) for name in names}

    @classmethod
    def _hyperparameter_names(cls) -> list[str]:
        elsewhere = (*EXCLUDED_ARGUMENTS, *cls.checkpoint_progress)
        return [name for name in constructor_parameters(cls) if name not in elsewhere]

    def _excluded_tensors(self, contents: str) -> frozenset[str]:
        """List what a checkpoint leaves out: names of tensors (``module/name``), whole modules and optimisers.

        :param contents: kind of checkpoint, ``"training"`` or ``"agent"``
        :raises ValueError: if it is another kind
        """
        if contents == "training":
            return frozenset()
        if contents != "agent":
            raise ValueError(f"contents must be 'training' or 'agent', got {contents!r}")
        state_dicts, _ = self._get_torch_save_params()
        return self._non_inference_tensors() | {name for name in state_dicts if name.endswith("optimizer")}

    def parts_to_reinitialise(self, contents: str) -> list[str]:
        """List the parts that training uses but a checkpoint lacks, so that training has to start them afresh.

        :param contents: kind of checkpoint, ``"training"`` or ``"agent"``
        :return: names of optimisers and modules
        """
        return sorted(name for name in self._excluded_tensors(contents) if "/" not in name)  # no single tensors

    # Reading: checked values become a model

    @classmethod
    def _construct_unbuilt(
        cls: type[SelfCheckpoints], config: CheckpointConfig, device: th.device | str, changes: Mapping[str, Any]
    ) -> SelfCheckpoints:
        """Construct a model without networks from the settings of a checkpoint.

        :param config: configuration from the file; the settings are checked here
        :param device: torch device
        :param changes: constructor arguments that replace those in the file
        :return: the model, whose ``_setup_model`` has not been called
        :raises CheckpointError: if a setting is unknown or invalid
        """
        defaults = _constructor_defaults(cls)
        unknown = set(config.hyperparameters) - set(defaults)
        if unknown:  # a missing one is newer than the file and takes its default
            raise CheckpointError(f"expected the hyperparameters of {cls.__name__}, not known {shown(sorted(unknown))}")
        settings = {name: decode_value(name, v, defaults[name]) for name, v in config.hyperparameters.items()}
        if config.policy not in cls.policy_aliases:
            raise CheckpointError(
                f"expected one of the policies {', '.join(cls.policy_aliases)}, got {shown(config.policy)}"
            )
        seed = _checked_int_or_none(config.progress.get("seed"), 2**32 - 1)
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

    def _restore_spaces_and_counters(self, config: CheckpointConfig, n_elements: int) -> None:
        """Restore spaces and counters, within bounds that keep the networks no larger than the file warrants.

        :param config: configuration from the file
        :param n_elements: count of the numbers in the file's tensors
        :raises CheckpointError: if a value is invalid or out of bounds
        """
        self.observation_space = decode_space(config.observation_space)
        self.action_space = decode_space(config.action_space)
        check_sizes(self.observation_space, self.action_space, self.policy_kwargs, n_elements)
        unknown = set(config.progress) - set(self.checkpoint_progress)
        if unknown:
            raise CheckpointError(f"expected progress of {self.checkpoint_progress}, got {shown(sorted(unknown))}")
        for name, value in config.progress.items():
            setattr(self, name, _checked_int_or_none(value, 2**62))
        self.env_id = _family_id(config.task_family)
        self._check_memory_bounds(config.progress, n_elements)

    def _check_memory_bounds(self, progress: Mapping[str, Any], n_elements: int) -> None:
        """Check that the numbers of tasks and steps would not fill the memory.

        :param progress: counters from the file
        :param n_elements: count of the numbers in the file's tensors
        :raises CheckpointError: if the model would be too large
        """
        n_tasks = checked_int(progress.get("n_train_tasks", 0), 0, MAX_TASKS)
        steps = checked_int(progress.get("n_steps", 1), 0) * checked_int(progress.get("n_envs", 1), 0)
        hidden = self.policy_kwargs.get("lstm_hidden_size", 0) * self.policy_kwargs.get("n_lstm_layers", 1)
        size = int(np.prod(self.observation_space.shape or ())) + 4 * hidden  # both states of actor and critic
        extra = n_tasks * self.policy_kwargs.get("latent_dim", 2) + self._extra_elements()
        if steps * size > MAX_BUFFER or extra > max(n_elements, MAX_EXTRA):
            raise CheckpointError(f"expected a smaller model, got {n_tasks} tasks, {steps} steps and {extra} numbers")

    def _restore_tensors(self, checkpoint: Checkpoint) -> None:
        """Copy the tensors of a checkpoint into the model, whose networks have been built.

        Arrays of variable length may be missing, but only all of a kind at once.

        :param checkpoint: checkpoint as read from its files
        :raises CheckpointError: if the tensors are not those of the model
        """
        tensors, config = checkpoint.tensors, checkpoint.config
        training, inference = self._empty_training_arrays(), self._empty_inference_arrays()
        fixed = {name: stored for name, stored in tensors.items() if name not in training | inference}
        write_state(self, fixed, config.optimizers, self._excluded_tensors(config.contents))
        for empty, write in ((training, self._write_training_arrays), (inference, self._write_inference_arrays)):
            if any(name in tensors for name in empty):
                write({name: _stored_array(name, tensors, like) for name, like in empty.items()})


def _subclasses(cls: type) -> set[type]:
    """Collect all direct and indirect subclasses of a class."""
    children: list[type] = cls.__subclasses__()
    return {found for child in children for found in (child, *_subclasses(child))}


def _constructor_defaults(cls: type[CheckpointMixin]) -> dict[str, Any]:
    """Collect the default values of a class's hyperparameters; their types are those that a file may use."""
    defaults: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if "__init__" in vars(owner):
            defaults |= {name: p.default for name, p in inspect.signature(vars(owner)["__init__"]).parameters.items()}
    names = cls._hyperparameter_names()
    return {name: None if defaults[name] is inspect.Parameter.empty else defaults[name] for name in names}


@contextmanager
def _as_checkpoint_errors() -> Iterator[None]:
    """Turn any error inside the context, such as torch raises for bad values of a file, into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"the checkpoint cannot be made into a model: {shown(str(error))}") from error


def _plain_int(model: BaseAlgorithm, name: str) -> int | None:
    value = getattr(model, name)
    return None if value is None else int(value)  # NumPy integers too


def _checked_int_or_none(value: Any, most: int) -> int | None:
    return None if value is None else checked_int(value, -1, most)


def _family_id(content: Mapping[str, Any]) -> str | None:
    """Check the task family of a file and return its environment id, None for an empty mapping."""
    if not content:
        return None
    env_id, sparse = content.get("id"), content.get("sparse")
    if len(content) != 2 or not isinstance(env_id, str) or len(env_id) > 100 or sparse is not ("Sparse" in env_id):
        raise CheckpointError(f"expected a task family, got {shown(content)}")
    return env_id


def _stored_array(name: str, tensors: Mapping[str, StoredTensor], like: th.Tensor) -> th.Tensor:
    """Read an array of any length whose type and other dimensions are those of ``like``."""
    if name not in tensors:
        raise CheckpointError(f"expected {name}, which is missing")
    stored = tensors[name]
    return to_tensor(name, stored, like.dtype, (*stored.shape[:1], *like.shape[1:]))

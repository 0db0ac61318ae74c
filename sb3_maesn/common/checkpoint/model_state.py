"""Conversion of a model's modules, optimisers and variables to and from tensors by name."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.save_util import recursive_getattr
from torch import nn

from sb3_maesn.common.checkpoint.archive import CheckpointError, shown
from sb3_maesn.common.checkpoint.plain_settings import decode_value, encode_value
from sb3_maesn.common.checkpoint.tensor_file import StoredTensor, to_tensor

#: Weights of a layer (16 MB) that are allowed whatever the file holds; larger ones only if it holds as many numbers.
ALWAYS_ALLOWED_WEIGHTS = 2**22
#: State that torch's optimisers always keep of a parameter that they have changed, and state that some settings add.
SLOTS: dict[type[th.optim.Optimizer], tuple[set[str], set[str]]] = {
    th.optim.Adam: ({"step", "exp_avg", "exp_avg_sq"}, {"max_exp_avg_sq"}),
    th.optim.AdamW: ({"step", "exp_avg", "exp_avg_sq"}, {"max_exp_avg_sq"}),
    th.optim.RMSprop: ({"step", "square_avg"}, {"grad_avg", "momentum_buffer"}),
    th.optim.SGD: (set(), {"momentum_buffer"}),
}

OptimizerGroups = dict[str, list[dict[str, Any]]]


def read_state(
    model: BaseAlgorithm, without: frozenset[str] = frozenset()
) -> tuple[dict[str, th.Tensor], OptimizerGroups]:
    """Read the tensors of a model and the settings of its optimisers.

    The holders of tensors are the modules, optimisers and variables that SB3's ``save`` keeps.

    :param model: model to read
    :param without: names of tensors (``holder/name``) and of whole holders to leave out
    :return: tensors by ``holder/name``, and settings of the parameter groups by optimiser
    """
    tensors: dict[str, th.Tensor] = {}
    groups: OptimizerGroups = {}
    for name, holder in _holders(model, without):
        if isinstance(holder, th.optim.Optimizer):
            state = holder.state_dict()
            groups[name] = [_encode_group(group) for group in state["param_groups"]]
            slots = {f"{i}/{slot}": th.as_tensor(v) for i, kept in state["state"].items() for slot, v in kept.items()}
            tensors |= {f"{name}/{key}": value for key, value in slots.items()}
        else:
            own = holder.state_dict() if isinstance(holder, nn.Module) else {"value": holder}
            # a module's extra state is not a tensor: algorithms store it through _read_training_arrays
            tensors |= {f"{name}/{key}": value for key, value in own.items() if isinstance(value, th.Tensor)}
    return {name: value for name, value in tensors.items() if name not in without}, groups


def write_state(
    model: BaseAlgorithm, tensors: Mapping[str, StoredTensor], groups: Any, without: frozenset[str] = frozenset()
) -> None:
    """Write tensors and optimiser settings, as returned by :func:`read_state`, into a model.

    :param model: newly built model with the same settings
    :param tensors: tensors from a file by ``holder/name``
    :param groups: settings of the parameter groups by optimiser, from a file and unchecked
    :param without: names of tensors and of whole holders that were left out of the file
    :raises CheckpointError: if a tensor or a setting is missing, unknown, or of the wrong shape or type
    """
    expected, own_groups = read_state(model, without)
    optimizers = tuple(f"{name}/" for name in own_groups)
    wanted = {name for name in expected if not name.startswith(optimizers)}
    came = {name for name in tensors if not name.startswith(optimizers)}
    if wanted != came:
        missing, unknown = sorted(wanted - came)[:3], sorted(came - wanted)[:3]
        raise CheckpointError(f"expected exactly the model's tensors; missing {missing}, not known {shown(unknown)}")
    if not isinstance(groups, Mapping) or set(groups) != set(own_groups):
        raise CheckpointError(f"expected the optimisers {sorted(own_groups)}, got {shown(groups)}")
    for name, holder in _holders(model, without):
        if isinstance(holder, th.optim.Optimizer):
            _write_optimizer(name, holder, tensors, groups[name])
            continue
        own = {key: value for key, value in expected.items() if key.startswith(f"{name}/")}
        read = {key: to_tensor(key, tensors[key], value.dtype, tuple(value.shape)) for key, value in own.items()}
        with th.no_grad():
            for key, value in own.items():  # tensors of a state dict share their memory with the module
                value.copy_(read[key])


def check_sizes(
    observation_space: spaces.Space, action_space: spaces.Space, policy_kwargs: Mapping[str, Any], n_elements: int
) -> None:
    """Check, before networks are built, that they would not be much larger than the file that has their weights.

    :param observation_space: observation space from the file
    :param action_space: action space from the file
    :param policy_kwargs: decoded arguments of the policy from the file
    :param n_elements: count of the numbers in the file's tensors
    :raises CheckpointError: if a network would be too large
    """
    allowed = max(n_elements, ALWAYS_ALLOWED_WEIGHTS)
    n_in = get_flattened_obs_dim(observation_space) + policy_kwargs.get("latent_dim", 0)
    n_out = get_flattened_obs_dim(action_space)
    arch = policy_kwargs.get("net_arch")
    hidden = arch.values() if isinstance(arch, Mapping) else [arch or []]
    layers = [[n_in, *widths, n_out] for widths in hidden]
    sizes = [value for name, value in policy_kwargs.items() if name.endswith(("_size", "_dim"))]
    depth = policy_kwargs.get("n_lstm_layers", 1)
    # an LSTM layer has four gates, each with weights of its inputs and of its own state; actor and critic have one each
    recurrent = [([depth, size], 8 * size * (n_in + size + 2 * size * (depth - 1))) for size in sizes]
    for widths, needed in (*((widths, sum(a * b for a, b in pairwise(widths))) for widths in layers), *recurrent):
        if needed > allowed:
            raise CheckpointError(f"expected networks of at most {allowed} weights, got layers of {shown(widths)}")


def count_elements(tensors: Mapping[str, StoredTensor]) -> int:
    """Count the numbers in all tensors of a file.

    :param tensors: tensors by name
    :return: total number of elements
    """
    return sum(math.prod(stored.shape) for stored in tensors.values())


def _holders(model: BaseAlgorithm, without: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Iterate over the modules, optimisers and variables that SB3's ``save`` keeps, with their names."""
    state_dicts, variables = model._get_torch_save_params()
    for name in (*state_dicts, *variables):
        if name not in without:
            yield name, recursive_getattr(model, name)


def _encode_group(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: encode_value(key, value) for key, value in group.items() if key != "params"}


def _write_optimizer(
    name: str, optimizer: th.optim.Optimizer, tensors: Mapping[str, StoredTensor], groups: Any
) -> None:
    state = optimizer.state_dict()
    own = state["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        raise CheckpointError(f"expected {len(own)} groups in the optimiser {name}, got {shown(groups)}")
    for group, read in zip(own, groups, strict=True):
        if not isinstance(read, Mapping) or set(read) != set(group) - {"params"}:
            raise CheckpointError(f"expected a group of the optimiser {name}, got {shown(read)}")
        group |= {key: _decode_option(key, value, group[key]) for key, value in read.items()}
    state["state"] = _decode_slots(name, optimizer, tensors)
    optimizer.load_state_dict(state)


def _decode_option(name: str, content: Any, default: Any) -> Any:
    """Decode an optimiser's setting; where the default is an integer, a float is accepted too."""
    value = decode_value(name, content, float(default) if type(default) is int else default)
    return tuple(value) if isinstance(value, list) else value


def _decode_slots(
    name: str, optimizer: th.optim.Optimizer, tensors: Mapping[str, StoredTensor]
) -> dict[int, dict[str, th.Tensor]]:
    """Decode the state that an optimiser keeps for each of its parameters, by the parameter's index."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = {str(i): i for i in range(len(parameters))}
    always, sometimes = SLOTS[type(optimizer)]
    found: dict[int, dict[str, th.Tensor]] = {}
    for key, stored in tensors.items():
        if not key.startswith(f"{name}/"):
            continue
        index, _, slot = key.removeprefix(f"{name}/").partition("/")
        if index not in indices or slot not in always | sometimes:
            raise CheckpointError(f"expected the state of one of {len(indices)} parameters, got {shown(key)}")
        parameter = parameters[indices[index]]
        dtype, shape = (th.float32, ()) if slot == "step" else (parameter.dtype, tuple(parameter.shape))
        found.setdefault(indices[index], {})[slot] = to_tensor(key, stored, dtype, shape)
    kinds = {frozenset(slots) for slots in found.values()}
    if len(kinds) > 1 or not all(always <= slots for slots in kinds):
        raise CheckpointError(f"expected {sorted(always)} of every parameter of {name}, got less of some")
    return found

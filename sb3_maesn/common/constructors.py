"""What constructors take: names and types of their arguments, for values that come from a file or a user."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

#: Types as a message names them.
KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    dict: "a mapping",
    list: "a list",
    Sequence: "a list",
    Callable: "a schedule",
    type: "a class",
}


def constructor_annotations(cls: type) -> dict[str, Any]:
    """What a constructor takes by name, following ``**kwargs`` up the base classes.

    :param cls: class
    :return: types by parameter names; Any where the constructor does not say
    """
    annotations: dict[str, Any] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                annotations.setdefault(p.name, Any if p.annotation is p.empty else p.annotation)
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return annotations


def constructor_parameters(algorithm: type) -> list[str]:
    """Names of what an algorithm's constructor takes.

    :param algorithm: class
    :return: parameter names, without ``policy`` and ``env``
    """
    return [name for name in constructor_annotations(algorithm) if name not in ("policy", "env")]


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type, as far as plain values tell: a switch is no number, and a whole number is a number.

    :param value: the value
    :param annotation: the type; what is no type, such as Any, accepts everything
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if annotation is Any:
        return True
    if annotation is None:
        return value is None
    if annotation in (int, float):
        kinds = Integral if annotation is int else Real  # NumPy's among them
        return isinstance(value, kinds) and not isinstance(value, bool)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(item, arguments[1]) for item in value.values())
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    kind = annotation if origin is None else origin
    return not isinstance(kind, type) or isinstance(value, kind)


def check_types(settings: Mapping[str, Any], algorithm: type, names: Iterable[str]) -> None:
    """Refuse values that are not of the types that a constructor says.

    :param settings: by the names of the constructor's arguments; those missing are not checked
    :param algorithm: class of the constructor
    :param names: of the settings to check
    :raises ValueError: naming what was expected and what came
    """
    types = constructor_annotations(algorithm)
    for name in names:
        if name in settings and not fits(settings[name], types.get(name, Any)):
            raise ValueError(f"{name} must be {described(types[name])}, got {settings[name]!r}")


def described(annotation: Any) -> str:
    """A type in words.

    :param annotation: the type
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(described(argument) for argument in arguments))
    kind = annotation if origin is None else origin
    name = KINDS.get(kind, getattr(kind, "__name__", str(kind)))
    return f"{name} ({described(arguments[0])} each)" if origin in (list, Sequence) else name

"""Names and types of constructor arguments, to check values that come from a file or a user."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

#: Names of types in error messages.
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
    """Collect the annotations of a constructor's arguments, following ``**kwargs`` up the base classes.

    :param cls: class whose constructor is inspected
    :return: types by argument name; Any for an argument without annotation
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
    """List the arguments of an algorithm's constructor apart from ``policy`` and ``env``.

    :param algorithm: class of the algorithm
    :return: argument names
    """
    return [name for name in constructor_annotations(algorithm) if name not in ("policy", "env")]


def fits(value: Any, annotation: Any) -> bool:
    """Check whether a value fits a type annotation, as far as plain values can tell.

    A bool does not count as a number, and an integer fits ``float``.

    :param value: value to check
    :param annotation: type annotation; everything fits one that names no type, such as Any
    :return: whether the value fits
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if annotation is Any:
        return True
    if annotation is None:
        return value is None
    if annotation in (int, float):
        kinds = Integral if annotation is int else Real  # NumPy's numbers included
        return isinstance(value, kinds) and not isinstance(value, bool)
    if origin is dict:
        return isinstance(value, Mapping) and all(fits(item, arguments[1]) for item in value.values())
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    kind = annotation if origin is None else origin
    return not isinstance(kind, type) or isinstance(value, kind)


def check_types(settings: Mapping[str, Any], algorithm: type, names: Iterable[str]) -> None:
    """Check settings against the annotations of a constructor.

    :param settings: values by argument name; a missing argument is not checked
    :param algorithm: class whose constructor is inspected
    :param names: names of the settings to check
    :raises ValueError: if a value does not fit its type
    """
    types = constructor_annotations(algorithm)
    for name in names:
        if name in settings and not fits(settings[name], types.get(name, Any)):
            raise ValueError(f"{name} must be {described(types[name])}, got {settings[name]!r}")


def described(annotation: Any) -> str:
    """Describe a type annotation in words, for error messages.

    :param annotation: type annotation
    :return: description, such as ``"a whole number or null"``
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(described(argument) for argument in arguments))
    kind = annotation if origin is None else origin
    name = KINDS.get(kind, getattr(kind, "__name__", str(kind)))
    return f"{name} ({described(arguments[0])} each)" if origin in (list, Sequence) else name

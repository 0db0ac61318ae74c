"""Suggestions for misspelt names in error messages."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Suggest the known names that are most similar to a given one, ignoring case.

    :param name: name that the user gave; a key of a YAML file need not be text
    :param known: names that exist
    :return: end of an error message, such as ``"; did you mean maesn or maml?"``; empty if no name is similar
    """
    by_lower = {str(k).lower(): str(k) for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else ""

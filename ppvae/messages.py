"""The words of an error: one sentence that names the thing and the remedy."""

import re
import textwrap
from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: str, options: Iterable[str], plural: str | None = None) -> ValueError:
    """The error for a name that is not one of `options`, with the nearest ones.

    >>> str(unknown("model", "gmn", ["gmm", "ppca"]))
    "unknown model 'gmn': did you mean 'gmm'? (models: gmm, ppca)"
    >>> str(unknown("component", "x", ["summed", "guided"]))
    "unknown component 'x': use guided or summed"
    """
    options = sorted(options)
    near = get_close_matches(name.lower(), options, n=2, cutoff=0.5)
    if options and not near:
        return ValueError(f"unknown {kind} {name!r}: use {either(options)}")
    hint = f": did you mean {' or '.join(repr(n) for n in near)}?" if near else ":"
    return ValueError(f"unknown {kind} {name!r}{hint} ({plural or kind + 's'}: {', '.join(options) or 'none'})")


def either(names: Iterable[str]) -> str:
    """All names, as a person would offer them.

    >>> either(["EM", "SVI", "NUTS"])
    'EM, SVI or NUTS'
    """
    *words, last = names
    return f"{', '.join(words)} or {last}" if words else last


def why(error: Exception) -> str:
    """What an error says, in one line: without Pyro's table of shapes and torch's print of a tensor.

    >>> why(ValueError("Expected scale to be positive, but found invalid values:\\ntensor([-1.])"))
    'Expected scale to be positive'
    """
    return textwrap.shorten(re.split("Trace Shapes:|, but found invalid values", str(error))[0], 240, placeholder=" ...")


def check_object(thing: object) -> None:
    """Raise ValueError for a class given in the place of an object of it."""
    if isinstance(thing, type):
        raise ValueError(f"{thing.__name__} is a class: give an object, {thing.__name__}()")


def spelled(class_name: str) -> str:
    """A class's name as the command line spells it.

    >>> spelled("ClosedForm"), spelled("BayesianGMM")
    ('closed_form', 'bayesian_gmm')
    """
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", class_name).lower()


def few(names: Iterable[object], most: int = 5) -> str:
    """The first names of a list, as a person would read them out.

    >>> few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    words = [str(n) for n in names]
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1] if words else "none"

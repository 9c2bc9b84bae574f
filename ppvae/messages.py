"""The words of an error: one sentence that names the thing and the remedy."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: str, options: Iterable[str], plural: str | None = None) -> ValueError:
    """The error for a name that is not one of `options`, with the nearest ones.

    >>> str(unknown("model", "gmn", ["gmm", "ppca"]))
    "unknown model 'gmn': did you mean 'gmm'? (models: gmm, ppca)"
    """
    options = sorted(options)
    near = get_close_matches(name.lower(), options, n=2, cutoff=0.5)
    hint = f": did you mean {' or '.join(repr(n) for n in near)}?" if near else ":"
    return ValueError(f"unknown {kind} {name!r}{hint} ({plural or kind + 's'}: {', '.join(options) or 'none'})")


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

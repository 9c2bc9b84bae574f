"""Configuration in words: the fields of a dataclass, read from text such as `n_components=2` by the type of each field."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ppvae.messages import few, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def configured(cls: type[Config], config: Mapping[str, Any]) -> Config:
    """`cls(**config)` for a dataclass `cls`: a value given as text is read by its field's type, and a list (from JSON) becomes a tuple.

    Raises ValueError for a name that is not a field (with the nearest ones), a field left without a value, and text of another kind.

    >>> from dataclasses import make_dataclass
    >>> Net = make_dataclass("Net", [("n_latents", int), ("hidden", tuple[int, ...], (64,))])
    >>> configured(Net, {"n_latents": "2", "hidden": "64,32"})
    Net(n_latents=2, hidden=(64, 32))
    """
    owner = cls.__name__.lower()
    known = {f.name: f for f in fields(cls) if f.init}
    kinds = get_type_hints(cls)
    for name in config:
        if name not in known:
            raise unknown(f"{owner} option", name, known)
    absent = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in config]
    if absent:
        raise ValueError(f"{owner} needs a value for {few(absent)} (on the command line: --set {absent[0]}=...)")
    return cls(**{name: _value(value, kinds[name], f"{owner}: {name}") for name, value in config.items()})


def pairs(words: Iterable[str]) -> dict[str, str]:
    """{"k": "2"} from ["k=2"]; raises ValueError for a word without "=" and for a name given twice.

    >>> pairs(["n_components=2", "covariance=tied"])
    {'n_components': '2', 'covariance': 'tied'}
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not (name and equals and value):
            raise ValueError(f"cannot read the option {word!r}: write it as name=value")
        name = name.replace("-", "_")
        if name in found:
            raise ValueError(f"the option {name} is given twice")
        found[name] = value
    return found


def _value(value: Any, kind: Any, what: str) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str):
        return value
    try:
        return _read(value, kind)
    except ValueError as error:
        raise ValueError(f"{what} must be {_spoken(kind)}, not {value!r}") from error


def _read(text: str, kind: Any) -> Any:
    """The value of type `kind` that `text` spells; raises ValueError where it spells none."""
    if kind in _READERS:
        return _READERS[kind](text)
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return _choice(text, {str(choice): choice for choice in args})
    if get_origin(kind) is tuple:
        items = [item.strip() for item in text.strip("()[]").split(",") if item.strip()]
        kinds = args[:1] * len(items) if args[-1] is Ellipsis else args
        if len(kinds) != len(items):
            raise ValueError(text)
        return tuple(map(_read, items, kinds))
    if get_origin(kind) in (Union, UnionType):
        for option in sorted(args, key=lambda option: option is str):  # any text is a str, so that comes last
            try:
                return _read(text, option)
            except ValueError:
                continue
    raise ValueError(text)


def _choice(text: str, choices: Mapping[str, Any]) -> Any:
    if text.lower() not in choices:
        raise ValueError(text)
    return choices[text.lower()]


def _whole(text: str) -> int:
    number = float(text)  # so that 1e4 is a whole number too
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


_READERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: _whole,
    float: float,
    bool: lambda text: _choice(text, {"true": True, "yes": True, "false": False, "no": False}),
    NoneType: lambda text: _choice(text, {"none": None}),
}
_SPOKEN: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "none"}


def _spoken(kind: Any) -> str:
    """What a value of this type is called in an error.

    >>> _spoken(tuple[int, ...] | None)
    'whole numbers with commas between or none'
    """
    if kind in _SPOKEN:
        return _SPOKEN[kind]
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, args))
    if get_origin(kind) is tuple:
        return f"{_spoken(args[0]).removeprefix('a ')}s with commas between"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_spoken, args))
    return "a value that can only be given in Python"

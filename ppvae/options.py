"""Configuration: the fields of a dataclass, each held to its annotation, given as a value or as text such as `n_components=2`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from ppvae.messages import few, spelled, unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True)
class Configuration:
    """What its fields say: the base of models and methods.

    Each field is held to its annotation and kept in plain form: 2.0 and `numpy.int64(2)` are the whole number 2, and [64] or 64 the tuple
    (64,). Raises ValueError for a value of another kind. A class with a `__post_init__` of its own calls this one first; annotations other
    than numbers, text, booleans, `Literal`, None, and tuples or unions of these are left alone.

    >>> from dataclasses import make_dataclass
    >>> Net = make_dataclass("Net", [("hidden", tuple[int, ...], (64,))], bases=(Configuration,), frozen=True)
    >>> Net(hidden=[32.0, 16])
    Net(hidden=(32, 16))
    """

    def __post_init__(self) -> None:
        kinds = _kinds(type(self))
        for f in (f for f in fields(self) if f.init):
            object.__setattr__(self, f.name, taken(getattr(self, f.name), kinds[f.name], f"{self.name}: {f.name}"))

    def at_least(self, **least: float) -> None:
        """Raise ValueError for a field, or a number in it, below its least value; None is no number."""
        for name, low in least.items():
            for value in _items(getattr(self, name)):
                if value is not None and not value >= low:
                    raise ValueError(f"{name} must be at least {low}, not {value}")

    @property
    def name(self) -> str:
        """The class's name in snake case, as the command line spells it."""
        return spelled(type(self).__name__)

    def config(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def configured(cls: type[Config], config: Mapping[str, Any]) -> Config:
    """`cls(**config)` for a dataclass `cls`: a value given as text is read by its field's type, and a list (from JSON) becomes a tuple.

    Raises ValueError for a name that is not a field (with the nearest ones), a field left without a value, and text of another kind.

    >>> from dataclasses import make_dataclass
    >>> Net = make_dataclass("Net", [("n_latents", int), ("hidden", tuple[int, ...], (64,))])
    >>> configured(Net, {"n_latents": "2", "hidden": "64,32"})
    Net(n_latents=2, hidden=(64, 32))
    """
    owner = spelled(cls.__name__)
    known = {f.name: f for f in fields(cls) if f.init}
    kinds = _kinds(cls)
    for name in config:
        if name in vars(cls) and name not in known:
            default = vars(cls)[name]
            wanted = f"`{name}: {type(default).__name__} = {default!r}` under @dataclass(frozen=True)"
            raise ValueError(f"{name} is no field of {cls.__name__}, so no option: write {wanted}")
        if name not in known:
            raise unknown(f"{owner} option", name, known)
    absent = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in config]
    if absent:
        raise ValueError(f"{owner} needs a value for {few(absent)} (on the command line: --set {absent[0]}=...)")
    return cls(**{name: taken(value, kinds[name], f"{owner}: {name}", words=True) for name, value in config.items()})


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


def taken(value: Any, kind: Any, what: str, words: bool = False) -> Any:
    """`value` as the annotation `kind` asks; with `words`, text may spell it. Raises ValueError, beginning with `what`, for another kind.

    >>> taken("1e3", int, "steps", words=True)
    1000
    """
    try:
        return _read(value, kind, _FROM_TEXT if words and isinstance(value, str) else _FROM_VALUE)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{what} must be {_spoken(kind)}, not {value!r}") from error


def counted(value: Any, what: str) -> int:
    """A number of things. Raises ValueError, beginning with `what`, for what is no whole number, and for fewer than 1.

    >>> counted(1e3, "draws")
    1000
    """
    number = taken(value, int, what)
    if number < 1:
        raise ValueError(f"{what} must be at least 1, not {value}")
    return number


def seed_of(value: Any) -> int:
    """A seed. Raises ValueError for what is no whole number from 0 up to 2^63.

    >>> seed_of(7)
    7
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < 2**63:
        raise ValueError(f"a seed is a whole number from 0 up to 2^63, not {value!r}")
    return int(value)


def _kinds(cls: type) -> dict[str, Any]:
    """The annotations of a class; as they stand where they name what only a type checker sees."""
    try:
        return get_type_hints(cls)
    except NameError:
        return {f.name: f.type for f in fields(cls)}


Reader = Callable[[Any], Any]


def _read(value: Any, kind: Any, readers: Mapping[Any, Reader]) -> Any:
    """`value` as a `kind`, its numbers and words by `readers`; raises ValueError where it is none."""
    if kind in readers:
        return readers[kind](value)
    args, text = get_args(kind), readers is _FROM_TEXT
    if get_origin(kind) is Literal:
        return _choice(value.lower() if text else value, {(str(choice) if text else choice): choice for choice in args})
    if get_origin(kind) is tuple:
        items = _items(value)
        kinds = args[:1] * len(items) if args[-1:] == (Ellipsis,) else args
        if len(kinds) != len(items):
            raise ValueError(value)
        return tuple(_read(item, of, readers) for item, of in zip(items, kinds, strict=True))
    if get_origin(kind) in (Union, UnionType):
        for option in sorted(args, key=lambda option: option is str):  # any text is a str, so that comes last
            try:
                return _read(value, option, readers)
            except ValueError:
                continue
        raise ValueError(value)
    if text:
        raise ValueError(value)
    return value


def _items(value: Any) -> list[Any]:
    """What a tuple is made of: text between commas, a list, or one thing alone."""
    if isinstance(value, str):
        return [item.strip() for item in value.strip("()[]").split(",") if item.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _choice(value: Any, choices: Mapping[Any, Any]) -> Any:
    found = [choice for key, choice in choices.items() if type(key) is type(value) and key == value]
    if not found:
        raise ValueError(value)
    return found[0]


def _number(value: Any) -> Any:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(value)
    return value


def _whole(number: Any) -> int:
    if number // 1 != number:  # also where it is infinite, or none
        raise ValueError(number)
    return int(number)


def _one_of(*types: type) -> Reader:
    """A reader that takes values of these types, as the first of them."""

    def read(value: Any) -> Any:
        if not isinstance(value, types):
            raise ValueError(value)
        return types[0](value)

    return read


_FROM_VALUE: dict[Any, Reader] = {
    str: _one_of(str),
    int: lambda value: _whole(_number(value)),  # 1e4 is a whole number too
    float: lambda value: float(_number(value)),
    bool: _one_of(bool, np.bool_),
    NoneType: lambda value: _choice(value, {None: None}),
}
_FROM_TEXT: dict[Any, Reader] = {
    str: str,
    int: lambda text: _whole(float(text)),
    float: float,
    bool: lambda text: _choice(text.lower(), {"true": True, "yes": True, "false": False, "no": False}),
    NoneType: lambda text: _choice(text.lower(), {"none": None}),
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

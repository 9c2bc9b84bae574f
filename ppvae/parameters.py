"""Theta: the parameters of a story, one object that both SVI and EM work on.

SVI steps on unconstrained tensors, EM assigns constrained ones. Each parameter is stored once, unconstrained and in the data's own
units, and read constrained by its public name, so the two views cannot drift apart.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints, transform_to

from ppvae.messages import unknown

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_RAW = "raw_"
_OWN = ("_", _RAW, "unit_", "floor_")  # how names begin that no story reads
EMPTY = 1e-9  # a share below this belongs to a component without rows


@dataclass(frozen=True)
class Constrained:
    """A start for one parameter.

    value: the constrained numbers, any shape: a tensor of floats as it is, anything else that torch reads (an array, a list, a number) as
        float64.
    constraint: where it must stay, a `torch.distributions.constraints` object.
    unit: the size of one natural step, broadcast over `value`: an optimiser sees `value / unit`, so a column in metres and one in
        millimetres train alike.
    floor: in units; a positive value stays above it, a covariance keeps every eigenvalue (of the covariance in units) above it.
    """

    value: "Tensor | ArrayLike"
    constraint: constraints.Constraint = constraints.real
    unit: Tensor | float = 1.0
    floor: float = 0.0


class Parameters(nn.Module):
    """Constrained numbers by name, and networks by name.

    Raises ValueError for batch normalisation, which ties rows to one another, for a name that a Module needs itself, and for a start or a
    constraint that is none.

    >>> theta = Parameters(mean=torch.zeros(2), noise_variance=Constrained(torch.tensor(4.0), constraints.positive))
    >>> theta.noise_variance.item(), theta.trainable
    (4.0, ('mean', 'noise_variance'))
    >>> theta.assign({"noise_variance": torch.tensor(2.0)})
    >>> round(theta.noise_variance.item(), 6)
    2.0
    """

    def __init__(self, **values: "Tensor | ArrayLike | Constrained | nn.Module") -> None:
        super().__init__()
        self._constraints: dict[str, constraints.Constraint] = {}
        taken = set(values).intersection(dir(self))
        if taken:
            raise ValueError(f"Parameters has a {min(taken)!r} of its own, as every torch Module: give the parameter another name")
        for name, value in values.items():
            if isinstance(value, nn.Module):
                check_network(name, value)
                self.add_module(name, value)
                continue
            start = value if isinstance(value, Constrained) else Constrained(value)
            numbers = _numbers(name, start.value)
            self._constraints[name] = _trainable(name, start.constraint)
            like = partial(torch.as_tensor, dtype=numbers.dtype, device=numbers.device)
            self.register_buffer(f"unit_{name}", like(start.unit).detach().clone())
            self.register_buffer(f"floor_{name}", like(start.floor))
            self.register_parameter(_RAW + name, nn.Parameter(self._raw(name, numbers)))

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__.get("_constraints", {})
        if name not in known:
            return self._network(name)
        raw: Any = super().__getattr__(_RAW + name)
        unit: Any = super().__getattr__(f"unit_{name}")
        floor: Any = super().__getattr__(f"floor_{name}")
        return (transform_to(known[name])(raw) + _at_floor(known[name], floor, raw)) * unit

    def _network(self, name: str) -> Any:
        """A module, buffer or raw tensor; an AttributeError names the nearest parameters."""
        try:
            found = super().__getattr__(name)
        except AttributeError:
            if name.startswith(_OWN):  # torch asks for them before they are there
                raise
            raise AttributeError(str(unknown("parameter", name, (*self._constraints, *dict(self.named_children()))))) from None
        if isinstance(found, nn.Module):
            forget(found)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parameters":
        memo[id(self)] = new = type(self).__new__(type(self))
        detached(self)
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return new

    def check(self) -> None:
        """Raise ValueError for a value that is not finite or lies outside its constraint."""
        for name, value in self.values().items():
            if not torch.isfinite(value).all():
                raise ValueError(f"init: parameter {name!r} is not finite, or outside its constraint ({in_words(self._constraints[name])})")

    @property
    def names(self) -> tuple[str, ...]:
        """The constrained parameters' public names (networks are modules, read as attributes)."""
        return tuple(self._constraints)

    @property
    def trainable(self) -> tuple[str, ...]:
        """The names that a fit may change: those whose tensors require a gradient."""
        return tuple(n for n in self._constraints if super(Parameters, self).__getattr__(_RAW + n).requires_grad)

    def freeze(self, *names: str) -> "Parameters":
        """Keep these parameters at their present values in every method; returns self."""
        for name in names:
            self.get_parameter(_RAW + name).requires_grad_(False)
        return self

    def constraint(self, name: str) -> constraints.Constraint:
        return self._constraints[name]

    def values(self) -> dict[str, Tensor]:
        """Constrained values by public name, detached."""
        with torch.no_grad():
            return {name: getattr(self, name).clone() for name in self._constraints}

    def assign(self, values: dict[str, Tensor]) -> None:
        """Set constrained values by name; shapes and constraints are checked.

        Raises ValueError for an unknown name, a wrong shape, a value that is not finite or one outside its constraint.
        """
        for name, value in values.items():
            raw = self._checked_slot(name)
            try:
                value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
            except (TypeError, ValueError) as error:
                raise ValueError(f"parameter {name!r} takes numbers of shape {tuple(getattr(self, name).shape)}, not {value!r}") from error
            if value.shape != getattr(self, name).shape:
                shape = tuple(getattr(self, name).shape)
                raise ValueError(
                    f"parameter {name!r} has shape {shape}, not {tuple(value.shape)}: give so many, or set the model's options"
                )
            if not torch.isfinite(value).all():
                raise ValueError(f"parameter {name!r} must be finite, but its new value is not")
            if not _satisfies(self._constraints[name], value):
                raise ValueError(f"parameter {name!r} is outside its constraint: give {in_words(self._constraints[name])}")
            with torch.no_grad():
                raw.copy_(self._raw(name, value))

    def _checked_slot(self, name: str) -> nn.Parameter:
        if name not in self._constraints:
            raise unknown("parameter", name, self._constraints)
        return self.get_parameter(_RAW + name)

    def _raw(self, name: str, value: Tensor) -> Tensor:
        constraint, floor = self._constraints[name], getattr(self, f"floor_{name}")
        scaled = value / getattr(self, f"unit_{name}")
        if floor == 0:
            return transform_to(constraint).inv(scaled).contiguous()
        # At its floor a value sits on the edge of the constraint, where the inverse is infinite: stay one part in 10^6 of the floor inside.
        above = scaled - _at_floor(constraint, floor, scaled)
        margin = 1e-6 * floor
        inside = clip_eigenvalues(above, margin + resolution(scaled)) if _is_matrix(constraint) else above.clamp(min=margin)
        return transform_to(constraint).inv(inside).contiguous()

    def at_floor(self) -> list[str]:
        """Parameters that stand on their floor, as `name` or `name[k]`."""
        found = []
        for name in self._constraints:
            floor = getattr(self, f"floor_{name}")
            if floor == 0:
                continue
            scaled = getattr(self, name).detach() / getattr(self, f"unit_{name}")
            low = ~_exceeds(scaled, 1.01 * floor + 2 * resolution(scaled)) if _is_matrix(self._constraints[name]) else scaled < 1.01 * floor
            found += [f"{name}[{', '.join(map(str, p))}]" if p else name for p in low.nonzero().tolist()]
        return found

    def emptied(self) -> list[str]:
        """Shares of a simplex that have gone to nothing, as `name[k]`."""
        shares = [n for n, c in self._constraints.items() if isinstance(c, type(constraints.simplex))]
        return [f"{name}[{', '.join(map(str, p))}]" for name in shares for p in (self.values()[name] < EMPTY).nonzero().tolist()]

    def degrees_of_freedom(self) -> int:
        """How many free numbers: K - 1 for a simplex of K, D (D + 1) / 2 for a covariance or its Cholesky factor, all of a network's."""
        weights = {p for network in self.children() for p in network.parameters() if p.requires_grad}
        return sum(p.numel() for p in weights) + sum(free_numbers(self._constraints[n], self.values()[n]) for n in self.trainable)


def forget(module: nn.Module) -> None:
    """Empty what flows remember of their last input: it was made with other parameters, which may have moved since, in a graph that is
    gone, and a flow that is given the same rows again would take it for the answer."""
    for flow in (part for part in module.modules() if isinstance(part, Transform)):
        flow._cached_x_y = None, None
        vars(flow).update({name: None for name, value in vars(flow).items() if name.startswith("_cache") and isinstance(value, Tensor)})


def detached(module: nn.Module) -> nn.Module:
    """The same module, which keeps nothing of the graph of its last run: of flows, of a weight norm, of a network that notes what it saw.
    Torch copies no such tensors."""
    forget(module)
    for part in module.modules():
        vars(part).update({name: value.detach() for name, value in vars(part).items() if isinstance(value, Tensor) and value.grad_fn})
    return module


def free_numbers(constraint: constraints.Constraint, value: Tensor) -> int:
    """The dimension of the set of values that look like this one under the constraint.

    >>> free_numbers(constraints.corr_cholesky, torch.eye(3)), free_numbers(constraints.simplex, torch.ones(4, 3) / 3)
    (3, 8)
    """
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    differ = isinstance(constraint, constraints.cat | constraints.stack)  # parts of the value, each under a constraint of its own
    if not constraint.event_dim and not differ:
        return value.numel()
    event = value if differ else value[(0,) * (value.ndim - constraint.event_dim)]
    size = event.shape[-1]
    if isinstance(constraint, type(constraints.simplex)):
        own = size - 1
    elif isinstance(constraint, type(constraints.corr_cholesky)):
        own = size * (size - 1) // 2
    elif isinstance(constraint, _HALVES):
        own = size * (size + 1) // 2
    else:
        own = _rank(constraint, event)
    return own * (value.numel() // event.numel())


# Square matrices of which one half says all; covariances are symmetric too.
_HALVES = tuple(type(one) for one in (constraints.symmetric, constraints.lower_triangular, constraints.lower_cholesky))


def _rank(constraint: constraints.Constraint, event: Tensor) -> int:
    """In how many directions an event moves when its unconstrained numbers do, at a point like no other."""
    transform = transform_to(constraint)
    raw = transform.inv(event.detach().double())
    raw = raw + 0.1 * torch.randn(raw.shape, generator=torch.Generator().manual_seed(0), dtype=raw.dtype)
    jacobian = torch.autograd.functional.jacobian(transform, raw)
    return int(torch.linalg.matrix_rank(jacobian.reshape(-1, raw.numel())))


def check_network(what: str, network: nn.Module) -> None:
    """Raise ValueError for a network in which what is said of a row depends on the others in its batch, or whose parameters cannot move."""
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        raise ValueError(f"{what}: batch normalisation ties rows to one another, so that no row has an ELBO: use nn.LayerNorm")
    for name, parameter in network.named_parameters():
        if any(size > 1 and stride == 0 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)):
            raise ValueError(f"{what}: entries of {name!r} share memory, so that none can be trained by itself: give it a .clone()")


def _numbers(name: str, value: "Tensor | ArrayLike") -> Tensor:
    """A start as a tensor of floats, detached."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach()
    try:
        return torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise ValueError(f"{name}: a parameter starts at numbers (a tensor, an array, a list) or is a torch Module, not {kind}") from error


def _trainable(name: str, constraint: constraints.Constraint) -> constraints.Constraint:
    """The constraint itself, where free numbers can be carried to it."""
    try:
        transform_to(constraint)
    except NotImplementedError as error:
        remedy = "take one of torch.distributions.constraints, such as constraints.positive"
        raise ValueError(f"{name}: no start can be trained under the constraint {constraint!r}: {remedy}") from error
    return constraint


def clip_eigenvalues(covariance: Tensor, floor: Tensor | float) -> Tensor:
    """The nearest symmetric matrix (..., D, D) that exceeds the diagonal one of `floor`, a number or (..., D), in every direction.

    Among covariances so bounded below it is also the one of highest Gaussian likelihood for a sample covariance, so an M-step that ends
    with it is still an exact (constrained) maximum and EM still ascends.
    """
    least = torch.as_tensor(floor, dtype=covariance.dtype, device=covariance.device).expand(covariance.shape[:-1])
    fine = _exceeds(covariance, least)
    if bool(fine.all()):  # ten times cheaper than the eigenvalues
        return covariance
    units = least.sqrt().unsqueeze(-1) * least.sqrt().unsqueeze(-2)
    values, vectors = torch.linalg.eigh(covariance / units)
    clipped = (vectors * values.clamp(min=1.0).unsqueeze(-2)) @ vectors.mT * units
    return torch.where(fine[..., None, None], covariance, clipped)


def floored(covariance: Tensor, unit: Tensor, floor: float) -> Tensor:
    """A sample covariance (..., D, D), rounded, as an M-step may return it: with every eigenvalue, in units, at least `floor`, and with a
    Cholesky factor in its own precision."""
    scaled = (covariance + covariance.mT) / (2 * unit)
    return clip_eigenvalues(scaled, floor + resolution(scaled)) * unit


def resolution(covariance: Tensor) -> Tensor:
    """(..., D): what must be left of each variance, whatever the other columns explain of it, if rounding is not to make it negative."""
    share = 64 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps
    return share * covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0.0)


def _exceeds(covariance: Tensor, least: Tensor) -> Tensor:
    """(...): whether the covariance (..., D, D) is above the diagonal one of `least` (..., D) in every direction."""
    return torch.linalg.cholesky_ex(covariance - least.expand(covariance.shape[:-1]).diag_embed()).info == 0


def is_covariance(value: Tensor) -> Tensor:
    """(...): whether a matrix (..., D, D) is positive definite, and symmetric up to rounding at the scale of its rows and columns.

    What is 0 between columns in large units is a sum of large terms.
    """
    sds = value.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    symmetric = (value - value.mT).abs() <= 1e-5 * sds.unsqueeze(-1) * sds.unsqueeze(-2)
    return symmetric.all(-1).all(-1) & (torch.linalg.cholesky_ex(value).info == 0)


def _is_matrix(constraint: constraints.Constraint) -> bool:
    return isinstance(constraint, type(constraints.positive_definite))  # a copied Parameters holds copied constraints


def _at_floor(constraint: constraints.Constraint, floor: Tensor, like: Tensor) -> Tensor:
    return floor * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device) if _is_matrix(constraint) else floor


def _satisfies(constraint: constraints.Constraint, value: Tensor) -> bool:
    if _is_matrix(constraint):
        return bool(is_covariance(value).all())
    if isinstance(constraint, type(constraints.simplex)):  # many shares round to a sum further from 1 than torch allows
        away = max(1e-6, value.shape[-1] * torch.finfo(value.dtype).eps)
        return bool((value >= 0).all()) and bool(((value.sum(-1) - 1).abs() <= away).all())
    return bool(constraint.check(value).all())


def in_words(constraint: constraints.Constraint) -> str:
    """What a constraint asks for.

    >>> in_words(constraints.nonnegative_integer), in_words(constraints.positive)
    ('whole numbers from 0 up', 'numbers above 0')
    """
    kind = type(constraint).__name__.strip("_")
    if isinstance(constraint, type(constraints.independent)):
        return in_words(constraint.base_constraint)
    if kind in _SPOKEN:
        return _SPOKEN[kind]
    low, high = (getattr(constraint, f"{end}_bound", None) for end in ("lower", "upper"))
    if any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in (low, high)):
        return "numbers within its bounds"
    numbers = "whole numbers" if constraint.is_discrete else "numbers"
    if low is None:
        return f"{numbers} below {float(high):g}" if high is not None else kind
    if high is not None:
        return f"{numbers} from {float(low):g} to {float(high):g}"
    return f"{numbers} from {float(low):g} up" if constraint.is_discrete or kind == "GreaterThanEq" else f"{numbers} above {float(low):g}"


_SPOKEN = {
    "Real": "finite numbers",
    "Boolean": "0 or 1",
    "Simplex": "numbers from 0 up that sum to 1",
    "PositiveDefinite": "symmetric matrices with eigenvalues above 0",
}

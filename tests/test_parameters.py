"""Parameters: what is assigned is read back, in any units; what is wrong is refused; copies are their own."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import constraints as pyro_constraints
from torch.distributions import constraints

import ppvae
from ppvae.inference.fit import start
from ppvae.models import PPCA, FactorAnalysis, MixtureFA, MixturePPCA
from ppvae.parameters import Constrained, Parameters, clip_eigenvalues

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)
units = st.floats(1e-6, 1e6)
floors = st.sampled_from([0.0, 1e-6, 1e-2])


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(seed: int, components: int, features: int) -> torch.Tensor:
    root = random(seed, components, features, features)
    return root @ root.mT + 0.1 * torch.eye(features, dtype=torch.float64)


def read_back(value: torch.Tensor, start: torch.Tensor, **how: object) -> torch.Tensor:
    theta = Parameters(a=Constrained(start, **how))
    theta.assign({"a": value})
    return theta.a.detach()


@QUICK
@given(seed=seeds, unit=units)
def test_real_values_are_read_back(seed, unit):
    value = unit * random(seed, 3, 2)
    torch.testing.assert_close(read_back(value, torch.zeros(3, 2, dtype=torch.float64), unit=unit), value, rtol=1e-12, atol=0)


@QUICK
@given(seed=seeds, unit=units, floor=floors)
def test_positive_values_are_read_back(seed, unit, floor):
    value = unit * (floor + random(seed, 4).exp())
    found = read_back(value, torch.full((4,), unit, dtype=torch.float64), constraint=constraints.positive, unit=unit, floor=floor)
    torch.testing.assert_close(found, value, rtol=1e-10, atol=0)


@QUICK
@given(seed=seeds)
def test_simplex_values_are_read_back(seed):
    value = random(seed, 5).softmax(-1)
    found = read_back(value, torch.full((5,), 0.2, dtype=torch.float64), constraint=constraints.simplex)
    torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-14)


@QUICK
@given(seed=seeds, floor=floors, features=st.integers(1, 4))
def test_covariances_are_read_back_in_units_of_each_feature(seed, floor, features):
    scale = 10.0 ** random(seed, features).clamp(-3, 3)
    unit = scale[:, None] * scale
    value = covariance(seed, 3, features) * unit
    found = read_back(value, unit.expand(3, -1, -1) * torch.eye(features), constraint=constraints.positive_definite, unit=unit, floor=floor)
    # Cholesky and back: rounding times the condition number, some 10^3 here.
    torch.testing.assert_close(found / unit, value / unit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("below", [0.0, 1e-12, 1e-3])
def test_a_value_below_its_floor_is_raised_to_it_and_reported(below):
    positive = Parameters(a=Constrained(torch.tensor([4.0, 4.0]), constraints.positive, unit=4.0, floor=0.01))
    assert positive.at_floor() == []
    positive.assign({"a": torch.tensor([max(below, 1e-30), 4.0])})
    assert positive.a.tolist() == pytest.approx([0.04, 4.0], rel=1e-5)
    assert positive.at_floor() == ["a[0]"]
    matrices = Parameters(c=Constrained(torch.eye(2).repeat(2, 1, 1), constraints.positive_definite, floor=0.01))
    matrices.assign({"c": torch.stack([torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, max(below, 1e-30)]])])})
    assert torch.linalg.eigvalsh(matrices.c[1]).tolist() == pytest.approx([0.01, 1.0], rel=1e-4)
    assert matrices.at_floor() == ["c[1]"]


@QUICK
@given(seed=seeds, features=st.integers(1, 5), floor=st.floats(0.01, 2.0))
def test_clipping_is_the_constrained_maximum(seed, features, floor):
    """Among covariances above the floor none is likelier for a sample covariance S than S clipped."""
    sample = covariance(seed, 1, features)[0]
    clipped = clip_eigenvalues(sample, floor)
    assert bool((torch.linalg.eigvalsh(clipped) >= floor * (1 - 1e-9)).all())

    def likelihood(c: torch.Tensor) -> float:
        return -float(torch.logdet(c) + torch.trace(torch.linalg.solve(c, sample)))

    best = likelihood(clipped)
    for other in range(5):
        rival = clip_eigenvalues(clipped + 0.1 * covariance(seed + other, 1, features)[0] - 0.1 * torch.eye(features), floor)
        assert likelihood(rival) <= best + 1e-9 * (1 + abs(best))


def theta() -> Parameters:
    return Parameters(
        mean=torch.zeros(2),
        weights=Constrained(torch.tensor([0.5, 0.5]), constraints.simplex),
        covariances=Constrained(torch.eye(2).repeat(2, 1, 1), constraints.positive_definite, floor=1e-6),
        noise_variance=Constrained(torch.tensor(1.0), constraints.positive),
        network=torch.nn.Linear(2, 3),
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"maen": torch.zeros(2)}, r"unknown parameter 'maen': did you mean 'mean'\?"),
        ({"mean": torch.zeros(3)}, r"parameter 'mean' has shape \(2,\), not \(3,\)"),
        ({"mean": torch.tensor([0.0, float("nan")])}, "parameter 'mean' must be finite"),
        ({"noise_variance": torch.tensor(-1.0)}, "parameter 'noise_variance' is outside its constraint"),
        ({"weights": torch.tensor([0.5, 0.6])}, "parameter 'weights' is outside its constraint"),
        ({"covariances": torch.tensor([[1.0, 2.0], [2.0, 1.0]]).repeat(2, 1, 1)}, "parameter 'covariances' is outside its constraint"),
        ({"covariances": torch.tensor([[1.0, 0.5], [0.1, 1.0]]).repeat(2, 1, 1)}, "parameter 'covariances' is outside its constraint"),
    ],
)
def test_wrong_values_are_refused(values, sentence):
    parameters = theta()
    before = parameters.values()
    with pytest.raises(ValueError, match=sentence):
        parameters.assign(values)
    for name, value in before.items():
        assert (getattr(parameters, name) == value).all()


def test_large_units_pass_the_check_of_symmetry():
    scale = torch.tensor([1e6, 1e-6], dtype=torch.float64)
    unit = scale[:, None] * scale
    value = covariance(0, 1, 2)[0] * unit
    value[0, 1] *= 1 + 1e-12  # rounding
    torch.testing.assert_close(read_back(value, torch.diag(unit.diagonal()), constraint=constraints.positive_definite, unit=unit), value)


def test_a_floor_of_an_integer_count_keeps_float64():
    """An int tensor times a Python float would be float32."""
    value = torch.tensor(3, dtype=torch.float64)
    assert read_back(value, value, constraint=constraints.positive, unit=2, floor=1e-6).dtype == torch.float64


def test_frozen_parameters_are_not_trainable():
    parameters = theta().freeze("mean", "weights")
    assert parameters.trainable == ("covariances", "noise_variance")
    assert parameters.names == ("mean", "weights", "covariances", "noise_variance")
    assert parameters.degrees_of_freedom() == 2 * 3 + 1 + (2 * 3 + 3)


def test_degrees_of_freedom():
    assert theta().degrees_of_freedom() == 2 + 1 + 2 * 3 + 1 + (2 * 3 + 3)
    simplexes = Parameters(a=Constrained(torch.full((4, 3), 1 / 3), constraints.simplex))
    assert simplexes.degrees_of_freedom() == 4 * 2


EYES = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
ROW = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("constraint", "value", "free"),
    [
        (constraints.lower_cholesky, EYES, 2 * 6),
        (constraints.positive_semidefinite, EYES, 2 * 6),
        (constraints.positive_definite, EYES, 2 * 6),
        (constraints.corr_cholesky, EYES, 2 * 3),
        (pyro_constraints.softplus_lower_cholesky, EYES, 2 * 6),
        (pyro_constraints.unit_lower_cholesky, EYES, 2 * 3),
        (pyro_constraints.corr_matrix, EYES, 2 * 3),
        (constraints.independent(constraints.simplex, 1), torch.full((4, 3), 1 / 3), 4 * 2),
        (constraints.independent(constraints.lower_cholesky, 1), EYES, 2 * 6),
        (constraints.independent(constraints.independent(constraints.positive, 1), 1), EYES + 1, 18),
        (constraints.real_vector, EYES, 18),
        (constraints.simplex, torch.ones(1), 0),
        (pyro_constraints.ordered_vector, ROW.repeat(2, 1), 6),
        (pyro_constraints.positive_ordered_vector, ROW + 2, 3),
        (constraints.interval(-2.0, 3.0), ROW, 3),
        (constraints.greater_than_eq(-5.0), ROW, 3),
        (constraints.cat([constraints.simplex, constraints.positive], -1, [3, 2]), torch.tensor([0.2, 0.3, 0.5, 1.0, 2.0]), 2 + 2),
        (constraints.stack([constraints.simplex, constraints.real_vector], -2), torch.tensor([[0.2, 0.8], [1.0, 2.0]]), 1 + 2),
    ],
    ids=repr,
)
def test_free_numbers_under_any_constraint(constraint, value, free):
    assert Parameters(a=Constrained(value, constraint)).degrees_of_freedom() == free


def test_a_shared_weight_counts_once():
    one, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    other.weight = one.weight
    assert Parameters(encoder=one, decoder=other).degrees_of_freedom() == 6 + 3 + 3


def dimension(model, theta) -> int:
    """The rank of what theta makes of rows, from its unconstrained numbers: weights, means and covariances of components, by autograd."""

    moving = copy.deepcopy(theta)
    names = [name for name, p in moving.named_parameters() if p.requires_grad]

    def made(*values):
        class Of(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.theta = moving

            def forward(self):
                found = model.identifiable(self.theta)
                shared = found.get("shared_covariance")
                if shared is not None:
                    found = {"mean": found["mean"], "covariance": shared + torch.diag_embed(found["noise_variance"])}
                return torch.cat([value.flatten() for value in found.values()])

        return torch.func.functional_call(Of(), {f"theta.{n}": v for n, v in zip(names, values, strict=True)}, ())

    jacobian = torch.autograd.functional.jacobian(made, tuple(p.detach() for p in moving.parameters() if p.requires_grad))
    return int(torch.linalg.matrix_rank(torch.cat([part.reshape(len(part), -1) for part in jacobian], 1), rtol=1e-9))


LINEAR = [kind(n) for kind in (FactorAnalysis, PPCA) for n in (1, 2, 3)] + [kind(2, n) for kind in (MixtureFA, MixturePPCA) for n in (1, 3)]


@pytest.mark.parametrize("model", LINEAR, ids=lambda model: model.describe())
def test_rotations_and_saturation_count_for_nothing(model):
    """As many free numbers as the dimension of what rows can look like, by the rank of a Jacobian; never more than a Gaussian's."""
    iris = ppvae.load_data("iris")
    theta = start(model, iris, 0)
    components = getattr(model, "n_components", 1)
    assert model.degrees_of_freedom(theta) == dimension(model, theta) <= components * 14 + components - 1
    theta.freeze("loadings")
    assert model.degrees_of_freedom(theta) == theta.degrees_of_freedom()


def test_gradients_reach_the_unconstrained_tensors():
    parameters = theta()
    (parameters.noise_variance + parameters.covariances.sum() + parameters.weights[0]).backward()
    for name in ("noise_variance", "covariances", "weights"):
        assert parameters.get_parameter(f"raw_{name}").grad.abs().sum() > 0


def test_a_deep_copy_is_its_own():
    parameters = theta()
    other = copy.deepcopy(parameters)
    other.assign({"mean": torch.ones(2), "weights": torch.tensor([0.9, 0.1]), "covariances": 2 * torch.eye(2).repeat(2, 1, 1)})
    assert parameters.mean.tolist() == [0, 0]
    assert parameters.weights.tolist() == pytest.approx([0.5, 0.5])
    assert other.covariances[0].detach().numpy() == pytest.approx(2 * torch.eye(2).numpy(), rel=1e-6)
    assert other.degrees_of_freedom() == parameters.degrees_of_freedom()
    with pytest.raises(ValueError, match="outside its constraint"):
        other.assign({"covariances": -torch.eye(2).repeat(2, 1, 1)})


def test_values_are_detached_copies():
    parameters = theta()
    parameters.values()["mean"].add_(1.0)
    assert parameters.mean.tolist() == [0, 0]


def test_unknown_attributes_are_attribute_errors():
    with pytest.raises(AttributeError):
        _ = theta().sigma


@pytest.mark.parametrize(
    "start", [[1.0, 2.0], np.array([1.0, 2.0], dtype="f4"), torch.tensor([1, 2]), (1, 2)], ids=lambda s: type(s).__name__
)
def test_a_start_is_anything_that_torch_reads(start):
    parameters = Parameters(plain=start, positive=Constrained(start, constraints.positive))
    for name in parameters.names:
        assert getattr(parameters, name).tolist() == pytest.approx([1, 2])
        assert getattr(parameters, name).dtype == torch.float64
    assert Parameters(number=0.5).number.shape == ()
    assert Parameters(single=torch.zeros(2)).single.dtype == torch.float32  # the precision of a tensor is its owner's choice


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"loc": None}, r"^loc: a parameter starts at numbers .* not NoneType$"),
        ({"loc": "0"}, r"^loc: a parameter starts at numbers .* not str$"),
        ({"scale": Constrained(1.0, "positive")}, r"^scale: no start .* under the constraint 'positive': .*constraints\.positive"),
        ({"coin": Constrained(1.0, constraints.boolean)}, "^coin: no start can be trained under the constraint Boolean"),
        *(({name: 1.0}, f"has a '{name}' of its own.*another name") for name in ("values", "names", "type", "float", "training")),
    ],
)  # fmt: skip
def test_what_is_no_parameter_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Parameters(**values)

"""The search space: conditions, order, counting, and samples that repeat."""

from collections.abc import Iterator

import optuna
import pytest

from orchestrator.search.space import configurations, fits, ordered, sample, size, suggest, trials
from orchestrator.spec import Choice, Distribution, Fixed, FloatRange, IntRange, parse

METHOD = Choice(("learned", "random"))
ON_LEARNED = {"method": ("learned",)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def fixed_trial(**params: object) -> optuna.Trial:
    """A trial that answers with these values and raises for a parameter it was not given."""
    return optuna.trial.FixedTrial(params)  # type: ignore[return-value]  # same interface, no common base


def test_what_is_inactive_is_absent_and_never_asked_for() -> None:
    space: dict[str, Distribution] = {
        "method": METHOD,
        "weight": FloatRange(0.1, 1.0, when=ON_LEARNED),
        "start": Fixed("pca", when=ON_LEARNED),
        "directions": IntRange(8, 16, step=4),
    }
    assert suggest(fixed_trial(method="random", directions=12), space) == {"method": "random", "directions": 12}
    learned = suggest(fixed_trial(method="learned", directions=8, weight=0.5), space)
    assert learned == {"method": "learned", "weight": 0.5, "start": "pca", "directions": 8}


def test_what_waits_for_something_inactive_is_inactive() -> None:
    space: dict[str, Distribution] = {
        "rate": FloatRange(0.1, 1.0, when={"start": ("pca",)}),
        "start": Choice(("pca", "random"), when=ON_LEARNED),
        "method": METHOD,
    }
    assert suggest(fixed_trial(method="random"), space) == {"method": "random"}
    assert suggest(fixed_trial(method="learned", start="random"), space) == {"method": "learned", "start": "random"}


def test_every_condition_must_hold_and_any_of_its_values_will_do() -> None:
    space: dict[str, Distribution] = {
        "a": Choice((1, 2, 3)),
        "b": Choice((1, 2)),
        "c": Fixed(0, when={"a": (1, 2), "b": (2,)}),
    }
    active = {(a, b) for a in (1, 2, 3) for b in (1, 2) if "c" in suggest(fixed_trial(a=a, b=b), space)}
    assert active == {(1, 2), (2, 2)}


def test_constants_are_no_parameters_of_the_study() -> None:
    trial = optuna.create_study().ask()
    suggest(
        trial, {"a": Fixed(1), "b": Choice((1, 2)), "c": IntRange(2, 64, log=True), "d": FloatRange(0.1, 1, log=True)}
    )
    assert trial.distributions == {
        "b": optuna.distributions.CategoricalDistribution((1, 2)),
        "c": optuna.distributions.IntDistribution(2, 64, log=True),
        "d": optuna.distributions.FloatDistribution(0.1, 1, log=True),
    }


def test_order_follows_conditions() -> None:
    space: dict[str, Distribution] = {
        "c": Fixed(1, when={"b": (1,)}),
        "b": Fixed(1, when={"a": (1,)}),
        "z": Fixed(1),
        "a": Fixed(1),
    }
    assert ordered(space) == ["z", "a", "b", "c"]


def test_a_circle_has_no_order() -> None:
    with pytest.raises(ValueError, match=r"^conditions without an order among: a, b$"):
        ordered({"a": Fixed(1, when={"b": (1,)}), "b": Fixed(1, when={"a": (1,)})})


SIZES: list[tuple[dict[str, Distribution], int | None]] = [
    ({"a": Fixed(1)}, 1),
    ({"a": Choice((1, 2, 3)), "b": IntRange(8, 16, step=4)}, 9),
    ({"a": FloatRange(0, 1)}, None),
    ({"method": METHOD, "a": Choice((1, 2, 3), when=ON_LEARNED)}, 4),
    ({"method": METHOD, "a": FloatRange(0, 1, when=ON_LEARNED)}, None),
    ({"method": Choice(("random",)), "a": FloatRange(0, 1, when=ON_LEARNED)}, 1),
    ({"n": IntRange(2, 4096), "a": Choice((1, 2), when={"n": (2, 3)}), "b": Choice((1, 2, 3), when={"a": (1,)})}, 4101),
]


@pytest.mark.parametrize(("space", "count"), SIZES)
def test_size(space: dict[str, Distribution], count: int | None) -> None:
    assert size(space) == count


def test_size_is_the_number_of_configurations_that_are_ever_drawn() -> None:
    space: dict[str, Distribution] = {
        "method": METHOD,
        "start": Choice(("pca", "random"), when=ON_LEARNED),
        "directions": IntRange(2, 4, when={"start": ("pca",)}),
    }
    drawn = {tuple(sorted(configuration.items())) for configuration in sample(space, 200, seed=0)}
    assert len(drawn) == size(space) == 5


def test_configurations_are_all_there_are_in_order() -> None:
    space: dict[str, Distribution] = {
        "method": METHOD,
        "start": Choice(("pca", "random"), when=ON_LEARNED),
        "directions": IntRange(2, 4, when={"start": ("pca",)}),
        "weight": Fixed(0.1, when={"start": ("random",)}),
    }
    assert configurations(space) == [
        *({"method": "learned", "start": "pca", "directions": count} for count in (2, 3, 4)),
        {"method": "learned", "start": "random", "weight": 0.1},
        {"method": "random"},
    ]


@pytest.mark.parametrize(("space", "count"), SIZES)
def test_there_are_as_many_configurations_as_counted(space: dict[str, Distribution], count: int | None) -> None:
    if count is None:
        with pytest.raises(ValueError, match="^a is continuous: its configurations cannot be listed$"):
            configurations(space)
    else:
        listed = [tuple(configuration.items()) for configuration in configurations(space)]
        assert len(listed) == len(set(listed)) == count


@pytest.mark.parametrize(
    ("search", "budget", "all_fit", "count"),
    [
        ({"directions": {"choice": [8, 12]}}, 2, True, 2),
        ({"directions": {"choice": [8, 12]}}, 16, True, 2),
        ({"directions": {"choice": [8, 12, 16]}}, 2, False, 2),
        ({"shift_scale": {"float": [1, 2]}}, 16, False, 16),
    ],
)
def test_a_space_that_fits_its_budget_is_run_through_once(
    search: dict[str, object], budget: int, all_fit: bool, count: int
) -> None:
    sweep = parse({"name": "a", "model": "b", "search": search, "budget": {"trials": budget}})
    assert (fits(sweep), trials(sweep)) == (all_fit, count)


def test_samples_repeat_and_stay_inside() -> None:
    space = parse(
        {
            "name": "a",
            "model": "b",
            "method": {"choice": ["learned", "random"]},
            "search": {"directions": {"choice": [8, 12]}, "discriminator_weight": {"float": [0.01, 1], "log": True}},
        }
    ).space
    drawn = sample(space, 20, seed=3)
    assert drawn == sample(space, 20, seed=3)
    assert drawn != sample(space, 20, seed=4)
    assert {configuration["method"] for configuration in drawn} == {"learned", "random"}
    for configuration in drawn:
        assert configuration["directions"] in (8, 12)
        assert ("discriminator_weight" in configuration) == (configuration["method"] == "learned")
        assert 0.01 <= float(configuration.get("discriminator_weight", 1)) <= 1


def test_sampling_is_silent_and_leaves_the_logging_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    sample({"a": Choice((1, 2))}, 2, seed=0)
    assert optuna.logging.get_verbosity() == optuna.logging.INFO
    assert capfd.readouterr() == ("", "")

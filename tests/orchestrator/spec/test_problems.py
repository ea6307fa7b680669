"""Mistakes in a sweep file: one line each, and nothing is concluded from a value that is wrong."""

import math
from pathlib import Path

import pytest

from orchestrator.spec import PARAMETERS, SpecError, load, parse
from orchestrator.spec.problems import nearest, shown
from tests.orchestrator.spec.test_sentences import GPUS, KEYS, METHOD_NAMES, SIZE, SLUG, TEXT, mistakes_of

FOLDER = "at most 100 characters (255 bytes) without / and \\, not . or .., or a tracking.uri"
MODEL = "at most 256 characters without /, : and ?, with one kind of quotes, not . or begun by .."


def test_required_keys() -> None:
    with pytest.raises(SpecError) as caught:
        parse({})
    assert caught.value.problems == [
        f"name: is missing; allowed: {SLUG}",
        f"model: is missing; allowed: {TEXT}",
        "search: nothing is searched, so every trial would be the same (got {}); "
        "allowed: at least one parameter with choice, int or float, or budget.trials: 1",
    ]


def test_a_misspelt_required_key_is_one_mistake() -> None:
    with pytest.raises(SpecError) as caught:
        parse({"nmae": "a", "model": "b", "search": {"directions": {"choice": [8, 9]}}})
    assert caught.value.problems == [
        f"nmae: is not a known key (got 'a'); allowed: {KEYS}; did you mean 'name'?",
    ]


def test_five_mistakes_are_five_lines(tmp_path: Path) -> None:
    path = tmp_path / "five.yaml"
    path.write_text(
        "name: five\nmodel: toyfaces\nmethod: lerned\nsampler: {steps: many, injecton: symmetric}\n"
        "train: {batch: 16, micro_batch: 5}\nsearch: {shift_scale: {float: [3, 1]}}\n"
    )
    with pytest.raises(SpecError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [
        f"{path}:3: method: is not known (got 'lerned'); allowed: {METHOD_NAMES}; did you mean 'learned'?",
        f"{path}:4: sampler.steps: is not an integer (got 'many'); allowed: an integer >= 1 and <= 10000",
        f"{path}:4: sampler.injecton: is not a known key (got 'symmetric'); allowed: steps, injection, window, eta, "
        "batch; did you mean 'injection'?",
        f"{path}:6: search.shift_scale.float: is upside down (got [3, 1]); allowed: [low, high] with low < high",
        f"{path}:5: train.micro_batch: does not divide a worker's batch (got 5); allowed: a divisor of 16 (train.batch "
        "of 16)",
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("{train: {iterations: many}, scheduler: {asha: {grace: 1000}}}", 1),
        ("{train: {iteratons: 4000}, scheduler: {asha: {grace: 1000}}}", 1),
        ("{train: {batch: 0, micro_batch: 5}}", 1),
        ("{search: {directions: {choice: [0, 8]}}, budget: {trials: 4}}", 1),
        ("{search: {strat: {choice: [pca, random]}, directions: {choice: [8, 9], when: {start: random}}}}", 1),
        ("{method: lerned, search: {directions: {choice: [8, 9], when: {method: random}}}}", 1),
        ("{scheduler: {asha: {grace: 1000, reduction: 1}}, train: {batch: 8, micro_batch: 3}}", 3),
        ("{search: {directions: {choice: [0, 1, x]}, start: {choice: [x, y]}}, method: {choice: [x]}}", 6),
    ],
)
def test_nothing_is_concluded_from_a_value_that_is_wrong(text: str, count: int) -> None:
    assert len(mistakes_of(text)) == count


@pytest.mark.parametrize("data", [None, [], "name: a", 5])
def test_data_that_is_no_mapping(data: object) -> None:
    with pytest.raises(SpecError, match=r"^a sweep must be a mapping with keys such as name, model and search \(got "):
        parse(data)


HOSTILE = [
    (
        "train: {batch: 1000000000000}",
        "train.batch: is more than 2147483647 (got 1000000000000); allowed: an integer >= 1",
    ),
    (
        "search: {pca.samples: {int: [2, 1000000000000000000000000000000]}}",
        "search.pca.samples.int[1]: is more than 2147483647 (got 1000000000000000000000000000000); "
        "allowed: an integer >= 2",
    ),
    (
        "resources: {gpus_per_trial: 1.0e+300}",
        f"resources.gpus_per_trial: is more than 2147483647 (got 1e+300); allowed: {GPUS}",
    ),
    (
        f"gradient: {{memory: {'9' * 400}GiB}}",
        f"gradient.memory: is not an amount of memory (got '{'9' * 76}...); allowed: {SIZE}",
    ),
    (f"model: {'x' * 1025}", f"model: is longer than 1024 characters (got '{'x' * 76}...); allowed: {TEXT}"),
    (
        "tracking: {experiment: ../../x}",
        f"tracking.experiment: cannot be a folder of the embedded store (got '../../x'); allowed: {FOLDER}",
    ),
    (
        f"tracking: {{experiment: {'ä' * 28}{'あ' * 72}}}",
        "tracking.experiment: cannot be a folder of the embedded store "
        f"(got '{'ä' * 28}{'あ' * 48}...); allowed: {FOLDER}",
    ),
    (
        f"tracking: {{uri: 'http://h', experiment: {'x' * 257}}}",
        f"tracking.experiment: cannot name an experiment (got '{'x' * 76}...); allowed: at most 256 characters",
    ),
    *(
        (f"export: {{register: {text}}}", f"export.register: cannot name a model (got {shown}); allowed: {MODEL}")
        for text, shown in (
            ("a/b", "'a/b'"),
            ("'a:b'", "'a:b'"),
            ("'a?b'", "'a?b'"),
            (".", "'.'"),
            ("..a", "'..a'"),
            ('"\'a\' or \\"b\\""', "'\\'a\\' or \"b\"'"),
            ("x" * 257, f"'{'x' * 76}..."),
        )
    ),
]


@pytest.mark.parametrize("name", ["Kim's faces", 'the "best"', "50%20; #1 @é {x} `y` \\ *", "x" * 256, ".a"])
def test_any_other_name_of_a_model_is_accepted(name: str) -> None:
    search = {"directions": {"choice": [8, 9]}}
    sweep = parse({"name": "a", "model": "toyfaces", "search": search, "export": {"register": name}})
    assert sweep.export.register_as == name


@pytest.mark.parametrize(("text", "sentence"), HOSTILE)
def test_values_that_would_cost_too_much_or_leave_their_folder(text: str, sentence: str) -> None:
    assert mistakes_of(text) == [sentence]


def test_parameters_that_all_wait_for_each_other_are_checked_at_once() -> None:
    """Every way through such conditions would take longer than anyone waits."""
    names = [name for name in PARAMETERS if PARAMETERS[name].methods == PARAMETERS["start"].methods]
    many = [name for name in PARAMETERS if name not in names] + names
    values = {name: PARAMETERS[name].default or 0 for name in many}
    search = {name: {"choice": [values[name]], "when": {n: values[n] for n in many[:k]}} for k, name in enumerate(many)}
    with pytest.raises(SpecError) as caught:
        parse({"name": "a", "model": "b", "search": search})
    assert "waits for itself" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("LEARNED", "learned"),
        ("Learned", "learned"),
        ("lerned", "learned"),
        ("PCA", "pca"),
        ("autoencoderkl", "AutoencoderKL"),
        ("ica", "pca"),
        ("xyz", None),
        ("", None),
        (7, None),
        (None, None),
    ],
)
def test_the_nearest_spelling_minds_no_capitals(word: object, near: str | None) -> None:
    assert nearest(word, ("learned", "pca", "AutoencoderKL")) == near


def test_numbers_that_are_not_finite_are_shown_as_yaml_writes_them() -> None:
    assert [shown(value) for value in (math.inf, -math.inf, math.nan)] == [".inf", "-.inf", ".nan"]


def test_of_a_long_value_the_first_eight_are_shown() -> None:
    assert shown(list(range(8))) == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert shown(list(range(9))) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"

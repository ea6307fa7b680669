"""Sweep files that name one method or several: what each may be told, and what does not go together."""

from pathlib import Path

import pytest

from orchestrator.spec import METHODS, PAIRED, PARAMETERS, TRAINED, Choice, Fixed, IntRange, SpecError, load
from tests.orchestrator.spec.test_sentences import TEXT, mistakes_of
from tests.orchestrator.spec.test_sweep import sweep_of

BOX = "'left,top,right,bottom' in pixels with left < right and top < bottom, or none"
SHARED = "directions, shift_scale, seed"

SENTENCES = [
    # one parameter
    (
        "{method: pca, search: {pca.sampels: 64}}",
        f"search.pca.sampels: is not a known key (got 64); allowed: {', '.join(PARAMETERS)}; "
        "did you mean 'pca.samples'?",
    ),
    (
        "{method: pca, search: {pca.samples: {choice: [1, 64]}}}",
        "search.pca.samples.choice[0]: is out of range (got 1); allowed: an integer >= 2",
    ),
    (
        "{method: jacobian, search: {jacobian.step: {choice: [evry, 2]}}}",
        "search.jacobian.step.choice[0]: is not an integer (got 'evry'); allowed: an integer >= 0, or middle or every",
    ),
    (
        "{method: jacobian, search: {jacobian.step: {int: [every, 3]}}}",
        "search.jacobian.step.int[0]: is not an integer (got 'every'); allowed: an integer >= 0",
    ),
    (
        "{method: jacobian, search: {jacobian.step: {float: [0, 3]}}}",
        "search.jacobian.step: cannot be searched as float (got {float: [0, 3]}); allowed: choice, int",
    ),
    (
        "{method: jacobian, search: {jacobian.mask: {choice: [5, a.png]}}}",
        f"search.jacobian.mask.choice[0]: is not text (got 5); allowed: {TEXT}, or none",
    ),
    (
        "{method: jacobian, search: {jacobian.box: {choice: ['1,2,3', none]}}}",
        f"search.jacobian.box.choice[0]: is not a box (got '1,2,3'); allowed: {BOX}",
    ),
    (
        "{method: jacobian, search: {jacobian.box: {choice: [none, '4,0,4,8']}}}",
        f"search.jacobian.box.choice[1]: is an empty box (got '4,0,4,8'); allowed: {BOX}",
    ),
    # parameters of other methods
    (
        "{method: random, search: {directions: {choice: [8, 9]}, orthonormal: {choice: [true, false]}}}",
        "search.orthonormal: has no effect with method random (got {choice: [true, false]}); "
        "allowed: only with method learned or guided",
    ),
    (
        "{method: {choice: [pca, supervised]}, search: {shift_scale: {float: [1, 2]}}}",
        "search.shift_scale: has no effect with method pca or supervised "
        "(got {float: [1.0, 2.0], log: false}); allowed: only with method learned or guided or jacobian or random",
    ),
    (
        "{method: {choice: [pca, random]}, scheduler: {asha: {grace: 5}}}",
        "scheduler: has no effect with method pca or random, which do not train "
        "(got {asha: {metric: null, grace: 5, reduction: 3}}); allowed: null, or method learned or guided among others",
    ),
    # when
    (
        "{method: random, search: {directions: {choice: [8, 9], when: {start: pca}}}}",
        "search.directions.when.start: start is not in play with the method of this sweep (got ['pca']); "
        "allowed: a parameter in play",
    ),
    (
        "{method: {choice: [learned, random]}, search: {start: {choice: [pca, random], when: {method: random}}}}",
        "search.start.when.method: excludes the only method that uses start (got ['random']); allowed: learned",
    ),
    (
        "{method: {choice: [learned, pca, random]}, search: {shift_scale: {float: [1, 2], when: {method: pca}}}}",
        "search.shift_scale.when.method: excludes the methods that use shift_scale (got ['pca']); "
        "allowed: learned, random",
    ),
    (
        "{method: {choice: [learned, pca]}, search: {start: {choice: [pca, random], when: {pca.joint: true}}}}",
        "search.start.when.pca.joint: pca.joint is never in play with start (got [true]); "
        "allowed: a parameter of method learned",
    ),
    # between parameters
    (
        "{train: {batch: 5}, search: {directions: {choice: [8, 9]}}}",
        "train.batch: cannot be compared in pairs (got 5); allowed: an even number for each worker, "
        "or 0 for each of search.consistency_weight, search.purity_weight, search.locality_weight",
    ),
    (
        "{train: {batch: 5}, search: {directions: {choice: [8, 9]}, consistency_weight: 0}}",
        "train.batch: cannot be compared in pairs (got 5); allowed: an even number for each worker, "
        "or 0 for each of search.consistency_weight, search.purity_weight, search.locality_weight",
    ),
    (
        "{train: {batch: 6, micro_batch: 3}, "
        "search: {purity_weight: 0, locality_weight: 0, consistency_weight: {choice: [0, 1]}}}",
        "train.micro_batch: cannot be compared in pairs (got 3); allowed: an even number for each worker, "
        "or 0 for each of search.consistency_weight, search.purity_weight, search.locality_weight",
    ),
    (
        "{train: {batch: 3}, search: {parametrisation: {choice: [shared, time]}, "
        "purity_weight: 0, locality_weight: 0, consistency_weight: {choice: [0], when: {parametrisation: time}}}}",
        "train.batch: cannot be compared in pairs (got 3); allowed: an even number for each worker, "
        "or 0 for each of search.consistency_weight, search.purity_weight, search.locality_weight",
    ),
    (
        "{method: jacobian, sampler: {steps: 6}, search: {jacobian.step: {choice: [every, 12]}}}",
        "search.jacobian.step: is not a step of the chain (got 12); "
        "allowed: 0 to 5 (sampler.steps is 6), middle, every",
    ),
    (
        "{method: jacobian, sampler: {steps: 6}, search: {jacobian.step: {int: [0, 6]}}}",
        "search.jacobian.step: is not a step of the chain (got 6); allowed: 0 to 5 (sampler.steps is 6), middle, every",
    ),
    (
        "{method: pca, search: {directions: {choice: [8, 16]}, pca.samples: {int: [16, 64]}}}",
        "search.pca.samples: is too few for 16 directions (got 16); allowed: at least 17",
    ),
    (
        "{method: {choice: [learned, pca]}, search: {directions: 2048}}",
        "search.pca.samples: is too few for 2048 directions (got 1024); allowed: at least 2049",
    ),
    (
        "{method: sae, search: {sae.width: {choice: [64, 256]}, directions: 96}}",
        "search.sae.width: is less than directions (got 64); allowed: at least 96",
    ),
    (
        "{method: sae, search: {sae.width: 64, sae.active: {int: [16, 65]}}}",
        "search.sae.width: is less than sae.active (got 64); allowed: at least 65",
    ),
    (
        "{method: supervised, search: {supervised.extremes: {choice: [20, 33]}, supervised.samples: 64}}",
        "search.supervised.extremes: is more than half of the samples (got 33); "
        "allowed: at most 32, half of supervised.samples",
    ),
    (
        "{method: guided, search: {guided.start: pca}}",
        "search.guided.start: is not known (got 'pca'); allowed: slopes, supervised, random",
    ),
    (
        "{method: guided, search: {}, budget: {trials: 1}, train: {batch: 6, micro_batch: 3}}",
        "train.micro_batch: cannot be compared in pairs (got 3); allowed: an even number for each worker",
    ),
    (
        "{method: {choice: [learned, guided]}, train: {batch: 5}, "
        "search: {consistency_weight: 0, purity_weight: 0, locality_weight: 0}}",
        "train.batch: cannot be compared in pairs (got 5); allowed: an even number for each worker",
    ),
    (
        "{method: guided, search: {}, budget: {trials: 2}}",
        "search: nothing is searched, so every trial would be the same (got {}); "
        "allowed: at least one parameter with choice, int or float, or budget.trials: 1",
    ),
    (
        "{method: supervised, sampler: {eta: 0.5}, search: {supervised.pairs: {choice: [none, faces/]}}}",
        "search.supervised.pairs: needs a chain that can be inverted (got 'faces/'); "
        "allowed: sampler.eta: 0 (it is 0.5)",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), SENTENCES, ids=[text for text, _ in SENTENCES])
def test_a_mistake_is_told_in_one_sentence(text: str, sentence: str) -> None:
    assert mistakes_of(text) == [sentence]


FINE = [
    "{method: {choice: [learned, pca]}, search: {directions: {choice: [16, 2048], when: {method: learned}}}}",
    "{method: {choice: [learned, pca]}, search: {directions: {choice: [8, 64]}, "
    "pca.samples: {choice: [32], when: {directions: 8}}}}",
    "{method: {choice: [learned, pca]}, scheduler: {asha: {grace: 5}}}",
    "{method: sae, search: {sae.width: 16, sae.active: {choice: [8, 16]}}}",
    "{method: jacobian, sampler: {steps: 6}, search: {jacobian.step: {choice: [every, middle, 5]}}}",
    "{method: {choice: [learned, pca]}, search: {start: {choice: [pca, random], when: {method: [learned, pca]}}}}",
]


@pytest.mark.parametrize("text", FINE)
def test_what_can_be_is_not_refused(text: str) -> None:
    sweep_of(text)


def test_words_and_nulls() -> None:
    sweep = sweep_of(
        "{method: {choice: [jacobian, supervised]}, search: {jacobian.step: null, jacobian.box: '0, 4, 8,16', "
        "jacobian.mask: null, supervised.attribute: null, supervised.balance: smile}}"
    )
    assert {name: sweep.search[name] for name in sweep.search} == {
        "jacobian.step": Fixed("middle"),
        "jacobian.box": Fixed("0,4,8,16"),
        "jacobian.mask": Fixed("none"),
        "supervised.attribute": Fixed("all"),
        "supervised.balance": Fixed("smile"),
    }
    steps = sweep_of("{method: jacobian, search: {jacobian.step: {int: [0, 4]}}}").search["jacobian.step"]
    assert steps == IntRange(0, 4)


SPACES = {
    "learned": f"{SHARED}, discriminator_weight, consistency_weight, purity_weight, locality_weight, parametrisation, "
    "orthonormal, start, direction_rate, reconstructor_rate, discriminator_rate, learned.look",
    "guided": "shift_scale, seed, discriminator_weight, parametrisation, orthonormal, direction_rate, "
    "discriminator_rate, guided.attributes, guided.start, guided.effect_weight, guided.target",
    "pca": "directions, seed, pca.samples, pca.joint, pca.sigmas",
    "jacobian": f"{SHARED}, jacobian.step, jacobian.image, jacobian.mask, jacobian.box",
    "semantic": "directions, seed, semantic.look, semantic.sources, semantic.samples, semantic.sigmas",
    "sae": "directions, seed, sae.width, sae.active, sae.seen, sae.steps, sae.samples, sae.iterations, sae.sigmas",
    "supervised": "seed, supervised.attribute, supervised.samples, supervised.extremes, supervised.balance, "
    "supervised.project, supervised.pairs",
    "random": SHARED,
}


@pytest.mark.parametrize("method", METHODS)
def test_space_of_a_method_holds_what_it_uses(method: str) -> None:
    space = sweep_of(f"{{method: {method}, search: {{seed: {{choice: [1, 2]}}}}}}").space
    assert ", ".join(space) == f"method, {SPACES[method]}"
    assert all(not distribution.when for distribution in space.values())


def test_what_only_some_methods_use_waits_for_them() -> None:
    space = sweep_of(
        "{method: {choice: [learned, pca, random]}, search: {start: {choice: [pca, random]}, "
        "shift_scale: {float: [1, 2], when: {method: [random, pca]}}}}"
    ).space
    assert space["method"] == Choice(("learned", "pca", "random"))
    assert space["directions"] == Fixed(16)
    assert space["start"] == Choice(("pca", "random"), when={"method": ("learned",)})
    assert space["orthonormal"] == Fixed(False, when={"method": ("learned",)})
    assert space["pca.joint"] == Fixed(True, when={"method": ("pca",)})
    assert space["shift_scale"].when == {"method": ("random",)}
    assert not any(name.startswith(("jacobian.", "supervised.")) for name in space)


def test_the_seed_of_trials_is_that_of_the_sweep_unless_searched() -> None:
    assert sweep_of("seed: 7").space["seed"] == Fixed(7)
    assert sweep_of("{seed: 7, search: {seed: {choice: [0, 1]}}}").space["seed"] == Choice((0, 1))
    assert (
        sweep_of("{seed: 7}").identity()
        == sweep_of("{seed: 7, search: {seed: 7, directions: {choice: [8, 12]}}}").identity()
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("search.pca.samples=64", "pca.samples", Fixed(64)),
        ("search.pca.samples.choice=[64, 128]", "pca.samples", Choice((64, 128))),
        ("search.pca . joint={choice: [true, false]}", "pca.joint", Choice((True, False))),
        ("search.directions.when.pca.joint=true", "directions", Choice((8, 12), when={"pca.joint": (True,)})),
    ],
)
def test_an_override_reaches_a_dotted_name(tmp_path: Path, override: str, key: str, value: object) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: a\nmodel: b\nmethod: pca\nsearch: {directions: {choice: [8, 12]}, pca.joint: true}\n")
    assert load(path, [override]).search[key] == value


def test_an_override_of_a_misspelt_dotted_name(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: a\nmodel: b\nmethod: pca\nsearch: {directions: {choice: [8, 12]}}\n")
    with pytest.raises(SpecError, match=r"^search\.pca\.jiont: is not a known key .*; did you mean 'pca\.joint'\?$"):
        load(path, ["search.pca.jiont=true"])


def test_a_dotted_name_belongs_to_the_method_it_opens_with() -> None:
    for name, parameter in PARAMETERS.items():
        method, dot, _ = name.partition(".")
        assert set(parameter.methods) <= set(METHODS)
        assert not dot or parameter.methods == (method,)


@pytest.mark.slow
def test_methods_are_those_of_core() -> None:
    from core.methods import METHODS as methods_of_core  # here, for it loads torch
    from core.methods.learned.training import PAIRED as paired_of_core

    assert tuple(methods_of_core) == METHODS
    assert {name for name, method in methods_of_core.items() if hasattr(method, "Learner")} == set(TRAINED)
    assert paired_of_core == PAIRED

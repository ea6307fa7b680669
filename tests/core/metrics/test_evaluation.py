"""The evaluation of a set: everything is measured once, as the settings say, and what proves nothing is refused."""

import math
from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch

from core.chain.schedule import Schedule
from core.errors import NonFiniteError, UserError
from core.metrics import METRICS, Evaluation, Traversals, draw_traversals, evaluate, evaluation
from core.metrics.attributes import coverage, disentanglement, effects
from core.metrics.consistency import diversity, globality, monotonicity
from core.metrics.features import denoiser_features, features_of, standardise
from core.metrics.fidelity import kid_by_sample
from core.metrics.identifiability import identifiability
from core.metrics.judges import Judges
from core.metrics.networks import Extractor
from core.metrics.traversals import SCALES, draw_plain
from core.model.codec import Codec
from core.model.denoiser import Denoiser
from core.model.use import Use
from core.predictors.attributes import Attributes
from core.samples.draw import Sampling
from tests.core.metrics.test_attributes import LEFT_RIGHT
from tests.core.metrics.test_judges import judges, pixels
from tests.core.metrics.test_traversals import SEEDS, STEPS, direction_set, normal

REFERENCE_SEEDS = (10, 11, 12, 13)
JUDGED = {"fid", "inception_kid", "lpips", "identity"}  # of networks that are asked beside the denoiser


@pytest.mark.slow
def test_evaluate_asks_the_judges_that_there_are(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    given = (tiny_denoiser, schedule, direction_set(tiny_denoiser), SEEDS, REFERENCE_SEEDS)
    found = evaluate(*given, judges=judges())
    assert found.metrics.keys() == METRICS.keys() - {"disentanglement", "coverage"}
    other = evaluate(*given, judges=Judges(features=pixels("other")))
    assert other.judged_by == {"features": "other"}
    assert other.metrics["globality"] != found.metrics["globality"]
    assert other.metrics["identifiability"] == found.metrics["identifiability"]


def evaluated(denoiser: Denoiser, attributes: Attributes | None = None, batch: int = 64) -> Evaluation:
    schedule = Schedule.ddim(denoiser, STEPS)
    return evaluate(
        denoiser, schedule, direction_set(denoiser), SEEDS, REFERENCE_SEEDS, attributes, Sampling(batch=batch)
    )


@pytest.mark.slow
def test_evaluate_measures_everything_once_and_the_same_again(tiny_denoiser: Denoiser) -> None:
    before = torch.random.get_rng_state()
    first, second = (evaluated(tiny_denoiser, LEFT_RIGHT) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.metrics.keys() == METRICS.keys() - JUDGED and not first.judged_by
    assert first.metrics == second.metrics
    assert all(type(value) is float and math.isfinite(value) for value in first.metrics.values())

    reference = draw_plain(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), REFERENCE_SEEDS)
    expected = effects(first.traversals, LEFT_RIGHT, reference)
    assert first.effects is not None and torch.equal(first.effects, expected)
    assert first.metrics["disentanglement"] == disentanglement(expected)
    assert first.metrics["coverage"] == coverage(expected)
    assert (first.metrics["identifiability"], first.metrics["strength_error"]) == identifiability(first.traversals)
    assert first.metrics["diversity"] == diversity(direction_set(tiny_denoiser))


@pytest.mark.slow
def test_evaluate_measures_features_in_deviations_of_the_reference(tiny_denoiser: Denoiser) -> None:
    found = evaluated(tiny_denoiser)
    images = found.traversals
    unshifted = denoiser_features(
        tiny_denoiser, draw_plain(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), REFERENCE_SEEDS)
    )
    plain, low, high, own = (
        standardise(denoiser_features(tiny_denoiser, x), unshifted)
        for x in (
            images.plain,
            images.negative.flatten(0, 1),
            images.positive.flatten(0, 1),
            images.shifted.flatten(0, 2),
        )
    )
    ends = torch.cat([low.reshape(3, 2, -1), high.reshape(3, 2, -1)], dim=1)  # [M, 2 K, F]
    expected = {
        "fidelity_kid": kid_by_sample(ends, standardise(unshifted, unshifted)),
        "globality": globality(plain, high.reshape(3, 2, -1)),
        "monotonicity": monotonicity(plain, own.reshape(3, 2, 4, -1), SCALES),
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_evaluate_draws_and_judges_as_it_is_told(tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, directions = Schedule.ddim(tiny_denoiser, STEPS), direction_set(tiny_denoiser)
    drawing = create_autospec(draw_traversals, side_effect=draw_traversals)
    judging = create_autospec(identifiability, return_value=(0.25, math.inf))
    looking = create_autospec(features_of, side_effect=features_of)
    monkeypatch.setattr(evaluation, "features_of", looking)
    monkeypatch.setattr(evaluation, "draw_traversals", drawing)
    monkeypatch.setattr(evaluation, "identifiability", judging)
    window = (schedule.timesteps[1],) * 2
    given = (tiny_denoiser, schedule, directions, SEEDS)
    found = evaluate(*given, REFERENCE_SEEDS, LEFT_RIGHT, Sampling("asymmetric", window, 5), 3)
    drawing.assert_called_once_with(*given, sampling=Sampling("asymmetric", window, 5))
    assert torch.equal(
        found.traversals.shifted, draw_traversals(*given, SCALES, Sampling("asymmetric", window, 5)).shifted
    )
    judging.assert_called_once_with(found.traversals, 3, device=tiny_denoiser.device)
    assert {call.kwargs["batch"] for call in looking.call_args_list} == {5}
    assert found.metrics["identifiability"] == 0.25
    assert found.metrics.keys() == METRICS.keys() - JUDGED - {"strength_error"}, "what is not finite is not measured"


@pytest.mark.parametrize("broken", ["traversals", "reference"])
def test_a_model_that_breaks_by_itself_is_told(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    plain = normal(3, 3, 8, 8)
    images, reference = Traversals(plain, plain[:, None, None].expand(3, 2, 4, 3, 8, 8), SCALES), normal(4, 3, 8, 8)
    (plain if broken == "traversals" else reference)[1, 2, 3, 4] = math.nan
    images = replace(images, shifted=torch.zeros(3, 2, 4, 3, 8, 8))
    monkeypatch.setattr(evaluation, "draw_traversals", create_autospec(draw_traversals, return_value=images))
    monkeypatch.setattr(evaluation, "draw_plain", create_autospec(draw_plain, return_value=reference))
    with pytest.raises(
        NonFiniteError, match="^the model draws images with NaN or infinite values even without a shift"
    ):
        evaluated(tiny_denoiser)


def latent(denoiser: Denoiser, space: str) -> Denoiser:
    """The same model, whose samples are latents: an image has twice their side, and shows them up to 1 and no more."""
    codec = create_autospec(Codec, instance=True)
    codec.sample_shape, codec.image_shape = (3, 8, 8), (3, 16, 16)
    codec.images.side_effect = lambda x: x.clamp(-1, 1).repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    codec.x_0.side_effect = lambda images: images[..., ::2, ::2]
    return Denoiser(denoiser.network, denoiser.scheduler, "latent", codec=codec, use=Use(space=space))  # type: ignore[arg-type]


@pytest.mark.parametrize("space", ["latents", "pixels"])
def test_what_is_judged_is_what_the_settings_look_at(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    """Latents or the images of them; what an image does not show is a feature of latents alone."""
    denoiser, samples = latent(tiny_denoiser, space), 3 * normal(3, 3, 8, 8)
    shown = samples.clamp(-1, 1) if space == "pixels" else samples
    found = denoiser_features(denoiser, samples, batch=2)
    assert torch.equal(found, denoiser_features(tiny_denoiser, shown, batch=2))

    judging = create_autospec(identifiability, return_value=(0.25, 0.5))
    monkeypatch.setattr(evaluation, "identifiability", judging)
    schedule = Schedule.ddim(denoiser, STEPS)
    made = evaluate(
        denoiser, schedule, direction_set(denoiser), SEEDS, REFERENCE_SEEDS, sampling=Sampling(batch=5)
    ).traversals
    judged = judging.call_args.args[0]
    assert made.plain.shape == (3, 3, 8, 8) and made.shifted.shape == (3, 2, 4, 3, 8, 8)
    for seen, drawn in ((judged.plain, made.plain), (judged.shifted, made.shifted)):
        assert torch.equal(seen, denoiser.images(drawn) if space == "pixels" else drawn)
    assert torch.equal(made.images(made.plain), denoiser.images(made.plain))


def test_another_network_is_asked_of_the_images_of_latents(tiny_denoiser: Denoiser) -> None:
    denoiser, samples = latent(tiny_denoiser, "latents"), normal(5, 3, 8, 8)
    whole = Extractor("whole", lambda images: images.flatten(1).float())
    found = features_of(denoiser, samples, batch=2, extractor=whole)
    assert torch.equal(found, denoiser.images(samples).flatten(1).float())
    assert torch.equal(features_of(denoiser, samples, batch=5), denoiser_features(tiny_denoiser, samples, batch=5))


@pytest.mark.slow
def test_evaluate_reports_no_attribute_metric_without_a_predictor(tiny_denoiser: Denoiser) -> None:
    found = evaluated(tiny_denoiser)
    assert found.metrics.keys() == METRICS.keys() - JUDGED - {"disentanglement", "coverage"}
    assert found.effects is None


@pytest.mark.slow
def test_evaluate_does_not_depend_on_the_batch(tiny_denoiser: Denoiser) -> None:
    small, large = (evaluated(tiny_denoiser, LEFT_RIGHT, batch).metrics for batch in (2, 64))
    # Rounding in the last bit of the images reaches the judge's weights over 150 steps of training.
    assert small == pytest.approx(large, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("seeds", "reference_seeds", "message"),
    [
        (
            [1, 2],
            [3, 4],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 2 different of 2 and 2 of 2",
        ),
        (
            [1, 2, 3],
            [4, 4],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 3 different of 3 and 1 of 2",
        ),
        (
            [1, 2, 3, 3],
            [4, 5],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 3 different of 4 and 2 of 2",
        ),
        (
            [1, 2, 3],
            [4, 5, 5],
            "evaluate needs 3 or more different seeds and 2 or more different reference seeds; "
            "got 3 different of 3 and 2 of 3",
        ),
        ([1, 2, 3], [4, 3], "seed 3 is both in seeds and in reference_seeds; they must be disjoint"),
    ],
)
def test_seeds_that_prove_nothing_are_refused(
    tiny_denoiser: Denoiser, seeds: list[int], reference_seeds: list[int], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        schedule = Schedule.ddim(tiny_denoiser, STEPS)
        evaluate(tiny_denoiser, schedule, direction_set(tiny_denoiser), seeds, reference_seeds)
    assert str(caught.value) == message


def test_a_direction_that_breaks_the_model_is_named(tiny_denoiser: Denoiser) -> None:
    directions = direction_set(tiny_denoiser)
    sigma = directions.sigma.clone()
    sigma[1] = 1e200
    broken = replace(directions, sigma=sigma, names=("good", "bad"))
    with pytest.raises(NonFiniteError) as caught:
        evaluate(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), broken, SEEDS, REFERENCE_SEEDS)
    assert str(caught.value) == "direction 'bad' draws images with NaN or infinite values at scale -1.0"

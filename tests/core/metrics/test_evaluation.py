"""The evaluation of a set: everything is measured once, as the settings say, and what proves nothing is refused."""

import math
from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch

from core.chain.schedule import Schedule
from core.errors import NonFiniteError, UserError
from core.intervals import interval_of, without_intervals
from core.metrics import METRICS, Evaluation, Traversals, draw_traversals, evaluate, evaluation, measure
from core.metrics import identifiability as judge
from core.metrics.attributes import coverage, disentanglement, effects_by_sample
from core.metrics.consistency import Alikeness, diversity, evenness, globality, locality, monotonicity
from core.metrics.evaluation import JUDGED_SIDE, factors_of, in_levels, seen_by_a_viewer
from core.metrics.features import denoiser_features, features_of, standardise
from core.metrics.fidelity import kid
from core.metrics.identifiability import Identified, identifiability
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

REFERENCE_SEEDS = tuple(range(10, 18))
JUDGED = {"fid", "inception_kid", "lpips", "identity"}  # of networks that are asked beside the denoiser
BY_ATTRIBUTES = {"disentanglement", "coverage"}
MEASURED = METRICS.keys() - {"second_disentanglement", "second_coverage"}  # those are of a second predictor


@pytest.fixture
def hardly_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks that tell directions apart are trained for two steps: their figures are no matter here."""
    monkeypatch.setattr(judge, "ITERATIONS", 2)


@pytest.mark.usefixtures("hardly_trained")
def test_evaluate_asks_the_judges_that_there_are(tiny_denoiser: Denoiser) -> None:
    schedule = Schedule.ddim(tiny_denoiser, STEPS)
    given = (tiny_denoiser, schedule, direction_set(tiny_denoiser), SEEDS, REFERENCE_SEEDS)
    found = evaluate(*given, judges=judges())
    assert found.figures.keys() == MEASURED - BY_ATTRIBUTES
    other = evaluate(*given, judges=Judges(features=pixels("other")))
    assert other.judged_by == {"features": "other"}
    assert other.metrics["globality"] != found.metrics["globality"]
    assert other.metrics["identifiability"] == found.metrics["identifiability"]


def evaluated(denoiser: Denoiser, attributes: Attributes | None = None, batch: int = 64) -> Evaluation:
    schedule = Schedule.ddim(denoiser, STEPS)
    return evaluate(
        denoiser, schedule, direction_set(denoiser), SEEDS, REFERENCE_SEEDS, attributes, Sampling(batch=batch)
    )


@pytest.mark.usefixtures("hardly_trained")
def test_evaluate_measures_everything_once_and_the_same_again(tiny_denoiser: Denoiser) -> None:
    before = torch.random.get_rng_state()
    first, second = (evaluated(tiny_denoiser, LEFT_RIGHT) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.figures.keys() == MEASURED - JUDGED and not first.judged_by
    assert first.metrics == second.metrics
    assert all(type(value) is float and math.isfinite(value) for value in first.metrics.values())

    reference = draw_plain(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), REFERENCE_SEEDS)
    expected = effects_by_sample(first.traversals, LEFT_RIGHT, reference).mean(dim=0)
    assert first.effects is not None and torch.equal(first.effects, expected)
    seen = seen_by_a_viewer(first.traversals)
    identified = identifiability(seen)
    assert without_intervals(first.metrics) == pytest.approx(
        without_intervals(first.metrics)
        | {
            "disentanglement": disentanglement(expected),
            "coverage": coverage(expected),
            "identifiability": identified.information.value,
            "told_apart": identified.told_apart.value,
            "strength_error": identified.strength_error.value,
            "locality": locality(seen.plain, seen.positive).value,
        }
    )


@pytest.mark.usefixtures("hardly_trained")
def test_every_figure_has_its_interval_in_the_table(tiny_denoiser: Denoiser) -> None:
    found = evaluated(tiny_denoiser, LEFT_RIGHT)
    assert without_intervals(found.metrics) == {name: figure.value for name, figure in found.figures.items()}
    for name, figure in found.figures.items():
        assert interval_of(found.metrics, name) == figure.interval
        assert figure.samples == len(SEEDS)


@pytest.mark.usefixtures("hardly_trained")
def test_evaluate_measures_features_of_pictures_in_deviations_of_the_reference(tiny_denoiser: Denoiser) -> None:
    found = evaluated(tiny_denoiser)
    images = found.traversals
    reference = draw_plain(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS), REFERENCE_SEEDS)
    unshifted = denoiser_features(tiny_denoiser, in_levels(reference))
    plain, own = (
        standardise(denoiser_features(tiny_denoiser, in_levels(x)), unshifted)
        for x in (images.plain, images.shifted.flatten(0, 2))
    )
    shifted = own.reshape(3, 2, 4, -1)
    ends = torch.cat([shifted[:, :, 0], shifted[:, :, -1]], dim=1)  # [M, 2 K, F]
    alike = Alikeness.of(shifted[:, :, -1] - plain[:, None])
    expected = {
        "fidelity_kid": kid(ends, plain, standardise(unshifted, unshifted)),
        "globality": globality(alike),
        "diversity": diversity(alike),
        "monotonicity": monotonicity(plain, shifted, SCALES),
        "evenness": evenness(plain, shifted, SCALES),
    }
    for name, figure in expected.items():
        assert found.figures[name].value == pytest.approx(figure.value, rel=1e-5, abs=1e-9)
        torch.testing.assert_close(found.figures[name].replicates, figure.replicates, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("hardly_trained")
def test_a_shift_below_half_of_a_level_is_nothing(tiny_denoiser: Denoiser) -> None:
    """Pictures of the model, and directions of 1/300 of the range of a pixel: all figures at their zero."""
    plain, reference = in_levels(0.3 * normal(4, 3, 8, 8)), normal(8, 3, 8, 8)
    scales = torch.tensor(SCALES, dtype=torch.float64)[:, None, None, None]
    shifted = plain[:, None, None] + 0.003 * scales * normal(2, 1, 3, 8, 8).clamp(-1, 1)
    factors = factors_of(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS))
    found = measure(tiny_denoiser, Traversals(plain, shifted, SCALES), reference, factors, judges=judges())
    assert without_intervals(found.metrics) == pytest.approx(
        dict.fromkeys(found.figures, 0.0)
        | {"told_apart": 1.0, "strength_error": 0.75, "identity": 1.0}
        # The networks beside the denoiser see pictures too.
        | {"fid": found.metrics["fid"]},
        abs=1e-2,
    )
    for name in ("globality", "diversity", "monotonicity", "evenness", "locality", "factor_score", "purity"):
        assert found.figures[name].value == 0.0
    strong = measure(tiny_denoiser, Traversals(plain, plain[:, None, None] + scales, SCALES), reference, factors)
    assert strong.metrics["fidelity_kid"] > 1.0 and strong.metrics["globality"] > 0.0


def test_evaluate_draws_and_judges_as_it_is_told(tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, directions = Schedule.ddim(tiny_denoiser, STEPS), direction_set(tiny_denoiser)
    drawing = create_autospec(draw_traversals, side_effect=draw_traversals)
    told = Identified(torch.full((3, 2), 0.25).double(), torch.full((3, 2), math.inf))
    judging = create_autospec(identifiability, return_value=told)
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
    assert judging.call_count == 1 and judging.call_args.args[1:] == (3,)
    assert judging.call_args.kwargs == {"device": tiny_denoiser.device}
    assert torch.equal(judging.call_args.args[0].shifted, in_levels(found.traversals.shifted))
    assert {call.kwargs["batch"] for call in looking.call_args_list} == {5}
    assert found.metrics["identifiability"] == 0.25
    assert found.figures.keys() == MEASURED - JUDGED - {"strength_error"}, "what is not finite is not measured"


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
def test_features_are_of_what_the_settings_look_at(tiny_denoiser: Denoiser, space: str) -> None:
    """Latents or the images of them; what an image does not show is a feature of latents alone."""
    denoiser, samples = latent(tiny_denoiser, space), 3 * normal(3, 3, 8, 8)
    shown = samples.clamp(-1, 1) if space == "pixels" else samples
    found = denoiser_features(denoiser, samples, batch=2)
    assert torch.equal(found, denoiser_features(tiny_denoiser, shown, batch=2))


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_features_see_pictures_of_pixels_and_latents_as_they_are(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    denoiser = latent(tiny_denoiser, "latents") if kind == "latents" else tiny_denoiser
    factors = factors_of(tiny_denoiser, Schedule.ddim(tiny_denoiser, STEPS))
    looking = create_autospec(features_of, side_effect=features_of)
    monkeypatch.setattr(evaluation, "features_of", looking)
    monkeypatch.setattr(judge, "ITERATIONS", 0)
    plain, reference = 0.7 * normal(3, 3, 8, 8), normal(4, 3, 8, 8)
    traversals = Traversals(plain, plain[:, None, None] + 0.5 * normal(3, 2, 4, 3, 8, 8), SCALES)
    measure(denoiser, traversals, reference, factors)
    seen = [call.args[1] for call in looking.call_args_list]
    drawn = [reference, traversals.plain, traversals.shifted.flatten(0, 2)]
    assert all(
        torch.equal(*pair) for pair in zip(seen, drawn if kind == "latents" else map(in_levels, drawn), strict=True)
    )


def test_the_networks_that_tell_directions_apart_see_decoded_pictures(
    tiny_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = latent(tiny_denoiser, "latents")
    judging = create_autospec(
        identifiability, return_value=Identified(torch.zeros(3, 2).double(), torch.zeros(3, 2).double())
    )
    monkeypatch.setattr(evaluation, "identifiability", judging)
    schedule = Schedule.ddim(denoiser, STEPS)
    made = evaluate(
        denoiser, schedule, direction_set(denoiser), SEEDS, REFERENCE_SEEDS, sampling=Sampling(batch=5)
    ).traversals
    judged = judging.call_args.args[0]
    assert made.plain.shape == (3, 3, 8, 8) and made.shifted.shape == (3, 2, 4, 3, 8, 8)
    assert judged.shifted.shape == (3, 2, 4, 3, 16, 16) and judged.scales == made.scales
    assert torch.equal(judged.plain, in_levels(denoiser.images(made.plain)))
    assert torch.equal(judged.shifted.flatten(0, 2), in_levels(denoiser.images(made.shifted.flatten(0, 2))))
    assert torch.equal(made.images(made.plain), denoiser.images(made.plain))


def test_levels_are_those_of_a_saved_picture() -> None:
    shown = in_levels(torch.tensor([-3.0, -1.0, 0.3 / 127.5, 0.7 / 127.5, 0.5, 1.0, 7.0], dtype=torch.float64))
    assert shown.dtype == torch.float64
    assert ((shown + 1) * 127.5).tolist() == pytest.approx([0, 0, 128, 128, 191, 255, 255], abs=1e-4)


@pytest.mark.parametrize(("side", "seen_side"), [(JUDGED_SIDE, 64), (JUDGED_SIDE + 2, 33), (128, 64), (200, 50)])
def test_large_images_are_averaged_for_the_networks_that_tell_directions_apart(side: int, seen_side: int) -> None:
    plain = in_levels(0.5 * normal(3, 1, side, side))
    shifted = plain[:, None, None].expand(3, 1, 2, 1, side, side)
    seen = seen_by_a_viewer(Traversals(plain, shifted, (-1.0, 1.0)), batch=4)
    assert seen.plain.shape == (3, 1, seen_side, seen_side) and seen.shifted.shape == (3, 1, 2, 1, seen_side, seen_side)
    factor = math.ceil(side / JUDGED_SIDE)
    assert float(seen.shifted[2, 0, 1, 0, 1, 0]) == pytest.approx(
        float(plain[2, 0, factor : 2 * factor, :factor].mean()), abs=1e-6
    )
    assert torch.equal(seen.images(seen.plain), seen.plain), "they are not decoded again"


def test_another_network_is_asked_of_the_images_of_latents(tiny_denoiser: Denoiser) -> None:
    denoiser, samples = latent(tiny_denoiser, "latents"), normal(5, 3, 8, 8)
    whole = Extractor("whole", lambda images: images.flatten(1).float())
    found = features_of(denoiser, samples, batch=2, extractor=whole)
    assert torch.equal(found, denoiser.images(samples).flatten(1).float())
    assert torch.equal(features_of(denoiser, samples, batch=5), denoiser_features(tiny_denoiser, samples, batch=5))


@pytest.mark.usefixtures("hardly_trained")
def test_evaluate_reports_no_attribute_metric_without_a_predictor(tiny_denoiser: Denoiser) -> None:
    found = evaluated(tiny_denoiser)
    assert found.figures.keys() == MEASURED - JUDGED - BY_ATTRIBUTES
    assert found.effects is None


@pytest.mark.slow
def test_evaluate_does_not_depend_on_the_batch(tiny_denoiser: Denoiser) -> None:
    small, large = (evaluated(tiny_denoiser, LEFT_RIGHT, batch).metrics for batch in (2, 64))
    # Rounding in the last bit of the images reaches the weights of the networks over their training.
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

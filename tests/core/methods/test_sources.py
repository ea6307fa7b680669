"""Sources: what is read from a sample's maps is what the pursuit found, in units of the unshifted samples."""

from dataclasses import replace
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from core import Denoiser, noise
from core.chain.sample_maps import sample_maps
from core.methods import sources
from core.methods.sources import Sources, features_of_maps, find_sources
from core.statistics.projection_pursuit import pursue


def samples(denoiser: Denoiser, count: int = 48) -> Tensor:
    return noise(range(count), denoiser.sample_shape).to(denoiser.chain_dtype)


def test_features_are_means_on_a_grid_of_each_channel_of_each_map() -> None:
    """A map that is smaller than the grid is repeated."""
    large, small = torch.arange(128.0).reshape(1, 2, 8, 8), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    found = features_of_maps([large, small])
    means = torch.stack(
        [large[0, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for c in (0, 1) for i in range(4) for j in range(4)]
    )
    assert torch.equal(found[0, :32], means)
    assert torch.equal(found[0, 32:].reshape(4, 4), small[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_what_is_read_in_a_sample_is_what_was_found_in_it(single_denoiser: Denoiser) -> None:
    """However the samples are batched; of mean 0 and variance 1, and uncorrelated."""
    x_0 = samples(single_denoiser)
    found, values = find_sources(single_denoiser, x_0, 3, batch=20)
    assert found.count == 3 and values.shape == (48, 32) and values.dtype == torch.float32
    assert torch.allclose(found.read(sample_maps(single_denoiser, x_0[5:9])), values[5:9], atol=1e-3)
    assert torch.allclose(values.mean(dim=0), torch.zeros(32), atol=1e-3)
    assert torch.allclose(values.T @ values / 47, torch.eye(32), atol=1e-2)
    again, _ = find_sources(single_denoiser, x_0, 3, batch=48)
    assert torch.allclose(again.weights, found.weights, rtol=1e-3, atol=1e-3 * float(found.weights.abs().max()))


def test_reading_is_differentiable_back_to_the_sample(tiny_denoiser: Denoiser) -> None:
    """Along a random change, against a difference of two readings."""
    found, _ = find_sources(tiny_denoiser, samples(tiny_denoiser), 2)
    exact = Sources(found.mean, found.weights, found.count)
    x_0 = samples(tiny_denoiser, 50)[48:].requires_grad_()
    change = noise(range(90, 92), tiny_denoiser.sample_shape).double()
    total = exact.read(sample_maps(tiny_denoiser, x_0))[:, 1].sum()
    (slope,) = torch.autograd.grad(total, x_0)
    with torch.no_grad():
        ends = [exact.read(sample_maps(tiny_denoiser, x_0 + sign * 1e-2 * change))[:, 1].sum() for sign in (1, -1)]
    assert float((slope * change).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-2, rel=1e-2)


@pytest.mark.parametrize(
    ("count", "stages", "kept"), [(3, ((3, 16), (0, 32)), 32), (20, ((12, 16), (8, 32)), 32), (9, ((9, 9), (0, 9)), 9)]
)
def test_the_first_twelve_are_looked_for_in_few_components(
    single_denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch, count: int, stages: tuple, kept: int
) -> None:
    """And the others in all that are read; never in more than the samples have. By the seed that is given."""
    x_0 = samples(single_denoiser, 10 if kept == 9 else 48)
    pursued = create_autospec(
        pursue, side_effect=lambda rows, places, stages, kept, seed: pursue(rows, places, ((2, 4),), kept)
    )
    monkeypatch.setattr(sources, "pursue", pursued)
    found, _ = find_sources(single_denoiser, x_0, count, seed=7)
    rows, places, *asked = pursued.call_args.args
    assert asked == [stages, kept, 7]
    looks = adaptive_avg_pool2d(x_0, 16).flatten(2)
    deviation = looks.std(dim=0)
    assert places.shape == (len(x_0), 3, 256)
    assert torch.allclose(places, (looks - looks.mean(dim=0)) / deviation.clamp(min=0.1 * deviation.mean()), atol=1e-4)
    features = features_of_maps(sample_maps(single_denoiser, x_0))
    assert torch.allclose(rows * features.std(dim=0).clamp(min=0.01 * features.std(dim=0).mean()), features, atol=1e-4)
    assert found.count == 2, "as many as were found"


def test_more_sources_than_are_usually_read_are_looked_for_in_as_many_components() -> None:
    features, places = noise(range(60), (50,)), noise(range(100, 160), (1, 4))
    found, values = sources.sources_in(features, places, 40)
    assert found.count == 40 and values.shape == (60, 40)
    assert torch.allclose(values.T @ values / 59, torch.eye(40), atol=1e-3)


def test_each_feature_counts_alike_but_one_that_hardly_varies(single_denoiser: Denoiser) -> None:
    """Its deviation counts as a hundredth of the mean one; places' as a tenth."""
    values = torch.stack([torch.tensor([-1.0, 1.0]), torch.tensor([-1e-6, 1e-6])], dim=1)
    deviation = sources.deviation_of(values, 0.01)
    assert deviation.tolist() == pytest.approx([2**0.5, 0.01 * 2**0.5 / 2], rel=1e-4)
    assert sources.deviation_of(torch.zeros(3, 2), 0.01).tolist() == pytest.approx([1e-12] * 2)


def test_sources_go_where_they_are_asked_to(single_denoiser: Denoiser) -> None:
    found = Sources(torch.zeros(2), torch.ones(2, 1), 1)
    moved = found.to("meta")
    assert moved.mean.is_meta and moved.weights.is_meta and moved.count == 1
    assert replace(found, count=0).count == 0

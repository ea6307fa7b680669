"""The tap: how what is there is laid out, in every form, and the taps and forms that there are not."""

import itertools
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor

from core.cuts import CUTS, FORMS, Tap, cut_of, halved
from core.cuts.hooked import HookedCut
from core.errors import ModelError, UserError
from core.randomness import noise

MAPS = noise([0, 1], (3, 2, 4), torch.float64)  # [N, C, H, W]
TOKENS = MAPS.flatten(2).mT  # the same as tokens [N, L, C], row by row
LAYOUTS = {"maps": MAPS, "tokens": TOKENS}


def tap(layout: str, form: str, grid: tuple[int, int] | None = (2, 4)) -> Tap:
    return Tap.seen("here", form, LAYOUTS[layout], grid)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("form", "shape"), [("spatial", (3, 2, 4)), ("tokens", (3, 8, 1)), ("pooled", (3, 1, 1))])
def test_h_is_laid_out_as_its_form_says(layout: str, form: str, shape: tuple[int, int, int]) -> None:
    seen, expected = tap(layout, form), MAPS.reshape(2, 3, 8, 1)
    assert seen.h_shape == shape and form in FORMS
    expected = expected.mean(2, keepdim=True) if form == "pooled" else expected.reshape(2, *shape)
    assert torch.allclose(seen.h(LAYOUTS[layout]), expected, rtol=1e-14)
    assert torch.equal(seen.maps(LAYOUTS[layout]), MAPS)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("layout", "form"), list(itertools.product(LAYOUTS, FORMS)))
def test_a_shift_goes_where_h_was_read(layout: str, form: str, rows: int) -> None:
    """h of what is shifted is h and the shift; places that have no shift of their own move alike."""
    seen, hidden = tap(layout, form), LAYOUTS[layout]
    delta = noise(range(5, 5 + rows), seen.h_shape, torch.float64)
    moved = seen.shifted(hidden, delta)
    assert torch.allclose(seen.h(moved), seen.h(hidden) + delta, rtol=1e-12, atol=1e-14)
    if form == "pooled":
        change = seen.maps(moved) - seen.maps(hidden)
        assert torch.allclose(change, change[:, :, :1, :1].expand_as(change), atol=1e-14)
    assert seen.shifted(hidden, None) is hidden
    assert seen.shifted(hidden.to(torch.bfloat16), delta).dtype == torch.bfloat16


def test_maps_and_tokens_are_shifted_alike() -> None:
    for form in FORMS:
        delta = noise([5], tap("maps", form).h_shape, torch.float64)
        moved = [seen.maps(seen.shifted(LAYOUTS[layout], delta)) for layout in LAYOUTS for seen in [tap(layout, form)]]
        assert torch.allclose(*moved, atol=1e-14)


def test_tokens_on_no_grid_are_a_sequence() -> None:
    for grid in (None, (3, 3)):
        seen = tap("tokens", "tokens", grid)
        assert seen.grid == (8, 1) and seen.h_shape == (3, 8, 1)
        assert torch.equal(seen.h(TOKENS)[..., 0], TOKENS.mT)


@pytest.mark.parametrize(
    ("hidden", "form", "sentence"),
    [
        (MAPS, "round", "form: got 'round'; allowed: spatial, tokens, pooled"),
        (TOKENS, "spatial", "form: got 'spatial'; the 8 tokens at 'here' are on no grid: tokens or pooled"),
        (MAPS[0, 0], "pooled", "tap: 'here' gives [2, 4]; maps [N, C, H, W] or tokens [N, L, C] are needed"),
    ],
)
def test_forms_that_a_tap_cannot_have_are_told(hidden: Tensor, form: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Tap.seen("here", form, hidden)
    assert str(caught.value) == sentence


def test_both_halves_of_a_guided_batch_are_shifted_or_the_second() -> None:
    one, two = noise([0], (3, 1, 1)), noise([0, 1], (3, 1, 1))
    nothing = torch.zeros_like(two)
    assert halved(None, 2, True) is None and halved(None, 2, False) is None
    assert halved(one, 2, True) is one
    assert torch.equal(halved(two, 2, True), torch.cat([two, two]))
    assert torch.equal(halved(two, 2, False), torch.cat([nothing, two]))
    assert torch.equal(halved(one, 2, False), torch.cat([nothing, one, one]))


def unet() -> UNet2DModel:
    sizes = {"block_out_channels": (4,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=2, add_attention=False, **sizes)


def transformer() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=1,
        attention_head_dim=4,
        in_channels=1,
        num_layers=3,
        sample_size=4,
        num_embeds_ada_norm=3,
        norm_num_groups=1,
    )


def test_the_tap_is_in_the_middle_where_nobody_says() -> None:
    assert cut_of(unet()).name == "mid_block" and cut_of(transformer()).name == "blocks.1"
    assert cut_of(transformer(), "blocks.2").module() == "transformer_blocks.2"


@pytest.mark.parametrize(
    ("tap", "sentence"),
    [
        ("midblock", "tap: got 'midblock'; a UNet has mid_block; did you mean 'mid_block'?"),
        ("down", "tap: got 'down'; a UNet has mid_block"),
    ],
)
def test_taps_that_a_unet_has_not_are_told(tap: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        cut_of(unet(), tap)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("tap", ["blocks.3", "blocks.-1", "blocks.01", "mid_block", ""])
def test_taps_that_a_transformer_has_not_are_told(tap: str) -> None:
    with pytest.raises(UserError) as caught:
        cut_of(transformer(), tap)
    assert str(caught.value) == (f"tap: got '{tap}'; a DiTTransformer2DModel of this size has blocks.0 to blocks.2")


def test_a_hook_needs_a_submodule_to_hang_on() -> None:
    for tap, sentence in (
        (None, "tap: a UNet2DModel has none by itself; name one of its submodules"),
        ("nowhere", "tap: got 'nowhere'; a UNet2DModel has no submodule of that name"),
        ("", "tap: got ''; a UNet2DModel has no submodule of that name"),
    ):
        with pytest.raises(UserError) as caught:
            HookedCut(unet(), tap)
        assert str(caught.value) == sentence


def test_a_network_without_a_cut_is_told_the_way() -> None:
    with pytest.raises(ModelError) as caught:
        cut_of(torch.nn.Linear(2, 2))
    assert str(caught.value) == (
        f"a Linear has no cut of its own ({', '.join(CUTS)} have): use it through core.cuts.hooked.HookedCut"
    )

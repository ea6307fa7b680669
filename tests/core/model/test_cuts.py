"""The tap: how what is there is laid out, in every form, and the taps, forms and networks that cannot be used."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

from core import Denoiser
from core.errors import ModelError, UserError
from core.execution.lean import lean
from core.execution.streaming import offloaded
from core.model.architecture import empty_network
from core.model.condition import Condition
from core.model.cuts import CUTS, FORMS, Cut, NetworkInputs, Tap, cut_of, halved
from core.model.cuts.hooked import HookedCut
from core.model.cuts.unet import UNetCut
from core.randomness import noise

MAPS = noise([0, 1], (3, 2, 4), torch.float64)  # [N, C, H, W]
TOKENS = MAPS.flatten(2).mT  # the same as tokens [N, L, C], row by row
LAYOUTS = {"maps": MAPS, "tokens": TOKENS}


def tap(layout: str, form: str, grid: tuple[int, int] | None = (2, 4)) -> Tap:
    return Tap.from_hidden("here", form, LAYOUTS[layout], grid)  # type: ignore[arg-type]


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
        Tap.from_hidden("here", form, hidden)
    assert str(caught.value) == sentence


def test_both_halves_of_a_guided_batch_are_shifted_or_the_second() -> None:
    one, two = noise([0], (3, 1, 1)), noise([0, 1], (3, 1, 1))
    nothing = torch.zeros_like(two)
    assert halved(None, 2, True) is None and halved(None, 2, False) is None
    assert halved(one, 2, True) is one
    assert torch.equal(halved(two, 2, True), torch.cat([two, two]))
    assert torch.equal(halved(two, 2, False), torch.cat([nothing, two]))
    assert torch.equal(halved(one, 2, False), torch.cat([nothing, one, one]))


def unet(levels: int = 1, **changes: Any) -> UNet2DModel:
    sizes: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (4,) * levels,
        "down_block_types": ("DownBlock2D",) * levels,
        "up_block_types": ("UpBlock2D",) * levels,
    }
    torch.manual_seed(0)
    return UNet2DModel(layers_per_block=1, norm_num_groups=2, add_attention=False, **sizes | changes)


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
        ("midblock", "tap: got 'midblock'; a UNet has mid_block"),
        ("down", "tap: got 'down'; a UNet has mid_block"),
        (3, "tap: got '3'; a UNet has mid_block"),
    ],
)
def test_taps_that_a_unet_has_not_are_told(tap: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        cut_of(unet(), tap)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("tap", ["blocks.3", "blocks.-1", "blocks.01", "mid_block", "", 3])
def test_taps_that_a_transformer_has_not_are_told(tap: Any) -> None:
    with pytest.raises(UserError) as caught:
        cut_of(transformer(), tap)
    assert str(caught.value) == (f"tap: got '{tap}'; a DiTTransformer2DModel of this size has blocks.0 to blocks.2")


def test_a_hook_needs_a_submodule_to_hang_on() -> None:
    taps: tuple[tuple[Any, str], ...] = (
        (None, "tap: a UNet2DModel has none by itself; name one of its submodules"),
        ("nowhere", "tap: got 'nowhere'; a UNet2DModel has no submodule of that name"),
        ("", "tap: got ''; a UNet2DModel has no submodule of that name"),
        (["mid_block"], "tap: got '['mid_block']'; a UNet2DModel has no submodule of that name"),
    )
    for tap, sentence in taps:
        with pytest.raises(UserError) as caught:
            HookedCut(unet(), tap)
        assert str(caught.value) == sentence


def test_a_network_without_a_cut_is_told_the_way() -> None:
    with pytest.raises(ModelError) as caught:
        cut_of(torch.nn.Linear(2, 2))
    assert str(caught.value) == (
        f"a Linear has no cut of its own ({', '.join(CUTS)} have): use it through core.model.cuts.hooked.HookedCut"
    )


@pytest.mark.slow
def test_a_text_unet_of_a_size_that_cannot_be_halved_is_the_unet_to_the_last_bit() -> None:
    """diffusers tells such a network's up blocks how large to make what they give."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=(9, 10),
        block_out_channels=(4, 4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=6,
        attention_head_dim=2,
    )
    text = noise([7], (5, 6), torch.float64)
    told = {"encoder_hidden_states": text}
    denoiser = Denoiser(network.double(), DDIMScheduler(), "odd", condition=Condition(told))
    x, delta = noise([0], denoiser.sample_shape, torch.float64), noise([1], denoiser.h_shape, torch.float64)
    assert denoiser.h_shape == (8, 3, 3)
    assert isinstance(denoiser.cut, UNetCut) and denoiser.cut.uneven(denoiser.sample_shape)
    with torch.no_grad():
        assert torch.equal(denoiser(x, 17), network(x, 17, text).sample)
        hook = network.mid_block.register_forward_hook(lambda module, inputs, h: h + delta)
        expected = network(x, 17, text).sample
        hook.remove()
        for same in (denoiser, denoiser.by_blocks(), offloaded(denoiser, "cpu")):
            assert torch.equal(same(x, 17, delta), expected)
    gradients = []
    for same in (denoiser, denoiser.by_blocks(), offloaded(denoiser, "cpu")):
        shift = delta.clone().requires_grad_()
        same(x, 17, shift).square().sum().backward()
        assert shift.grad is not None
        gradients.append(shift.grad)
    assert gradients[0].abs().max() > 0 and all(torch.equal(found, gradients[0]) for found in gradients)


def test_a_unet_that_learned_its_timesteps_is_told_whole_ones() -> None:
    network = unet(time_embedding_type="learned", num_train_timesteps=1000).double()
    denoiser = Denoiser(network, DDIMScheduler(), "learned")
    x = noise([0], denoiser.sample_shape, torch.float64)
    with torch.no_grad():
        for t in (17, 17.0, 16.8):
            assert torch.equal(denoiser(x, t), network(x, 17).sample)
        assert not torch.equal(denoiser(x, 16), network(x, 17).sample)


def looked(cut: Cut, shape: tuple[int, int, int], given: NetworkInputs) -> Tap:
    cut.read_tap(cut.with_network(empty_network(cut.network)), shape, given, "tiny")
    return cut.tap


def flux() -> tuple[Any, tuple[int, int, int], NetworkInputs]:
    """As Flux Fill: what it draws comes with a mask and an image to begin with."""
    sizes: dict[str, Any] = {"attention_head_dim": 8, "num_attention_heads": 1, "axes_dims_rope": (4, 2, 2)}
    network = FluxTransformer2DModel(
        in_channels=12,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=6,
        pooled_projection_dim=6,
        **sizes,
    )
    return network, (3, 4, 4), {"encoder_hidden_states": torch.zeros(1, 5, 6), "pooled_projections": torch.zeros(1, 6)}


def sd3() -> tuple[Any, tuple[int, int, int], NetworkInputs]:
    """Asked for images larger than it has positions for."""
    network = SD3Transformer2DModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pooled_projection_dim=6,
        pos_embed_max_size=4,
    )
    return (
        network,
        (2, 16, 16),
        {"encoder_hidden_states": torch.zeros(1, 5, 6), "pooled_projections": torch.zeros(1, 6)},
    )


def odd() -> tuple[Any, tuple[int, int, int], NetworkInputs]:
    return unet(levels=2, sample_size=9), (3, 9, 9), {}


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (flux, "model 'tiny' takes [3, 4, 4] and gives [1, 4, 4]; it has to give what it takes"),
        (
            sd3,
            "model 'tiny' cannot be run on samples of [2, 16, 16]: "
            "Height (8) cannot be greater than `pos_embed_max_size`: 4.",
        ),
        (odd, "model 'tiny' cannot be run on samples of [3, 9, 9]: Sizes of tensors must match except in dimension 1."),
    ],
)
def test_networks_that_do_not_give_what_they_take_are_told(
    made: Callable[[], tuple[Any, tuple[int, int, int], NetworkInputs]], sentence: str
) -> None:
    network, shape, given = made()
    with pytest.raises(ModelError) as caught:
        looked(cut_of(network), shape, given)
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


class Joint(nn.Module):
    """A block over image tokens [N, H W, C] and text tokens [N, 5, C], in the order of CogView's."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(image + text.mean(1, keepdim=True)), self.mix(text + image.mean(1, keepdim=True))


class Pair(nn.Module):
    """Two such blocks, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = Joint(), Joint(), nn.Linear(3, 3)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        image, text = self.second(*self.first(x.flatten(2).mT, text))
        return (image + text.mean(1, keepdim=True)).mT.reshape(x.shape)


def call_pair(network: nn.Module, x: Tensor, t: Tensor, given: NetworkInputs) -> Tensor:
    found: Tensor = network(x, given["text"])
    return found


def hooked_pair(tap: str = "first", shape: tuple[int, int, int] = (3, 2, 4), **options: Any) -> Denoiser:
    torch.manual_seed(0)
    network = Pair()
    cut = HookedCut(network, tap, call=call_pair, **options)
    told = Condition({"text": torch.ones(1, 5, 3)})
    return Denoiser(network, DDIMScheduler(), "pair", cut=cut, condition=told, sample_shape=shape)


def rows_and_columns(shape: tuple[int, int, int]) -> tuple[int, int]:
    return shape[1:]


@pytest.mark.parametrize("options", [{"grid": rows_and_columns}, {"output": 0}, {"output": -2}])
def test_a_hook_shifts_the_image_tokens_wherever_a_block_gives_them(options: dict[str, Any]) -> None:
    denoiser = hooked_pair(**options)
    assert denoiser.h_shape == ((3, 2, 4) if "grid" in options else (3, 8, 1))
    assert denoiser.cut.tap.output == 0
    x, delta = noise([0], denoiser.sample_shape), noise([1], denoiser.h_shape)
    network, text = denoiser.network, torch.ones(1, 5, 3)
    with torch.no_grad():
        image, words = network.first(x.flatten(2).mT, text)
        assert torch.equal(denoiser.encode(x, 5).h, image.mT.reshape(1, *denoiser.h_shape))
        image, words = network.second(image + delta.flatten(2).mT, words)
        expected = (image + words.mean(1, keepdim=True)).mT.reshape(x.shape)
        assert torch.equal(denoiser(x, 5, delta), expected)
        assert denoiser.blueprint()(x.to("meta"), 5, delta.to("meta")).shape == x.shape


def test_a_hook_that_nobody_tells_takes_the_last_of_several_outputs() -> None:
    denoiser = hooked_pair()
    assert denoiser.h_shape == (3, 5, 1) and denoiser.cut.tap.output == 1


class Numbers(nn.Module):
    """A network that reads numbers of what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        if int(mask.sum().item()) != 2:
            raise ValueError("a mask of two is needed")
        found: Tensor = self.leave(self.enter(x))
        return found


def hooked_numbers(mask: list[float]) -> Denoiser:
    network = Numbers()
    told = Condition({"mask": torch.tensor([mask])})
    cut = HookedCut(network, "enter")
    return Denoiser(network, DDIMScheduler(), "numbers", cut=cut, condition=told, sample_shape=(3, 2, 2))


def test_a_network_that_reads_numbers_is_looked_at_where_they_are() -> None:
    denoiser = hooked_numbers([1.0, 1.0, 0.0])
    assert denoiser.h_shape == (4, 2, 2) and denoiser.cut.tap.output is None
    with pytest.raises(ModelError) as caught:
        hooked_numbers([1.0, 0.0, 0.0])
    assert str(caught.value) == "model 'numbers' cannot be run on samples of [3, 2, 2]: a mask of two is needed"


def hooked_unet(tap: str, **options: Any) -> Denoiser:
    network = unet()
    return Denoiser(network, DDIMScheduler(), "tiny", cut=HookedCut(network, tap, **options))


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            lambda: hooked_unet("down_blocks.0"),
            "tap: 'down_blocks.0' gives [1, 4, 8, 8], tuple; HookedCut's output has to say, from 0, which tensor is h",
        ),
        (
            lambda: hooked_unet("mid_block", output=1),
            "output: got 1; 'mid_block' gives [1, 4, 8, 8]; HookedCut's output has to say, from 0, which tensor is h",
        ),
        (
            lambda: hooked_pair(shape=(3, 1, 5), grid=rows_and_columns),
            "tap: 'first' gives [1, 5, 3], [1, 5, 3]; HookedCut's output has to say, from 0, which tensor is h",
        ),
        (
            lambda: hooked_pair(grid=lambda shape: (9, 9)),
            "tap: 'first' gives [1, 8, 3], [1, 5, 3]; HookedCut's output has to say, from 0, which tensor is h",
        ),
        (
            lambda: hooked_pair("idle"),
            "tap: 'idle' is a submodule that the network does not run when it is called",
        ),
        (
            lambda: hooked_unet("mid_block", call=lambda network, x, t, given: network(x, t).sample[:, :2]),
            "model 'tiny' takes [3, 8, 8] and gives [2, 8, 8]; it has to give what it takes",
        ),
        (
            lambda: hooked_unet("mid_block", clock=(0, 1)),
            "clock: got (0, 1); allowed: (a, b) of a t + b, with an a other than 0",
        ),
    ],
)
def test_hooks_that_do_not_find_h_are_told(made: Callable[[], Denoiser], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        made()
    assert str(caught.value) == sentence


def test_a_tuple_within_a_tuple_is_tapped_where_its_number_is_said() -> None:
    denoiser = hooked_unet("down_blocks.0", output=0)
    assert denoiser.h_shape == (4, 8, 8) and denoiser.cut.tap.output == 0


def test_a_hook_says_what_its_network_is_told_of_the_time() -> None:
    assert hooked_unet("mid_block").cut.clock is None and cut_of(unet()).clock is None
    denoiser = hooked_unet("mid_block", clock=(-0.001, 1.0))
    assert denoiser.cut.clock == denoiser.blueprint().cut.clock == (-0.001, 1.0)


def test_a_network_that_torch_compile_returned_is_told_what_to_give() -> None:
    compiled = torch.compile(unet(), backend="eager")
    for cut in (cut_of, lambda network: HookedCut(network, "mid_block")):
        with pytest.raises(ModelError, match=r"compiled by torch\.compile, .*: give network\._orig_mod$"):
            cut(compiled)
    assert isinstance(cut_of(compiled._orig_mod), UNetCut)


def test_a_hook_shifts_a_network_that_was_compiled_before() -> None:
    """Compiled code leaves out hooks that are registered after it was made."""

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mid_block = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 2.0 * self.mid_block(x)

    torch.compiler.reset()
    network, x, t = Middle().eval().requires_grad_(False), torch.zeros(1, 3, 2, 2), torch.zeros(1)
    denoiser = Denoiser(network, DDIMScheduler(), "tiny", cut=HookedCut(network, "mid_block"), sample_shape=(3, 2, 2))
    network.compile(backend="eager")
    plain = network(x, t)
    assert torch.allclose(denoiser(x, t, torch.ones(1, 3, 2, 2)), plain + 2.0)


class Halved:
    """An attention processor of one's own."""

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return 0.5 * hidden_states


@pytest.mark.parametrize("made", [lambda denoiser: denoiser, lean], ids=["plain", "lean"])
def test_what_was_set_on_a_network_stays_set(made: Callable[[Denoiser], Denoiser]) -> None:
    """Attention processors, and gradient checkpointing: as the network itself would run."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(4, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=4,
        attention_head_dim=2,
    ).double()
    told = {"encoder_hidden_states": noise([0], (3, 4), torch.float64)}
    denoiser = made(Denoiser(network, DDIMScheduler(), "tiny", condition=Condition(told)))
    x, delta = noise([0], denoiser.sample_shape, torch.float64), noise([1], denoiser.h_shape, torch.float64)
    plain = denoiser(x, 10)
    network.set_attn_processor(Halved())
    network.enable_gradient_checkpointing()
    with torch.no_grad():
        assert torch.allclose(denoiser(x, 10), network(x, 10, **told).sample, atol=1e-12)
    assert not torch.allclose(denoiser(x, 10), plain, atol=1e-3)
    delta.requires_grad_(True)
    denoiser(x, 10, delta).sum().backward()
    assert delta.grad is not None and delta.grad.abs().sum() > 0

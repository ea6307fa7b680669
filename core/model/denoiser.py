"""A pretrained diffusion model that is cut at its tap: `encode` runs up to h, `decode` from h on.

A denoiser is the cut network (core.model.cuts) with its scheduler, its condition (core.model.condition) and, for latent
models, its autoencoder (core.model.codec). Its samples x_0 have `sample_shape`: they are images for a pixel model and
latents for a latent model. `images` turns them into images.
"""

import copy
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from core.errors import ModelError, UserError, first_line
from core.model.architecture import empty_network, own_shape
from core.model.catalogue import GROUP
from core.model.codec import Codec
from core.model.condition import Condition
from core.model.cuts import Cut, Features, cut_of, halved
from core.model.cuts.transformer import TransformerCut
from core.model.pretrained import (
    codec_factor,
    combined_digest,
    empty_codec,
    empty_network_of,
    find_model,
    load_codec,
    load_network,
    load_scheduler,
    refuse_incomplete,
    weight_digest,
)
from core.model.prompts import check_use, condition_of, text_length, unknown_condition
from core.model.schedulers import as_run
from core.model.unsupported import refuse_unsupported
from core.model.use import Use


class Denoiser:
    """A frozen network whose output at (x_t, t) can be shifted at its bottleneck h.

    `sample_shape` is (C, H, W) of x_t, `image_shape` that of the images, `h_shape` that of h; all are read off the
    model. The output is what the network predicts: noise, velocity or image (core.chain.schedule).
    """

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        name: str,
        digest: str | None = None,
        *,
        cut: Cut | None = None,
        condition: Condition | None = None,
        codec: Codec | None = None,
        use: Use | None = None,
        sample_shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Put a model together from its parts.

        network: of diffusers, or any network if `cut` is given. scheduler: for its noise levels
        (core.model.schedulers). condition: the network's further inputs. codec: the autoencoder of a latent model.
        Raises ModelError where the parts cannot be used, UserError for a tap or form that the network does not have.
        """
        self.use = use or Use()
        if cut is None:
            refuse_unsupported(network, name)
        self.network = network.eval().requires_grad_(False)
        self.cut = cut or cut_of(network, self.use.tap, self.use.form)  # type: ignore[arg-type]  # checked by the tap
        self.scheduler, self.name, self.codec = as_run(scheduler, name), name, codec
        self.condition = (condition or unknown_condition(network, self.use)).to(self.cut.device)
        self.digest = digest or weight_digest(network)
        self.sample_shape = sample_shape or (codec.sample_shape if codec else own_shape(network, self.use.size))
        if not self.cut.tap.channels:
            self.cut.read_tap(self._on_meta(), self.sample_shape, self.condition.plain().rows(1), name)
        self.listeners: list[Callable[[], object]] = []  # called at the start of every pass
        self.notes: tuple[str, ...] = ()  # what a user should know of how the model was found, a sentence each
        self._blueprints: dict[torch.dtype, Denoiser] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        **use: Any,
    ) -> "Denoiser":
        """Load a built-in name, a diffusers folder, a single file, or a hub id ("id@revision" pins it).

        Weights are read from safetensors only. use: the fields of core.model.use.Use: tap, form, prompts,
        negative_prompt, classes, guidance, shifted, size, space. Raises ModelError, in one sentence, where the model is
        missing, incomplete, or of a kind that has no cut. Installed packages may register models of their own, of any
        kind (docs/models.md).
        """
        if own := registered(str(model), Use.of(use), dtype, device):
            return own
        options, model_folder = Use.of(use), find_model(model)
        network, *digests = load_network(model_folder, dtype)
        scheduler = load_scheduler(model_folder)
        refuse_incomplete(model_folder)
        shape = own_shape(network, options.size, codec_factor(model_folder))
        codec = None
        if (loaded := load_codec(model_folder, shape, dtype)) is not None:
            codec, digest = loaded
            digests.append(digest)
        side = (codec.image_shape if codec else shape)[1]
        condition = condition_of(model_folder, network, codec, options, side, dtype, device)
        for part in (network, *([codec.network] if codec else [])):
            torch.nn.Module.to(part, device=device)  # diffusers' own override only adds a warning
        parts: dict[str, Any] = {"condition": condition, "codec": codec, "use": options, "sample_shape": shape}
        denoiser = cls(network, scheduler, str(model), combined_digest(digests), **parts)
        denoiser.notes = model_folder.notes
        return denoiser

    @classmethod
    def without_weights(cls, model: str | Path, dtype: torch.dtype = torch.float32, **use: Any) -> "Denoiser":
        """Return a model's architecture alone, on torch's meta device: it has shapes and sizes, but draws no images.

        Reads or downloads only configuration files. Raises ModelError as `from_pretrained` does.
        """
        if own := registered(str(model), Use.of(use), dtype, "cpu"):
            return own.blueprint(dtype)
        options, model_folder = Use.of(use), find_model(model, weights=False)
        network, scheduler = empty_network_of(model_folder, dtype), load_scheduler(model_folder)
        refuse_unsupported(network, model_folder.name)
        check_use(network, options, model_folder.name)
        shape = own_shape(network, options.size, codec_factor(model_folder))
        return cls(
            network,
            scheduler,
            str(model),
            "no weights",
            condition=unknown_condition(network, options, text_length(model_folder)),
            codec=empty_codec(model_folder, shape, dtype),
            use=options,
            sample_shape=shape,
        )

    def blueprint(self, dtype: torch.dtype | None = None) -> "Denoiser":
        """Return this denoiser without its weights, on torch's meta device, in its own precision or in `dtype`."""
        dtype = dtype or self.dtype
        if dtype == self.dtype and self.device.type == "meta":
            return self
        if dtype not in self._blueprints:
            self._blueprints[dtype] = self._without_weights(dtype)
        return self._blueprints[dtype]

    def _without_weights(self, dtype: torch.dtype) -> "Denoiser":
        twin = copy.copy(self)
        twin.cut = self._on_meta(dtype)
        twin.network = twin.cut.network
        twin.condition = self.condition.to("meta").without_choice()
        twin.codec = self.codec and self.codec.on_meta(dtype)
        twin.listeners, twin._blueprints = [], {}
        return twin

    def _on_meta(self, dtype: torch.dtype | None = None) -> Cut:
        """Return the cut through a network of the same architecture that has no data."""
        return self.cut.with_network(empty_network(self.network, dtype or self.cut.dtype))

    def with_cut(self, cut: Cut) -> Self:
        """Return the same model with another cut."""
        twin = copy.copy(self)
        twin.cut, twin._blueprints = cut, {}
        return twin

    def by_blocks(self) -> Self:
        """Return this denoiser with the same weights, keeping only its blocks' inputs when it is differentiated."""
        return self.with_cut(self.cut.by_blocks())

    @property
    def chain_dtype(self) -> torch.dtype:
        """The precision of the chain's arithmetic: at least float32, whatever the network's is."""
        return torch.promote_types(self.dtype, torch.float32)

    def for_samples(self, seeds: Sequence[int]) -> Self:
        """Return this denoiser for samples with these seeds: each sample gets the prompt or class of its seed."""
        if self.condition.count == 1:
            return self
        twin = copy.copy(self)
        twin.condition = self.condition.for_samples(seeds)
        return twin

    def at_rows(self, rows: Sequence[int]) -> Self:
        """Return this denoiser for the samples at `rows` of its batch; without a batch, nothing changes."""
        twin = copy.copy(self)
        twin.condition = self.condition.at_rows(rows)
        return twin

    def tensors(self) -> list[Tensor]:
        """Return every weight and buffer: of the cut, the condition and the codec."""
        beside = [] if self.codec is None else self.codec.tensors()
        return [*self.cut.tensors(), *self.condition.tensors(), *beside]

    def weight_bytes(self) -> int:
        """Return the bytes that `tensors` takes in memory."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def h_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of h."""
        return self.cut.tap.h_shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images: that of the samples for a pixel model."""
        return self.sample_shape if self.codec is None else self.codec.image_shape

    @property
    def tokens(self) -> int:
        """The number of image tokens that a transformer makes of a sample; 0 for a UNet."""
        rows, columns = self.cut.grid(self.sample_shape) or (0, 0)
        return rows * columns

    @property
    def even_sigmas(self) -> bool:
        """Whether a flow's chain starts from evenly spaced noise levels, as in Flux's pipeline."""
        return isinstance(self.cut, TransformerCut) and self.cut.packed

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.cut.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the network's weights."""
        return self.cut.dtype

    def encode(self, x_t: Tensor, t: float | Tensor) -> Features:
        """Run the network up to the tap. x_t: [N, *sample_shape]; t: a training timestep, or one per sample [N]."""
        for listener in self.listeners:
            listener()
        rows, timesteps = len(x_t), torch.as_tensor(t, device=x_t.device).reshape(-1).expand(len(x_t))
        inputs = self.condition.rows(rows)
        if not self.condition.guided:
            return self.cut.encode(x_t, timesteps, inputs)
        return self.cut.encode(torch.cat([x_t, x_t]), timesteps.repeat(2), inputs).as_guided()

    def decode(self, features: Features, delta_h: Tensor | None = None) -> Tensor:
        """Run the rest of the network, with delta_h [N or 1, *h_shape] added; return the output [N, *sample_shape].

        With guidance the output is the guided one.
        """
        if not features.guided:
            return self.cut.decode(features, delta_h)
        return self.condition.guided_output(
            self.cut.decode(features, halved(delta_h, features.rows // 2, self.condition.shift_both_rows))
        )

    def __call__(self, x_t: Tensor, t: float | Tensor, delta_h: Tensor | None = None) -> Tensor:
        """Return the output at (x_t, t | h + delta_h): [N, *sample_shape]."""
        return self.decode(self.encode(x_t, t), delta_h)

    def maps(self, x_t: Tensor, t: float) -> list[Tensor]:
        """Return the cut's feature maps [N, C, H, W] of x_t: h and, for a UNet, the skips of its resolution."""
        return list(self.cut.maps(self.encode(x_t, t)))

    def images(self, x_0: Tensor) -> Tensor:
        """Return samples [N, *sample_shape] as images [N, *image_shape] in about [-1, 1]; differentiable."""
        return x_0 if self.codec is None else self.codec.images(x_0)

    @property
    def judged_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what `for_judges` returns."""
        return self.image_shape if self.use.space == "pixels" else self.sample_shape

    def for_judges(self, x_0: Tensor) -> Tensor:
        """Return samples as trained parts and judges get them: latents, or images if `use.space` is "pixels".

        Differentiable.
        """
        return self.images(x_0) if self.use.space == "pixels" else x_0

    def x_0(self, images: Tensor) -> Tensor:
        """Return images [N, *image_shape] in [-1, 1] as samples [N, *sample_shape]."""
        return images if self.codec is None else self.codec.x_0(images)


def registered(name: str, use: Use, dtype: torch.dtype, device: str | torch.device) -> Denoiser | None:
    """Return the model that an installed package registers under this name, or None.

    Raises ModelError where its loading fails, UserError where the loaded denoiser ignores a part of `use`.
    """
    entries = entry_points(group=GROUP, name=name)
    if not entries:
        return None
    try:
        denoiser: Denoiser = next(iter(entries)).load()(dtype, device, use)
    except UserError:
        raise
    except Exception as error:
        raise ModelError(f"model '{name}' of an installed package cannot be loaded: {first_line(error)}") from error
    requested, own = use.to_json(), denoiser.use.to_json()
    if ignored := [field for field, value in requested.items() if own.get(field) != value]:
        raise UserError(
            f"{', '.join(ignored)}: model '{name}' of an installed package does not say that it is used so: its load "
            "has to heed the use that it is told, and give it to its Denoiser"
        )
    denoiser.name = name
    return denoiser

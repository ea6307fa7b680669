"""Judges: networks beside the denoiser that judge the images of a set, where their weights are at hand.

    fid, inception_kid   distances of shifted images from unshifted ones of the same model, on Inception's features
    lpips                perceptual distance of an image from its unshifted one
    identity             similarity of the faces in an image and its unshifted one, by a face recognition network

A metric is absent where its network is. The provenance of a set lists the networks that were used (`judged_by`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.metrics.bootstrap import Figure, of_mean
from core.metrics.fidelity import enough_for_fid, fid_by_sample, kid
from core.metrics.networks import Extractor, Lpips, load_identity, load_inception, load_lpips
from core.metrics.traversals import Traversals
from core.predictors.vision import open_vision


@dataclass(frozen=True)
class Judges:
    """The networks of an evaluation: `features` replaces the denoiser's, the others serve their own metrics."""

    features: Extractor | None = None
    inception: Extractor | None = None
    lpips: Lpips | None = None
    identity: Extractor | None = None

    @classmethod
    def load(
        cls,
        features: str | None = None,
        inception: str | None = None,
        lpips: str | None = None,
        identity: str | None = None,
        device: torch.device | str = "cpu",
    ) -> "Judges":
        """Load networks from files, folders or hub ids (core.metrics.networks).

        Raises ModelError for one that cannot be read.
        """
        return cls(
            open_vision(features, "feature network", device) if features else None,
            load_inception(inception, device) if inception else None,
            load_lpips(lpips, device) if lpips else None,
            load_identity(identity, device) if identity else None,
        )

    @property
    def names(self) -> dict[str, str]:
        """The names of the networks that are present, by field: "features", "inception", "lpips", "identity"."""
        networks = {name: getattr(self, name) for name in ("features", "inception", "lpips", "identity")}
        return {name: network.name for name, network in networks.items() if network is not None}

    def measure(self, traversals: Traversals, reference: Tensor, batch: int) -> dict[str, Figure]:
        """Return the metrics of the networks that are present.

        reference: unshifted samples [N, *sample_shape], none of which is in the traversals. fid and inception_kid
        compare the images at the largest and smallest scales with the reference; fid is left out where there are too
        few of them for it. lpips is the mean over all scales, as FreeSliders (arXiv 2511.00103) takes it for "semantic
        preservation"; identity is taken at the largest scale. Both compare an image with its own unshifted one.
        """
        figures: dict[str, Figure] = {}
        plain, positive = traversals.plain, traversals.positive
        if self.inception is not None:
            ends = torch.stack([traversals.negative, positive], dim=1).flatten(1, 2)  # [M, 2 K, ...]
            flat = features_in_batches(self.inception, ends.flatten(0, 1), traversals.images, batch)
            shifted = flat.reshape(len(plain), ends.shape[1], -1)
            unshifted = features_in_batches(self.inception, reference, traversals.images, batch)
            before = features_in_batches(self.inception, plain, traversals.images, batch)
            figures["inception_kid"] = kid(shifted, before, unshifted)
            if enough_for_fid(min(len(flat), len(unshifted)), flat.shape[1]):
                figures["fid"] = fid_by_sample(shifted, unshifted)
        if self.lpips is not None:
            whole = traversals.shifted.flatten(1, 2)  # [M, K A, ...]
            apart = [self.lpips(*pair) for pair in _pairs(plain, whole, traversals.images, batch)]
            rows = torch.cat(apart).reshape(len(plain), *traversals.shifted.shape[1:3])
            figures["lpips"] = of_mean(rows.mean(dim=2))
        if self.identity is not None:
            face = features_in_batches(self.identity, plain, traversals.images, batch)  # [M, F]
            after = features_in_batches(self.identity, positive.flatten(0, 1), traversals.images, batch)
            alike = torch.cosine_similarity(after.reshape(*positive.shape[:2], -1), face[:, None], dim=2)
            figures["identity"] = of_mean(alike)
        return figures


NO_JUDGES = Judges()


def features_in_batches(
    extractor: Extractor, samples: Tensor, images: Callable[[Tensor], Tensor], batch: int
) -> Tensor:
    """Return the features [N, F] of samples [N, *sample_shape]."""
    return torch.cat([extractor.embed(images(part)) for part in torch.split(samples, batch)])


def _pairs(
    plain: Tensor, shifted: Tensor, images: Callable[[Tensor], Tensor], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each sample's unshifted image, repeated, with its shifted images [M, R, ...], `batch` of them at a time."""
    for one, own in zip(plain, shifted, strict=True):
        before = images(one[None])
        for part in torch.split(own, batch):
            after = images(part)
            yield before.expand_as(after), after

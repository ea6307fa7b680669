"""Judges: networks beside the denoiser that judge the images of a set, where their weights are at hand.

    fid, inception_kid   distances of shifted images from unshifted ones of the same model, on Inception's features
    lpips                perceptual distance of an image from its unshifted one
    identity             similarity of the faces in an image and its unshifted one, by a face recognition network

A metric is absent where its network is. The provenance of a set lists the networks that were used (`judged_by`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.metrics import fidelity
from core.metrics.networks import Extractor, Lpips, load_features, load_identity, load_inception, load_lpips
from core.metrics.traversals import Traversals

_SUBSET = 1000  # images in a subset of the KID, as in torchmetrics


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
            load_features(features, device) if features else None,
            load_inception(inception, device) if inception else None,
            load_lpips(lpips, device) if lpips else None,
            load_identity(identity, device) if identity else None,
        )

    @property
    def names(self) -> dict[str, str]:
        """The names of the networks that are present, by field: "features", "inception", "lpips", "identity"."""
        networks = {name: getattr(self, name) for name in ("features", "inception", "lpips", "identity")}
        return {name: network.name for name, network in networks.items() if network is not None}

    def measure(self, traversals: Traversals, reference: Tensor, batch: int) -> dict[str, float]:
        """Return the metrics of the networks that are present, for the images at the largest and smallest scales.

        reference: unshifted samples [N, *sample_shape], none of which is in the traversals. fid and inception_kid
        compare all images at both ends with the reference, and depend on the number of images. lpips and identity
        compare each image at the largest scale with its own unshifted sample, mean over samples and directions.
        """
        metrics: dict[str, float] = {}
        plain, positive = traversals.plain, traversals.positive
        if self.inception is not None:
            ends = torch.cat([traversals.negative, positive]).flatten(0, 1)
            shifted = features_in_batches(self.inception, ends, traversals.images, batch)
            unshifted = features_in_batches(self.inception, reference, traversals.images, batch)
            size = min(_SUBSET, len(shifted), len(unshifted))
            metrics["fid"] = fidelity.fid(shifted, unshifted)
            metrics["inception_kid"] = fidelity.kid_over_subsets(shifted, unshifted, subset_size=size)[0]
        if self.lpips is not None:
            apart = [self.lpips(*pair).mean() for pair in _pairs(plain, positive, traversals.images)]
            metrics["lpips"] = float(torch.stack(apart).mean())
        if self.identity is not None:
            before = features_in_batches(self.identity, plain, traversals.images, batch)  # [M, F]
            after = features_in_batches(self.identity, positive.flatten(0, 1), traversals.images, batch)
            alike = torch.cosine_similarity(after.reshape(*positive.shape[:2], -1), before[:, None], dim=2)
            metrics["identity"] = float(alike.mean())
        return metrics


NO_JUDGES = Judges()


def features_in_batches(
    extractor: Extractor, samples: Tensor, images: Callable[[Tensor], Tensor], batch: int
) -> Tensor:
    """Return the features [N, F] of samples [N, *sample_shape]."""
    return torch.cat([extractor.embed(images(part)) for part in torch.split(samples, batch)])


def _pairs(plain: Tensor, positive: Tensor, images: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return for each sample (its unshifted image, repeated K times; its shifted images), both [K, ...]."""
    pairs = [(images(one[None]), images(shifted)) for one, shifted in zip(plain, positive, strict=True)]
    return [(own.expand_as(shifted), shifted) for own, shifted in pairs]

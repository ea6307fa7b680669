"""Networks that judge images beside the denoiser itself, where their weights are at hand; and what they say of a set.

    fid, inception_kid   distances of shifted images from unshifted ones of the same model, on Inception's features
    lpips                how far an image looks from its unshifted self
    identity             whether it is still the same face, by a network that recognises faces

Each is absent from the metrics where its network is. What was asked stands in the set's provenance (`judged_by`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.metrics import distances
from core.metrics.networks import Extractor, Lpips, load_features, load_identity, load_inception, load_lpips
from core.metrics.traversals import Traversals

_SUBSET = 1000  # images, of torchmetrics' KID


@dataclass(frozen=True)
class Judges:
    """features: whose features stand in for the denoiser's own; the others: what the metrics of their names ask."""

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
        """By files, folders or hub ids (core.metrics.networks). Raises ModelError for one that cannot be read."""
        return cls(
            load_features(features, device) if features else None,
            load_inception(inception, device) if inception else None,
            load_lpips(lpips, device) if lpips else None,
            load_identity(identity, device) if identity else None,
        )

    @property
    def names(self) -> dict[str, str]:
        """What was asked, by its use."""
        asked = {name: getattr(self, name) for name in ("features", "inception", "lpips", "identity")}
        return {name: network.name for name, network in asked.items() if network is not None}

    def measure(self, traversals: Traversals, reference: Tensor, batch: int) -> dict[str, float]:
        """The metrics of those that are there, of images at the largest scales.

        reference: unshifted samples [N, *sample_shape] that are none of the traversals'. fid and inception_kid compare
        all images at both ends with them, and depend on their numbers; lpips and identity compare each image at the
        largest scale with its own unshifted sample, mean over samples and directions.
        """
        found: dict[str, float] = {}
        plain, positive = traversals.plain, traversals.positive
        if self.inception is not None:
            ends = torch.cat([traversals.negative, positive]).flatten(0, 1)
            shifted = embedded(self.inception, ends, traversals.images, batch)
            unshifted = embedded(self.inception, reference, traversals.images, batch)
            size = min(_SUBSET, len(shifted), len(unshifted))
            found["fid"] = distances.fid(shifted, unshifted)
            found["inception_kid"] = distances.kid(shifted, unshifted, subset_size=size)[0]
        if self.lpips is not None:
            apart = [self.lpips(*pair).mean() for pair in _pairs(plain, positive, traversals.images)]
            found["lpips"] = float(torch.stack(apart).mean())
        if self.identity is not None:
            before = embedded(self.identity, plain, traversals.images, batch)  # [M, F]
            after = embedded(self.identity, positive.flatten(0, 1), traversals.images, batch)
            alike = torch.cosine_similarity(after.reshape(*positive.shape[:2], -1), before[:, None], dim=2)
            found["identity"] = float(alike.mean())
        return found


NOBODY = Judges()


def embedded(extractor: Extractor, samples: Tensor, images: Callable[[Tensor], Tensor], batch: int) -> Tensor:
    """Features [N, F] of samples [N, *sample_shape]."""
    return torch.cat([extractor.embed(images(part)) for part in torch.split(samples, batch)])


def _pairs(plain: Tensor, positive: Tensor, images: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each sample's shifted images [K, ...], and its own as often."""
    shown = [(images(one[None]), images(shifted)) for one, shifted in zip(plain, positive, strict=True)]
    return [(own.expand_as(shifted), shifted) for own, shifted in shown]

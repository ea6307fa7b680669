"""Networks with which published metrics are measured, for users who have their weights at hand.

Each network is read from a file or folder that the caller names, safetensors only. Nothing is downloaded unless a hub
id is given. All take images [N, 1 or 3, H, W] in [-1, 1] on any device, and return float32 on the CPU, without a
gradient. A GPU may multiply in TF32 where the process allows it (core.precision).
"""

from core.metrics.networks.identity import load_identity
from core.metrics.networks.inception import load_inception
from core.metrics.networks.lpips import Lpips, load_lpips
from core.predictors.vision import Extractor

__all__ = ["Extractor", "Lpips", "load_identity", "load_inception", "load_lpips"]

"""Networks of kinds that have a cut, which it cannot draw with all the same: each is refused in a sentence."""

from typing import Any

import torch

from core.errors import ModelError
from core.model.alterations import own_behaviour
from core.model.cuts import CUTS
from core.model.cuts.transformer import TransformerCut

_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refuse_unsupported(network: Any, name: str) -> None:
    """Raises ModelError for a network of a known kind that its kind's cut cannot draw with by itself."""
    if type(network).__name__ in CUTS:
        _refuse_precision(network, name)
        _refuse_channels(network, name)
        _refuse_altered(network, name)
    if type(network).__name__.startswith("UNet2D"):
        _refuse_unets(network, name)


def _refuse_precision(network: Any, name: str) -> None:
    """Networks compute in the precision of their weights; quantised ones are kept in another."""
    for tensor, weight in network.named_parameters():
        if weight.dtype not in _PRECISIONS:
            kept = str(weight.dtype).removeprefix("torch.")
            raise ModelError(
                f"model '{name}' keeps {tensor} as {kept} (quantised, or cast layer by layer): load it in a precision "
                "that it computes in, such as bfloat16"
            )


def _refuse_channels(network: Any, name: str) -> None:
    """A network draws by itself if it gives what it takes; a transformer's predicted variance is left out."""
    takes = network.config["in_channels"]
    gives = network.config["out_channels"] or takes
    varies = gives == 2 * takes
    if gives == takes or (varies and CUTS[type(network).__name__] is TransformerCut):
        return
    if varies:
        raise ModelError(
            f"model '{name}' takes {takes} channels and gives {gives}: it predicts a variance beside the noise "
            "(learned variance), and only UNets that predict the noise alone are supported"
        )
    raise ModelError(
        f"model '{name}' takes {takes} channels and gives {gives}: it needs an image to begin with (inpainting, "
        "upscaling), and only models that draw by themselves are supported"
    )


def _refuse_altered(network: Any, name: str) -> None:
    """A cut runs the parts of a network one by one, so that a call of the whole network never takes place."""
    if own := own_behaviour(network):
        raise ModelError(
            f"model '{name}' is a {type(network).__name__} with {own}, which a cut does not run: remove it, put it on "
            "one of the network's blocks, or give a core.model.cuts.hooked.HookedCut as cut"
        )


def _refuse_unets(network: Any, name: str) -> None:
    if network.mid_block is None:
        raise ModelError(f"model '{name}' has no mid block, hence no h")
    blocks = [*network.down_blocks, *network.up_blocks]
    if network.config["time_embedding_type"] == "fourier" or any(hasattr(block, "skip_conv") for block in blocks):
        raise ModelError(f"model '{name}' is a score-SDE network (NCSN++): only DDPM-type UNets are supported")
    kind = network.config["class_embed_type"] or "number"
    if network.class_embedding is not None and (kind != "number" or type(network).__name__ != "UNet2DModel"):
        raise ModelError(
            f"model '{name}' is told its class by {kind}; of UNets only a UNet2DModel is supported that is told it by "
            "number"
        )

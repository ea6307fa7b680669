"""Networks that denoise, each cut at its tap into a part before h and a part after it: one module for each family."""

from core.errors import ModelError
from core.model.cuts.base import Cut, Features, NetworkInputs, refuse_compiled
from core.model.cuts.tap import FORMS, Form, Tap, halved
from core.model.cuts.transformer import BLOCK_STACKS, TransformerCut
from core.model.cuts.unet import UNetCut

# The class of a diffusers network -> its cut. Other networks are used through core.model.cuts.hooked.
CUTS: dict[str, type[Cut]] = {"UNet2DModel": UNetCut, "UNet2DConditionModel": UNetCut} | dict.fromkeys(
    BLOCK_STACKS, TransformerCut
)

__all__ = ["CUTS", "FORMS", "Cut", "Features", "Form", "NetworkInputs", "Tap", "cut_of", "halved"]


def cut_of(network: object, tap: str | None = None, form: Form | None = None) -> Cut:
    """Return the cut of a network.

    Raises ModelError for a family without one and for a compiled network, UserError for a tap that the network lacks.
    """
    refuse_compiled(network)
    kind = type(network).__name__
    if kind not in CUTS:
        raise ModelError(
            f"a {kind} has no cut of its own ({', '.join(CUTS)} have): use it through core.model.cuts.hooked.HookedCut"
        )
    return CUTS[kind](network, tap, form)

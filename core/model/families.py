"""The families of networks, one record each: what a class of diffusers networks takes, beside its cut.

The cuts are in core.model.cuts, by the same names; how prompts become inputs is in core.model.prompts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What the networks of one class have in common.

    text_length: tokens of a prompt, None for networks that read none; guided_classes: whether guidance leads away from
    the class of no class; distilled_guidance: default guidance where it is an input of the network, as in the pipeline;
    always_distilled: whether guidance never takes a second row; packed: whether four places of x_t are one token;
    own_size: whether the pipeline always draws at the network's configured size; read_early: the prefix of the weights
    of a block that are read before the block runs; pipeline_arguments: arguments of the pipeline's call beside the
    usual ones.
    """

    text_length: int | None = None
    guided_classes: bool = False
    distilled_guidance: float = 1.0
    always_distilled: bool = False
    packed: bool = False
    own_size: bool = False
    read_early: str | None = None
    pipeline_arguments: str = ""


FAMILIES = {
    "UNet2DModel": Family(own_size=True),
    "UNet2DConditionModel": Family(text_length=77, distilled_guidance=8.5),
    "DiTTransformer2DModel": Family(guided_classes=True, own_size=True, read_early="transformer_blocks.0.norm1.emb."),
    "PixArtTransformer2DModel": Family(
        text_length=120, pipeline_arguments=", clean_caption=False, use_resolution_binning=False"
    ),
    "SD3Transformer2DModel": Family(text_length=333),
    "FluxTransformer2DModel": Family(text_length=512, distilled_guidance=3.5, always_distilled=True, packed=True),
}


def family_of(kind: str) -> Family:
    """Return the family of a class of networks; a network of another class has nothing special."""
    return FAMILIES.get(kind, Family())

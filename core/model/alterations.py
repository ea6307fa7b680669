"""Tell a module that does what its class says from one that somebody altered.

Alterations that a module's weights do not show: a hook, a `forward` of its own (accelerate, layerwise casting), another
class in its place (adapters such as LoRA, parametrized or quantised weights), FreeU on an up block, other padding.
Code that reads the parts of a module, in place of calling it, asks here first.
"""

from typing import Any

from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FREEU = ("s1", "s2", "b1", "b2")


def own_behaviour(module: nn.Module) -> str | None:
    """Return what a call of the module runs beside its class's forward: "hooks", "a forward of its own" or None."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "hooks"
    return "a forward of its own" if has_own_forward(module) else None


def has_own_forward(module: nn.Module) -> bool:
    """Return whether a module has a `forward` that is not its class's."""
    return "forward" in vars(module)


def unaltered(module: object, *kinds: type[nn.Module]) -> bool:
    """Return whether a module is exactly of one of these classes, and a call runs its class's forward alone.

    Its submodules may be altered all the same.
    """
    if type(module) not in kinds or not isinstance(module, nn.Module):
        return False
    return own_behaviour(module) is None and not has_freeu(module)


def has_freeu(block: object) -> bool:
    """Return whether FreeU (Si et al., arXiv 2309.11497) is switched on in an up block."""
    return any(getattr(block, name, None) for name in _FREEU)


def plain_convolution(module: Any, size: int | None = None) -> bool:
    """Return whether a module is an unaltered convolution with square weights that pads with zeros.

    size: the side of the weights in pixels; None allows any.
    """
    return (
        unaltered(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and isinstance(module.padding, tuple)
        and all(len(set(pair)) == 1 for pair in (module.kernel_size, module.stride, module.padding))
        and (module.dilation, module.groups) == ((1, 1), 1)
        and size in (None, module.kernel_size[0])
    )


def plain_norm(module: Any) -> bool:
    """Return whether a module is an unaltered group normalisation with a weight and a bias."""
    return unaltered(module, nn.GroupNorm) and bool(module.affine)

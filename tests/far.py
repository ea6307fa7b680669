"""A device that is not the CPU, on any machine: its numbers are computed on the CPU, its tensors are not the CPU's.

What a GPU refuses is refused here: operations between tensors of both, and group norm of maps whose channels come last.
It registers itself with torch for the whole process; tests that use it run in one of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

# Operations between devices, or of which one argument says where numbers go.
_BETWEEN = ("_to_copy", "copy_", "_local_scalar_dense", "index", "_unsafe_index", "index_put", "index_put_")
_PLACED_BY_THE_FIRST = ("copy_", "index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")


class ElsewhereError(RuntimeError):
    """What a GPU would have refused."""


class Far(Tensor):
    """A tensor of the device, around its numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Far":
        found: Far = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch's stub leaves it out
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("far:0"),
        )
        found.inner = inner
        return found

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While this is on, "far" is a device like any other."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def register() -> None:
    """Make the device known to torch, in this process and for good."""
    backend_registration._setup_privateuseone_for_python_backend("far")
    module = torch.far  # type: ignore[attr-defined]  # made by the line above
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.get_rng_state = lambda *_: torch.empty(0, dtype=torch.uint8)
    module.set_rng_state = lambda *_: None
    module.device_count = lambda: 1
    F.group_norm = _group_norm


def _run(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    torch._C._set_only_lift_cpu_tensors(True)  # of this thread; else torch would ask the device for memory itself
    name = function._schema.name.split("::")[1]
    tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    far = [each for each in tensors if isinstance(each, Far)]
    _refuse(function, name, args, tensors, bool(far))
    inside = pytree.tree_map(_inner, (tuple(args), dict(kwargs)))
    found = function(*inside[0], **inside[1])
    if name.endswith("_") and isinstance(args[0], Tensor):
        return args[0]  # changed in place
    if (wanted := kwargs.get("device")) is not None:
        stays = torch.device(wanted).type == "far"
    elif name in _PLACED_BY_THE_FIRST:
        stays = isinstance(args[0], Far)
    else:
        stays = bool(far)
    known = {id(each.inner): each for each in far}
    return pytree.tree_map(lambda each: _outer(each, known) if stays and isinstance(each, Tensor) else each, found)


def _refuse(function: Any, name: str, args: Sequence[Any], tensors: list[Tensor], far: bool) -> None:
    near = [each for each in tensors if not isinstance(each, Far) and each.ndim]
    if far and near and name not in _BETWEEN:
        raise ElsewhereError(f"{function}: a tensor of the CPU, {list(near[0].shape)}, among those of the device")
    if name in ("index", "_unsafe_index") and not isinstance(args[0], Far) and far:
        raise ElsewhereError(f"{function}: a tensor of the CPU is indexed by one of the device")
    if far and name.startswith("native_group_norm"):
        for each in args[: 2 if name.endswith("backward") else 1]:
            if not each.is_contiguous():
                raise ElsewhereError(f"{function}: maps {list(each.shape)} with strides {each.stride()}")


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "far":
        return torch.device("cpu")
    return value.inner if isinstance(value, Far) else value


def _outer(tensor: Tensor, known: Mapping[int, Far]) -> Far:
    return known[id(tensor)] if id(tensor) in known else Far(tensor)


_PLAIN_GROUP_NORM = F.group_norm


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """In plain operations; torch takes a device of this kind for one that has a CPU's kernels."""
    if x.device.type != "far":
        return _PLAIN_GROUP_NORM(x, groups, weight, bias, eps)
    rows = x.reshape(len(x), groups, -1)
    spread = rows.var(2, unbiased=False, keepdim=True)
    normed = ((rows - rows.mean(2, keepdim=True)) * torch.rsqrt(spread + eps)).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return normed if weight is None else normed * weight.reshape(shape) + bias.reshape(shape)

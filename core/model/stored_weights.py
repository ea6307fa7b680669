"""Match the weights in a part's files with those that its configuration builds: all of them, under the same names.

Weights that have no place, and places that have no weights, are another network than the one that was trained. They are
refused with the names and the likely reason.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from core.files import in_python

_SHOWN = 3  # names in a sentence
_OWN_CONFIGURATION = "take the config.json that was saved with the weights"
# Parts of names -> what weights with such names are, and the cure.
_REASONS = (
    (
        ("lora_", "base_layer."),
        "they belong to an adapter (LoRA): merge it into the weights (fuse_lora, merge_and_unload) and save the model",
    ),
    (
        ("parametrizations.", "weight_g", "weight_v", "weight_orig", "weight_mask"),
        "they are parametrized: remove the parametrization (or pruning) and save the model",
    ),
    (
        ("absmax", "quant_map", "quant_state", "SCB", "weight_scale", "scale_weight", "scaled_fp8"),
        "they are quantised: give the weights of 32 or 16 bits",
    ),
)
_CLASSES = f"the network is told a class, and its configuration has lost num_class_embeds: {_OWN_CONFIGURATION}"
_ANOTHER = f"the configuration is of another network: {_OWN_CONFIGURATION}"
# What wrappers of a part of a network put into the middle of names.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")


def check_names(stored: Mapping[str, Tensor], network: Any, files: Sequence[Path]) -> None:
    """Raise ValueError, in one sentence, where the stored weights are not those of the network, by name and shape.

    stored: under today's names; network: built from the configuration, without data. files: those they were read from.
    """
    expected = network.state_dict()
    computed = {name for name, _ in network.named_buffers()}  # of older versions, which saved them
    extra = [name for name in stored if name not in expected and name not in computed]
    missing = [name for name in expected if name not in stored]
    if extra and missing and (sentence := _wrapped(stored, expected, files)):
        raise ValueError(sentence)
    if extra:
        classes = _CLASSES if any("class_embedding." in name for name in extra) else None
        other = f"it lacks {_named(missing)} too; {_ANOTHER}" if missing else _ANOTHER
        why = reason(extra) or classes or other
        raise ValueError(f"it holds {_named(extra)} that its configuration has no place for: {why}")
    if missing:
        raise ValueError(f"it lacks {_named(missing)}: the files are not whole, or {_ANOTHER}")
    for name, place in expected.items():
        if stored[name].shape != place.shape:
            shapes = f"{list(stored[name].shape)}, and by its configuration {list(place.shape)}"
            raise ValueError(f"{name} is of shape {shapes}")


def _wrapped(stored: Collection[str], expected: Collection[str], files: Sequence[Path]) -> str | None:
    """Return the sentence, with the cure, on names that a wrapper changed: "module.conv_in.weight". None for others."""
    if found := _prefixes(stored, expected):
        return prefixed(found, files)
    for infix in _INFIXES:
        if set(expected) <= {name.replace(infix, "") for name in stored}:
            cure = _command(f"{{k.replace({infix!r}, ''): v for k, v in w.items()}}", files)
            return (
                f"the names of its weights hold '{infix}', which a wrapper put there: save them once without it: {cure}"
            )
    return None


def prefixed(prefixes: Collection[str], files: Iterable[Path]) -> str:
    """Return the sentence, with the cure, on weights that are all there behind each of these prefixes."""
    prefix = min(prefixes, key=lambda each: ("ema" not in each, each))  # averaged weights draw the better images
    several = f", of {' and '.join(map(repr, sorted(prefixes)))}" if len(prefixes) > 1 else ""
    renamed = f"{{k[{len(prefix)}:]: v for k, v in w.items() if k.startswith({prefix!r})}}"
    return (
        f"the names of its weights begin with '{prefix}'{several}, which a wrapper put there (DistributedDataParallel, "
        f"torch.compile, a trainer, an EMA): save them once without it: {_command(renamed, files)}"
    )


def _prefixes(stored: Collection[str], expected: Collection[str]) -> list[str]:
    """Return the prefixes with which all expected names are stored."""
    probe = max(expected, key=len)
    candidates = {name.removesuffix(probe) for name in stored if name.endswith(f".{probe}")}
    names = set(stored)
    return [prefix for prefix in candidates if all(prefix + name in names for name in expected)]


def _command(renamed: str, files: Iterable[Path]) -> str:
    """Return the command that stores the renamed weights; the files as they were stay beside them as *.before."""
    paths = [str(file) for file in files]
    return in_python(
        "import os; from safetensors.torch import load_file, save_file; "
        f"[(os.rename(f, f + '.before'), save_file({renamed}, f, {{'format': 'pt'}})) "
        f"for f in {paths} for w in [load_file(f)]]"
    )


def _named(names: Sequence[str]) -> str:
    """Return how many weights there are, and the names of the first."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} weight{'s' * (len(names) > 1)} ({', '.join(names[:_SHOWN])}{more})"


def reason(names: Collection[str]) -> str | None:
    """Return what weights with such names are, and the cure; None for names that say nothing."""
    return next((why for marks, why in _REASONS if any(mark in name for name in names for mark in marks)), None)

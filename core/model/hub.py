"""Download models from the hub, and explain why one cannot be downloaded or used."""

import errno
from collections.abc import Iterator
from pathlib import Path

from core.errors import AbsentModelError, ModelError, first_line
from core.files import PICKLES
from core.model.catalogue import SINGLE_FILES
from core.model.file_names import (
    CODECS,
    NETWORKS,
    TRANSFORMERS_WEIGHTS,
    WEIGHTS,
    best_variant,
    only_pickles,
    variant_of,
    weights_at,
)

_ROOT = ("model_index.json", "config.json", "scheduler_config.json")  # older models keep the network at the root
_TEXT = tuple(f"text_encoder{number}" for number in ("", "_2", "_3"))
_TOKENIZERS = tuple(f"tokenizer{number}" for number in ("", "_2", "_3"))
_STEMS = dict.fromkeys((*NETWORKS, *CODECS), WEIGHTS) | dict.fromkeys(_TEXT, TRANSFORMERS_WEIGHTS)
_IGNORED = ["*-of-*.*.safetensors", "*.safetensors.index.*.json"]  # of variants, which patterns below would match too
_LOST = ("TransportError", "ConnectionError", "TimeoutError")  # by name: the hub's client has changed its HTTP library


def download(hub_id: str, revision: str | None, weights: bool) -> Path:
    """Download the used parts of a hub model once, and return its folder; with weights=False only configurations.

    Weights of a variant ("fp16") are downloaded only where there are no others. Raises ModelError, in one sentence,
    where the model cannot be fetched, is not in diffusers layout, or has weights only as pickles; AbsentModelError
    where the hub cannot be reached and this machine's cache holds only a part of it.
    """
    folder = _fetched(hub_id, revision, list(_patterns(weights)), _IGNORED)
    lacking = _without_weights(folder) if weights else []
    if not lacking:
        return folder
    files = _listed(hub_id, revision, lacking)
    if variants := [file for part in lacking for file in _best_variant(part, files)]:
        folder = _fetched(hub_id, revision, variants, [])
    name = f"{hub_id}@{revision}" if revision else hub_id
    pickled = [file for file in files if _is_pickle(file) and _is_of(_without_weights(folder), file)]
    single = [file for file in files if "/" not in file and file.endswith(SINGLE_FILES)]
    if single and not any((folder / part / "config.json").is_file() for part in ("", *NETWORKS)):
        raise ModelError(
            f"model '{name}' is not in diffusers layout on the hub: download one of its files ({', '.join(single)}), "
            "and give that as the model"
        )
    if pickled:
        raise ModelError(only_pickles(name, pickled, "on the hub", hub_id, revision))
    return folder


def _patterns(weights: bool) -> Iterator[str]:
    """Yield the patterns of the files to download; an asterisk matches slashes too."""
    yield from _ROOT
    yield from (f"{part}/*.json" for part in (*_STEMS, "scheduler"))
    yield from (f"{part}/*" for part in _TOKENIZERS)
    if weights:
        yield f"{WEIGHTS}.safetensors.index.json"
        for path in (WEIGHTS, *(f"{part}/{stem}" for part, stem in _STEMS.items())):
            yield from (f"{path}.safetensors", f"{path}-*.safetensors")


def _fetched(hub_id: str, revision: str | None, patterns: list[str], ignored: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))
    except Exception as error:  # the hub client raises a dozen exception types
        raise AbsentModelError(unreachable(f"model '{_named(hub_id, revision)}'", error)) from error


def _named(hub_id: str, revision: str | None) -> str:
    return f"{hub_id} at revision {revision}" if revision else hub_id


def _without_weights(folder: Path) -> list[str]:
    """Return the parts that lack weights; "" is the root, which counts where no folder holds a network."""
    folders = [part for part in _STEMS if (folder / part).is_dir()]
    parts = folders if set(folders) & set(NETWORKS) else ["", *folders]
    return [part for part in parts if weights_at(folder / part, _STEMS.get(part, WEIGHTS)) is None]


def _listed(hub_id: str, revision: str | None, lacking: list[str]) -> list[str]:
    """Return the names of a repository's files.

    Raises AbsentModelError where the hub does not answer: what the parts `lacking` need may be there or not.
    """
    from huggingface_hub import HfApi

    try:
        return sorted(HfApi().list_repo_files(hub_id, revision=revision))
    except Exception as error:  # the hub client raises a dozen exception types
        parts = " and ".join(part or "the network" for part in lacking)
        raise AbsentModelError(
            f"model '{_named(hub_id, revision)}': this machine's cache has no weights of {parts}, and the hub is out "
            "of reach: fetch it where there is a network"
        ) from error


def _best_variant(part: str, files: list[str]) -> list[str]:
    """Return the files of the variant ("fp16", "bf16", ...) that is taken where a part has no other weights."""
    stem = _STEMS.get(part, WEIGHTS)
    names = {file: file.rpartition("/")[2] for file in files if file.rpartition("/")[0] == part}
    best = best_variant(names.values(), stem)
    return [file for file, name in names.items() if best and variant_of(name, stem) == best]


def _is_of(parts: list[str], file: str) -> bool:
    """Return whether a file lies in one of these parts, and has the name of weights or is a pickle."""
    part, _, name = file.rpartition("/")
    return part in parts and (name.startswith(_STEMS.get(part, WEIGHTS)) or _is_pickle(name))


def _is_pickle(file: str) -> bool:
    return file.endswith(PICKLES)


def unwritable_cache(error: Exception) -> str | None:
    """Return what to do where the hub's cache cannot be written to, for a message; None for another error."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return None
    return f"cannot be kept in {error.filename} ({error.strerror}): set HF_HOME to a folder to write to"


def unreachable(label: str, error: Exception) -> str:
    """Return why something of the hub could not be fetched. label: its role and name, such as "model 'a/b'"."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if (unkept := unwritable_cache(error)) is not None:
        return f"{label} {unkept}"
    prefix = f"{label} is neither a folder here nor could it be fetched from the hub: "
    if isinstance(error, GatedRepoError):
        return f"{label} is gated: ask for access on its page of the hub, then `hf auth login` here"
    if isinstance(error, RevisionNotFoundError):
        return f"{label}: the hub has no such revision; give a branch, a tag or a commit after @"
    if isinstance(error, RepositoryNotFoundError):
        return f"{prefix}no such model, or a private one: check the spelling and your access"
    lost = any(kind.__name__ in _LOST for kind in type(error).__mro__)
    if lost or isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return (
            f"{prefix}it is not in this machine's cache, and the hub is out of reach: fetch it where there is a network"
        )
    return f"{prefix}{first_line(error)}; check the spelling, your access and the network, or give a local folder"

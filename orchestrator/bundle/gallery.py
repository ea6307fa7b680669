"""Make the gallery: one HTML file in which a user sees and compares the directions of one set, or of two.

The file contains everything it shows and needs no network, so it can be mailed, archived, or opened inside MLflow.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from core.directions.dials import Dial
from core.directions.direction_set import DirectionSet
from core.errors import DirectionSetError, UserError
from core.metrics import Traversals
from orchestrator.bundle.gallery_pictures import RAMP, difference, frame_size, frames, pixelated, sheet, stops
from orchestrator.pages import environment, read, script_hash
from orchestrator.text import counted

_ORIGINS = {
    "attributes": "named after the attribute it moves",
    "clip": "named by CLIP",
    "hand": "named by hand",
}
_TOLD = {
    "model": "model {}",
    "method": "method {}",
    "steps": "{} sampling steps",
    "sweep": "sweep {}",
    "trial": "trial {}",
}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FEW, _MANY = 6, 10  # attributes shown at once, beside pictures with few rows and with many
_ALIKE = 0.5  # |cosine| of two directions that stand beside each other
_LONGEST_FACT = 80  # characters shown of one fact of a set's provenance


@dataclass(frozen=True)
class ShownSet:
    """A set with its images and its title."""

    directions: DirectionSet
    traversals: Traversals
    title: str


def page(sets: Sequence[ShownSet]) -> str:
    """Return the page of one set, or of two side by side, as HTML.

    Raises UserError for another number of sets, DirectionSetError where images and directions do not belong together.
    """
    if len(sets) not in (1, 2):
        raise UserError(f"a gallery shows one set, or two side by side; got {len(sets)}")
    for shown_set in sets:
        _check(shown_set)
    values = _values(sets)
    template = environment().get_template("gallery.html.j2")
    draft = template.render(values, size="0.0 MB")
    return template.render(values, size=_megabytes(len(draft.encode())))


def _check(shown_set: ShownSet) -> None:
    drawn = shown_set.traversals.shifted.shape[1]
    if drawn != len(shown_set.directions):
        raise DirectionSetError(
            f"'{shown_set.title}' has {len(shown_set.directions)} directions, and images of {drawn}"
        )


def _values(sets: Sequence[ShownSet]) -> dict[str, Any]:
    script = read("gallery.js")
    digest = script_hash(script)
    moved = [abs(sd) for shown_set in sets for dial in shown_set.directions.dials for sd in dial.effects.values()]
    widest = max([1.0, *moved])  # the effect, in standard deviations, that fills a bar
    values = [_set(shown_set, letter, widest) for shown_set, letter in zip(sets, "ab", strict=False)]
    problem = incomparable(sets[0].directions, sets[1].directions) if len(sets) == 2 else ""
    pairs: dict[int, int] = {}
    if len(sets) == 2 and not problem:
        cosine = cosines(sets[0].directions, sets[1].directions)
        _match(values[0], values[1], cosine)
        pairs = matched(cosine)
    samples = max(len(shown_set.traversals.plain) for shown_set in sets)
    return {
        "title": " and ".join(shown_set.title for shown_set in sets),
        "sets": values,
        "rows": _rows(values, pairs),
        "alike": _ALIKE,
        "problem": problem,
        "measured": any(each["measured"] for each in values),
        "seeds": _sample_labels(samples),
        "attributes": list(
            dict.fromkeys(name for shown_set in sets for dial in shown_set.directions.dials for name in dial.effects)
        ),
        "data": {card["id"]: card.pop("data") for each in values for card in each["cards"]},
        "ramp": ", ".join(RAMP),
        "style": Markup(read("gallery.css")),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
    }


def _set(shown_set: ShownSet, letter: str, widest: float) -> dict[str, Any]:
    directions, count = shown_set.directions, len(shown_set.directions)
    dials = directions.dials
    order = sorted(range(count), key=lambda k: -dials[k].score) if dials else list(range(count))
    seeds = _sample_labels(len(shown_set.traversals.plain))
    return {
        "letter": letter,
        "title": shown_set.title,
        "measured": bool(dials),
        "facts": _facts(shown_set),
        "seeds": seeds,
        "cards": [_card(shown_set, k, letter, rank, widest) for rank, k in enumerate(order, start=1)],
    }


def _facts(shown_set: ShownSet) -> list[str]:
    """Return the facts on what a set is and where it comes from, as far as its provenance has them."""
    origin, samples = shown_set.directions.provenance, len(shown_set.traversals.plain)
    origins = [form.format(_encodable(origin[key])) for key, form in _TOLD.items() if origin.get(key)]
    return [counted(len(shown_set.directions), "direction"), *origins, counted(samples, "sample")]


def _encodable(value: object) -> str:
    """Return a value from a set in short, without lone surrogates, which JSON allows and no file can hold."""
    return str(value)[:_LONGEST_FACT].encode(errors="replace").decode()


def _card(shown_set: ShownSet, k: int, letter: str, rank: int, widest: float) -> dict[str, Any]:
    """Return all that is shown of direction k."""
    directions, scales = shown_set.directions, stops(shown_set.traversals)
    dial = directions.dials[k] if directions.dials else None
    images, name = frames(shown_set.traversals, k), directions.names[k]
    height, width = frame_size(images)
    inside = [dial is None or dial.range[0] <= scale <= dial.range[1] for scale in scales]
    start = min((i for i in range(len(scales)) if inside[i]), key=lambda i: abs(scales[i] - 1.0))
    return {
        "id": f"{letter}-{k}",
        "name": name,
        "index": k,
        "rank": rank,
        "dial": dial and _dial(dial),
        "stops": [{"label": number(scale), "outside": not ok} for scale, ok in zip(scales, inside, strict=True)],
        "start": start,
        "band": _band(dial, scales) if dial else None,
        "sheet": sheet(images),
        "width": width,
        "height": height,
        "rows": len(images),
        "pixelated": pixelated(images),
        "effects": _effects(dial.effects, widest) if dial else [],
        "effects_shown": _FEW if len(images) < _FEW else _MANY,
        "difference": _difference(images, scales, inside),
        "snippet": _snippet(directions, name),
        "alike": None,
        "data": {
            "name": name,
            "index": k,
            "score": dial.score if dial else None,
            "effects": dict(dial.effects) if dial else {},
            "stops": [number(scale) for scale in scales],
            "outside": [not ok for ok in inside],
            "snippet": [_snippet(directions, name, scale) for scale in scales],
        },
    }


def _dial(dial: Dial) -> dict[str, Any]:
    return {
        "origin": _ORIGINS.get(dial.named_by),
        "score": f"{dial.score:.2f}",
        "consistency": f"{dial.consistency:.2f}",
        "distinctness": f"{dial.distinctness:.2f}",
        "low": number(dial.range[0]),
        "high": number(dial.range[1]),
    }


def _band(dial: Dial, scales: Sequence[float]) -> dict[str, str]:
    """Return the ends of the range as fractions of the slider, on which frames are at equal distances."""
    ends = np.interp(dial.range, scales, np.linspace(0, 1, len(scales)))
    return {"from": f"{ends[0]:.4f}", "to": f"{ends[1]:.4f}"}


def _effects(effects: Mapping[str, float], widest: float) -> list[dict[str, str]]:
    """Return the effects, strongest first."""
    return [
        {
            "name": name,
            "value": number(sd, ".2f"),
            "sign": "minus" if sd < 0 else "plus",
            "share": f"{abs(sd) / widest * 50:.1f}",
        }
        for name, sd in sorted(effects.items(), key=lambda effect: -abs(effect[1]))
    ]


def _difference(images: Tensor, scales: Sequence[float], inside: Sequence[bool]) -> dict[str, str] | None:
    """Return the difference map between the ends of the range, as far as drawn; None if it holds no shifted frame."""
    places = [i for i, ok in enumerate(inside) if ok]
    first, last = places[0], places[-1]
    result = difference(images, first, last) if first < last else None
    if result is None:
        return None
    return {
        "uri": result.uri,
        "most": f"{100 * result.most:.0f} %" if result.most >= 0.0995 else f"{100 * result.most:.1f} %",
        "first": number(scales[first]),
        "last": number(scales[last]),
    }


def _snippet(directions: DirectionSet, name: str, scale: float = 1.0) -> str:
    """Return the line of Python that applies a direction."""
    written = json.dumps(name, ensure_ascii=False)  # a JSON string is a Python string too
    # Escape invisible characters, and those that turn the text around them: the line must do what it looks like.
    quoted = "".join(c if _stays_in_place(c) else c.encode("unicode_escape").decode() for c in written)
    asymmetric = directions.provenance.get("injection") == "asymmetric"
    more = ", asymmetric=pipeline.scheduler" if asymmetric else ""
    return f"directions.applied(pipeline.unet, {quoted}, {scale}{more})"


def _stays_in_place(character: str) -> bool:
    return character.isprintable() and unicodedata.bidirectional(character) not in ("R", "AL", "AN")


def _match(a: dict[str, Any], b: dict[str, Any], cosine: Tensor) -> None:
    """Enter into each card the most similar direction of the other set."""
    for own, other, likeness in ((a, b, cosine), (b, a, cosine.T)):
        by_index = {card["index"]: card for card in other["cards"]}
        for card in own["cards"]:
            row = likeness[card["index"]]
            best = by_index[int(row.abs().argmax())]
            value = float(row[best["index"]])
            card["alike"] = {
                "id": best["id"],
                "name": best["name"],
                "cosine": f"{abs(value):.2f}",
                "opposite": value < 0,
            }
            card["data"]["alike"] = best["id"]


def matched(cosine: Tensor) -> dict[int, int]:
    """Return the pairs of directions, of a and of b, that stand side by side, from their cosines [K of a, K of b].

    Each direction is in one pair at the most. Of all pairings of directions that are alike, it is the one with the
    largest sum of |cosine|.
    """
    likeness = torch.where(cosine.abs() >= _ALIKE, cosine.abs(), 0.0)
    rows, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
    return {int(i): int(j) for i, j in zip(rows, columns, strict=True) if likeness[i, j] > 0}


def _rows(sets: Sequence[dict[str, Any]], pairs: Mapping[int, int]) -> list[list[dict[str, Any] | None]]:
    """Return the rows of the page, best first: a card of each set, or None beside a card that has no match."""
    if len(sets) == 1:
        return [[card] for card in sets[0]["cards"]]
    a, b = ({card["index"]: card for card in each["cards"]} for each in sets)
    rows = [(card, b[pairs[k]] if k in pairs else None) for k, card in a.items()]
    rows += [(None, card) for j, card in b.items() if j not in pairs.values()]
    return [list(row) for row in sorted(rows, key=_best_of_row)]


def _best_of_row(row: Sequence[dict[str, Any] | None]) -> float:
    return -max(card["data"]["score"] or 0.0 for card in row if card is not None)


def number(value: float, form: str = "g") -> str:
    """Return a number with its sign, typeset: +1.5, −0.5, 0."""
    text = format(value, f"+{form}") if abs(value) < 1000 else format(value, "+.1e")
    return text.replace("-", "−") if float(text) else text[1:]


def _sample_labels(count: int) -> list[str]:
    """Return labels for samples. They are letters or row numbers, not seeds."""
    return list(_LETTERS[:count]) if count <= len(_LETTERS) else [str(m + 1) for m in range(count)]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.0f} kB"


def incomparable(a: DirectionSet, b: DirectionSet) -> str:
    """Return why the directions of two sets cannot be compared; empty where they can."""
    digests = [each.provenance.get("weight_digest") for each in (a, b)]
    if None not in digests and digests[0] != digests[1]:
        return "they are of different models"
    if a.h_shape != b.h_shape:
        return f"one is for h of {list(a.h_shape)}, the other of {list(b.h_shape)}"
    if not _steps(a, b):
        return "their chains have no timestep in common"
    return ""


@torch.no_grad()
def cosines(a: DirectionSet, b: DirectionSet) -> Tensor:
    """Return signed cosines [K of a, K of b]: means over common steps, without steps where either does nothing."""
    total, count = torch.zeros(len(a), len(b)), torch.zeros(len(a), len(b))
    for i, j in _steps(a, b):
        acting = (a.sigma[:, i, None] > 0) & (b.sigma[None, :, j] > 0)
        product = a.table[:, i].float().flatten(1) @ b.table[:, j].float().flatten(1).T
        total += torch.where(acting, product, 0.0).cpu()
        count += acting.cpu()
    return total / count.clamp(min=1)


def _steps(a: DirectionSet, b: DirectionSet) -> list[tuple[int, int]]:
    """Return the pairs of steps (in a, in b) that belong together."""
    if a.table.shape[1] == 1 or b.table.shape[1] == 1:
        most = max(a.table.shape[1], b.table.shape[1])
        return [(s % a.table.shape[1], s % b.table.shape[1]) for s in range(most)]
    places = {t: j for j, t in enumerate(b.timesteps)}
    return [(i, places[t]) for i, t in enumerate(a.timesteps) if t in places]

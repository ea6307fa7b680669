"""Check a sweep against its model and predictor before a trial starts: what the file alone does not show."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

from core.chain.schedule import Schedule, check_window
from core.errors import UserError
from core.methods import guided
from core.methods.jacobian import check_count
from core.methods.learned.looks import refuse_undifferentiable
from core.model.denoiser import Denoiser
from core.pictures.channels import COLOURS
from core.pictures.images import load_pairs
from core.pictures.masks import find_mask
from core.precision import PRECISIONS
from core.predictors import classifier
from core.predictors.attributes import Attributes
from core.predictors.vision import Extractor
from core.samples.training import training_seeds
from orchestrator.search.space import configurations, sample, size
from orchestrator.spec import Sweep, Value, countable
from orchestrator.trial.model import judges_of, vision_models_of
from orchestrator.trial.settings import samples_of, settings_of

_NEEDS_ATTRIBUTES = ("disentanglement", "coverage")
_NEEDS_SECOND = ("second_disentanglement", "second_coverage")
_NEEDS_NETWORK = {"fid": "inception", "inception_kid": "inception", "lpips": "lpips", "identity": "identity"}
_CHECKED_CONFIGURATIONS = 500  # configurations checked: all of a smaller space, else this many random ones


Visions = Mapping[tuple[str, str], Extractor]  # by parameter and name


@dataclass(frozen=True)
class ModelFacts:
    """The facts on its model that a sweep needs."""

    weights: str  # digest of the model's weights
    set_bytes: int  # bytes of the largest direction set that a trial may find
    notes: tuple[str, ...] = ()  # what a user should know of how the model was found, a sentence each


def check_model(sweep: Sweep) -> ModelFacts:
    """Load the model and return its facts. Raises UserError, a line for each mistake, where the sweep cannot run."""
    dtype = PRECISIONS[sweep.train.precision].dtype  # a large model would take twice the memory in float32
    denoiser = Denoiser.from_pretrained(sweep.model, dtype, **sweep.denoiser.use)
    check_window(denoiser, sweep.sampler.window)
    Schedule.ddim(denoiser, sweep.sampler.steps, sweep.sampler.eta).steps_in_window(sweep.sampler.window)
    attributes = classifier.load(sweep.predictor, sweep.model)
    second = classifier.load_second(sweep.evaluate.second_predictor, sweep.model)
    judges_of(sweep)
    visions = vision_models_of(sweep)
    problems = [
        *_directions(sweep, denoiser, attributes),
        *_objectives(sweep, attributes, second),
        *_colours(sweep, denoiser, visions),
        *_looks(sweep, visions),
        *_supervised(sweep, attributes),
        *_guided(sweep, attributes),
        *_pairs(sweep, denoiser),
        *_method_problems(sweep, denoiser),
    ]
    if problems:
        raise UserError("\n".join(problems))
    most = max((value for value in _values(sweep, "directions") if isinstance(value, int)), default=1)
    return ModelFacts(denoiser.digest, 4 * most * sweep.sampler.steps * prod(denoiser.h_shape), denoiser.notes)


def _directions(sweep: Sweep, denoiser: Denoiser, attributes: Attributes | None) -> Iterator[str]:
    """Yield a problem where a set would have more directions than h has dimensions: random ones are orthonormal."""
    dimensions = prod(denoiser.h_shape)
    most = max((value for value in _values(sweep, "directions") if isinstance(value, int)), default=0)
    if most > dimensions:
        yield f"search.directions: got {most}; h of '{sweep.model}' has {dimensions} dimensions"
    known = len(attributes.names) if attributes else 0
    of_all = (
        ("supervised.attribute", "one", "none" in _values(sweep, "supervised.pairs")),
        ("guided.attributes", "some", True),
    )
    for name, fewer, uses_predictor in of_all:
        if uses_predictor and known > dimensions and "all" in _values(sweep, name):
            yield (
                f"search.{name}: got all {known} of the predictor; h of '{sweep.model}' has {dimensions} "
                f"dimensions: name {fewer}"
            )


def _objectives(sweep: Sweep, attributes: Attributes | None, second: Attributes | None) -> Iterator[str]:
    metrics = {*sweep.objective_names, sweep.asha_metric}
    for metric in _NEEDS_ATTRIBUTES:
        if metric in metrics and attributes is None:
            yield f"objectives: '{metric}' needs an attribute predictor, and model '{sweep.model}' has none"
    for metric in _NEEDS_SECOND:
        if metric in metrics and second is None:
            yield (
                f"objectives: '{metric}' needs a second attribute predictor, and model '{sweep.model}' has none: "
                "name one as evaluate.second_predictor"
            )
    for metric, key in _NEEDS_NETWORK.items():
        if metric in metrics and getattr(sweep.evaluate, key) is None:
            yield f"objectives: '{metric}' needs a network: name the file or folder of its weights as evaluate.{key}"


def _colours(sweep: Sweep, denoiser: Denoiser, visions: Visions) -> Iterator[str]:
    """Yield the networks that look at pictures, where the model's images are none."""
    count = denoiser.image_shape[0]
    if count in COLOURS:
        return
    networks = ("features", "inception", "lpips", "identity", "second_predictor")
    keys = [key for key in networks if getattr(sweep.evaluate, key) is not None]
    looks = sorted({f"search.{parameter}" for parameter, _ in visions})
    for key in (*(f"evaluate.{key}" for key in keys), *(["predictor"] if sweep.predictor else []), *looks):
        yield f"{key}: it looks at pictures (1, 3 or 4 channels), and model '{sweep.model}' draws {count}: leave it out"


def _looks(sweep: Sweep, visions: Visions) -> Iterator[str]:
    """Yield the vision models that see fewer numbers in an image than directions are asked for, or have no gradient."""
    asked = sweep.possible_values("directions", "semantic") if "semantic" in sweep.methods else None
    most = max((value for value in asked or () if isinstance(value, int)), default=0)
    for (parameter, look), vision in visions.items():
        seen = vision.embed(torch.zeros(1, 3, 32, 32)).shape[1]
        if parameter == "semantic.look" and seen < most:
            yield f"search.directions: got {most}; model '{look}' of search.semantic.look gives {seen} numbers an image"
        try:
            if parameter == "learned.look":
                refuse_undifferentiable(vision, look)
        except UserError as error:
            yield f"search.learned.{error}"


def _supervised(sweep: Sweep, attributes: Attributes | None) -> Iterator[str]:
    """Yield the problems of attributes, which have to be the predictor's, unless every trial has labelled pairs."""
    if "none" not in _values(sweep, "supervised.pairs"):
        return
    if attributes is None:
        yield (
            f"method: supervised needs an attribute predictor, and model '{sweep.model}' has none: "
            "give one as predictor, or labelled images as search.supervised.pairs"
        )
        return
    for name, word in (("supervised.attribute", "all"), ("supervised.balance", "none")):
        for value in _values(sweep, name):
            try:
                if value != word:
                    attributes.index(str(value))
            except UserError as error:
                yield f"search.{name}: {error}"


def _guided(sweep: Sweep, attributes: Attributes | None) -> Iterator[str]:
    """Yield the problems of the predictor of method guided, and of the attributes that it is to pursue."""
    asked = _values(sweep, "guided.attributes")
    if not asked:
        return
    if attributes is None:
        yield (
            f"method: guided needs an attribute predictor, and model '{sweep.model}' has none: give one as predictor"
        )
        return
    try:
        guided.refuse_undifferentiable(attributes)
    except UserError as error:
        yield f"method guided: {error}"
    for name in dict.fromkeys(name.strip() for value in asked if value != "all" for name in str(value).split(";")):
        try:
            attributes.index(name)
        except UserError as error:
            yield f"search.guided.attributes: {error}"


def _pairs(sweep: Sweep, denoiser: Denoiser) -> Iterator[str]:
    attributes = _values(sweep, "supervised.attribute")
    names = () if "all" in attributes else tuple(map(str, attributes))
    for folder in _values(sweep, "supervised.pairs"):
        try:
            if folder != "none":
                load_pairs(str(folder), denoiser.image_shape, names)
        except UserError as error:
            yield f"search.supervised.pairs: {error}"


def _method_problems(sweep: Sweep, denoiser: Denoiser) -> Iterator[str]:
    """Yield what the methods themselves refuse, each sentence once."""
    count = size(sweep.space)
    small = count is not None and count <= _CHECKED_CONFIGURATIONS
    messages: dict[str, None] = {}
    for parameters in (
        configurations(sweep.space) if small else sample(sweep.space, _CHECKED_CONFIGURATIONS, sweep.seed)
    ):
        try:
            settings = settings_of(parameters, sweep)
            training_seeds(samples_of(settings), settings.seed)
            if parameters["method"] == "jacobian":
                mask = find_mask(denoiser, settings.box, settings.mask)
                if settings.directions <= prod(denoiser.h_shape):  # else reported by `_directions`
                    check_count(denoiser, settings.directions, mask)
        except UserError as error:
            messages[f"method {parameters['method']}: {error}"] = None
    yield from messages


def _values(sweep: Sweep, name: str) -> list[Value]:
    """Return every value that a parameter takes in some trial; an empty list where no trial has it."""
    return list(countable(sweep.space[name]) or ()) if name in sweep.space else []

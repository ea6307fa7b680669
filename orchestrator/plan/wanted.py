"""What a user without a sweep file asks for. Nothing heavy is imported, so that a mistake is told at once."""

from dataclasses import dataclass

from core.errors import UserError
from orchestrator.spec import BY_ATTRIBUTES, METHODS, PARAMETERS
from orchestrator.spec.problems import nearest


@dataclass(frozen=True)
class Wanted:
    """What the user asks for. None or nothing: chosen here.

    attributes: those that directions are to change; prompts, guidance, classes: how the model is used; trials, minutes:
    the budget.
    """

    model: str
    method: str | None = None
    directions: int | None = None
    attributes: tuple[str, ...] = ()
    predictor: str | None = None
    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None
    guidance: float | None = None
    classes: tuple[int, ...] = ()
    trials: int | None = None
    minutes: float | None = None


def method_for(wanted: Wanted) -> str:
    """Return the method: the one asked for, else `guided` for named attributes, else `semantic`, which does not train.

    Raises UserError for an unknown one, and where it makes nothing of something that is asked for.
    """
    method = wanted.method or ("guided" if wanted.attributes else "semantic")
    if method not in METHODS:
        near = nearest(method, METHODS)
        hint = f"; did you mean '{near}'?" if near else ""
        raise UserError(f"--method: got '{method}'; allowed: {', '.join(METHODS)}{hint}")
    _refuse_unused(wanted, method)
    return method


def _refuse_unused(wanted: Wanted, method: str) -> None:
    if wanted.attributes and method not in BY_ATTRIBUTES:
        raise UserError(
            f"--attributes: method {method} finds directions without names; {' or '.join(BY_ATTRIBUTES)} do"
        )
    if len(wanted.attributes) > 1 and method == "supervised":
        raise UserError("--attributes: method supervised finds one, or all without --attributes; guided finds several")
    if wanted.directions is not None and method not in PARAMETERS["directions"].methods:
        raise UserError(f"--directions: method {method} finds one for each attribute; name them with --attributes")

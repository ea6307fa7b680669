"""Read everything that a report says of a sweep, once: for the terminal, for the page, and as JSON."""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from core.errors import UserError
from core.intervals import Verdict
from orchestrator.plan.dry_run import spelled, what_runs
from orchestrator.report.progress import sweep_state
from orchestrator.search.comparison import Compared, compared, method_verdicts
from orchestrator.search.importance import Importance, importances
from orchestrator.search.ledger import spent_s
from orchestrator.search.ranking import MethodRow, Repeated, Row, best_row, by_method, contenders, ranked, repeated
from orchestrator.search.space import ordered, trials
from orchestrator.secrets import hide_addresses, scrub, without_secrets
from orchestrator.spec import METRICS, Fixed, Sweep
from orchestrator.spec.scalars import to_yaml
from orchestrator.store.folder import SweepFolder
from orchestrator.store.lock import driver
from orchestrator.store.study import open_study
from orchestrator.text import counted, joined, measured, plain, signed, with_interval
from orchestrator.trial.outcome import ADVICE, TrialOutcome

_RELATION: dict[Verdict, str] = {"ahead": "ahead of", "behind": "behind", "not told apart": "not told apart from"}
_HEALTHY = ("completed", "pruned")
_MENDED = "put right what the reason names; a changed file goes on with orchestrate sweep FILE --fork"


@dataclass(frozen=True)
class Failure:
    """One way in which trials ended without a result, with advice and the trials concerned."""

    state: str
    reason: str
    advice: str
    trials: list[str]


@dataclass(frozen=True)
class Findings:
    """The state and the results of a sweep at one moment."""

    folder: SweepFolder
    sweep: Sweep
    written: str  # local time
    state: str  # of the sweep, as orchestrator.report.progress.sweep_state
    seconds: float  # the sweep has been under way
    rows: list[Row]
    methods: list[MethodRow]  # where there are several
    repeats: list[Repeated]
    importance: dict[str, Importance]
    champion: str | None
    compared: list[Compared]
    origin: Mapping[str, Any]  # identity, weights, versions

    @property
    def front(self) -> list[Row]:
        """The trials on the Pareto front; empty where there is only one objective."""
        return [row for row in self.rows if row.on_front] if len(self.sweep.objectives) > 1 else []

    @property
    def searched(self) -> list[str]:
        """The parameters that trials differ in, in the order of the space."""
        seen = {name for row in self.rows for name in row.parameters}
        fixed = [name for name, values in self.sweep.space.items() if isinstance(values, Fixed)]
        return [name for name in ordered(self.sweep.space) if name in seen and name not in fixed]

    @property
    def metrics(self) -> list[str]:
        """The objectives, then all other measured metrics."""
        names = self.sweep.objective_names
        return names + [name for name in METRICS if name not in names and any(name in row.metrics for row in self.rows)]

    @property
    def failures(self) -> list[Failure]:
        """The ways in which trials ended without a result, the most frequent first."""
        trials_of: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.over and row.state not in _HEALTHY:
                trials_of.setdefault((row.state, row.reason), []).append(row.trial_id)
        failures = [Failure(state, reason, advice(state), ids) for (state, reason), ids in trials_of.items()]
        return sorted(failures, key=lambda failure: -len(failure.trials))

    @property
    def counts(self) -> str:
        """How many trials are in which state: `8 of 8 trials: 5 completed, 3 pruned`."""
        states = ", ".join(
            f"{count} {plain(state)}" for state, count in Counter(row.state for row in self.rows).items()
        )
        return f"{len(self.rows)} of {counted(trials(self.sweep), 'trial')}" + (f": {states}" if states else "")

    @property
    def conclusion(self) -> str:
        """The result, in one sentence."""
        if not self.rows:
            return "There are no trials yet."
        if self.champion is None:
            return _without_champion(self)
        return _with_champion(self)

    @property
    def first_method(self) -> str:
        """What the intervals say of the first method beside the others; empty where no two were completed twice."""
        names = [row.method for row in self.methods if row.completed > 1]
        return " ".join(_beside_method(self, names[0], other) for other in names[1:])

    @property
    def facts(self) -> dict[str, str]:
        """What the sweep file asks for, in the words of `orchestrate plan`."""
        space = {
            name: spelled(values) for name, values in self.sweep.space.items() if not isinstance(values, Fixed)
        } or {"search": "nothing: one configuration"}
        content: dict[str, str] = hide_addresses(what_runs(self.sweep) | space, *_addresses(self.sweep))
        return content

    @property
    def resolved(self) -> str:
        """The whole sweep file with every default, without the secrets of its addresses."""
        return to_yaml(without_secrets(self.sweep.resolved()), allow_unicode=True, width=100)


def read(folder: SweepFolder, result: Mapping[str, Any] | None = None, ended: bool = False) -> Findings:
    """Return the findings of a sweep now. Raises UserError where there is no sweep, or its files are damaged.

    result: the content of the coming result.json, where the sweep's own driver calls this before it is written; ended:
    whether the caller is that driver, and its last trial is over.
    """
    content, sweep = folder.read(), folder.sweep()
    study = open_study(sweep.name, folder.study_place) if "study" in content else None
    driven = result is None and not ended and driver(folder.lock) is not None
    rows = [] if study is None else ranked(study, sweep, driven)
    champion, beside = _result(folder, _kept(folder) if result is None else result)
    return Findings(
        folder,
        sweep,
        time.strftime("%Y-%m-%d %H:%M:%S"),
        sweep_state(folder, rows, trials(sweep), done=result is not None, ended=ended),
        0.0 if study is None else spent_s(study),
        [_scrubbed(sweep, row) for row in rows],
        by_method(rows, sweep) if len(sweep.methods) > 1 else [],
        _repeats(rows, sweep),
        {} if study is None else importances(study, sweep),
        champion,
        beside,
        {key: content[key] for key in ("identity", "weights", "versions")},
    )


def _repeats(rows: list[Row], sweep: Sweep) -> list[Repeated]:
    """Return configurations with several seeds; none where each is only a method: the methods table says the same."""
    repeats = repeated(rows, sweep)
    return repeats if any(each.parameters.keys() - {"method"} for each in repeats) or len(sweep.methods) == 1 else []


def _kept(folder: SweepFolder) -> Mapping[str, Any] | None:
    return folder.read("result.json") if folder.result.is_file() else None


def _result(folder: SweepFolder, result: Mapping[str, Any] | None) -> tuple[str | None, list[Compared]]:
    """Return the champion's trial, and its metrics beside those of random directions; (None, []) without a result."""
    if result is None:
        return None, []
    own, random, differences = result.get("champion"), result.get("random"), result.get("differences", {})
    if not isinstance(own, dict) or not isinstance(random, dict) or not isinstance(result.get("trial"), str):
        raise UserError(f"{folder.result} is damaged: it does not say which trial is the champion, and its metrics")
    if not isinstance(differences, dict):
        raise UserError(f"{folder.result} is damaged: its differences are no table")
    numbers = [value for values in (own, random, differences) for value in values.values()]
    if not all(isinstance(value, int | float) for value in numbers):
        raise UserError(f"{folder.result} is damaged: a metric in it is no number")
    return result["trial"], compared(own, random, differences)


def _with_champion(findings: Findings) -> str:
    by_name = {each.metric: each for each in findings.compared if each.difference is not None}
    parts = [_beside(by_name[name]) for name in findings.sweep.objective_names if name in by_name]
    beside = f" Beside random directions, on seeds that trained and chose nothing, it is {joined(parts)}."
    return f"The champion is the set of trial {findings.champion}, {_chosen_by(findings)}.{beside if parts else ''}"


def _beside(each: Compared) -> str:
    """Return what the interval of the difference says of one objective, with the values it says it of."""
    champion = with_interval(each.champion, each.champion_interval)
    values = f"{champion} against {with_interval(each.random, each.random_interval)}"
    if each.difference is None or each.interval is None or each.verdict is None:
        return f"not judged in {plain(each.metric)} ({values}, without an interval)"
    difference = f"difference {signed(each.difference, each.interval)}"
    return f"{_RELATION[each.verdict]} them in {plain(each.metric)} ({values}; {difference})"


def _beside_method(findings: Findings, best: str, other: str) -> str:
    metrics_of: dict[Verdict, list[str]] = {}
    for name, verdict in method_verdicts(findings.rows, findings.sweep, best, other).items():
        metrics_of.setdefault(verdict, []).append(plain(name))
    parts = [f"{_RELATION[verdict]} {other} in {joined(names)}" for verdict, names in metrics_of.items()]
    return f"{best} is {joined(parts)}."


def _chosen_by(findings: Findings) -> str:
    """Return the rule that chose the champion, with the numbers it was applied to."""
    names, completed = findings.sweep.objective_names, [row for row in findings.rows if row.state == "completed"]
    close = contenders(completed, findings.sweep)
    if not close:
        return "whose trials are no longer there"
    first = f"{counted(len(completed), 'completed trial')} by {plain(names[0])}"
    if len(close) == 1 or len(names) == 1:
        return f"the first of {first}"
    best = best_row(close, findings.sweep)
    rule = f"least {plain(names[1])}" if findings.sweep.objectives[1].mode == "min" else f"most {plain(names[1])}"
    if len(names) > 2:
        rule = f"best mean rank in {joined([plain(name) for name in names[1:]])}"
    return (
        f"of {first} the one of {rule} among the {len(close)} that lie within the interval of the best "
        f"({measured(best.metrics, names[0])})"
    )


def _without_champion(findings: Findings) -> str:
    best = findings.rows[0]
    if best.state != "completed":
        over = all(row.over for row in findings.rows)
        return "No trial was completed." if over else "No trial has been completed yet."
    metric = findings.sweep.objectives[0].metric
    return f"There is no champion yet; of the completed trials, {best.trial_id} is first ({plain(metric)} " + (
        f"{measured(best.metrics, metric)} on the seeds that choose)."
    )


def advice(state: str) -> str:
    """Return what to do about trials with this outcome; empty where there is no advice."""
    if state == TrialOutcome.FAILED:
        return _MENDED
    return ADVICE[TrialOutcome(state)].partition(": ")[2] if state in set(TrialOutcome) else ""


def as_json(findings: Findings) -> str:
    """Return all findings as JSON; numbers that are not finite become null."""
    content = {
        "sweep": findings.sweep.name,
        "written": findings.written,
        "standing": findings.state,
        "conclusion": findings.conclusion,
        "seconds": findings.seconds,
        "objectives": [asdict(objective) for objective in findings.sweep.objectives],
        "champion": findings.champion,
        "against_random": [asdict(each) | {"verdict": each.verdict} for each in findings.compared],
        "pareto_front": [row.trial_id for row in findings.front],
        "trials": [asdict(row) for row in findings.rows],
        "methods": [asdict(row) for row in findings.methods],
        "repeats": [asdict(each) for each in findings.repeats],
        "failures": [asdict(failure) for failure in findings.failures],
        "importance": {metric: asdict(each) for metric, each in findings.importance.items()},
        **findings.origin,
        "orchestrator": version("h-space-orchestrator"),
        "spec": without_secrets(findings.sweep.resolved()),
    }
    return json.dumps(_finite(content), indent=2, allow_nan=False, ensure_ascii=False)


def _scrubbed(sweep: Sweep, row: Row) -> Row:
    return replace(row, reason=scrub(row.reason, *_addresses(sweep)))


def _addresses(sweep: Sweep) -> tuple[str | None, str | None]:
    return sweep.tracking.uri, sweep.study.uri


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What a person reads and filters by on the MLflow pages of a sweep and of its trials: tags, and notes in Markdown."""

import getpass
import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from orchestrator.search.ranking import Row
from orchestrator.search.space import searched
from orchestrator.spec import METRICS, Sweep
from orchestrator.tracking.pyfunc import PACKAGE
from orchestrator.trial.outcome import TrialOutcome
from orchestrator.trial.state import Report

NOTE = "mlflow.note.content"
MODEL = "model"  # the artifact folder that MLflow loads as a model (orchestrator.tracking.pyfunc)
UNDER_WAY = {"outcome": "running"}
_SHOWN = 5  # trials in a note
_GIT_S = 5.0
_SPACE = "\N{NO-BREAK SPACE}" * 3


def sweep_tags(sweep: Sweep, sweep_id: str) -> dict[str, str]:
    """What the sweep's own run can be found by from its beginning on."""
    return {
        "sweep": sweep.name,
        "sweep_id": sweep_id,
        "identity": sweep.identity(),
        "model": sweep.model,
        "methods": ", ".join(sweep.methods),
        "version": version(PACKAGE),
        NOTE: f"Sweep `{_plain(sweep.name)}` on `{_plain(sweep.model)}` is under way: `orchestrate status` shows it.",
        **_source(),
    }


def _source() -> dict[str, str]:
    """Who started it with what, in the tags in which MLflow's own `start_run` says so."""
    found = {"mlflow.source.name": "orchestrate sweep", "mlflow.source.type": "LOCAL"}
    try:
        found["mlflow.user"] = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no name for its user
        pass
    try:
        command = ["git", "rev-parse", "--verify", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True)
        found["mlflow.source.git.commit"] = done.stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or nothing of it here
        pass
    return found


def trial_note(
    sweep: Sweep, trial_id: str, parameters: Mapping[str, Any], outcome: str, reason: str, report: Report | None
) -> str:
    """What became of a trial. report: its last one."""
    reached = report.global_step if report else 0
    lines = [
        f"Trial `{trial_id}` of sweep `{_plain(sweep.name)}`, method `{method_of(parameters, sweep)}`: "
        f"**{outcome.replace('_', ' ')}** at iteration {reached} of {sweep.train.iterations}."
    ]
    if outcome not in (TrialOutcome.COMPLETED, TrialOutcome.PRUNED):
        lines += ["", f"> {_escaped(reason)}"]
    metrics = report.metrics if report else {}
    if metrics:
        rows = [[name, _number(metrics[name]), _better(name)] for name in METRICS if name in metrics]
        lines += ["", *_table(["metric", "value", "better is"], rows), "", *_code(sweep, f" --run {trial_id}")]
    return "\n".join(lines)


def sweep_note(
    sweep: Sweep, ranked: Sequence[Row], champion: Mapping[str, float], baseline: Mapping[str, float], spent_s: float
) -> str:
    """What a sweep came to: its champion beside the random directions, the best trials, how to take it away."""
    best, states = ranked[0], Counter(row.state.replace("_", " ") for row in ranked)
    compared = [
        [name, _number(champion[name]), _number(baseline[name]), _better(name)] for name in METRICS if name in champion
    ]
    lines = [
        f"**Champion: trial `{best.trial_id}`**, method `{method_of(best.parameters, sweep)}`, "
        f"on `{_plain(sweep.model)}`.",
        "",
        f"{len(ranked)} trials ({', '.join(f'{count} {state}' for state, count in states.items())}) "
        f"in {_spent(spent_s)}. On seeds that trained and chose nothing:",
        "",
        *_table(["metric", "champion", "random directions", "better is"], compared),
        "",
        "**Best trials**",
        "",
        *_table(*_ranking(sweep, ranked)),
        "",
        "**Take it away**",
        "",
        *_code(sweep, ""),
    ]
    if sweep.export.register_as:
        lines += ["", *loading(sweep.export.register_as)]
    return "\n".join(lines)


def loading(name: str) -> list[str]:
    """How a registered model is loaded."""
    return [
        "```python",
        f"model = mlflow.pyfunc.load_model({json.dumps(f'models:/{name}@champion')})",
        'images = model.predict({"seed": [0, 0], "direction": [0, 0], "scale": [-1.0, 1.0]})  # uint8 [N, H, W, 3]',
        "```",
    ]


def counts(ranked: Sequence[Row]) -> dict[str, float]:
    """How many trials ended in which way, as metrics."""
    found = Counter(row.state for row in ranked)
    return {f"trials/{state}": float(found[state]) for state in TrialOutcome if found[state]}


def _ranking(sweep: Sweep, ranked: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    names, shown = searched(sweep.space), [row for row in ranked if row.state == "completed"][:_SHOWN]
    head = ["* nothing beats it" if len(sweep.objectives) > 1 else "", "trial", *names, *sweep.objective_names]
    rows = [
        [
            f"{place}{' *' if row.on_front else ''}",
            f"`{row.trial_id}`",
            *(_cell(row.parameters.get(name)) for name in names),
            *(_number(row.metrics[name]) for name in sweep.objective_names),
        ]
        for place, row in enumerate(shown, start=1)
    ]
    return head, rows


def _spent(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown. MLflow's page sets no space between columns, so that the cells bring it."""
    spaced = [[f"{cell}{_SPACE}" for cell in cells] for cells in (head, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (spaced[0], ["---"] * len(head), *spaced[1:])]


def _code(sweep: Sweep, more: str) -> list[str]:
    return ["```bash", f"orchestrate export {_plain(sweep.name)} --to out{more}", "```"]


def method_of(parameters: Mapping[str, Any], sweep: Sweep) -> str:
    """The method of a trial; a study does not keep it where all have the same."""
    return str(parameters.get("method", sweep.methods[0]))


def _better(metric: str) -> str:
    return "more" if METRICS[metric] == "max" else "less"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return _number(value) if isinstance(value, float) else _escaped(str(value))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _plain(text: str) -> str:
    """A text that stays inside its backticks, and inside a table."""
    return " ".join(text.replace("`", "'").replace("|", "/").split())


def _escaped(text: str) -> str:
    """A text without what Markdown or HTML would make of it."""
    plain = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#>!~" else letter for letter in plain)

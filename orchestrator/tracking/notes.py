"""Write the tags and Markdown notes that the MLflow pages of a sweep and its trials show and are filtered by."""

import getpass
import json
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from orchestrator.search.comparison import Compared, compared
from orchestrator.search.ranking import Row
from orchestrator.search.space import searched
from orchestrator.spec import METRICS, Sweep
from orchestrator.text import in_code, measured, number, signed, with_interval
from orchestrator.tracking.pyfunc import PACKAGE
from orchestrator.trial.outcome import TrialOutcome
from orchestrator.trial.state import Report

NOTE = "mlflow.note.content"
MODEL = "model"  # the artifact folder that MLflow loads as a model (orchestrator.tracking.pyfunc)
UNDER_WAY = {"outcome": "running"}
_INTERVAL = "± is half the width of a figure's 95 % interval over samples."
_SHOWN = 5  # trials in the table of a note
_GIT_S = 5.0
_SPACE = "\N{NO-BREAK SPACE}" * 3


def sweep_tags(sweep: Sweep, sweep_id: str) -> dict[str, str]:
    """Return the tags that the sweep's own run has from its beginning on."""
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
    """Return user and git commit, in the tags that MLflow's own `start_run` uses."""
    tags = {"mlflow.source.name": "orchestrate sweep", "mlflow.source.type": "LOCAL"}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no name for its user
        pass
    try:
        command = ["git", "rev-parse", "--verify", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True)
        tags["mlflow.source.git.commit"] = done.stdout.strip()
    except (OSError, subprocess.SubprocessError):  # git is not installed, or this is no git repository
        pass
    return tags


def trial_note(
    sweep: Sweep, trial_id: str, parameters: Mapping[str, Any], outcome: str, reason: str, report: Report | None
) -> str:
    """Return the note on a trial that has ended. report: its last report."""
    reached = report.global_step if report else 0
    lines = [
        f"Trial `{trial_id}` of sweep `{_plain(sweep.name)}`, method `{method_of(parameters, sweep)}`: "
        f"**{outcome.replace('_', ' ')}** at iteration {reached} of {sweep.train.iterations}."
    ]
    if outcome not in (TrialOutcome.COMPLETED, TrialOutcome.PRUNED):
        lines += ["", f"> {_escaped(reason)}"]
    metrics = report.metrics if report else {}
    if metrics:
        rows = [[name, measured(metrics, name), _better(name)] for name in METRICS if name in metrics]
        lines += ["", *_table(["metric", "value", "better is"], rows), "", _INTERVAL]
        lines += ["", *_code(sweep, f" --run {trial_id}")]
    return "\n".join(lines)


def sweep_note(
    sweep: Sweep,
    ranked: Sequence[Row],
    champion: Mapping[str, float],
    baseline: Mapping[str, float],
    differences: Mapping[str, float],
    spent_s: float,
) -> str:
    """Return the note on a finished sweep: champion beside random directions, best trials, how to export the champion.

    champion, baseline, differences: tables of metrics on the reporting seeds, as in a result.json; spent_s: seconds
    that the trials took.
    """
    best, states = ranked[0], Counter(row.state.replace("_", " ") for row in ranked)
    beside = [_compared(each) for each in compared(champion, baseline, differences)]
    lines = [
        f"**Champion: trial `{best.trial_id}`**, method `{method_of(best.parameters, sweep)}`, "
        f"on `{_plain(sweep.model)}`.",
        "",
        f"{len(ranked)} trials ({', '.join(f'{count} {state}' for state, count in states.items())}) "
        f"in {_spent(spent_s)}. On seeds that trained and chose nothing:",
        "",
        *_table(["metric", "champion", "random directions", "difference", "verdict", "better is"], beside),
        "",
        f"{_INTERVAL} Ahead or behind: the interval of the difference excludes 0.",
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


def _compared(each: Compared) -> list[str]:
    return [
        each.metric,
        with_interval(each.champion, each.champion_interval),
        with_interval(each.random, each.random_interval),
        "-" if each.difference is None else signed(each.difference, each.interval),
        number(each.verdict),
        _better(each.metric),
    ]


def loading(name: str) -> list[str]:
    """Return Markdown lines with the Python that loads a registered model."""
    return [
        "```python",
        f"model = mlflow.pyfunc.load_model({json.dumps(f'models:/{name}@champion')})",
        'images = model.predict({"seed": [0, 0], "direction": [0, 0], "scale": [-1.0, 1.0]})  # uint8 [N, H, W, 3]',
        "```",
    ]


def counts(ranked: Sequence[Row]) -> dict[str, float]:
    """Return how many trials ended with each outcome, as metrics."""
    states = Counter(row.state for row in ranked)
    return {f"trials/{state}": float(states[state]) for state in TrialOutcome if states[state]}


def _ranking(sweep: Sweep, ranked: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    names, completed = searched(sweep.space), [row for row in ranked if row.state == "completed"][:_SHOWN]
    head = ["* nothing beats it" if len(sweep.objectives) > 1 else "", "trial", *names, *sweep.objective_names]
    rows = [
        [
            f"{place}{' *' if row.on_front else ''}",
            f"`{row.trial_id}`",
            *(_cell(row.parameters.get(name)) for name in names),
            *(measured(row.metrics, name) for name in sweep.objective_names),
        ]
        for place, row in enumerate(completed, start=1)
    ]
    return head, rows


def _spent(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table in Markdown. MLflow's page sets no space between columns, so each cell ends with spaces."""
    spaced = [[f"{cell}{_SPACE}" for cell in cells] for cells in (head, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (spaced[0], ["---"] * len(head), *spaced[1:])]


def _code(sweep: Sweep, more: str) -> list[str]:
    return ["```bash", f"orchestrate export {_plain(sweep.name)} --to out{more}", "```"]


def method_of(parameters: Mapping[str, Any], sweep: Sweep) -> str:
    """Return the method of a trial; a study does not store it where all trials have the same."""
    return str(parameters.get("method", sweep.methods[0]))


def _better(metric: str) -> str:
    return "more" if METRICS[metric] == "max" else "less"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value, 4) if isinstance(value, float) else _escaped(str(value))


def _plain(text: str) -> str:
    """Return a text that cannot break out of its backticks or its table cell."""
    return in_code(text).replace("|", "/")


def _escaped(text: str) -> str:
    """Return a text with the special characters of Markdown and HTML escaped."""
    plain = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#>!~" else letter for letter in plain)

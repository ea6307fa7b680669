"""Build a view of a sweep's trials for MLflow's experiment page: pictures side by side, then parameters and objectives.

Without a view the page opens with the trials folded away. A view is what the page's "Save as new view" stores in a tag
of the experiment. A version of MLflow without such views shows the plain page.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from orchestrator.search.space import searched
from orchestrator.spec import Sweep

TRAINING = {"workflowType": "machine_learning"}  # MLflow's workspace for training, not for chats
RESULT = ("result", 0)  # key and step of the picture that every trial has which drew one, however early it ended
_TAG = "mlflow.sharedViewState."
_AT_ONCE = 10  # runs in a chart


def key(parent_run: str) -> str:
    """Return the name of a sweep's view in the page's address."""
    return f"sweep-{parent_run}"


def tag(sweep: Sweep, parent_run: str, made_ms: int) -> dict[str, str]:
    """Return the experiment's tag that holds the view. made_ms: when it was made."""
    state = base64.b64encode(zlib.compress(json.dumps(_state(sweep, parent_run)).encode())).decode()
    view = {"name": f"{sweep.name}: trials", "createdAt": made_ms, "updatedAt": made_ms, "state": f"deflate;{state}"}
    return {_TAG + key(parent_run): json.dumps(view)}


def query(parent_run: str, tags: Mapping[str, str]) -> str:
    """Return the part of the page's address that opens the view; the plain charts where `tags` has no view.

    tags: the experiment's tags.
    """
    there = _TAG + key(parent_run) in tags
    chosen = {"viewStateShareKey": key(parent_run)} if there else {"searchFilter": _filter(parent_run)}
    return urlencode({"compareRunsMode": "CHART", **chosen, **TRAINING}, quote_via=quote)


def _filter(parent_run: str) -> str:
    """Return a filter for the trials without their parent run: under it the page folds them away."""
    return f"tags.sweep_run = '{parent_run}'"


def _state(sweep: Sweep, parent_run: str) -> dict[str, Any]:
    first = sweep.objectives[0]
    charts = [
        _chart("IMAGE", "Pictures", imageKeys=[RESULT[0]], step=RESULT[1], showRunParams=False),
        _chart(
            "PARALLEL",
            "Parameters and objectives",
            selectedParams=searched(sweep.space),
            selectedMetrics=list(sweep.objective_names),
            showAllRuns=False,
        ),
        *(_line(name) for name in sweep.objective_names),
    ]
    return {
        "searchFilter": _filter(parent_run),
        "orderByKey": f"metrics.`{first.metric}`",
        "orderByAsc": first.mode == "min",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"metrics.`{name}`" for name in sweep.objective_names],
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [
            _section("Pictures", cardHeight=640, columns=1),
            _section("Parameters and objectives", cardHeight=420, columns=1),
            _section("Objectives", cardHeight=360, columns=2),
        ],
        "isAccordionReordered": True,  # else the page sorts the sections by name
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _section(name: str, **layout: int) -> dict[str, Any]:
    """Return a section of the page. layout: cardHeight in pixels, columns."""
    return {"uuid": _uuid(name), "name": name, "display": True, "isReordered": False, "deleted": False, **layout}


def _chart(kind: str, section: str, **values: Any) -> dict[str, Any]:
    return {
        "uuid": _uuid(f"{kind} {json.dumps(values)}"),
        "type": kind,
        "runsCountToCompare": _AT_ONCE,
        "metricSectionId": _uuid(section),
        "deleted": False,
        "isGenerated": False,
        **values,
    }


def _line(metric: str) -> dict[str, Any]:
    """Return a chart of a metric over the trials' iterations, which are MLflow's steps."""
    return _chart(
        "LINE",
        "Objectives",
        displayName=metric,
        metricKey=metric,
        xAxisKey="step",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        lineSmoothness=0,
        scaleType="linear",
        xAxisScaleType="linear",
        range={},
        ignoreOutliers=False,
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
    )


def _uuid(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""What a sweep came to, told to MLflow: the champion, the random directions beside it, and what they were found in."""

import uuid
from collections.abc import Mapping

from orchestrator.search.ranking import Row, ranked
from orchestrator.search.space import whole
from orchestrator.sweep.record import Books
from orchestrator.tracking import pyfunc
from orchestrator.tracking.lineage import of_result
from orchestrator.tracking.notes import MODEL, NOTE, counts, loading, method_of, sweep_note


def record(
    books: Books, best: Row, champion: Mapping[str, float], baseline: Mapping[str, float], milliseconds: int
) -> None:
    """Put it all down for the sweep's own run, whatever lies in the champion's folder included.

    milliseconds: when the last trial ended, the same when it is put down again.
    """
    sweep, folder, outbox, weights = books.sweep, books.folder, books.outbox, books.ledger.weights
    rows, state = ranked(books.ledger.study, sweep), folder.read()
    values = {f"champion/{name}": value for name, value in champion.items()}
    values |= {f"random/{name}": value for name, value in baseline.items()} | counts(rows)
    outbox.metrics(None, [{"step": 0, **values}], milliseconds)
    outbox.inputs(None, of_result(sweep, weights, [whole(row.parameters, sweep.space) for row in rows]))
    outbox.folder(None, folder.champion, "champion")
    outbox.image(None, folder.champion / "traversal.png", "champion", 0, milliseconds)
    identity = uuid.uuid5(uuid.NAMESPACE_URL, state["id"]).hex
    pyfunc.save(folder.champion, sweep, folder.model, milliseconds, state["parent_run"], identity)
    outbox.folder(None, folder.model, MODEL)
    if name := sweep.export.register_as:
        found = f"The champion of sweep `{sweep.name}`: trial `{best.trial_id}`."
        outbox.register(name, MODEL, "\n".join([found, "", *loading(name)]))
    for row in rows:
        if row.on_front:
            outbox.tags(row.trial_id, {"on_front": "true"})
    outbox.tags(best.trial_id, {"champion": "true"})
    note = sweep_note(sweep, rows, champion, baseline, books.ledger.spent())
    told = {"champion": best.trial_id, "champion_method": method_of(best.parameters, sweep), "outcome": "completed"}
    outbox.end(None, "FINISHED", {**told, NOTE: note}, milliseconds)

"""The champion: the best completed trial's own set, measured on seeds that chose nothing, beside an honest baseline."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import create_autospec

import pytest
import torch

from core import DirectionSet
from core.intervals import interval_of, t_95, without_intervals
from core.methods import pca
from core.metrics import Evaluation, Traversals
from core.metrics.bootstrap import of_mean
from core.metrics.calibration import Calibrated
from core.progress import listening
from core.randomness import CALIBRATION_SEEDS, REPORT_SEEDS, SELECT_SEEDS, TRAIN_SEEDS
from core.samples.cache import SampleCache
from orchestrator.bundle import export as export_module
from orchestrator.bundle.export import export
from orchestrator.bundle.files import read_bundle
from orchestrator.report.page import write_page
from orchestrator.search.ledger import Ledger
from orchestrator.spec import Sweep, parse
from orchestrator.store.folder import SweepFolder
from orchestrator.sweep import champion as module
from orchestrator.sweep.champion import choose_champion
from orchestrator.tracking.record import SweepRecord
from orchestrator.trial import model as model_module
from orchestrator.trial.model import TrialModel
from orchestrator.trial.outcome import TrialOutcome
from tests.orchestrator.bundles import a_set, dialled, keep_set
from tests.orchestrator.conftest import RecordedOutbox, report_at
from tests.orchestrator.fabricated import started

OUT = TrialOutcome
Values = list[tuple[TrialOutcome, float, float]]  # outcome, identifiability, KID


def finished(tmp_path: Path, values: Values, **sections: Any) -> tuple[SweepRecord, list[str]]:
    """A sweep whose trials have ended so, none measured anew yet; and their ids, in the order in which they began."""
    folder, sweep = started(tmp_path / "runs", "crowned", len(values), **sections)
    folder.add(experiment_id="1", parent_run="parent")
    ledger, ids = Ledger(sweep, folder.study_file, "weights"), []
    for outcome, identifiability, kid in values:
        given = ledger.next_attempt()
        assert given is not None
        ids.append(given.trial_id)
        step = 100 if outcome == OUT.COMPLETED else 50
        keep_set(folder, given.trial_id, step, a_set(given.trial_id))
        ledger.end(given.trial_id, outcome, "", report_at(step, identifiability, kid))
    return SweepRecord(sweep, folder, ledger, cast(Any, RecordedOutbox())), ids


SAMPLES = torch.tensor([-0.3, 0.1, 0.2, -0.4, 0.0, 0.1, 0.5, -0.2])  # of mean 0


class Measuring:
    """A bench that measures nothing and keeps what it is asked: (set, seeds) of every measurement.

    The n-th measurement gives an identifiability of n, less on later resamples of the samples, and a KID of 1/4.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.measured: list[tuple[DirectionSet, range]] = []
        self.scaled: list[tuple[DirectionSet, float, float]] = []  # set, strength, tolerance
        self.drawn: list[int] = []  # the numbers of the random sets
        self.lacking = 0  # the number of the measurement without coverage
        self.sweeps: list[Sweep] = []  # with the batch that fits, of every call
        trial_model = create_autospec(TrialModel, instance=True)
        trial_model.with_dials.side_effect = self._turned
        trial_model.measure.side_effect = self._measure
        trial_model.at_strength.side_effect = self._scale
        trial_model.strength_of.side_effect = self._strength
        monkeypatch.setattr(
            module, "write_page", create_autospec(write_page, side_effect=lambda _, to: to.write_text(""))
        )
        monkeypatch.setattr(TrialModel, "load", create_autospec(TrialModel.load, return_value=trial_model))
        monkeypatch.setattr(module, "random_like", create_autospec(model_module.random_like, side_effect=self._random))

    def _turned(self, sweep: Sweep, found: DirectionSet) -> Calibrated:
        """With dials, for which a calibration has turned the set's second direction round and made it longer."""
        self.sweeps.append(sweep)
        sigma = found.sigma * torch.tensor([3.0, 5.0])[:, None]
        table = found.table * torch.tensor([1.0, -1.0])[:, None, None, None, None]
        return dialled(replace(found, table=table, sigma=sigma))

    def _measure(self, sweep: Sweep, directions: DirectionSet, seeds: range) -> Evaluation:
        self.sweeps.append(sweep)
        self.measured.append((directions, seeds))
        number = len(self.measured)
        sample = torch.arange(8).double() + number**2
        figures = {"identifiability": of_mean(number + SAMPLES), "fidelity_kid": of_mean(torch.full((8,), 0.25))}
        figures |= {"coverage": of_mean(sample)} if number != self.lacking else {}
        return Evaluation(figures, None, create_autospec(Traversals, instance=True), {})

    def _random(self, trial_model: Any, directions: DirectionSet, sweep: Sweep, draw: int) -> DirectionSet:
        self.sweeps.append(sweep)
        self.drawn.append(draw)
        found = a_set("random", method="random")
        return replace(found, sigma=found.sigma * 2**draw)

    def _strength(self, sweep: Sweep, directions: DirectionSet) -> float:
        self.sweeps.append(sweep)
        self.asked_strength_of = directions
        return 0.625

    def _scale(self, sweep: Sweep, directions: DirectionSet, strength: float, close: float) -> DirectionSet:
        self.sweeps.append(sweep)
        self.scaled.append((directions, strength, close))
        return replace(directions, sigma=directions.sigma * 7)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    return Measuring(monkeypatch)


DONE = [(OUT.COMPLETED, 0.5, 0.5), (OUT.COMPLETED, 0.9, 0.1), (OUT.PRUNED, 0.99, 0.0), (OUT.COMPLETED, 0.6, 0.4)]


def test_the_champion_is_reported_on_seeds_that_chose_nothing(tmp_path: Path, measuring: Measuring) -> None:
    """Chosen on SELECT_SEEDS, dialled on CALIBRATION_SEEDS, reported on others; and so is the baseline beside it."""
    record, ids = finished(tmp_path, DONE)
    best = choose_champion(record)
    assert best is not None and best.trial_id == ids[1]
    (_, on), *baseline = measuring.measured
    assert [seeds for _, seeds in measuring.measured] == [REPORT_SEEDS] * 6
    assert not any(set(on[:5000]) & set(other[:5000]) for other in (SELECT_SEEDS, CALIBRATION_SEEDS, TRAIN_SEEDS))
    assert [found.provenance["method"] for found, _ in baseline] == ["random"] * 5
    assert measuring.sweeps == [record.sweep] * (1 + 1 + 1 + 5 * 3), "each with the batch that fits"


def test_a_listener_is_told_of_each_set_that_is_measured(tmp_path: Path, measuring: Measuring) -> None:
    told: list[tuple[str, int, int]] = []
    with listening(lambda *progress: told.append(progress)):
        choose_champion(finished(tmp_path, DONE)[0])
    assert told == [("sets", done, 6) for done in range(1, 7)]


def test_the_baseline_is_five_draws_at_the_strength_of_the_champion(tmp_path: Path, measuring: Measuring) -> None:
    """Each is calibrated from where the one before ended."""
    record, _ = finished(tmp_path, DONE)
    choose_champion(record)
    assert measuring.drawn == [0, 1, 2, 3, 4]
    assert [asked for _, *asked in measuring.scaled] == [[0.625, 0.1]] * 5
    assert measuring.asked_strength_of is measuring.measured[0][0]
    unscaled = a_set("random").sigma
    for n, ((near, _, _), (measured, _)) in enumerate(zip(measuring.scaled, measuring.measured[1:], strict=True)):
        assert torch.allclose(near.sigma, unscaled * 2**n * 7**n), "as much longer as the last draw has become"
        assert torch.equal(measured.sigma, 7 * near.sigma)


def test_the_champion_is_compared_sample_by_sample(tmp_path: Path, measuring: Measuring) -> None:
    """All figures vary alike over the samples, so the difference is known better than either."""
    record, _ = finished(tmp_path, DONE)
    choose_champion(record)
    result = record.folder.read("result.json")
    champion, random, apart = (result[name] for name in ("champion", "random", "differences"))
    assert random["identifiability"] == pytest.approx(4) and apart["identifiability"] == pytest.approx(-3)
    widths = [table["identifiability/high"] - table["identifiability/low"] for table in (champion, random, apart)]
    between = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0]).std() / 5**0.5  # of the mean of five other draws
    assert widths[0] == pytest.approx(2 * t_95(7) * float(SAMPLES.std()) / 8**0.5, rel=0.1)
    assert widths[2] == pytest.approx(2 * t_95(4) * float(between), rel=0.1)
    assert widths[1] > widths[2], "the samples vary too"


def test_what_one_random_set_lacks_is_not_compared(tmp_path: Path, measuring: Measuring) -> None:
    record, _ = finished(tmp_path, DONE)
    measuring.lacking = 3
    directions = replace(a_set("found"), provenance={"trial": "found"})
    measured = module._measured(record.sweep, record.folder.cache, directions)
    assert "coverage" in measured.champion.directions.metrics
    assert "coverage" not in measured.random and "coverage" not in measured.differences
    assert measured.differences["fidelity_kid"] == 0


def test_the_champion_is_measured_as_long_as_in_its_trial(tmp_path: Path, measuring: Measuring) -> None:
    """Its dials lengthen it and turn directions round: metrics look at the turned set, at the length of the trial."""
    record, ids = finished(tmp_path, DONE)
    choose_champion(record)
    found, (measured, _) = a_set(ids[1]), measuring.measured[0]
    assert torch.equal(measured.sigma, found.sigma)
    assert torch.equal(measured.table[0], found.table[0]) and torch.equal(measured.table[1], -found.table[1])
    written = DirectionSet.load(record.folder.champion)
    assert torch.equal(written.sigma, found.sigma * torch.tensor([3.0, 5.0])[:, None]), "with the length of its dials"
    assert len(written.dials) == 2


def test_what_is_kept_of_the_champion_is_its_own(tmp_path: Path, measuring: Measuring) -> None:
    record, ids = finished(tmp_path, DONE)
    choose_champion(record)
    written, result = DirectionSet.load(record.folder.champion), record.folder.read("result.json")
    assert dict(written.metrics) == result["champion"] and written.provenance["trial"] == ids[1]
    assert written.provenance["sweep"] == "crowned"
    assert result.keys() == {"trial", "champion", "random", "differences"} and result["trial"] == ids[1]
    assert result["champion"].keys() == {
        name + end for name in ("identifiability", "fidelity_kid", "coverage") for end in ("", "/low", "/high")
    }
    told = cast(RecordedOutbox, record.outbox)
    [([values], _)] = [call[2:] for call in told.calls if call[0] == "metrics"]
    for prefix, table in (("champion", "champion"), ("random", "random"), ("difference", "differences")):
        logged = {name: value for name, value in values.items() if name.startswith(f"{prefix}/")}
        assert logged == {f"{prefix}/{name}": value for name, value in result[table].items()}
    assert values["difference/identifiability/low"] < -3 < values["difference/identifiability/high"]
    assert ("tags", ids[1], {"champion": "true"}) in told.calls
    assert read_bundle(record.folder.champion).files["gallery.html"]


@pytest.mark.parametrize(
    ("objectives", "best"),
    [
        ([{"identifiability": "max"}], 1),
        ([{"fidelity_kid": "min"}], 1),
        ([{"fidelity_kid": "min"}, {"identifiability": "max"}], 1),
    ],
)
def test_the_champion_is_the_best_in_the_sense_of_the_objective(
    tmp_path: Path, measuring: Measuring, objectives: list[Mapping[str, str]], best: int
) -> None:
    record, ids = finished(tmp_path, DONE, objectives=objectives)
    crowned = choose_champion(record)
    assert crowned is not None and crowned.trial_id == ids[best]


def test_a_report_that_cannot_be_written_takes_no_sweep_down(
    tmp_path: Path, measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no chart")

    monkeypatch.setattr(module, "write_page", broken)
    record, ids = finished(tmp_path, DONE)
    said: list[str] = []
    choose_champion(record, say=said.append)
    assert said == ["The report was not written (no chart); make it with: orchestrate report crowned"]
    assert record.folder.read("result.json")["trial"] == ids[1]


def exported(tmp_path: Path, folder: SweepFolder, **asked: Any) -> list[DirectionSet]:
    to = tmp_path / f"out {len(list(tmp_path.iterdir()))}"
    return [DirectionSet.load(each) for each in export(folder, to, **asked)]


def of_set(directions: DirectionSet) -> str:
    """The trial whose set this is, by the set itself, whatever its provenance says."""
    return directions.names[0]


def test_an_export_holds_the_set_that_it_was_asked_for(tmp_path: Path, measuring: Measuring) -> None:
    """Every trial's own, whether it is the champion or not, and the champion where none is named."""
    record, ids = finished(tmp_path, DONE)
    choose_champion(record)
    for trial_id in ids:
        [found] = exported(tmp_path, record.folder, run=trial_id)
        assert of_set(found) == trial_id == found.provenance["trial"]
        assert torch.equal(found.table[0], a_set(trial_id).table[0])
        assert bool(found.metrics) == (trial_id == ids[1]), "measured anew is the champion alone"
    [champion] = exported(tmp_path, record.folder)
    assert of_set(champion) == ids[1]


def test_the_best_few_are_exported_best_first_and_completed_ones_alone(tmp_path: Path, measuring: Measuring) -> None:
    record, ids = finished(tmp_path, DONE)
    choose_champion(record)
    folder = record.folder
    assert [of_set(found) for found in exported(tmp_path, folder, top=3)] == [ids[1], ids[3], ids[0]]
    assert [of_set(found) for found in exported(tmp_path, folder, top=1)] == [ids[1]]
    names = [path.name for path in export(folder, tmp_path / "named", top=2)]
    assert names == [f"01_{ids[1]}", f"02_{ids[3]}"]


def test_what_is_exported_before_there_is_a_champion_is_measured_then(tmp_path: Path, measuring: Measuring) -> None:
    record, ids = finished(tmp_path, DONE)
    said: list[str] = []
    [found] = exported(tmp_path, record.folder, run=ids[0], say=said.append)
    assert of_set(found) == ids[0] and len(found.dials) == 2
    assert said == [
        "Loading the model of sweep 'crowned' ...",
        f"Measuring the dials of trial {ids[0]} (2 directions), and drawing its gallery ...",
    ]


def test_a_trial_is_measured_once_for_all_its_exports(tmp_path: Path, measuring: Measuring) -> None:
    record, ids = finished(tmp_path, DONE)
    said: list[str] = []
    first, again = (exported(tmp_path, record.folder, run=ids[0], say=said.append)[0] for _ in range(2))
    assert said[2:] == [f"Trial {ids[0]} has been measured before, on the same settings ..."]
    assert first.dials == again.dials and torch.equal(first.table, again.table) and first.names == again.names
    assert bundle_files(tmp_path / "out 1") == bundle_files(tmp_path / "out 2")
    said.clear()
    [other] = exported(tmp_path, record.folder, run=ids[3], say=said.append)
    assert of_set(other) == ids[3] and said[-1].startswith("Measuring the dials")
    for kept in record.folder.measured.iterdir():
        (kept / "directions.safetensors").write_bytes(b"damaged")
    said.clear()
    exported(tmp_path, record.folder, run=ids[0], say=said.append)
    assert said[-1].startswith("Measuring the dials")


def test_what_was_measured_on_other_settings_or_of_another_set_is_measured_again(
    tmp_path: Path, measuring: Measuring
) -> None:
    record, ids = finished(tmp_path, DONE)
    sweep, found = record.folder.sweep(), a_set(ids[0])
    seeds = sweep.evaluate.model_copy(update={"strength": 0.25})
    keys = {
        export_module._key(record.folder, *each)
        for each in (
            (sweep, found),
            (sweep.model_copy(update={"evaluate": seeds}), found),
            (sweep, replace(found, sigma=found.sigma * 2)),
            (sweep, replace(found, table=-found.table)),
            (sweep, replace(found, names=("a", "b"))),
            (sweep, a_set(ids[1])),
        )
    }
    assert len(keys) == 6 and export_module._key(record.folder, sweep, a_set(ids[0])) in keys
    record.folder.add(weights="others")
    assert export_module._key(record.folder, sweep, found) not in keys


def bundle_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.1, None])
def test_every_metric_of_a_set_is_compared_with_random_ones(
    tiny_model: Path, tmp_path: Path, strength: float | None
) -> None:
    """With a real model, from the set to the tables."""
    base = {"name": "a", "model": str(tiny_model), "sampler": {"steps": 2}, "search": {}, "budget": {"trials": 1}}
    sweep = parse(base | {"evaluate": {"seeds": 6, "strength": strength}})
    trial_model = TrialModel.load(sweep, SampleCache(tmp_path))
    found = pca.find(trial_model.denoiser, trial_model.schedule, pca.Settings(3, samples=64), cache=trial_model.cache)
    directions = replace(found, provenance={**found.provenance, "trial": "a"})
    measured = module._measured(sweep, tmp_path, directions)
    champion = measured.champion.directions.metrics
    assert champion.keys() == measured.random.keys() == measured.differences.keys()
    assert {"identifiability", "identifiability/low", "fidelity_kid/high"} <= champion.keys()
    for name, apart in without_intervals(measured.differences).items():
        assert apart == pytest.approx(champion[name] - measured.random[name])
        interval = interval_of(measured.differences, name)
        assert interval is not None and interval[0] <= apart <= interval[1]

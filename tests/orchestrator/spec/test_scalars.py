"""Values without quotes are read as their author wrote them, whatever version of YAML that is."""

from pathlib import Path

import pytest
import yaml

from orchestrator.spec import SpecError, load
from orchestrator.spec.reading import document
from orchestrator.spec.scalars import Ambiguous, to_yaml
from tests.orchestrator.spec.test_sentences import HOURS, TEXT, mistakes_of
from tests.orchestrator.spec.test_sweep import BASE, sweep_of


@pytest.mark.parametrize(
    ("written", "hours"),
    [
        ("12:00:00", 12),
        ("0:45:00", 0.75),
        ("1:30", 1.5),
        ("0:30", 0.5),
        ("26:00:36", 26.01),
        ("90m", 1.5),
        ("1.5h", 1.5),
        ("2d", 48),
        ("1h 30min", 1.5),
        ("36s", 0.01),
        ("'12:00:00'", 12),
        ("1.5", 1.5),
        ("1e-4", 0.0001),
    ],
)
def test_a_time_is_read_as_a_time_where_hours_are_meant(written: str, hours: float) -> None:
    sweep = sweep_of(f"{{budget: {{hours: {written}}}, cluster: {{hours: {written}}}}}")
    assert sweep.budget.hours == pytest.approx(hours) == sweep.cluster.hours


@pytest.mark.parametrize(("written", "minutes"), [("1:30", 1.5), ("1:30:00", 90), ("2h", 120), ("90s", 1.5), ("5", 5)])
def test_a_time_is_read_as_a_time_where_minutes_are_meant(written: str, minutes: float) -> None:
    assert sweep_of(f"recovery: {{stalled_minutes: {written}}}").recovery.stalled_minutes == minutes


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("90x", "is not a time (got '90x'); allowed: {}, or null"),
        ("1:75", "is not a time (got '1:75'); allowed: {}, or null"),
        (
            "-1:30",
            "is not a time (got -1:30); allowed: {}, or null; YAML reads -1:30 as -90: write -90, or '-1:30' for ",
        ),
        ("0h", "is out of range (got '0h'); allowed: {}, or null"),
        ("0:00:00", "is out of range (got '0:00:00'); allowed: {}, or null"),
        ("true", "is not a number (got true); allowed: {}, or null"),
    ],
)
def test_what_is_no_time_is_refused(written: str, what: str) -> None:
    [said] = mistakes_of(f"budget: {{hours: {written}}}")
    assert said.startswith(f"budget.hours: {what.format(HOURS)}")


NUMBERS = [
    ("010", "8 or 10", "the one you mean"),
    ("0123", "83 or 123", "the one you mean"),
    ("-010", "-8 or -10", "the one you mean"),
    ("08", "8", "8"),
    ("0x10", "16", "16"),
    ("0o17", "15", "15"),
    ("0b11", "3", "3"),
    ("1_000", "1000", "1000"),
    ("1_0.5", "10.5", "10.5"),
    ("1:30", "90", "90"),
    ("12:00:00", "43200", "43200"),
    ("yes", "true", "true"),
    ("Off", "false", "false"),
]


@pytest.mark.parametrize(("written", "read", "write"), NUMBERS)
def test_a_number_that_yaml_versions_read_differently_is_refused_as_it_was_written(
    written: str, read: str, write: str
) -> None:
    ending = f"YAML reads {written} as {read}: write {write}, or '{written}' for text"
    assert mistakes_of(f"train: {{batch: {written}}}") == [
        f"train.batch: is not an integer (got {written}); allowed: an integer >= 1; {ending}"
    ]
    assert mistakes_of(f"sampler: {{eta: {written}}}") == [
        f"sampler.eta: is not a number (got {written}); allowed: a number >= 0 and <= 1; {ending}"
    ]
    assert mistakes_of(f"model: {written}") == [f"model: is not text (got {written}); allowed: {TEXT}; {ending}"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("name: 0123", "name"),
        ("denoiser: {prompts: [a cat, no]}", "denoiser.prompts"),
        ("denoiser: {tap: on}", "denoiser.tap"),
        ("cluster: {hosts: [a, 1:30]}", "cluster.hosts"),
        ("cluster: {partition: 0123}", "cluster.partition"),
        ("sampler: {injection: no}", "sampler.injection"),
        ("sampler: {window: [010, 0]}", "sampler.window"),
        ("gradient: {memory: 1_000}", "gradient.memory"),
        ("resources: {gpus_per_trial: 0x1}", "resources.gpus_per_trial"),
        ("search: {directions: {choice: [8, 010]}}", "search.directions.choice[1]"),
        ("search: {jacobian.mask: no}", "search.jacobian.mask"),
        ("search: {directions: {int: [010, 20]}}", "search.directions.int[0]"),
    ],
)
def test_no_place_of_a_file_takes_a_value_that_may_be_another_one(text: str, path: str) -> None:
    said = mistakes_of(text)
    assert [each.split(": ")[0] for each in said] == [path] and "(got " in said[0]


def test_a_date_is_no_text() -> None:
    [said] = mistakes_of("export: {register: 2026-11-29}")
    assert said.endswith("; YAML reads 2026-11-29 as a date: write '2026-11-29' for text")
    assert sweep_of("export: {register: '2026-11-29'}").export.register_as == "2026-11-29"
    assert sweep_of("model: 2026-13-45").model == "2026-13-45"  # no date in any version


def test_yes_and_no_are_read_where_a_truth_value_is_meant() -> None:
    sweep = sweep_of("{tracking: {system_metrics: no}, search: {orthonormal: {choice: [yes, Off]}}}")
    assert sweep.tracking.system_metrics is False
    assert sweep.search["orthonormal"].resolved() == {"choice": [True, False]}


def test_numbers_with_an_exponent_are_numbers_unless_quoted() -> None:
    assert document("[=, '=']").data == ["=", "="]
    text = "[1e-4, 1.5e3, +2E+1, -.5, 1., 1e-4x, '1e-4']"
    assert document(text).data == [0.0001, 1500.0, 20.0, -0.5, 1.0, "1e-4x", "1e-4"]
    assert document("[12, -3, +4, 0, true, False, null, ~, 0.5]").data == [12, -3, 4, 0, True, False, None, None, 0.5]
    assert mistakes_of("sampler: {eta: '1e-4'}")[0].startswith("sampler.eta: is not a number (got '1e-4')")


@pytest.mark.parametrize("written", ["train.batch=010", "train.batch=0x10", "train.batch=1:30"])
def test_an_override_is_read_as_the_file_is(tmp_path: Path, written: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BASE)
    value = written.partition("=")[2]
    with pytest.raises(SpecError) as caught:
        load(path, [written])
    assert str(caught.value).startswith(
        f"train.batch: is not an integer (got {value}); allowed: an integer >= 1; YAML "
    )
    assert load(path, ["budget.hours=12:00:00"]).budget.hours == 12


def test_a_key_is_told_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"{BASE}on: 1\n010: 2\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    assert [each.split(" is not a known key")[0] for each in caught.value.problems] == [
        f"{path}:4: on:",
        f"{path}:5: 010:",
    ]


def test_text_that_looks_like_a_number_is_written_so_that_it_is_read_back() -> None:
    texts = ["1e-4", "0o17", "08", "010", "no", "12:00:00", "1:30", "1_000", "2026-11-29", "5", "plain", "", "~", "-.5"]
    values = [*texts, 1e-05, 1e300, 5, True, None]
    written = to_yaml({"values": values})
    assert document(written).data == {"values": values} == yaml.safe_load(written)
    assert Ambiguous("010") != "010"

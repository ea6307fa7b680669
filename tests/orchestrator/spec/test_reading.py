"""Files that are no sweeps, the line of each mistake, and what `--set` puts in place of a file's own values."""

import json
import os
from pathlib import Path

import pytest
import yaml

from orchestrator.spec import FloatRange, SpecError, load
from tests.orchestrator.spec.test_sweep import BASE

FILES = [
    (b"", "{path}: is not a sweep: the file must hold keys such as name, model and search"),
    (b"- a", "{path}: is not a sweep: the file must hold keys such as name, model and search"),
    (b"\xff\xfe\xfa", "{path}: is not text in UTF-8"),
    (b"a: [1", "{path}: is not YAML: expected ',' or ']', but got '<stream end>' (line 1, column 6)"),
    (b"a: 1\n\tb: 2", "{path}: is not YAML: found character '\\t' that cannot start any token (line 2, column 1)"),
    (b"a: \x00", "{path}: is not YAML: unacceptable character #x0000: special characters are not allowed"),
    (
        b"a: !!python/name:os.system",
        "{path}: is no sweep: tags such as 'tag:yaml.org,2002:python/name:os.system' are not read (line 1, column 4)",
    ),
    (b"a: !!bool x", "{path}: is no sweep: tags such as 'tag:yaml.org,2002:bool' are not read (line 1, column 4)"),
    (b"#" * (1 << 20) + b"\n", "{path}: is no sweep: it is longer than 1048576 bytes"),
    (b"[" * 10_000, "{path}: is no sweep: more than 20 lists and mappings inside each other (line 1, column 21)"),
    (b"- " * 10_000, "{path}: is no sweep: more than 20 lists and mappings inside each other (line 1, column 41)"),
    (
        b"[" + b"1," * 5_000 + b"]",
        "{path}: is no sweep: more than 5000 values, counting those that aliases repeat (line 1, column 10000)",
    ),
    (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 10)) for n in b"bcd"),
        "{path}: is no sweep: more than 5000 values, counting those that aliases repeat (line 4, column 14)",
    ),
    (b"[&a 1" + b", *a" * 101 + b"]", "{path}: is no sweep: more than 100 aliases (line 1, column 408)"),
    (b"a: &a {<<: *a}", "{path}: is no sweep: *a stands inside what it repeats (line 1, column 12)"),
    (b"a: " + b"x" * 5_000, "{path}: is no sweep: text of more than 4096 characters (line 1, column 4)"),
    (b"a: 0x" + b"f" * 5_000, "{path}: is no sweep: a number of more than 100 characters (line 1, column 4)"),
    (b"a: " + b"9" * 5_000, "{path}: is no sweep: a number of more than 100 characters (line 1, column 4)"),
    (b'a: "\\0"', "{path}: is no sweep: text with control characters, '\\x00' (line 1, column 4)"),
    (b'a: "\\ud800"', "{path}: is no sweep: text with control characters, '\\ud800' (line 1, column 4)"),
    (b'"a\\eb": 1', "{path}: is no sweep: text with control characters, 'a\\x1bb' (line 1, column 1)"),
    (b"? [a]\n: 1", "{path}: is not YAML: found unhashable key (line 1, column 3)"),
]


@pytest.mark.parametrize(("content", "sentence"), FILES, ids=range(len(FILES)))
def test_a_file_that_is_no_sweep(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load(path)
    assert caught.value.problems == [sentence.format(path=path)]


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_of_another_system_is_the_same_sweep(tmp_path: Path, mark: str, end: str) -> None:
    plain, other = tmp_path / "plain.yaml", tmp_path / "other.yaml"
    plain.write_text(BASE)
    other.write_bytes((mark + BASE.replace("\n", end)).encode())
    assert load(other) == load(plain)


def test_a_sweep_may_be_json(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(BASE)
    (tmp_path / "sweep.json").write_text(json.dumps(yaml.safe_load(BASE), indent=2))
    assert load(tmp_path / "sweep.json") == load(tmp_path / "sweep.yaml")


def test_a_file_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as missing:
        load(tmp_path / "no.yaml")
    assert str(missing.value) == f"{tmp_path / 'no.yaml'}: there is no such file"
    with pytest.raises(SpecError) as folder:
        load(tmp_path)
    assert str(folder.value) == f"{tmp_path}: is a folder, and no sweep file; allowed: a YAML file, and it holds none"
    for name in ("b.yaml", "a.yml", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(SpecError) as full:
        load(tmp_path)
    assert str(full.value).endswith(": is a folder, and no sweep file; allowed: one of its files: a.yml, b.yaml")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SpecError) as endless:
            load(other)
        assert str(endless.value) == f"{other}: cannot be read: It is not an ordinary file"


def test_a_key_given_twice_is_a_mistake_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BASE + "train:\n  batch: 8\n  iterations: 9\n  batch: 8\nname: b\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    assert caught.value.problems == [
        f"{path}:7: train.batch: is given twice (lines 5 and 7)",
        f"{path}:8: name: is given twice (lines 1 and 8)",
    ]


LINES = """\
# a comment
name: a
model:
  toyfaces
sampler: &half
  steps: 0
  eta:
    many
train: {batch: 16,
        micro_batch: 5}
search:
  directions: {choice: [8,
                        1]}
  shift_scale: &range
    float: [3, 1]
  discriminator_weight: *range
  strat: random
evaluate:
  <<: {seeds: 2}
  every: 0
on: 1
objectives:
  - identifiability: max
  - fidelity_kid: max
  - &kid {strength_error: max}
  - *kid
resources:
tracking: 5
"""


def test_a_mistake_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(LINES)
    with pytest.raises(SpecError) as caught:
        load(path)
    told = [problem.removeprefix(f"{path}:").split(": ")[:2] for problem in caught.value.problems]
    assert sorted(told, key=lambda one: int(one[0])) == [
        ["6", "sampler.steps"],
        ["8", "sampler.eta"],
        ["10", "train.micro_batch"],
        ["13", "search.directions.choice[1]"],
        ["15", "search.shift_scale.float"],
        ["15", "search.discriminator_weight.float"],  # what is inside of an alias stands at its anchor
        ["17", "search.strat"],
        ["19", "evaluate.seeds"],  # merged in
        ["20", "evaluate.every"],
        ["21", "on"],
        ["24", "objectives[1].fidelity_kid"],
        ["25", "objectives[2].strength_error"],
        ["25", "objectives[3].strength_error"],
        ["28", "tracking"],
    ]


def test_what_is_absent_is_told_with_the_line_of_what_should_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\nname: a\nmodel: &m 5\npredictor: *m\nscheduler:\n\n  asha:\n    reduction: 3\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    assert [problem.removeprefix(f"{path}:").split(": ")[:2] for problem in caught.value.problems] == [
        ["3", "model"],
        ["4", "predictor"],  # an alias stands where it was written
        ["7", "scheduler.asha.grace"],
        ["2", "search"],
    ]


def test_what_an_override_brings_in_stands_on_no_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BASE + "train: {batch: 16, micro_batch: 8}\nsampler: {steps: 0}\n")
    with pytest.raises(SpecError) as caught:
        load(path, ["train.batch=12", "sampler.eta=9", "x"])
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "--set x",
        f"{path}:5",
        "sampler.eta",
        f"{path}:4",
    ]


def test_an_alias_and_a_merge_key_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: &n a\nmodel: *n\nsearch: {}\nbudget: &b {trials: 1}\ntrain: {batch: 8}\nexport: {register: *n}"
    )
    assert load(path).model == "a" and load(path).export.register_as == "a"
    path.write_text(BASE + "train: &t {batch: 8}\nsampler: {<<: {steps: 5}, steps: 6}")
    assert load(path).sampler.steps == 6


OVERRIDES = [
    ("x", "--set x: is not of the form path=value, like train.batch=8"),
    (".a=1", "--set .a=1: is not of the form path=value, like train.batch=8"),
    (
        "train.batch=[",
        "--set train.batch=[: the value is not YAML: expected the node content, but found '<stream end>' "
        "(line 1, column 2)",
    ),
    ("model.x=1", "--set model.x=1: model holds no keys to set (it is 'toyfaces')"),
    ("train.batch=0", "train.batch: is out of range (got 0); allowed: an integer >= 1"),
    (f"{'a.' * 20}b=1", f"--set {'a.' * 20}b=1: is refused: more than 20 keys inside each other"),
    ("seed=&a [*a]", "--set seed=&a [*a]: is refused: *a stands inside what it repeats (line 1, column 5)"),
    (
        f"seed={'9' * 200}",
        f"--set seed={'9' * 75}...: is refused: a number of more than 100 characters (line 1, column 1)",
    ),
    (
        "seed=!!int x",
        "--set seed=!!int x: is refused: tags such as 'tag:yaml.org,2002:int' are not read (line 1, column 1)",
    ),
    ("train={batch: 1, batch: 2}", "train.batch: is given twice (lines 1 and 1)"),
    (
        "train.bach=2",
        "train.bach: is not a known key (got 2); allowed: iterations, batch, micro_batch, pool, precision, "
        "strength_floor; did you mean 'batch'?",
    ),
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(("override", "sentence"), OVERRIDES)
def test_a_wrong_override_is_told(base: Path, override: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(base, [override])
    assert caught.value.problems == [sentence]


def test_overrides_are_set_before_validation(base: Path) -> None:
    sweep = load(base, ["scheduler.asha.grace=7", "search.shift_scale={float: [1e-3, 2]}", "name=b=c", "name=b"])
    assert sweep.scheduler is not None and sweep.scheduler.asha.grace == 7
    assert sweep.search["shift_scale"] == FloatRange(0.001, 2.0)
    assert sweep.name == "b"

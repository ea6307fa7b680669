"""The documents run: the tutorial from end to end, every example, every link and command.

`python -m tests.test_docs` executes the tutorial and writes it back with its new outputs.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from core import DirectionSet
from orchestrator.cli.main import main
from orchestrator.spec.sections import Asha, Section
from orchestrator.spec.sweep import KEYS_WITHOUT_EFFECT_ON_RESULTS, Sweep
from orchestrator.spec.tables import PARAMETERS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
EXAMPLES = sorted((ROOT / "examples").glob("own_*.py"))
MACHINE = re.compile(r"(^|[\s'\"(=])/(home|root|Users|work|tmp|usr|opt|var|private)/|site-packages")
LARGEST_BYTES = 1_500_000


def text_of(document: Path) -> str:
    """What a reader sees of a page, or of a notebook without its outputs."""
    if document.suffix != ".ipynb":
        return document.read_text()
    return "\n\n".join(cell.source for cell in notebook().cells)


def notebook() -> Any:
    return nbformat.read(TUTORIAL, as_version=4)


def outputs(tutorial: Any) -> list[Any]:
    return [output for cell in tutorial.cells if cell.cell_type == "code" for output in cell.outputs]


def complaints(tutorial: Any) -> list[str]:
    """What went wrong in the cells, or was said on stderr."""
    return [str(o) for o in outputs(tutorial) if o.output_type == "error" or o.get("name") == "stderr"]


def executed(folder: Path) -> Any:
    """The tutorial with fresh outputs, and nothing beside them that tells of the machine."""
    tutorial = notebook()
    # `orchestrate` is that of the environment that runs this.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    client = NotebookClient(tutorial, timeout=300, record_timing=False, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PATH": path})
    for output in outputs(tutorial):
        output.get("data", {}).pop("image/jpeg", None)  # a second copy of every picture
    tutorial.metadata = {"kernelspec": tutorial.metadata["kernelspec"], "language_info": {"name": "python"}}
    return tutorial


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    fresh = executed(tmp_path)
    assert not complaints(fresh)
    assert [kinds(cell) for cell in fresh.cells] == [kinds(cell) for cell in notebook().cells], "make it again"


def kinds(cell: Any) -> list[str]:
    """Which outputs a cell has: stdout, pictures, values."""
    found = cell.get("outputs", [])
    return [output.get("name") or ", ".join(sorted(output.get("data", {}))) for output in found]


def test_the_tutorial_shows_what_it_did() -> None:
    tutorial = notebook()
    cells = [cell for cell in tutorial.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs(tutorial)) >= 8
    assert not complaints(tutorial)


def test_the_tutorial_tells_nothing_of_the_machine_it_ran_on() -> None:
    tutorial = notebook()
    assert TUTORIAL.stat().st_size < LARGEST_BYTES
    assert set(tutorial.metadata) == {"kernelspec", "language_info"}
    assert tutorial.metadata["kernelspec"]["name"] == "python3"
    assert not any(cell.metadata for cell in tutorial.cells), "metadata of a cell, such as times"
    said = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs(tutorial)]
    for text in (*said, text_of(TUTORIAL)):
        assert not MACHINE.search(text), text


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_page_shows_the_example_that_runs(example: Path) -> None:
    code = example.read_text()
    page = "models.md" if example.stem == "own_family" else "extending.md"
    assert f"```python\n{code}```" in (ROOT / "docs" / page).read_text()
    assert len(code.splitlines()) < 40


@pytest.mark.slow
def test_a_model_of_ones_own_can_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run("own_model", tmp_path)
    assert "h is (32, 4, 4)" in printed
    loss = re.match(r"loss (\d\.\d+);", printed)
    assert loss and float(loss[1]) < 0.5, "nothing was learned: without training the loss is 1"
    assert left(tmp_path) == ["own-model", "own-model.png", "own-model.yaml"]
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "own-model.yaml"]) == 0


@pytest.mark.slow
def test_a_family_of_ones_own_has_an_h(tmp_path: Path) -> None:
    assert run("own_family", tmp_path) == "h is (48, 4, 4); look at own-family.png\n"
    assert left(tmp_path) == ["own-family.png"]


@pytest.mark.slow
def test_a_method_of_ones_own_makes_a_set_like_any_other(tmp_path: Path) -> None:
    printed = run("own_method", tmp_path)
    assert re.findall(r"^(\w+) {'identifiability': ", printed, flags=re.MULTILINE) == ["contrast", "random"]
    assert left(tmp_path) == ["contrast", "random"]
    assert DirectionSet.load(tmp_path / "contrast").names == ("top", "left", "all")


@pytest.mark.slow
def test_a_metric_of_ones_own_compares_two_sets(tmp_path: Path) -> None:
    printed = run("own_metric", tmp_path)
    shares = re.fullmatch(r"pca: border share (\S+) \[.+\]\nrandom: border share (\S+) \[.+\]\n", printed)
    assert shares
    assert 0 < float(shares[2]) < float(shares[1]) < 2
    assert left(tmp_path) == []


@pytest.mark.slow
def test_a_predictor_of_ones_own_is_pursued(tmp_path: Path) -> None:
    """Each direction of guided changes less beside its own attribute than that of supervised."""
    printed = run("own_predictor", tmp_path)
    found = re.fullmatch(r"supervised {(.+)}\nguided {(.+)}\n", printed)
    assert found
    means, trained = ([float(each) for each in re.findall(r": (-?\d\.\d+)", line)] for line in found.groups())
    assert len(means) == len(trained) == 3
    assert all(after > before for before, after in zip(means, trained, strict=True)) and min(trained) > 0.4
    assert left(tmp_path) == []


def run(example: str, folder: Path) -> str:
    """What an example prints that runs in `folder`, with every warning an error."""
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{example}.py")]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keys_of_the_page() -> dict[tuple[str, str], str]:
    """(heading, key) -> default, of every row of a table of docs/sweep-file.md."""
    heading, found = "", {}
    for line in (ROOT / "docs" / "sweep-file.md").read_text().splitlines():
        if line.startswith("## "):
            heading = line[3:]
        elif row := re.match(r"\| `([^`]+)` \| ([^|]*) \|", line):
            found[heading, row[1]] = row[2]
    return found


def written(value: object) -> str:
    """A default as the page writes it: as YAML would, with four digits."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if value == ():
        return "[]"
    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else str(value) or '""'


def test_the_page_has_every_key_of_a_sweep_file_with_its_default() -> None:
    page, expected = keys_of_the_page(), {}
    for name, section in Sweep.model_fields.items():
        kind = {"scheduler": Asha}.get(name) or section.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            continue
        for attribute, field in kind.model_fields.items():
            key = {"scheduler": "asha."}.get(name, "") + (field.alias or attribute)
            heading, dotted = (JOINT, f"{name}.{key}") if name in JOINT else (name, key)
            expected[heading, dotted] = "-" if field.is_required() else written(field.default)
    for name, parameter in PARAMETERS.items():
        expected["search", name] = "the sweep's" if parameter.default is None else short(parameter.default)
    of_the_file = {key: default for key, default in page.items() if key[0]}
    assert of_the_file == expected
    assert {key for heading, key in page if not heading} == PLAIN


JOINT = "tracking, study, export"  # sections that share a heading
PLAIN = {"name", "model", "method", "predictor", "seed", "objectives"}


def short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else written(value)


def test_the_page_names_what_may_change_while_a_sweep_is_under_way() -> None:
    told = (ROOT / "docs" / "sweep-file.md").read_text().split("## What may change")[1].split("With any other")[0]
    named = set(re.findall(r"`([a-z_.]+)`", told)) - {"study.uri"} | {"study"}
    assert named == {".".join(key) for key in KEYS_WITHOUT_EFFECT_ON_RESULTS}


@pytest.mark.parametrize("document", [*DOCS, TUTORIAL], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text_of(document)):
        if target.startswith(("http", "mailto:")):
            continue
        found = document.parent / target if target else document
        assert found.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{document.name} links to {target}#{anchor}"


def anchors(document: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCS, TUTORIAL], ids=lambda path: path.name)
def test_commands_are_those_of_the_program(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every `orchestrate VERB --option` that a page shows, inline or in a block."""
    for verb, rest in commands(text_of(document)):
        with pytest.raises(SystemExit) as left:
            main([verb, "--help"])
        assert left.value.code == 0, f"{document.name}: orchestrate {verb}"
        known = capsys.readouterr().out
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest):
            assert option in known, f"{document.name}: orchestrate {verb} {option}"


def commands(text: str) -> list[tuple[str, str]]:
    """(verb, what follows) of every command of a page; of prose about the program, nothing."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(orchestrate [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [re.match(r"\s*orchestrate ([a-z]+)\b([^#|;&]*)", line) for line in (*lines, *inline)]
    return [(match[1], match[2]) for match in found if match]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = executed(Path(folder))
    if said := complaints(made):
        sys.exit("\n".join(said))
    nbformat.write(made, TUTORIAL)

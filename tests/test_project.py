"""What the documents say is so: links lead somewhere, the script is the one that runs, every sweep has its header."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "core" / "zoo").glob("*/README.md")]
SWEEPS = sorted((ROOT / "sweeps").rglob("*.yaml"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_shows_the_script_that_runs() -> None:
    assert (ROOT / "examples" / "edit.py").read_text() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)
def test_sweeps_open_with_what_a_user_asks_first(sweep: Path) -> None:
    header = sweep.read_text().split("\nname:")[0]
    for heading in ("# Purpose", "# Command", "# Hardware", "# Time", "# Result"):
        assert heading in header
    assert "<" not in header, "a figure that was not measured"


def test_every_file_with_slow_tests_has_a_promise() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| slow tests |")[2].partition("\n\n")[0]
    named = {
        name for cells in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(.*?)`", cells)
    }
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if "pytest.mark.slow" in file.read_text() and file.name != Path(__file__).name:
            path = file.relative_to(ROOT / "tests").with_suffix("")
            assert named & {*path.parts, *(str(Path(*path.parts[n:])) for n in range(len(path.parts)))}, path


def test_no_path_of_one_machine() -> None:
    for document in [*DOCUMENTS, *SWEEPS, ROOT / "Makefile", ROOT / "pyproject.toml"]:
        assert not re.search(r"(^|\s)/(home|root|Users|work)/", document.read_text()), document.name

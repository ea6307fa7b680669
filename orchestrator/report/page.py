"""Write a sweep's report as one HTML page that needs no network and no server, and no scripts for its tables.

Everything is inline, plotly.js too, and the page's policy forbids everything else. Its scripts are allowed by their
hashes, so that no name or reason from a sweep can run as a script.
"""

import io
import json
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from core.errors import UserError
from core.files import atomic_file
from core.intervals import interval_of
from core.pictures.opening import open_picture
from orchestrator import pages
from orchestrator.report.charts import Section, sections
from orchestrator.report.findings import Findings, read
from orchestrator.report.terminal import BETTER, OVER_RUNS, WHAT_AN_INTERVAL_IS, out_of_memory_lines
from orchestrator.spec import METRICS
from orchestrator.store.folder import SweepFolder
from orchestrator.text import number, plain, signed, with_interval

_LARGEST = 2 << 20  # bytes of a picture that is embedded unchanged
_WIDEST, _TALLEST = 1600, 16000  # pixels of a larger picture, after it is reduced


def write_report(folder: SweepFolder, to: Path) -> Path:
    """Write the page of a sweep as it is now, and return its path.

    Raises UserError where the sweep is missing or damaged, or `to` cannot be written; OSError for a full disk.
    """
    return write_page(read(folder), to)


def write_page(findings: Findings, to: Path) -> Path:
    """Write the page, replacing an old one, and return its path.

    Raises UserError where `to` cannot be written.
    """
    _refuse(to)
    content = page(findings)
    try:
        with atomic_file(to) as temporary:
            temporary.write_text(content)
    except PermissionError:
        raise UserError(f"--to: {to.parent} cannot be written to; name a file elsewhere with --to FILE.html") from None
    return to


def _refuse(to: Path) -> None:
    """Raise UserError where `to` is no place for a page."""
    if to.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--to: {to} is no page; name a file that ends in .html")
    if to.is_dir():
        raise UserError(f"--to: {to} is a folder; name a file such as {to / 'report.html'}")
    if not to.parent.is_dir():
        raise UserError(f"--to: the folder {to.parent} is not there; make it first, or name a file elsewhere")


def page(findings: Findings) -> str:
    """Return the page's HTML."""
    filters = {each.__name__: each for each in (plain, number, interval_of, unbroken, signed, with_interval)}
    jinja = pages.environment(filters=filters)
    parts = sections(findings)
    scripts = [get_plotlyjs(), pages.read("report.js")] if any(each.charts for each in parts) else []
    return jinja.get_template("report.html.j2").render(
        findings=findings,
        sections=parts,
        figures=_figures(parts),
        scripts=[Markup(script) for script in scripts],
        hashes=[pages.script_hash(script) for script in scripts],
        style=Markup(pages.read("report.css")),
        traversal=_traversal(findings),
        out_of_memory=out_of_memory_lines(findings.rows),
        better=BETTER,
        over_runs=OVER_RUNS,
        what_an_interval_is=WHAT_AN_INTERVAL_IS,
        modes=METRICS,
        version=version("h-space-orchestrator"),
    )


def unbroken(figure: str) -> str:
    """Return a figure with its interval such that a narrow column breaks it before the ± alone."""
    return figure.replace("± ", "±\N{NO-BREAK SPACE}")


def _figures(parts: list[Section]) -> Markup:
    """Return every figure as JSON that is safe within a script element."""
    figures = [json.loads(chart.figure.to_json()) for section in parts for chart in section.charts]
    return Markup(json.dumps(figures, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026"))


def _traversal(findings: Findings) -> str | None:
    """Return the champion's picture as a data URI; None where it is missing or cannot be read."""
    path = findings.folder.champion / "traversal.png"
    if findings.champion is None or path.is_symlink():
        return None
    try:
        with open_picture(path, "champion") as picture:
            picture.load()
            return _data_address(picture, path)
    except UserError:
        return None


def _data_address(picture: Image.Image, path: Path) -> str:
    if picture.format == "PNG" and path.stat().st_size <= _LARGEST:
        return pages.data_uri(path.read_bytes(), "PNG")
    smaller, content = picture.convert("RGB"), io.BytesIO()
    smaller.thumbnail((_WIDEST, _TALLEST))
    smaller.save(content, "WEBP", quality=85)
    return pages.data_uri(content.getvalue(), "WEBP")

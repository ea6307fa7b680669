"""tests/reported.md: every test that it names is there."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_named_test_is_there() -> None:
    text = (HERE / "reported.md").read_text()
    assert len(re.findall(r"^\| \[", text, re.MULTILINE)) >= 40
    file, missing = "", []
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if match := re.fullmatch(r"([\w/]+\.py)?(?:::(test_\w+))?", quoted):
            file = match[1] or file
            source = (HERE / file).read_text() if (HERE / file).is_file() else ""
            if not source or (match[2] and f"def {match[2]}(" not in source):
                missing.append(quoted)
    assert missing == []

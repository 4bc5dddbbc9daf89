"""What the documentation says of the code."""

import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
INTERFACES = TESTS.parent / "docs" / "interfaces.md"
PARAMETERS = TESTS.parent / "scripts" / "parameters.py"
PAGE = TESTS.parent / "docs" / "reliability.md"


def test_every_row_of_the_fault_table_names_tests_that_exist():
    text = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
    rows = dict(
        re.findall(r"^\| (\d+) \|(?:[^|]*\|){2}([^|]*)\|$", PAGE.read_text(), re.MULTILINE)
    )
    assert [int(number) for number in rows] == list(range(1, 33))
    for number, tests in rows.items():
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, number
        assert set(named) <= known, number


def test_parameters_are_documented_as_they_are_declared():
    """What `scripts/parameters.py --write` would put there stands there."""
    made = subprocess.run(
        [sys.executable, PARAMETERS], capture_output=True, text=True, check=True
    ).stdout
    assert "| `timeout_s` | float | 0.0 | silence before the safe action;" in made
    assert f"<!-- parameters -->\n{made}<!-- end of parameters -->" in INTERFACES.read_text()

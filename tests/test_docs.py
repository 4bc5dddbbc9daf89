"""What the documentation says of the code."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
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

"""What every inline check that asks for a number is tested for."""

import math
from typing import Any

import pytest

from q4lib.kit import check


class InlineCheck:
    """A test class of its lesson inherits this, with the check's `name` as a parameter."""

    @pytest.fixture
    def line(self, capsys):
        """What `check` prints of a value."""

        def line(name: str, value: object) -> str:
            check(name, value)
            return capsys.readouterr().out

        return line

    def test_other_values(self, line, name):
        assert line(name, None) == f"⏳ {name} not attempted yet\n"
        for value in ("many", [1, 2], math.nan, math.inf, True, {}):
            assert line(name, value).startswith(f"❌ {name} ")


class ListedAnswers(InlineCheck):
    """The same with tables by name: `right` has values, `wrong` has values and words of what is said of each."""

    right: Any
    wrong: Any

    def test_accepts_what_is_right(self, line, name):
        for value in self.right[name]:
            assert line(name, value).startswith(f"✅ {name} ")

    def test_says_what_was_done_wrong(self, line, name):
        said = set()
        for value, why in self.wrong[name]:
            told = line(name, value)
            assert told.startswith(f"❌ {name} ") and why in told, f"{value}: {told}"
            said.add(told.partition(": ")[2])
        assert len(said) >= len(self.wrong[name]) - 2, "each mistake has a message of its own"

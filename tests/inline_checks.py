"""What every inline check that asks for a number is tested for."""

import math

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

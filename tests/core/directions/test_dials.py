"""The range of a dial is one number wherever it is shown, and lies inside the measured one."""

import pytest

from core.directions.dials import Dial


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        ((-1.987, 2.4171), (-1.98, 2.41)),
        ((-1.15, 2.3), (-1.15, 2.3)),  # 1.15 * 100 is less than 115
        ((-0.004, 0.009), (0.0, 0.0)),
        ((-3.0, 3.0), (-3.0, 3.0)),
    ],
)
def test_a_range_is_rounded_inward(measured: tuple[float, float], shown: tuple[float, float]) -> None:
    dial = Dial(*measured, consistency=1.0, distinctness=1.0)
    assert dial.range == shown and not str(dial.range[0]).startswith("-0.0")

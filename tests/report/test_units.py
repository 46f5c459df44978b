import pytest

from oneround.report.units import decimal, duration, interval, percent, plus_minus, points, si


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(0.9124), "91.2 %"),
        (percent(None), "–"),
        (decimal(0.98749), "0.987"),
        (interval((0.894, 0.925), percent), "89.4–92.5 %"),
        (interval((0.9, 0.95), decimal), "0.900–0.950"),
        (plus_minus(0.894, 0.006, percent), "89.4 ± 0.6 %"),
        (plus_minus(0.9, 0.01, decimal), "0.900 ± 0.010"),
        (plus_minus(0.894, None, percent), "89.4 %"),
        (points(0.0123), "+1.2"),
        (points(-0.004), "−0.4"),
        (points(-0.0001), "+0.0"),
        (si(0, "B"), "0 B"),
        (si(999, "B"), "999 B"),
        (si(999_600, "B"), "1 MB"),
        (si(1_234_567, "B"), "1.23 MB"),
        (si(6.7e14, "FLOP"), "670 TFLOP"),
        (duration(3.21), "3.2 s"),
        (duration(59.4), "59 s"),
        (duration(59.6), "1 min 0 s"),
        (duration(245), "4 min 5 s"),
        (duration(7385), "2 h 3 min"),
    ],
)
def test_numbers(text, expected):
    assert text.replace("\u202f", " ") == expected

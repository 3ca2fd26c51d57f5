"""The line of an epoch shows rate and remaining time."""

import pytest

from semmae.console.progress import Progress


def test_a_remaining_time_above_a_day_is_shown_in_days(capsys: pytest.CaptureFixture[str]):
    with Progress("toy", steps=1001, per_epoch=1, batch_size=1, start=0, shown=True) as progress:
        progress.started -= 108  # seconds
        progress.done = 1
        progress.print_epoch({"epoch": 1, "loss": 1.0})
    assert "1 day, 6:00:0" in capsys.readouterr().err

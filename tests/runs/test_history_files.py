"""The curves of a run as files of DVCLive."""

from pathlib import Path

from semmae.runs.history_files import write_history


def test_the_curves_are_replaced_as_a_whole(tmp_path: Path):
    for history in ([{"epoch": 1, "loss": 3.0}], [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]):
        write_history(tmp_path / "live", "toy", history)
    lines = (tmp_path / "live/plots/metrics/toy/loss.tsv").read_text().split()
    assert lines == ["step", "loss", "1", "2.0", "2", "1.0"]

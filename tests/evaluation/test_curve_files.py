"""Curve files are read as they were written, and replace earlier ones."""

from semmae.evaluation import curve_files


def test_curves_are_read_as_they_were_written_without_values_that_are_not_finite(tmp_path):
    rows = [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": float("nan")}, {"epoch": 3, "loss": 0.1, "val_top1": 0.25}]
    curve_files.write(tmp_path / "toy", {"encoder": rows, "5_per_class": rows[:1], "knn": []})
    assert curve_files.read(tmp_path / "toy", "encoder") == {"loss": [(1, 2.5), (3, 0.1)], "val_top1": [(3, 0.25)]}
    assert (tmp_path / "toy/encoder/loss.tsv").read_text() == "epoch\tloss\n1\t2.5\n3\t0.1\n"
    assert curve_files.read(tmp_path / "toy", "5_per_class") == {"loss": [(1, 2.5)]}
    assert curve_files.read(tmp_path / "toy", "knn") == curve_files.read(tmp_path / "gone", "encoder") == {}
    curve_files.write(tmp_path / "toy", {"encoder": rows[:1]})
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.tsv")] == ["toy/encoder/loss.tsv"]


def test_without_curves_a_placeholder_keeps_the_folder(tmp_path):
    curve_files.write(tmp_path / "toy", {"knn": []})
    (kept,) = (tmp_path / "toy").iterdir()
    assert kept.read_text() == "[]\n"  # which dvc plots takes for a chart without points
    assert curve_files.read(tmp_path / "toy", "knn") == {}

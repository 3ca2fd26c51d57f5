"""The page of a comparison shows scores, noise, curves, pictures and parameters, and loads no other file."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from semmae.comparison import page, tables
from semmae.comparison.curve_chart import Curve, draw_curves
from semmae.comparison.pictures import RunPictures
from tests.report.html_page import HtmlPage

SCORES = ["knn.toy.top1"]
PARAMETER = "pretrain.masking.strategy"
NASTY = 'x<script>alert("1")</script>'


def table() -> pd.DataFrame:
    """Return two runs of a setting with equal scores but for a little, and one run of another."""
    return pd.DataFrame(
        {
            PARAMETER: ["random", "random", NASTY],
            "pretrain.seed": [0, 1, 0],
            "knn.toy.top1": [0.50, 0.52, 0.51],
            "knn.toy.top1_se": [0.03, 0.03, 0.03],
            "knn.toy.baselines.untrained.top1": [0.2, 0.2, 0.2],
        }
    )


def curves(*losses: float) -> dict[tuple[str, str], list[tuple[float, float]]]:
    shared = [(1.0, 0.5), (2.0, 0.25)]
    return {("teacher", "loss"): shared, ("pretrain", "loss"): list(enumerate(losses, 1)), ("pretrain", "lr"): shared}


@pytest.fixture
def html(tmp_path: Path) -> str:
    runs = table()
    groups = tables.group_settings(runs, [PARAMETER])
    square = np.full((8, 8, 3), 100, np.uint8)
    drawn = {name: RunPictures([square], [square], [square], [square]) for name in groups}
    content: dict[str, Any] = {
        "by": [PARAMETER],
        "reference": "random",
        "num_runs": len(runs),
        "messages": ["a message"],
        "settings": [{"label": name, "style": i, "runs": len(group)} for i, (name, group) in enumerate(groups.items())],
        "charts": page.score_charts(runs, groups, SCORES, "random"),
        "curves": page.curve_sections([("random", 0, curves(3.0, 2.0)), (NASTY, 1, curves(3.0, 1.0))]),
        "pictured": list(drawn),
        "pictures": page.picture_rows(drawn),
        "missing": ["x has no pictures: gone"],
        "params": page.parameter_rows(groups, ["pretrain.seed"]),
    }
    return page.write(tmp_path / "compare", content).read_text()


def test_the_page_tells_what_is_noise(html: str):
    text = HtmlPage(html).text
    assert f"The difference between {NASTY} and random is noise: +0.000, 95 % interval" in text
    assert "common variance" in text
    assert "0.510 ± 0.014" in text  # mean and standard deviation of two runs
    assert "0.510 ± 0.030" in text  # the only run has its sampling error
    assert "untrained encoder" in text


def test_only_curves_that_differ_are_drawn(html: str):
    found = HtmlPage(html)
    assert found.count("polyline") == 2  # pretrain's loss of two runs
    assert "All runs have the same curves in this stage." in found.text  # the teacher's
    assert found.text.count("lr") == 0


def test_pictures_of_the_settings_are_side_by_side(html: str):
    images = HtmlPage(html).images
    kinds = ("parts", "visible patches", "reconstruction")
    assert images == ["image 1", *(f"{kind}, {setting}" for kind in kinds for setting in ("random", NASTY))]
    assert "x has no pictures: gone." in HtmlPage(html).text


def test_the_page_loads_no_other_file_and_runs_no_script(html: str):
    assert "<script" not in html
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "default-src 'none'" in html


def test_scrolling_regions_can_be_focused_by_the_keyboard(html: str):
    regions = [attributes for _, attributes in HtmlPage(html).tags if attributes.get("class") == "scroll"]
    assert len(regions) == 2
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in regions)


def test_parameters_have_a_column_per_setting():
    groups = tables.group_settings(table(), [PARAMETER])
    assert page.parameter_rows(groups, ["pretrain.seed"]) == [("pretrain.seed", ["0, 1", "0"])]


def test_positions_are_shares_of_the_axis():
    [chart] = page.score_charts(table(), tables.group_settings(table(), [PARAMETER]), SCORES, "random")
    ends = [float(tick) for tick in (chart["ticks"][0], chart["ticks"][-1])]
    for row, value in zip(chart["rows"], (0.51, 0.51, 0.2), strict=True):
        assert row.mean == pytest.approx(100 * (value - ends[0]) / (ends[1] - ends[0]))


def test_a_curve_of_one_point_is_a_marker():
    chart = draw_curves([Curve("a", 0, [(1.0, 0.5)]), Curve("b", 1, [(1.0, 0.25)])], title="t", percent=True)
    assert chart.count('class="marker"') == 2
    assert "a 50 %, b 25 %" in chart

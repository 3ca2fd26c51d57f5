"""val_fraction moves its share of each class to val, and never splits a group."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from semmae.sharding.sources.folder import Tree
from semmae.sharding.sources.source_item import SourceItem
from semmae.sharding.sources.val_split import split_off_val


def entries(groups: dict[str, tuple[str, int]]) -> list[SourceItem]:
    """Make items from the class and the number of images of each group."""
    return [
        SourceItem(f"{group}/{i}.jpg", "train", label, None, None, "", group)
        for group, (label, size) in groups.items()
        for i in range(size)
    ]


def sides(found: list[SourceItem]) -> dict[str, set[str]]:
    side = defaultdict(set)
    for entry in found:
        side[entry.group].add(entry.split)
    return side


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides_and_the_fraction_is_met_by_class(seed):
    """Of c images in groups of at most g, a prefix of groups comes within g / 2 of any number."""
    groups = {f"{label}{i}": (label, 1 + (7 * i) % 5) for label in ("cat", "dog") for i in range(40)}
    found = split_off_val(entries(groups), 0.25, seed=seed, location="zoo")
    assert all(len(split) == 1 for split in sides(found).values())
    for label in ("cat", "dog"):
        have = Counter(entry.split for entry in found if entry.label == label)
        assert abs(have["val"] - 0.25 * have.total()) <= 0.5 + 5 / 2
    assert [entry.path for entry in found] == [entry.path for entry in entries(groups)]


def test_groups_of_equal_size_meet_the_fraction_exactly():
    found = split_off_val(entries({f"g{i}": ("cat", 6) for i in range(20)}), 0.3, seed=0, location="zoo")
    assert Counter(entry.split for entry in found) == {"val": 36, "train": 84}
    assert sides(found) != sides(
        split_off_val(entries({f"g{i}": ("cat", 6) for i in range(20)}), 0.3, seed=1, location="zoo")
    )


def test_a_group_of_several_classes_is_not_split():
    mixed = [
        SourceItem(f"{group}/{label}.jpg", "train", label, None, None, "", group)
        for group in map(str, range(10))
        for label in ("cat", "dog")
    ]
    found = split_off_val(mixed, 0.5, seed=0, location="zoo")
    assert all(len(split) == 1 for split in sides(found).values())
    assert Counter(entry.split for entry in found) == {"val": 10, "train": 10}


def test_too_few_groups_are_an_error():
    with pytest.raises(ValueError, match=r"zoo: val_fraction 0.2 moves no image to val: .* only 2 groups in 2"):
        split_off_val(entries({"a": ("cat", 9), "b": ("dog", 9)}), 0.2, seed=0, location="zoo")


def tree(root: Path, **changes) -> Tree:
    given = {"splits": None, "val_fraction": 0.5, "labels": True, "masks": None}
    return Tree(kind="folder", path=str(root), **(given | changes))


@pytest.mark.parametrize(
    ("group", "expected"),
    [("parent", "cat/{}"), (r"/(\d)/", "{}"), (r"cat/([02468])", None)],
)
def test_a_tree_is_grouped_by_its_folders_or_by_a_part_of_the_path(group, expected, tmp_path):
    for i in range(8):
        for j in range(3):
            path = tmp_path / f"cat/{i}/{j}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    found = tree(tmp_path, group=group).list_items(seed=0)
    for entry in found:
        number = entry.path.split("/")[1]
        if expected is None:
            assert entry.group == (number if int(number) % 2 == 0 else None)
        else:
            assert entry.group == expected.format(number)
    assert Counter(entry.split for entry in found) == {"train": 12, "val": 12}
    assert all(len(split) == 1 for group, split in sides(found).items() if group is not None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "a(b"}, "group 'a(b' is not a valid regular expression"),
        ({"group": "ab"}, "invalid group: 'ab'; expected parent, or a regular expression with one (capture)"),
        ({"group": "(a)(b)"}, "expected parent, or a regular expression with one (capture)"),
        ({"group": "parent", "val_fraction": None}, "group is set, but val_fraction is null"),
    ],
)
def test_a_group_that_means_nothing_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        tree(tmp_path, **changes)

"""Tables for a terminal and in Markdown."""

import pytest

from srgnn_jax import tables


def test_columns_of_a_terminal_are_as_wide_as_their_longest_cell():
    rows = [["", "SR-GNN valid", "POP"], ["recall@20", "50.00", ""]]
    assert tables.plain(rows) == [
        "           SR-GNN valid           POP",
        "recall@20         50.00",
    ]
    assert tables.plain([["a", "b"]], left=4, width=6) == ["a        b"]


def test_markdown_has_a_ruler_and_numbers_to_the_right():
    assert tables.markdown(["", "x"], [["a", "1"]]) == (
        "|  | x |\n| --- | ---: |\n| a | 1 |"
    )


@pytest.mark.parametrize(
    ("given", "shown"),
    [((0.5,), "50.00"), ((0.5, 0.001), "50.00 ± 0.10"), ((None,), "")],
)
def test_fractions_are_shown_in_percent(given, shown):
    assert tables.percent(*given) == shown

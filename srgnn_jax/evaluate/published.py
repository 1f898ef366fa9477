"""Published figures on the same preprocessing, to compare with a run's results.

A first-hand figure was read in the paper, its repository, its logs or a thread there; a
second-hand one is quoted by another paper, whose authors may have run the model
themselves.
"""

from typing import NamedTuple

# The length of the lists.
PUBLISHED_K = 20

# What chooses the epoch in the public code: test, separately for each metric, or
# validation; empty if there are no epochs.
TEST, VALIDATION, UNKNOWN = "test, per metric", "validation", "unknown"

WU = "Wu et al. 2019, table 2"
# Compares all models in one framework; the figures are from its poster and logs.
MIASREC = "in MiaSRec (2024)"
AUDIT = "an audit of 2026, unpublished"


class Figure(NamedTuple):
    """recall@20 and mrr@20 of a model on test, in percent; None: not given."""

    model: str
    recall: float | None
    mrr: float | None
    source: str
    chosen_on: str = UNKNOWN
    second_hand: bool = False


def _quoted(model: str, recall: float, mrr: float, source: str) -> Figure:
    return Figure(model, recall, mrr, source, second_hand=True)


def _of_wu(*rows: tuple[str, float, float]) -> tuple[Figure, ...]:
    """Returns the paper's figures; those of other models it ran or quotes."""
    chosen_on = {"POP": "", "S-POP": "", "Item-KNN": "", "SR-GNN": TEST}
    return tuple(
        Figure(*row, WU, chosen_on.get(row[0], UNKNOWN), row[0] != "SR-GNN")
        for row in rows
    )


def _of_miasrec(*rows: tuple[str, float, float]) -> tuple[Figure, ...]:
    return tuple(Figure(*row, MIASREC, VALIDATION, row[0] != "MiaSRec") for row in rows)


# By `counts.data_name`.
PUBLISHED: dict[str, tuple[Figure, ...]] = {
    "diginetica": (
        *_of_wu(
            ("POP", 0.89, 0.20),
            ("S-POP", 21.06, 13.68),
            ("Item-KNN", 35.75, 11.57),
            ("GRU4Rec", 29.45, 8.33),
            ("NARM", 49.70, 16.17),
            ("STAMP", 45.64, 14.32),
            ("SR-GNN", 50.73, 17.59),
        ),
        Figure("SR-GNN in RecBole", 51.02, 17.64, "pull request 888"),
        _quoted("TAGNN", 51.31, 18.03, "Yu et al. 2020"),
        _quoted("S2-DHCN, revised", 53.18, 18.44, "Xia et al. 2021"),
        _quoted("NISER+", 53.39, 18.72, "Gupta et al. 2019"),
        Figure("GCE-GNN", 54.22, 19.04, "Wang et al. 2020", TEST),
        Figure("STAN joined with a graph model", 54.70, 19.12, AUDIT, VALIDATION),
        _quoted("Mssen", 55.17, 19.64, "2024, perhaps a misprint"),
    ),
    "yoochoose_1_64": (
        *_of_wu(
            ("POP", 6.71, 1.65),
            ("S-POP", 30.44, 18.35),
            ("Item-KNN", 51.60, 21.81),
            ("GRU4Rec", 60.64, 22.89),
            ("NARM", 68.32, 28.63),
            ("STAMP", 68.74, 29.67),
            ("SR-GNN", 70.57, 30.94),
        ),
        _quoted("S2-DHCN, revised", 68.34, 27.89, "Xia et al. 2021"),
        _quoted("TAGNN", 71.02, 31.12, "Yu et al. 2020"),
        _quoted("NISER+", 71.27, 31.61, "Gupta et al. 2019"),
        _quoted("GCE-GNN", 72.18, 30.84, "Wang et al. 2020"),
        _quoted("GSN-IAS", 72.34, 31.45, "2022"),
        Figure("SGNN-HN", None, 32.61, "Pan et al. 2020", TEST, second_hand=True),
        Figure("GraphFine", 72.64, 31.93, "AAAI 2026, 55,696 test examples"),
    ),
    "yoochoose_1_4": _of_wu(
        ("POP", 1.33, 0.30),
        ("S-POP", 27.08, 17.75),
        ("Item-KNN", 52.31, 21.70),
        ("GRU4Rec", 59.53, 22.60),
        ("NARM", 69.73, 29.23),
        ("STAMP", 70.44, 30.00),
        ("SR-GNN", 71.36, 31.89),
    ),
    "retailrocket": (
        _quoted("SR-GNN", 50.32, 26.57, "in later papers"),
        _quoted("S2-DHCN, revised", 53.66, 27.30, "Xia et al. 2021"),
        _quoted("GCE-GNN", 53.63, 28.01, "Wang et al. 2020, in one later paper"),
        _quoted("GCE-GNN", 55.78, 28.72, "Wang et al. 2020, in another"),
        _quoted("MTAW", 56.39, 30.52, "2023"),
        _quoted("GSN-IAS", 57.13, 29.97, "2022"),
        _quoted("RESTC", 57.81, 30.82, "2022"),
        Figure("GraphFine", 58.85, 31.17, "AAAI 2026"),
    ),
    "tmall": (
        _quoted("SR-GNN", 27.57, 13.72, "in later papers"),
        _quoted("S2-DHCN, revised", 31.42, 15.05, "Xia et al. 2021"),
        _quoted("GCE-GNN", 33.42, 15.42, "Wang et al. 2020"),
        _quoted("GSN-IAS", 34.95, 17.71, "2022"),
        _quoted("MTAW", 37.17, 19.14, "2023"),
        _quoted("Mssen", 38.51, 19.60, "2024"),
        _quoted("RESTC", 42.47, 18.52, "2022"),
        Figure("GraphFine", 48.48, 21.45, "AAAI 2026"),
    ),
    "diginetica_811": _of_miasrec(
        ("Atten-Mixer", 49.84, 17.07),
        ("SGNN-HN", 50.60, 17.28),
        ("CORE", 52.89, 18.53),
        ("MSGIFSR", 53.20, 18.37),
        ("MiaSRec", 53.54, 19.47),
    ),
    "retailrocket_811": _of_miasrec(
        ("SGNN-HN", 57.43, 35.39),
        ("Atten-Mixer", 59.49, 36.25),
        ("CORE", 61.77, 38.49),
        ("MSGIFSR", 63.04, 38.42),
        ("MiaSRec", 63.37, 39.23),
    ),
    "yoochoose_811": _of_miasrec(
        ("SGNN-HN", 61.60, 27.97),
        ("Atten-Mixer", 63.73, 29.32),
        ("CORE", 64.64, 28.25),
        ("MSGIFSR", 65.20, 30.02),
        ("MiaSRec", 65.37, 30.74),
    ),
    "tmall_811": _of_miasrec(
        ("MSGIFSR", 35.39, 22.19),
        ("Atten-Mixer", 38.76, 28.52),
        ("SGNN-HN", 39.71, 24.16),
        ("CORE", 44.91, 31.59),
        ("MiaSRec", 55.94, 33.57),
    ),
    "lastfm_811": _of_miasrec(
        ("SGNN-HN", 22.72, 7.66),
        ("MSGIFSR", 22.73, 8.20),
        ("CORE", 22.75, 7.83),
        ("Atten-Mixer", 22.93, 8.74),
        ("MiaSRec", 25.85, 9.95),
    ),
}

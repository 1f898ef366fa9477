"""What others published on the same preprocessing, to be set beside what a run reaches.

Recall@20 and MRR@20 on test, in percent. The public codes of SR-GNN and its followers
choose the epoch on test, for each metric apart. Figures of other models than SR-GNN are
quoted at second hand.
"""

from typing import NamedTuple


class Figures(NamedTuple):
    """One row of a published table: recall@20 and mrr@20 in percent."""

    model: str
    recall: float
    mrr: float
    source: str


# The length of the lists.
PUBLISHED_K = 20


WU = "Wu et al. 2019, table 2"
YU = "Yu et al. 2020 (TAGNN)"
GUPTA = "Gupta et al. 2019 (NISER+)"
WANG = "Wang et al. 2020 (GCE-GNN)"

# By the name of the data, see `counts.data_name`.
PUBLISHED: dict[str, tuple[Figures, ...]] = {
    "diginetica": (
        Figures("POP", 0.89, 0.20, WU),
        Figures("S-POP", 21.06, 13.68, WU),
        Figures("Item-KNN", 35.75, 11.57, WU),
        Figures("GRU4Rec", 29.45, 8.33, WU),
        Figures("NARM", 49.70, 16.17, WU),
        Figures("STAMP", 45.64, 14.32, WU),
        Figures("SR-GNN", 50.73, 17.59, WU),
        Figures("TAGNN", 51.31, 18.03, YU),
        Figures("NISER+", 53.39, 18.72, GUPTA),
        Figures("GCE-GNN", 54.22, 19.04, WANG),
    ),
    "yoochoose_1_64": (
        Figures("POP", 6.71, 1.65, WU),
        Figures("S-POP", 30.44, 18.35, WU),
        Figures("Item-KNN", 51.60, 21.81, WU),
        Figures("GRU4Rec", 60.64, 22.89, WU),
        Figures("NARM", 68.32, 28.63, WU),
        Figures("STAMP", 68.74, 29.67, WU),
        Figures("SR-GNN", 70.57, 30.94, WU),
        Figures("TAGNN", 71.02, 31.12, YU),
        Figures("NISER+", 71.27, 31.61, GUPTA),
    ),
    "yoochoose_1_4": (
        Figures("POP", 1.33, 0.30, WU),
        Figures("S-POP", 27.08, 17.75, WU),
        Figures("Item-KNN", 52.31, 21.70, WU),
        Figures("GRU4Rec", 59.53, 22.60, WU),
        Figures("NARM", 69.73, 29.23, WU),
        Figures("STAMP", 70.44, 30.00, WU),
        Figures("SR-GNN", 71.36, 31.89, WU),
    ),
}

"""What others published on the same preprocessing, to be set beside what a run reaches.

A row is a model, its recall@20 and mrr@20 on test in percent, and the source. The
public codes of SR-GNN and its followers choose the epoch on test, for each metric
apart. Figures of other models than SR-GNN are quoted at second hand.
"""

# The length of the lists.
PUBLISHED_K = 20

WU = "Wu et al. 2019, table 2"
YU = "Yu et al. 2020 (TAGNN)"
GUPTA = "Gupta et al. 2019 (NISER+)"
WANG = "Wang et al. 2020 (GCE-GNN)"

# By the name of the data, see `counts.data_name`.
PUBLISHED: dict[str, tuple[tuple[str, float, float, str], ...]] = {
    "diginetica": (
        ("POP", 0.89, 0.20, WU),
        ("S-POP", 21.06, 13.68, WU),
        ("Item-KNN", 35.75, 11.57, WU),
        ("GRU4Rec", 29.45, 8.33, WU),
        ("NARM", 49.70, 16.17, WU),
        ("STAMP", 45.64, 14.32, WU),
        ("SR-GNN", 50.73, 17.59, WU),
        ("TAGNN", 51.31, 18.03, YU),
        ("NISER+", 53.39, 18.72, GUPTA),
        ("GCE-GNN", 54.22, 19.04, WANG),
    ),
    "yoochoose_1_64": (
        ("POP", 6.71, 1.65, WU),
        ("S-POP", 30.44, 18.35, WU),
        ("Item-KNN", 51.60, 21.81, WU),
        ("GRU4Rec", 60.64, 22.89, WU),
        ("NARM", 68.32, 28.63, WU),
        ("STAMP", 68.74, 29.67, WU),
        ("SR-GNN", 70.57, 30.94, WU),
        ("TAGNN", 71.02, 31.12, YU),
        ("NISER+", 71.27, 31.61, GUPTA),
    ),
    "yoochoose_1_4": (
        ("POP", 1.33, 0.30, WU),
        ("S-POP", 27.08, 17.75, WU),
        ("Item-KNN", 52.31, 21.70, WU),
        ("GRU4Rec", 59.53, 22.60, WU),
        ("NARM", 69.73, 29.23, WU),
        ("STAMP", 70.44, 30.00, WU),
        ("SR-GNN", 71.36, 31.89, WU),
    ),
}

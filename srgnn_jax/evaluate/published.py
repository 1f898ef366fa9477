"""What others published on the same preprocessing, to be set beside what a run reaches.

The public codes of SR-GNN and its followers choose the epoch on test, for each metric
apart. Figures of other models than SR-GNN are quoted at second hand.
"""

# The length of the lists.
PUBLISHED_K = 20

WU = "Wu et al. 2019, table 2"

# recall@20 and mrr@20 on test in percent, by `counts.data_name`; then the source.
COLUMNS = ("diginetica", "yoochoose_1_64", "yoochoose_1_4")
PUBLISHED = {
    "POP": ((0.89, 0.20), (6.71, 1.65), (1.33, 0.30), WU),
    "S-POP": ((21.06, 13.68), (30.44, 18.35), (27.08, 17.75), WU),
    "Item-KNN": ((35.75, 11.57), (51.60, 21.81), (52.31, 21.70), WU),
    "GRU4Rec": ((29.45, 8.33), (60.64, 22.89), (59.53, 22.60), WU),
    "NARM": ((49.70, 16.17), (68.32, 28.63), (69.73, 29.23), WU),
    "STAMP": ((45.64, 14.32), (68.74, 29.67), (70.44, 30.00), WU),
    "SR-GNN": ((50.73, 17.59), (70.57, 30.94), (71.36, 31.89), WU),
    "TAGNN": ((51.31, 18.03), (71.02, 31.12), None, "Yu et al. 2020 (TAGNN)"),
    "NISER+": ((53.39, 18.72), (71.27, 31.61), None, "Gupta et al. 2019 (NISER+)"),
    "GCE-GNN": ((54.22, 19.04), None, None, "Wang et al. 2020 (GCE-GNN)"),
}

"""Small synthetic raw files of the sources."""

import pickle

import numpy as np


def write_views(path):
    """Writes synthetic Diginetica views of 20 days; a session's are out of order."""
    lines = ["session_id;user_id;item_id;timeframe;eventdate"]
    for session in range(40):
        day = f"2016-05-{session // 2 + 1:02}"
        lines += [
            f"{session};NA;{10 + place};{place * 1000};{day}" for place in (2, 1, 0)
        ]
    path.write_text("\n".join(lines))


def write_clicks(path, rows=None):
    """Writes clicks (session, item, microseconds) in the Yoochoose challenge's form."""
    rows = rows or [
        (session, 21455 + place, (session * 43_200 + place) * 1_000_000 + 277_000)
        for session in range(40)
        for place in range(3)
    ]
    text = np.datetime_as_string(
        np.array([moment for *_, moment in rows], "datetime64[us]"), unit="ms"
    )
    path.write_text(
        "".join(
            f"{session},{moment}Z,{item},0\n"
            for (session, item, _), moment in zip(rows, text, strict=True)
        )
    )


def write_pickles(folder, train=None, test=None):
    """Writes the pickles of the published code; bytes are written as they are."""
    train = [[1, 2, 3], [2, 4]] if train is None else train
    test = ([[3, 1], [3], [4]], [2, 1, 1]) if test is None else test
    for name, what in (("all_train_seq.txt", train), ("test.txt", test)):
        data = what if isinstance(what, bytes) else pickle.dumps(what)
        (folder / name).write_bytes(data)

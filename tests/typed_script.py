"""What a user's script looks like to a type checker: `make lint` checks it."""

from typing import assert_type

import polars as pl

from srgnn_jax import Clicks, Recommender, train_and_evaluate
from srgnn_jax.configs import click_log
from srgnn_jax.serve.exported import Recommendation
from srgnn_jax.train.trained import Trained


def script(folder: str) -> None:
    """Trains on a frame, and recommends."""
    clicks = Clicks.from_frame(pl.read_csv(f"{folder}/log.csv"))
    config = click_log.get_config()
    trained = train_and_evaluate(config, f"{folder}/run", clicks=clicks)
    assert_type(trained, Trained | None)
    if trained:
        assert_type(trained.metrics, dict[str, float])
        assert_type(trained.step, int)
    recommender = Recommender.load(f"{folder}/run")
    sessions = clicks.sessions()
    assert_type(sessions, dict[str, list[str]])
    assert_type(recommender.recommend([["1", "2"]], k=5), list[Recommendation])
    assert_type(recommender.recommend_frame(sessions, k=5), pl.DataFrame)
    assert_type(recommender.explain(["1"], item="2").parts[0], float)

"""Clicks in a notebook's frame, in the place of files."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import polars as pl

from srgnn_jax.data import store
from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.records import names_of
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import Settings
from srgnn_jax.data.sources.source import COLUMN_SETTINGS
from srgnn_jax.data.visits import gather_visits
from srgnn_jax.errors import UserError

# Settings that mean nothing for a frame, whose columns have the usual names.
_OF_FILES = (*COLUMN_SETTINGS, "date_column", "event_column", "header", "log_file")


@dataclasses.dataclass(frozen=True)
class Clicks:
    """A click log in memory: `frame` has columns session, item, time, maybe event."""

    frame: pl.DataFrame

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        session: str = "",
        item: str = "",
        time: str = "",
        event: str = "",
    ) -> "Clicks":
        """Takes the columns of a pandas or polars frame.

        Args:
          frame: one click a row, or one session with its items in a list; rows may be
            in any order.
          session: name of a column of ids; as the next two looked for by usual names if
            empty.
          item: the same for what was clicked.
          time: dates, or numbers since 1970.
          event: what a click was; read if it is named.

        Raises:
          UserError: a column is missing, or `frame` is no frame.
        """
        try:
            frame = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(frame)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            kind = type(frame).__name__
            raise UserError(f"a {kind} is no pandas or polars frame") from error
        form = Form(Columns(session, item, time, event=event))
        names = form.names(names_of(frame.schema), "the frame")
        return cls(frame.select(pl.col(name).alias(n) for n, name in names.items()))

    def read(self, settings: Settings) -> tuple[pl.DataFrame, dict[str, int]]:
        """Returns the clicks and counts; see `read.read_clicks`."""
        form = dataclasses.replace(settings.form, columns=Columns())
        return read_clicks({"the frame": self.frame}, form)

    def prepare(self, settings: Settings, prepared_dir: pathlib.Path) -> Dataset:
        """Returns the data set that the same clicks in a file would be."""
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            self.frame.write_parquet(folder / "clicks.parquet")
            how = vars(settings) | dict.fromkeys(_OF_FILES, "")
            return store.load_dataset(
                "click_log", data_dir=folder, prepared_dir=prepared_dir, **how
            )

    def sessions(self, **visits: Any) -> dict[str, list[str]]:
        """Returns the items of each session, oldest first, by the session's id.

        They are what `Recommender.recommend` takes. `visits`: see
        `visits.gather_visits`; the last visit of each id is returned.
        """
        clicks, _ = self.read(Settings())
        gathered = gather_visits(clicks, **visits)
        raw = gathered.raw_items.cast(pl.String).to_list()
        ids = gathered.ids.cast(pl.String).to_list()
        last = gathered.last_of_each_id().tolist()
        return {ids[s]: [raw[i] for i in gathered.sessions[s]] for s in last}

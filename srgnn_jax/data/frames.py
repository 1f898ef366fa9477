"""Clicks in a notebook's frame, in the place of files."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import polars as pl

from srgnn_jax.data import records, store
from srgnn_jax.data.columns import Columns, Form
from srgnn_jax.data.read import read_clicks
from srgnn_jax.data.sessions import Dataset
from srgnn_jax.data.sources import Settings
from srgnn_jax.data.visits import gather_visits
from srgnn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Clicks:
    """A click log in memory: a frame, and the names given of its columns."""

    frame: pl.DataFrame
    columns: Columns

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
          session: column of session ids; if empty, found by its usual names, as the
            next two.
          item: column of item ids.
          time: dates, or numbers since 1970.
          event: what a click was; empty: the one that the config names.

        Raises:
          UserError: a column is missing, or `frame` is no frame.
        """
        try:
            frame = frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(frame)
        except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
            kind = type(frame).__name__
            raise UserError(f"a {kind} is no pandas or polars frame") from error
        columns = Columns(session, item, time, event=event)
        names = Form(columns).names(records.names_of(frame.schema), "the frame")
        for role, name in names.items():
            records.column_of(frame, role, name, "the frame")
        return cls(frame, columns)

    def read(self, settings: Settings) -> tuple[pl.DataFrame, dict[str, int]]:
        """Returns the clicks and counts; see `read.read_clicks`."""
        form = self._in_frame(settings).form
        return read_clicks({"the frame": self.frame}, form)

    def prepare(self, settings: Settings, prepared_dir: pathlib.Path) -> Dataset:
        """Returns the data set that the same clicks in a file would be."""
        settings = self._in_frame(settings)
        fields = records.names_of(self.frame.schema)
        names = settings.form.names(fields, "the frame")
        used = self.frame.select(records.outer_columns(self.frame.schema, names))
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            used.write_parquet(folder / "clicks.parquet")
            return store.load_dataset(
                "click_log",
                data_dir=folder,
                prepared_dir=prepared_dir,
                **vars(settings),
            )

    def _in_frame(self, settings: Settings) -> Settings:
        """Returns the settings with the columns of the frame, and none of a file."""
        named = {f"{role}_column": name for role, name in vars(self.columns).items()}
        # `from_frame` leaves these to the config.
        named["date_column"] = settings.date_column
        named["event_column"] = self.columns.event or settings.event_column
        return dataclasses.replace(settings, header="", log_file="", **named)

    def sessions(self, **fields: Any) -> dict[str, list[str]]:
        """Returns the items of each session, oldest first, by the session's id.

        This is what `Recommender.recommend` takes. `fields` are those of a config that
        say how clicks are read and cut into visits, such as `on_bad_row="skip"` or
        `session_gap_minutes=30`. Of each id, the last visit is returned.
        """
        settings = Settings(**fields)
        clicks, _ = self.read(settings)
        gathered = gather_visits(clicks, **settings.visits)
        raw = gathered.raw_items.cast(pl.String).to_list()
        ids = gathered.ids.cast(pl.String).to_list()
        last = gathered.last_of_each_id().tolist()
        return {ids[s]: [raw[i] for i in gathered.sessions[s]] for s in last}

"""Ids of sessions and items: which are missing, and which are the same id."""

import logging
from collections.abc import Sequence

import polars as pl

from srgnn_jax.errors import UserError

# What tools write for a missing value; the default of `config.missing_values`.
MISSING = ("NULL", "null", "None", "NaN", "nan", "NA", "N/A", r"\N")
# These look missing, too; ids like them give a warning.
SUSPICIOUS = (
    *("null", "none", "nan", "na", "n/a", r"\n", "undefined", "nil", "-"),
    *("<na>", "#n/a", "nat", "(null)", "[null]", "<null>", "(none)", "(not set)"),
)
_WHOLE = r"^-?\d+(\.0+)?$"
# Ids that a spreadsheet has rounded: 1.23457E+16.
_SCIENTIFIC = r"^-?\d(\.\d+)?[eE]\+?\d{2,}$"

log = logging.getLogger(__name__)


class IdColumn:
    """Reads a column of ids chunk by chunk, whatever its type.

    If all ids of a column are whole numbers, they become integers: 7, 7.0 and "7.0" are
    the same id. Leading zeros are kept: then all ids are text.
    """

    def __init__(self, name: str, missing: Sequence[str] = MISSING):
        self.name = name
        self._missing = list(missing)
        self._chunks: list[pl.Series] = []

    def __call__(self, column: pl.Series) -> pl.Series:
        """Returns the ids of a chunk in some type, null if one is missing."""
        dtype = column.dtype
        if dtype.is_integer():
            fits = column.cast(pl.Int64, strict=False)
            if fits.null_count() > column.null_count():
                return column.cast(pl.String)
            return fits
        if dtype.is_float():
            return self._of_floats(column)
        text = column.cast(pl.String, strict=False)
        whole = text.cast(pl.Int64, strict=False)
        if not whole.null_count() and (whole.cast(pl.String) == text).all():
            return whole
        text = text.str.strip_chars()
        text = text.set(text.is_in(["", *self._missing]), None)
        whole = text.cast(pl.Int64, strict=False)
        # Every id is missing or an integer in its usual spelling.
        alike = (whole.cast(pl.String) == text).fill_null(True).all()
        return whole if alike and whole.null_count() == text.null_count() else text

    def _of_floats(self, column: pl.Series) -> pl.Series:
        number = column.cast(pl.Float64)
        number = number.set(~number.is_finite(), None)
        most = 2**24 if column.dtype == pl.Float32 else 2**53
        if (number.abs() >= most).any():
            raise UserError(
                f"the {self.name} column holds {column.dtype}, which is not exact for "
                f"whole numbers from {most:,} on: different ids have become one; write "
                "them as integers or text"
            )
        return number

    def keep(self, ids: pl.Series) -> None:
        """Keeps ids that were returned for a chunk, without nulls."""
        if ids.dtype == pl.Int64:
            # Half the memory, if the ids fit.
            short = ids.cast(pl.Int32, strict=False)
            ids = ids if short.null_count() else short
        self._chunks.append(ids)

    def join(self) -> pl.Series:
        """Returns all ids, as integers or text; drops the chunks, warns of odd ids."""
        chunks, self._chunks = self._chunks, []
        floats = [c for c in chunks if c.dtype.is_float()]
        if all((c == c.floor()).all() for c in floats):
            chunks = [c.cast(pl.Int64) if c.dtype.is_float() else c for c in chunks]
        are_text = not all(c.dtype.is_integer() for c in chunks)
        wide = any(c.dtype == pl.Int64 for c in chunks)
        kind = pl.String if are_text else pl.Int64 if wide else pl.Int32
        ids = pl.concat([c.cast(kind) for c in chunks])
        # A chunk may be text only because of rows that were not kept.
        if are_text and all(s.str.contains(_WHOLE).all() for s in (ids.head(100), ids)):
            ids = ids.str.replace(r"\.0+$", "")
            whole = ids.cast(pl.Int64, strict=False)
            is_number = not whole.null_count() and (whole.cast(pl.String) == ids).all()
            ids = whole if is_number else ids
        if ids.dtype == pl.String:
            self._warn(ids)
        return ids.rename(self.name)

    def _warn(self, ids: pl.Series) -> None:
        shortened = ids.filter(ids.str.contains(_SCIENTIFIC))
        if len(shortened):
            log.warning(
                "%s %s ids, such as %s, were rounded by a spreadsheet: different ids "
                "may have become one; export ids as text",
                *(f"{len(shortened):,}", self.name, shortened[0]),
            )
        odd = ids.filter(ids.str.to_lowercase().is_in(SUSPICIOUS))
        for word, clicks in odd.value_counts(sort=True).head(3).rows():
            log.warning(
                "%s clicks have the %s %r: if that means it is missing, add it to "
                "config.missing_values",
                *(f"{clicks:,}", self.name, word),
            )

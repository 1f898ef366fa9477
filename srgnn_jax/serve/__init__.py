"""Recommends to sessions in Python, in files and streams, and over HTTP; exports."""

# Must come before polars: it works around a side effect of polars' first import.
import srgnn_jax.data  # noqa: F401

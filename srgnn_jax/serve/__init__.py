"""Recommendations: for sessions in Python, files and streams, over HTTP, as exports."""

# Before polars, whose first import it mends.
import srgnn_jax.data  # noqa: F401

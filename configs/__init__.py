"""One Python file per data set; default.py has every field."""

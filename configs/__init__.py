"""One Python file a data set; default.py holds every field."""

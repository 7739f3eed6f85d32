"""The report of a run: one JSON document, and its pictures in one HTML file."""

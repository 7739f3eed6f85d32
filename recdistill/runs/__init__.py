"""Runs: a job, its controls and its seeds, from the log to the report, in one folder."""

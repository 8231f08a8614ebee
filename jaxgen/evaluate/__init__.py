"""Judging: likelihood on the test split, quality of samples, and the report."""

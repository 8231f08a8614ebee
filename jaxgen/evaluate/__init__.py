"""Judging: likelihood on the whole test split, and the report."""

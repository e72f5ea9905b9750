"""Judging: rules read records and return findings, the same way live and from a file. No torch, no rendering."""

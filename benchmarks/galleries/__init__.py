"""Ill and healthy runs, trained and judged: how often GradWatch is right, beside the rules of its peers."""

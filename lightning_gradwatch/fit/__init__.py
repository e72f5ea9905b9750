"""A fit in a Trainer: when a step is measured, for whom, what came of it. What is Lightning's stays in here."""

"""`check_training`, and what stands behind the pytest plugin, which must stay light: nothing is imported here."""

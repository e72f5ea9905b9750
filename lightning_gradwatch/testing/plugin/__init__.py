"""What stands behind the pytest plugin; it imports nothing heavy until a test is watched."""

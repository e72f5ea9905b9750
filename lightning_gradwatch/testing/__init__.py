"""What stands behind the pytest plugin and `check_training`. Only `watch` imports torch and Lightning."""

"""What the tests' own processes need where the suite is a job in a shell's background."""

LISTENS_TO_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
"""To be run first: such jobs inherit that Ctrl-C is ignored."""

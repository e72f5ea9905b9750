"""Where records are written: a logger's event file, one of ours, other loggers."""

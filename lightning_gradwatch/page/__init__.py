"""The page that shows runs: its model as plain data, one file that holds it, and what runs in the browser (`static/`)."""

"""TensorBoard in a process of its own, on a port of the system's choice; ends with its standard input."""

import sys

from tensorboard import default, program

from lightning_gradwatch.tab.loader import GradWatchLoader

if __name__ == "__main__":
    plugins = default.get_plugins()
    if GradWatchLoader not in plugins:  # an environment that was made before the tab was
        plugins.append(GradWatchLoader)
    server = program.TensorBoard(plugins=plugins)
    server.configure(["tensorboard", "--port", "0", "--host", "127.0.0.1", "--reload_interval", "1", *sys.argv[1:]])
    print(server.launch(), flush=True)  # noqa: T201 - where it is
    sys.stdin.read()

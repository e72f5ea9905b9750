"""Walks over an autograd graph that somebody else made, each of which ends: a node is entered once, and so many are at most.

Autograd's own graphs have no cycles. But where a walk steps over a call, from what it made to what it was given, what it
was told of that call may be wrong, as after an in-place operation: then the way leads in a circle.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from torch.autograd.function import BackwardCFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from torch.autograd.graph import Node

    Vertex = TypeVar("Vertex", bound=Hashable)
    Made = TypeVar("Made")

MOST_NODES = 1_000_000
"""Nodes that a walk enters at most. To go back through so many takes the user's own backward pass several seconds; the walk
would add about one."""
GENERATED = "GeneratedBackwardFor_"
"""How torch begins the name of a node that it makes for an operator registered with ``torch.library``."""
TOO_LARGE = (
    f"the autograd graph of a pass has more than {MOST_NODES:,} operations: what feeds what isn't followed in it"
)


@lru_cache(maxsize=1024)
def is_foreign(kind: Any) -> bool:
    """Whether nodes of a type are of an operation from outside of torch, given the type: what one does, nobody here knows.

    That is a custom autograd function, or an operator that an extension registered (flash-attn, xformers, Mamba's scans).
    """
    if not issubclass(kind, BackwardCFunction):
        return bool(kind.__name__ == "CppFunction")
    made_for: type = getattr(kind, "_forward_cls", kind)
    return kind.__name__.startswith(GENERATED) or not f"{made_for.__module__}.".startswith("torch.")


def is_kernel(kind: Any) -> bool:
    """Whether nodes of a type are of an operator that an extension registered, which may hold anything, given the type."""
    return bool(kind.__name__ == "CppFunction" or kind.__name__.startswith(GENERATED))


def foreign_name(node: Any) -> str:
    """Return what a node's operation from outside of torch is called by its makers.

    >>> from types import SimpleNamespace
    >>> foreign_name(SimpleNamespace(name=lambda: "torch::autograd::CppNode<ssm::Scan>"))
    'ssm::Scan'
    """
    made_for = getattr(type(node), "_forward_cls", None)
    if made_for is not None and not type(node).__name__.startswith(GENERATED):
        return str(made_for.__qualname__)
    name = str(node.name())
    if name.startswith(GENERATED):
        return name.removeprefix(GENERATED).removesuffix("Backward").removesuffix("_default")
    return name.removeprefix("torch::autograd::CppNode<").removesuffix(">")


class Walk:
    """One way through a graph: each node once, whichever way it is reached, until there are too many."""

    def __init__(self, most: int = MOST_NODES) -> None:
        self._left = most
        self.whole = True
        """Whether there were few enough."""

    def each(
        self, starts: Iterable[Vertex], following: Callable[[Vertex], Iterable[tuple[Vertex | None, object]]]
    ) -> Iterator[Vertex]:
        """Yield the nodes that can be reached, those at the start too."""
        waiting = deque(dict.fromkeys(starts))
        seen = set(waiting)
        while waiting:
            if self._left <= 0:
                self.whole = False
                return
            self._left -= 1
            node = waiting.pop()
            yield node
            for after, _ in following(node):
                if after is not None and after not in seen:
                    seen.add(after)
                    waiting.append(after)

    def gather(
        self,
        root: Vertex,
        gathered: dict[Vertex, Made],
        *,
        following: Callable[[Vertex], Sequence[tuple[Vertex | None, object]]],
        leaf: type,
        nothing: Made,
        union: Callable[[Made, Made], Made],
        finish: Callable[[Vertex, Made], Made],
    ) -> Made:
        """Return what `finish` makes of a node and of all that the nodes it follows from were made into, put together.

        Args:
            root: The node.
            gathered: What nodes were made into so far; those of this walk are added. A node in there isn't entered again,
                also one whose own turn hasn't come: what leads back to it adds nothing.
            following: The edges of a node.
            leaf: Nodes that aren't looked at.
            nothing: What a node follows from that has no edges.
            union: Puts together what two nodes were made into.
            finish: Called with a node and the union of what it follows from.
        """
        known = gathered.get(root)
        if known is not None:
            return known
        path: list[tuple[Vertex, Iterator[tuple[Vertex | None, object]], Made]] = []
        gathered[root] = nothing
        node, edges, found = root, iter(following(root)), nothing
        while True:  # no recursion: graphs are deeper than Python's stack
            for earlier, _ in edges:
                if earlier is None or type(earlier) is leaf:
                    continue
                known = gathered.get(earlier)
                if known is not None:
                    found = known if found is nothing else union(found, known)
                elif self._left > 0:
                    self._left -= 1
                    gathered[earlier] = nothing
                    path.append((node, edges, found))
                    node, edges, found = earlier, iter(following(earlier)), nothing
                    break
                else:
                    self.whole = False
            else:
                made = gathered[node] = finish(node, found)
                if not path:
                    return made
                node, edges, found = path.pop()
                found = made if found is nothing else union(found, made)


def edges(node: Node) -> tuple[tuple[Node | None, int], ...]:
    """Return the edges of a node, towards the input."""
    return node.next_functions

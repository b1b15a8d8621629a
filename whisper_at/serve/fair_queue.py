"""A queue in which clients take turns: who asks for much does not keep the others waiting."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several clients: one of each before a second of any, those of one client in the order they came.

    Examples
    --------
    >>> queue = FairQueue()
    >>> for client, item in ("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5):
    ...     queue.add(client, item)
    >>> list(queue)
    [1, 4, 5, 2, 3]
    >>> queue.served("a")
    >>> list(queue)
    [4, 5, 1, 2, 3]
    """

    def __init__(self) -> None:
        self._items: OrderedDict[str, list[T]] = OrderedDict()

    def add(self, client: str, item: T) -> None:
        """Add an item behind the others of its client."""
        self._items.setdefault(client, []).append(item)

    def remove(self, client: str, item: T) -> None:
        """Take an item out; nothing happens where it is not."""
        items = self._items.get(client, [])
        if item in items:
            items.remove(item)
        if not items:
            self._items.pop(client, None)

    def served(self, client: str) -> None:
        """Let all others have their turn before this client."""
        if client in self._items:
            self._items.move_to_end(client)

    def count(self, client: str) -> int:
        """Return how many items a client has."""
        return len(self._items.get(client, ()))

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def __iter__(self) -> Iterator[T]:
        """Yield the items in the order of their turns; the queue may change meanwhile."""
        queues = [list(items) for items in self._items.values()]
        for place in range(max(map(len, queues), default=0)):
            yield from (items[place] for items in queues if place < len(items))

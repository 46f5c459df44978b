"""Questions to nodes that come, go, are slow or die, and their answers."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from oneround.federation.flower.messages import content, facts_of
from oneround.federation.site import Fact

log = logging.getLogger("oneround.federation")


@dataclass
class Node:
    """One node, and what became of it.

    Attributes:
        node_id: Flower's number of the node.
        site: Name that the node gives, which proves nothing; empty: none so far.
        outcome: What became of the node, for the report; empty: nothing so far.
        well: Whether all went well.
    """

    node_id: int
    site: str = ""
    outcome: str = ""
    well: bool = False

    def __str__(self) -> str:
        return f"{self.site or 'a site unknown so far'} (node {self.node_id})"

    def end(self, outcome: str, *, well: bool = False) -> None:
        """Keep what became of it, and log it."""
        self.outcome, self.well = outcome, well
        log.log(logging.INFO if well else logging.WARNING, "%s %s", self, outcome)


@dataclass
class Conversation:
    """Asks every node that comes online, until all have answered or the time is over.

    Args:
        grid: Flower's connection to the nodes.
        until: Time by which a node has to have answered, in seconds since 1970.
        wait: Seconds to wait for nodes that are not online, when no other is to answer.
        poll: Seconds between two looks for answers.

    Attributes:
        nodes: All nodes, in the order in which they came; one that was lost and is back is there
            twice.
    """

    grid: Grid
    until: float
    wait: float
    poll: float
    nodes: list[Node] = field(default_factory=list)
    _online: dict[int, Node] = field(default_factory=dict)
    _open: dict[str, Node] = field(default_factory=dict)

    def run(
        self,
        greet: Callable[[Node], None],
        take: Callable[[Node, Message], None],
        complete: Callable[[], bool],
    ) -> None:
        """Until the time is over, or nobody is to answer and all is ``complete`` or ``wait`` over.

        Args:
            greet: Function that asks a node that is new.
            take: Function that takes an answer, and may ask again.
            complete: Function that says whether no further node is needed.
        """
        quiet = time.time()
        while time.time() < self.until:
            new = [n for n in self.grid.get_node_ids() if n not in self._online]
            for node_id in new:
                self.nodes.append(Node(node_id))
                self._online[node_id] = self.nodes[-1]
                greet(self.nodes[-1])
            for reply in list(self.grid.pull_messages(list(self._open))) if self._open else []:
                self._take(reply, take)
            if new or self._open:
                quiet = time.time()
            elif complete() or time.time() >= quiet + self.wait:
                return
            time.sleep(self.poll)
        for node in self._open.values():
            node.end("did not answer in time")

    def ask(
        self,
        node: Node,
        kind: str,
        facts: Mapping[str, Fact],
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Send a question; the answer is taken by :meth:`run`."""
        lifetime = max(1.0, self.until - time.time())
        question = Message(content(facts, files), node.node_id, kind, ttl=lifetime)
        for message_id in self.grid.push_messages([question]):
            if message_id:
                self._open[message_id] = node
            else:
                node.end("could not be asked")

    def _take(self, reply: Message, take: Callable[[Node, Message], None]) -> None:
        node = self._open.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            return
        if reply.has_error():
            self._online.pop(node.node_id, None)  # greeted again when it is back
            reason = re.sub(r"[^ -~]", "?", reply.error.reason or "")[:200]
            node.end(f"was lost before it answered (Flower's code {reply.error.code}: {reason})")
            return
        site = str(facts_of(reply).get("site", ""))
        node.site = node.site or (site if re.fullmatch(r"[A-Za-z0-9._ -]{1,64}", site) else "")
        take(node, reply)

"""Rows about circuits: what is known, how well it is recovered, and what the report draws."""

from pydantic import Field

from stages.contracts.record import Record, ResultFile

__all__ = [
    "CIRCUITS",
    "DRAWINGS",
    "KNOWN_CIRCUITS",
    "CircuitDrawing",
    "CircuitRow",
    "Drawings",
    "DrawnEdge",
    "DrawnNode",
    "KnownCircuit",
    "TimedCircuitRow",
]


class CircuitRow(Record):
    """One discovery method on one known circuit, means over seeds."""

    card: str = Field(title="circuit")
    """Known circuit: <subject>-<length>-<ablation>."""
    subject: str
    """Compiled program or planted network."""
    ablation: str
    """What a cut edge carries: zero, the mean, or a resampled input."""
    length: int | None
    """Tokens per input, without the start token; null where inputs have no length."""
    method: str
    """Discovery method."""
    seeds: int
    """Samples of inputs, partners, starts and gates."""
    n_edges: int
    """Edges of the graph."""
    truth_edges: int
    """Edges of the known circuit."""
    truth_agrees: bool
    """Whether both derivations of the known circuit agree."""
    told_size: bool
    """Whether the method only ranks edges, and is given the size of the known circuit."""
    failed: str | None = None
    """Why the method does not apply here; then it has no numbers."""
    exact_recovery: float | None = None
    """Share of seeds in which exactly the known circuit is found."""
    exact_before_polish: float | None = None
    """The same before the last pruning step, where the method has one."""
    edge_auc: float | None = Field(default=None, title="edge AUC")
    """Area under the ROC curve of the edge scores against the known circuit."""
    node_auc: float | None = Field(default=None, title="node AUC")
    """The same for nodes, scored by their best edge."""
    precision_at_size: float | None = None
    """Share of true edges among the best, as many as the known circuit has."""
    precision: float | None = None
    """Share of the found edges that are true."""
    recall: float | None = None
    """Share of the true edges that are found."""
    size: float | None = None
    """Edges found."""
    cpr: float | None = Field(default=None, title="CPR")
    """Area under the faithfulness curve over circuit sizes (MIB); higher is better."""
    cmd: float | None = Field(default=None, title="CMD")
    """Area between the faithfulness curve and 1 (MIB); lower is better."""
    choice_bits: float | None = Field(default=None, title="bits of the choice")
    """Bits that say which edges of the graph are kept: log2(n + 1) + log2 C(n, size)."""
    unexplained_bits: float | None = Field(default=None, title="bits left")
    """Bits that an output (a softmax over the last axis) costs beyond its entropy, given the circuit: their KL
    divergence."""
    iou_of_seeds: float | None = Field(default=None, title="IoU of seeds")
    """Mean overlap of the circuits of two seeds (intersection over union)."""
    forwards: float | None = None
    """Forward passes per seed."""
    backwards: float | None = None
    """Backward passes per seed."""


class TimedCircuitRow(CircuitRow):
    """The same with its time, which is not stable: for the benchmark, never in a result file."""

    seconds_per_seed: float | None = None
    """Wall seconds per seed."""

    def untimed(self) -> CircuitRow:
        return CircuitRow(**self.model_dump(exclude={"seconds_per_seed"}, exclude_unset=True))


class KnownCircuit(Record):
    """A circuit that is known to be right, and how it was derived."""

    card: str
    """Its name: <subject>-<length>-<ablation>."""
    n_edges: int
    """Edges of the graph."""
    truth_edges: int | None
    """Edges of the circuit; null where its derivations disagree."""
    agree: bool
    """Whether the program (or plant) and the cuts give the same circuit."""
    unique: bool
    """Whether every order of cutting gives the same circuit."""
    irreducible: bool
    """Whether no edge can be left out."""
    orders: int
    """Orders of cutting that were tried."""
    subsets_tried: int
    """Subsets of edges that were tried."""
    edges: tuple[str, ...]
    """The edges, <source>-><reader>; none where the derivations disagree."""
    validity: tuple[str, ...]
    """What to be wary of, in words."""


class DrawnNode(Record):
    """A node of a drawing."""

    name: str
    """Name of the node."""
    layer: int
    """Column, from the inputs on."""
    slot: int
    """Place within the column, from below."""


class DrawnEdge(Record):
    """An edge of a drawing."""

    source: str
    """Node that writes."""
    reader: str
    """Node that reads, or <node>.<input>."""
    score: float
    """The method's score of the edge."""
    in_circuit: bool
    """Whether the method keeps it."""
    in_truth: bool | None
    """Whether it is in the known circuit; null where none is known."""


class CircuitDrawing(Record):
    """One found circuit beside the known one."""

    title: str
    """Method and circuit."""
    nodes: tuple[DrawnNode, ...]
    """Nodes at the ends of the edges drawn."""
    edges: tuple[DrawnEdge, ...]
    """At most 100 edges, those that matter first."""
    note: str
    """What is drawn and what is left out."""


class Drawings(Record):
    """data/circuits/drawings.json."""

    circuits: tuple[CircuitDrawing, ...]
    """Circuits for the report to draw."""


CIRCUITS = ResultFile(
    "circuits", tuple[CircuitRow, ...], "circuits", "how well circuit discovery recovers known circuits"
)
KNOWN_CIRCUITS = ResultFile("cards", tuple[KnownCircuit, ...], "circuits", "known circuits and how they were derived")
DRAWINGS = ResultFile("drawings", Drawings, "circuits", "drawings of circuits")

"""A port, ready: what it reads when every edge is cut, and how each parent's change reaches it.

Shape legend: S = masks, B = batch, U = units of a source, V = readers of a port.
"""

from collections.abc import Mapping
from copy import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.circuits.engine.graph import Block
from stages.circuits.engine.hooking import TOLERANCE, units_first
from stages.circuits.engine.mixing import Mixer, mixer_for
from stages.circuits.engine.tracing import Traced
from stages.errors import UserError

__all__ = ["Reader", "reader_of"]


class Reader:
    def __init__(
        self,
        block: Block,
        base: Tensor,
        plain: tuple[str, ...],
        columns: Tensor | None,
        mapped: dict[str, tuple[Mixer, slice]],
    ) -> None:
        self.block, self.base, self.plain, self.columns, self.mapped = block, base, plain, columns, mapped
        self.run: slice | None = None
        """Where the plain parents stand side by side on the shelf, if they do."""

    def of_group(self, index: int) -> "Reader":
        part = copy(self)
        part.base = self.base[index : index + 1]
        return part


def reader_of(
    model: nn.Module,
    block: Block,
    traced: Traced,
    ablated: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    slots: Mapping[str, tuple[int, int]],
    groups: int,
) -> Reader:
    """The reader of a block of edges.

    Args:
        traced: the clean run.
        ablated: (groups, U, B, ...) replacement of every node that writes.
        sizes: units of each node.
        slots: where each node stands on the shelf of its shape.
        groups: of the data.

    Raises:
        UserError: what it reads is not the sum of its parents and a constant, or a parent has another shape.
    """
    port, column, values = block.port, 0, traced.values
    plain: list[str] = []
    columns: list[int] = []
    mapped: dict[str, tuple[Mixer, slice]] = {}
    read = units_first(port.node, values[port.hook], groups, reading=block.n_readers)
    taken = torch.zeros_like(read)
    for parent in block.parents:
        assert parent.writes is not None
        size, where = sizes[parent.name], slice(column, column + sizes[parent.name])
        column += size
        written = units_first(parent, values[parent.writes], groups)
        name = port.node.map_from(parent.name)
        if name is None and (parent.part is None or parent.part.decoder is None):
            if written.shape[2:] != read.shape[2:]:
                raise UserError(
                    f"{port.node.name!r} cannot read {parent.name!r} as it is: {port.hook!r} holds"
                    f" {tuple(read.shape[2:])} per unit (batch first), {parent.writes!r} {tuple(written.shape[2:])};"
                    " name the module between them with through=, or the axis of the units with axis="
                )
            plain.append(parent.name)
            columns += range(where.start, where.stop)
            taken = taken + written.sum(1, keepdim=True)
        else:
            mixer = mixer_for(model, parent, port.node, name, values[parent.writes], read, block)
            mapped[parent.name] = (mixer, where)
            given = mixer(written, read.new_ones(groups, block.n_readers, size))
            if given.shape != read.shape:
                raise UserError(
                    f"what {parent.name!r} writes comes out of {name!r} as {tuple(given.shape[2:])} per unit (batch"
                    f" first), {port.hook!r} holds {tuple(read.shape[2:])}: put the hook point right after {name!r}, or"
                    " name the axis of the units with axis="
                )
            taken = taken + given
    constant = read - taken
    everywhere = constant.mean(dim=2, keepdim=True)
    scale = float(read.abs().max()) + 1e-6
    off = float((constant - everywhere).abs().max()) / scale
    if off > TOLERANCE:
        raise UserError(
            f"what {port.node.name!r} reads at {port.hook!r} is not the sum of its parents"
            f" ({', '.join(parent.name for parent in block.parents)}) and a constant: off by {off:.2g} of its largest"
            f" value. {_cause(block, traced)}"
        )
    # The constant stays per example, so that rounding cancels where nothing is cut and does not add up.
    reader = Reader(block, constant, tuple(plain), None, mapped)
    if mapped and plain:
        reader.columns = torch.tensor(columns)
    places = [slots[name] for name in plain]
    if plain and all(one[1] == two[0] for one, two in pairwise(places)):
        reader.run = slice(places[0][0], places[-1][1])
    reader.base = _with_ablated(reader, ablated)
    return reader


def _cause(block: Block, traced: Traced) -> str:
    changed = [f"{parent.writes!r}" for parent in block.parents if parent.writes in traced.changed]
    if changed:
        return (
            f"{', '.join(changed)} is changed in place after its hook point (mul_, relu_, +=): put the hook point after"
            " that, or work on a copy"
        )
    return "A source is undeclared, or a map between them is not named with through="


def _with_ablated(reader: Reader, ablated: Mapping[str, Tensor]) -> Tensor:
    base = reader.base
    for name in reader.plain:
        base = base + ablated[name].sum(1, keepdim=True)
    for name, (mixer, where) in reader.mapped.items():
        everything = base.new_ones(len(base), reader.block.n_readers, where.stop - where.start)
        base = base + mixer(ablated[name], everything)
    return base

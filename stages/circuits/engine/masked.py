"""One masked forward, for every algorithm and every HookedRootModule.

At each reader the hook point's value is replaced by

    constant + sum over sources u of  m_u * now_u + (1 - m_u) * ablated_u

where now_u is what u wrote earlier in the same pass, so that an ablation changes everything after it. Several masks run
as one batch. The constant (biases) is what the clean run leaves when the sources are taken away; it must be the same
for every input, or a source was not declared.

Shape legend: B = batch, S = masks at once, E = edges, U = units of a source, P = all sources of a port, V = readers of
a port, N = numbers per unit (batch, positions, width), D = width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.circuits.engine.ablation import (
    Ablation,
    check_ablation,
    derangement,
    mean_over,
)
from stages.circuits.engine.graph import (
    Block,
    Graph,
    Layout,
    Node,
)
from stages.circuits.engine.hooking import (
    TOLERANCE,
    attach,
    check_model,
    differs,
    point_of,
    size_of,
    units_back,
    units_first,
)
from stages.circuits.engine.mixing import Mixer, mixer_for
from stages.errors import UserError

__all__ = ["Cost", "MaskedForward"]

AT_ONCE = 4096
"""Examples of all masks together in one pass without gradients."""


class Cost:
    """Passes made: one forward is one mask over the whole data."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0

    def __sub__(self, other: "Cost") -> "Cost":
        left = Cost()
        left.forwards, left.backwards = self.forwards - other.forwards, self.backwards - other.backwards
        return left

    def copy(self) -> "Cost":
        return self - Cost()


class MaskedForward:
    """A module, its graph, its data and an ablation, ready to be run under any mask.

    Args:
        model: a HookedRootModule in eval mode.
        graph: its declaration.
        clean: (B, ...) inputs.
        ablation: what a cut source is replaced by; see ``ablation.py``.
        counterfactual: (B, ...) inputs, for ``interchange``.
        generator: draws the partners of ``resample``.
        groups: masks are given as (groups, E), and mask i is run on the i-th of as many equal parts of the data:
            several seeds, each with data of its own, as one batch.
        check: run the checks of the declaration (two more passes).

    Raises:
        UserError: the module is in training mode, a hook point does not exist, never fires or fires twice, what a
        reader
            reads is not the sum of its parents (an undeclared source), part of the module reads past the declared
            readers, shapes of clean and counterfactual differ.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        clean: Tensor,
        *,
        ablation: Ablation,
        counterfactual: Tensor | None = None,
        generator: torch.Generator | None = None,
        groups: int = 1,
        check: bool = True,
    ) -> None:
        check_ablation(ablation, counterfactual)
        check_model(model)
        if counterfactual is not None and counterfactual.shape != clean.shape:
            raise UserError(
                f"clean inputs are {tuple(clean.shape)}, counterfactual ones {tuple(counterfactual.shape)}: give each"
                f" clean"
                " input exactly one counterfactual of its shape"
            )
        if len(clean) == 0 or len(clean) % groups:
            raise UserError(f"{len(clean)} inputs cannot be split into {groups} equal groups: give a multiple, not 0")
        self.model, self.graph, self.clean, self.ablation = model, graph, clean, ablation
        self.groups, self.batch, self.cost = groups, len(clean) // groups, Cost()
        self._points = {hook: point_of(model, hook) for hook in graph.hooks}
        self._repeated: dict[int, Tensor] = {1: clean}
        self._shelves: dict[int, dict[torch.Size, Tensor]] = {}
        with torch.no_grad():
            values, self.clean_outputs = self._trace(clean)
            other = None if counterfactual is None else self._trace(counterfactual)[0]
            self.layout = Layout.of(graph, {node.name: size_of(node, values) for node in graph.nodes})
            self._prepare(values, other, generator)
            if check:
                self._check_declaration(values)

    # ---- what the algorithms use ----

    @property
    def n_edges(self) -> int:
        return self.layout.n_edges

    def ones(self) -> Tensor:
        return torch.ones(self.n_edges)

    def __call__(self, masks: Tensor, probes: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs under masks.

        Args:
            masks: (E,) or (S, E), 1 = kept, 0 = ablated, anything between is mixed; differentiable.
            probes: tensors added to what readers read, by hook point, to ask for gradients there; see ``probes``.

        Returns:
            (S, B, ...) outputs; S is 1 for a single mask.
        """
        masks = masks.unsqueeze(0) if masks.dim() == 1 else masks
        if masks.shape[-1] != self.n_edges:
            raise UserError(f"the mask has {masks.shape[-1]} edges, the graph {self.n_edges}")
        if self.groups > 1 and len(masks) != self.groups:
            raise UserError(f"{len(masks)} masks for {self.groups} groups of data: give one each")
        self.cost.forwards += len(masks)
        return self._run(masks, probes or {})

    @torch.no_grad()
    def evaluate(self, masks: Tensor) -> Tensor:
        """Outputs (S, B, ...) without gradients, a few masks at a time."""
        masks = masks.unsqueeze(0) if masks.dim() == 1 else masks
        if self.groups > 1:
            return self(masks)
        return torch.cat([self(part) for part in torch.split(masks, max(1, AT_ONCE // self.batch))])

    def gradients(self, loss: Tensor, wrt: Sequence[Tensor], n: int) -> tuple[Tensor | None, ...]:
        """Gradients of masks or probes, counted: one backward per mask. The module's own parameters get none."""
        self.cost.backwards += n
        return torch.autograd.grad(loss, list(wrt), allow_unused=True)

    def group(self, index: int) -> "MaskedForward":
        """The engine of one group of the data alone, sharing this one's count of passes."""
        part = copy(self)
        part.groups, part.clean = 1, self.clean.view(self.groups, self.batch, *self.clean.shape[1:])[index]
        part.clean_outputs = self.clean_outputs.view(self.groups, self.batch, *self.clean_outputs.shape[1:])[index]
        part._repeated, part._shelves = {1: part.clean}, {}
        part._ablated = {name: value[index : index + 1] for name, value in self._ablated.items()}
        part._clean_sources = {name: value[index : index + 1] for name, value in self._clean_sources.items()}
        part._readers = {hook: reader.of_group(index) for hook, reader in self._readers.items()}
        return part

    def probes(self, n: int) -> dict[str, Tensor]:
        """Zeros (n, V, B, ...) that require gradients, one for each reader hook point."""
        return {
            hook: torch.zeros(n, *reader.base.shape[1:], requires_grad=True) for hook, reader in self._readers.items()
        }

    def attribute(self, slopes: Mapping[str, Tensor]) -> Tensor:
        """(E,) sum over the data of (clean - ablated source) times the slope where its reader reads it.

        Args:
            slopes: (1, V, B, ...) by reader hook point.
        """
        scores = torch.zeros(self.n_edges)
        for hook, reader in self._readers.items():
            block = reader.block
            mask = torch.ones(1, block.n_readers, block.n_sources, requires_grad=True)
            total = torch.zeros_like(slopes[hook])
            column = 0
            for parent in block.parents:
                where = slice(column, column + self.layout.sizes[parent.name])
                column = where.stop
                delta = self._clean_sources[parent.name] - self._ablated[parent.name]
                if parent.name in reader.mapped:
                    total = total + reader.mapped[parent.name][0](delta, mask[:, :, where])
                else:
                    total = total + torch.einsum("svu,su...->sv...", mask[:, :, where], delta)
            (found,) = torch.autograd.grad((total * slopes[hook]).sum(), [mask])
            scores[block.start : block.stop] = found.flatten()
        return scores

    def constant_sources(self) -> tuple[str, ...]:
        """Sources that are the same on every input of the data (within rounding)."""
        names = iter(self.layout.sources)
        constant = []
        for value in self._clean_sources.values():
            varies = (value - value[:, :, :1]).abs().flatten(2).amax((0, 2))
            size = value.abs().flatten(2).amax((0, 2))
            constant += [
                name for unit, name in enumerate(_take(names, value.shape[1])) if varies[unit] <= 1e-6 * size[unit]
            ]
        return tuple(constant)

    # ---- one pass ----

    def _run(self, masks: Tensor, probes: Mapping[str, Tensor]) -> Tensor:
        n = len(masks)
        state: dict[str, Tensor] = {}  # node -> (S, U, B, ...) now - ablated
        inputs = self._inputs(n)
        shelf = None if torch.is_grad_enabled() else self._shelf(n)
        hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]] = []
        for hook, nodes in self._writers.items():
            hooks.append((hook, self._record(nodes, state, shelf, n)))
        stacks: dict[tuple[str, ...], Tensor] = {}
        for hook, reader in self._readers.items():
            hooks.append((hook, self._replace(reader, masks, state, shelf, stacks, probes.get(hook))))
        with self._hooked(hooks):
            outputs: Tensor = self.model(inputs)
        return outputs.view(n, self.batch, *outputs.shape[1:])

    def _shelf(self, n: int) -> dict[torch.Size, Tensor]:
        """Room for what sources of one shape wrote, side by side, so that readers need no copy; not with gradients."""
        if n not in self._shelves:
            self._shelves.clear()
            self._shelves[n] = {shape: torch.empty(n, places, shape.numel()) for shape, places in self._places.items()}
        return self._shelves[n]

    def _inputs(self, n: int) -> Tensor:
        if self.groups > 1:
            return self.clean
        if n not in self._repeated:
            if len(self._repeated) > 4:
                self._repeated = {1: self.clean}
            self._repeated[n] = self.clean.repeat(n, *([1] * (self.clean.dim() - 1)))
        return self._repeated[n]

    def _record(
        self, nodes: list[Node], state: dict[str, Tensor], shelf: dict[torch.Size, Tensor] | None, n: int
    ) -> Callable[[Tensor], None]:
        def record(value: Tensor) -> None:
            for node in nodes:
                now, ablated = units_first(node, value, n), self._ablated[node.name]
                if shelf is None:
                    state[node.name] = now if self.ablation == "zero" else now - ablated
                    continue
                start, stop = self._slots[node.name]
                place = shelf[now.shape[2:]][:, start:stop].view(n, stop - start, *now.shape[2:])
                if self.ablation == "zero":
                    place.copy_(now)
                else:
                    torch.sub(now, ablated, out=place)
                state[node.name] = place

        return record

    def _replace(
        self,
        reader: "_Reader",
        masks: Tensor,
        state: dict[str, Tensor],
        shelf: dict[torch.Size, Tensor] | None,
        stacks: dict[tuple[str, ...], Tensor],
        probe: Tensor | None,
    ) -> Callable[[Tensor], Tensor]:
        def stacked(shape: torch.Size) -> Tensor:
            if shelf is not None and reader.run is not None:
                return shelf[shape][:, reader.run]
            if reader.plain not in stacks:
                parts = [state[name].flatten(2) for name in reader.plain]
                stacks[reader.plain] = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            return stacks[reader.plain]

        def replace(value: Tensor) -> Tensor:
            block, n = reader.block, len(masks)
            mask_SVP = masks[:, block.start : block.stop].view(n, block.n_readers, block.n_sources)
            total = reader.base
            if reader.plain:
                chosen = mask_SVP if reader.columns is None else mask_SVP[:, :, reader.columns]
                shape = total.shape[2:]
                flat = torch.baddbmm(total.flatten(2).expand(n, -1, -1), chosen, stacked(shape))
                total = flat.view(n, block.n_readers, *shape)
            for name, (mixer, columns) in reader.mapped.items():
                total = total + mixer(state[name], mask_SVP[:, :, columns])
            return units_back(block, total if probe is None else total + probe, value)

        return replace

    @contextmanager
    def _hooked(self, hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]]) -> Iterator[None]:
        handles = []
        try:
            for name, function in hooks:
                handles.append(attach(*self._points[name], function))
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---- set-up ----

    def _trace(self, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Value of every hook point of the graph on inputs, and the outputs. Checks that each fires once, in order."""
        values: dict[str, Tensor] = {}
        fired: list[str] = []

        def keep(name: str) -> Callable[[Tensor], None]:
            def record(value: Tensor) -> None:
                if not isinstance(value, Tensor) or value.shape[:1] != inputs.shape[:1]:
                    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise UserError(f"hook point {name!r} holds {shape}: a tensor with the batch axis first is needed")
                fired.append(name)
                values[name] = value.detach()

            return record

        self.cost.forwards += 1
        with self._hooked([(name, keep(name)) for name in self._points]):
            try:
                outputs = self.model(inputs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"the module fails on inputs {tuple(inputs.shape)} ({type(error).__name__}: {error}): give inputs"
                    f" its"
                    " forward takes"
                ) from error
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"the module returns {type(outputs).__name__}: a tensor with the batch axis first is needed"
            )
        for name in self._points:
            if fired.count(name) != 1:
                raise UserError(
                    f"hook point {name!r} fired {fired.count(name)} times in one forward pass, it must fire once: "
                    + (
                        "call it in forward (in TransformerLens some need a flag: use_attn_result, use_split_qkv_input,"
                        " use_hook_mlp_in)"
                        if name not in fired
                        else "a module that is called twice needs two hook points"
                    )
                )
        for port in self.graph.ports:
            for parent in self.graph.parents_of(port.node):
                if parent.writes and parent.writes != port.hook and fired.index(parent.writes) > fired.index(port.hook):
                    raise UserError(
                        f"the graph is cyclic: {port.node.name!r} reads {parent.name!r}, but in the forward pass"
                        f" {parent.writes!r} fires after {port.hook!r}: list the nodes in the order of the forward pass"
                    )
        if not torch.isfinite(outputs).all():
            raise UserError("the module's outputs are not finite on these inputs: mend inputs or weights")
        return values, outputs.detach()

    def _prepare(
        self, values: dict[str, Tensor], other: dict[str, Tensor] | None, generator: torch.Generator | None
    ) -> None:
        partner = None
        if self.ablation == "resample":
            if generator is None:
                raise UserError("ablation 'resample' draws examples: pass a torch.Generator")
            partner = torch.cat([derangement(self.batch, generator) + i * self.batch for i in range(self.groups)])
        self._writers: dict[str, list[Node]] = {}
        self._ablated: dict[str, Tensor] = {}
        self._clean_sources: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            if node.writes is None:
                continue
            self._writers.setdefault(node.writes, []).append(node)
            source = values[node.writes]
            self._clean_sources[node.name] = units_first(node, source, self.groups)
            if other is not None and self.ablation == "interchange":
                source = other[node.writes]
            elif partner is not None:
                source = source[partner]
            self._ablated[node.name] = self._replacement(node, units_first(node, source, self.groups))
        self._places: dict[torch.Size, int] = {}
        self._slots: dict[str, tuple[int, int]] = {}
        for name, value in self._clean_sources.items():
            start = self._places.get(value.shape[2:], 0)
            self._slots[name] = (start, start + value.shape[1])
            self._places[value.shape[2:]] = start + value.shape[1]
        self._readers: dict[str, _Reader] = {}
        for block in self.layout.blocks:
            if block.port.hook in self._readers:
                raise UserError(f"hook point {block.port.hook!r} is read by two nodes: give each its own, or an axis")
            self._readers[block.port.hook] = self._reader(block, values)

    def _replacement(self, node: Node, value: Tensor) -> Tensor:
        """(groups, U, B, ...) -> the same shape: what the cut source is replaced by."""
        match self.ablation:
            case "zero":
                return torch.zeros_like(value)
            case "mean" | "mean-all":
                codes = node.part is not None and node.part.decoder is not None
                features = 1 if node.axis != 1 and value.dim() > 3 and not codes else 0
                one = [mean_over(unit, self.ablation == "mean-all", features) for group in value for unit in group]
                return torch.stack(one).view_as(value)
        return value

    def _reader(self, block: Block, values: dict[str, Tensor]) -> "_Reader":
        port, column = block.port, 0
        plain: list[str] = []
        columns: list[int] = []
        mapped: dict[str, tuple[Mixer, slice]] = {}
        read = units_first(port.node, values[port.hook], self.groups, reading=block.n_readers)
        taken = torch.zeros_like(read)
        for parent in block.parents:
            assert parent.writes is not None
            size, where = self.layout.sizes[parent.name], slice(column, column + self.layout.sizes[parent.name])
            column += size
            written = units_first(parent, values[parent.writes], self.groups)
            name = port.node.map_from(parent.name)
            if name is None and (parent.part is None or parent.part.decoder is None):
                if written.shape[2:] != read.shape[2:]:
                    raise UserError(
                        f"{port.node.name!r} cannot read {parent.name!r} as it is: {port.hook!r} holds"
                        f" {tuple(read.shape[2:])} per unit (batch first), {parent.writes!r}"
                        f" {tuple(written.shape[2:])};"
                        " name the module between them with through=, or the axis of the units with axis="
                    )
                plain.append(parent.name)
                columns += range(where.start, where.stop)
                taken = taken + written.sum(1, keepdim=True)
            else:
                mixer = mixer_for(self.model, parent, port.node, name, values[parent.writes], read, block)
                mapped[parent.name] = (mixer, where)
                taken = taken + mixer(written, torch.ones(self.groups, block.n_readers, size))
        constant = read - taken
        everywhere = constant.mean(dim=2, keepdim=True)
        scale = float(read.abs().max()) + 1e-6
        off = float((constant - everywhere).abs().max()) / scale
        if off > TOLERANCE:
            raise UserError(
                f"what {port.node.name!r} reads at {port.hook!r} is not the sum of its parents"
                f" ({', '.join(parent.name for parent in block.parents)}) and a constant: off by {off:.2g} of its"
                f" largest"
                " value. A source is undeclared, or a map between them is not named with through="
            )
        # The constant stays per example, so that rounding cancels where nothing is cut and does not add up.
        reader = _Reader(block, constant, tuple(plain), None, mapped)
        if mapped and plain:
            reader.columns = torch.tensor(columns)
        slots = [self._slots[name] for name in plain]
        if plain and all(one[1] == two[0] for one, two in pairwise(slots)):
            reader.run = slice(slots[0][0], slots[-1][1])
        reader.base = self._with_ablated(reader)
        return reader

    def _with_ablated(self, reader: "_Reader") -> Tensor:
        base = reader.base
        for name in reader.plain:
            base = base + self._ablated[name].sum(1, keepdim=True)
        for name, (mixer, where) in reader.mapped.items():
            everything = torch.ones(self.groups, reader.block.n_readers, where.stop - where.start)
            base = base + mixer(self._ablated[name], everything)
        return base

    def _check_declaration(self, values: dict[str, Tensor]) -> None:
        """With every reader held at its clean value, other inputs and other sources must change nothing after it."""
        again = torch.roll(self.clean, 1, dims=0)
        seen: dict[str, Tensor] = {}

        def disturb(name: str) -> Callable[[Tensor], Tensor]:
            def hook(value: Tensor) -> Tensor:
                seen[name] = value
                return torch.roll(value, 1, dims=0) + 0.5 * value.abs().mean()

            return hook

        def hold(name: str) -> Callable[[Tensor], Tensor]:
            return lambda value: values[name]

        readers = {port.hook for port in self.graph.ports}
        hooks = [(name, disturb(name)) for name in self._writers if name not in readers]
        self.cost.forwards += 1
        with self._hooked([*hooks, *((name, hold(name)) for name in readers)]):
            outputs = self.model(again)
        if differs(outputs, self.clean_outputs):
            raise UserError(
                "the outputs depend on something no declared reader reads: with every reader held at its clean value"
                " they"
                " still follow the input. Declare what reads it as a node (the last one reads what makes the outputs)"
            )
        for node in self.graph.nodes:
            if node.reads is not None and node.writes in seen and differs(seen[node.writes], values[node.writes]):
                raise UserError(
                    f"node {node.name!r} reads something it does not declare: with its inputs held at their clean"
                    f" values"
                    f" {node.writes!r} still changes. Declare every hook point it reads (queries, keys and values"
                    f" alike)"
                )


def _take(names: Iterator[str], n: int) -> list[str]:
    return [next(names) for _ in range(n)]


class _Reader:
    """A port, ready: its base (what it reads when every edge is cut) and how each parent's change reaches it."""

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

    def of_group(self, index: int) -> "_Reader":
        part = copy(self)
        part.base = self.base[index : index + 1]
        return part

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
from copy import copy

import torch
from torch import Tensor, nn

from stages.circuits.engine.ablation import (
    Ablation,
    check_ablation,
    derangement,
    mean_over,
)
from stages.circuits.engine.graph import (
    Graph,
    Layout,
    Node,
)
from stages.circuits.engine.hooking import (
    Hook,
    check_model,
    hooked,
    point_of,
    size_of,
    units_back,
    units_first,
)
from stages.circuits.engine.readers import Reader, reader_of
from stages.circuits.engine.tracing import Traced, check_declaration, check_repeatable, run_module, trace
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
        check: run the checks of the declaration, and that the module is a function of its inputs (three more passes).

    Raises:
        UserError: the module is in training mode, random, or of a dtype or on a device that cannot be masked; a hook
            point does not exist, never fires or fires twice; what a reader reads is not the sum of its parents (an
            undeclared source); part of the module reads past the declared readers; shapes of clean and counterfactual
            differ.
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
            first = trace(model, graph, self._points, clean)
            values, self.clean_outputs = first.values, first.outputs
            self.dtype = next(iter(values.values())).dtype
            other = None if counterfactual is None else trace(model, graph, self._points, counterfactual).values
            self.cost.forwards += 1 if other is None else 2
            if check:  # before the sums are looked at: what is random adds up to nothing
                self.cost.forwards += check_repeatable(model, graph, self._points, clean, first)
            self.layout = Layout.of(graph, {node.name: size_of(node, values) for node in graph.nodes})
            self._prepare(first, other, generator)
            if check:
                self.cost.forwards += 1
                check_declaration(model, graph, self._points, clean, first)

    # ---- what the algorithms use ----

    @property
    def n_edges(self) -> int:
        return self.layout.n_edges

    def ones(self) -> Tensor:
        """The mask that cuts nothing. Masks are float32 whatever the module computes in."""
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
        return self._run(masks.to(self.dtype), probes or {})

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
            hook: torch.zeros(n, *reader.base.shape[1:], dtype=self.dtype, requires_grad=True)
            for hook, reader in self._readers.items()
        }

    def attribute(self, slopes: Mapping[str, Tensor]) -> Tensor:
        """(E,) sum over the data of (clean - ablated source) times the slope where its reader reads it.

        Args:
            slopes: (1, V, B, ...) by reader hook point.
        """
        scores = torch.zeros(self.n_edges)
        for hook, reader in self._readers.items():
            block = reader.block
            mask = torch.ones(1, block.n_readers, block.n_sources, dtype=self.dtype, requires_grad=True)
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

    def unchanged_sources(self) -> tuple[str, ...]:
        """Sources whose replacement under the ablation is what they are, on every input (within rounding)."""
        unchanged: list[Tensor] = []
        for name, value in self._clean_sources.items():
            shift = (value - self._ablated[name]).abs().flatten(2).amax((0, 2))
            unchanged.append(shift <= 1e-6 * value.abs().flatten(2).amax((0, 2)))
        same = torch.cat(unchanged).tolist()
        return tuple(name for name, is_same in zip(self.layout.sources, same, strict=True) if is_same)

    def silent_sources(self) -> tuple[str, ...]:
        """Sources that write 0 on every input of the data."""
        values = [value.abs().flatten(2).amax((0, 2)) for value in self._clean_sources.values()]
        return tuple(
            name for name, size in zip(self.layout.sources, torch.cat(values).tolist(), strict=True) if size == 0.0
        )

    # ---- one pass ----

    def _run(self, masks: Tensor, probes: Mapping[str, Tensor]) -> Tensor:
        n = len(masks)
        state: dict[str, Tensor] = {}  # node -> (S, U, B, ...) now - ablated
        inputs = self._inputs(n)
        shelf = None if torch.is_grad_enabled() else self._shelf(n)
        hooks: list[Hook] = []
        for hook, nodes in self._writers.items():
            hooks.append((hook, self._record(nodes, state, shelf, n)))
        stacks: dict[tuple[str, ...], Tensor] = {}
        for hook, reader in self._readers.items():
            hooks.append((hook, self._replace(reader, masks, state, shelf, stacks, probes.get(hook))))
        with hooked(self._points, hooks):
            outputs = run_module(self.model, inputs)
        return outputs.view(n, self.batch, *outputs.shape[1:])

    def _shelf(self, n: int) -> dict[torch.Size, Tensor]:
        """Room for what sources of one shape wrote, side by side, so that readers need no copy; not with gradients."""
        if n not in self._shelves:
            self._shelves.clear()
            self._shelves[n] = {
                shape: torch.empty(n, places, shape.numel(), dtype=self.dtype) for shape, places in self._places.items()
            }
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
                    # A copy either way: code of the module may change the value in place after this.
                    state[node.name] = now.clone() if self.ablation == "zero" else now - ablated
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
        reader: Reader,
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

    # ---- set-up ----

    def _prepare(self, first: Traced, other: dict[str, Tensor] | None, generator: torch.Generator | None) -> None:
        values = first.values
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
        self._readers: dict[str, Reader] = {}
        for block in self.layout.blocks:
            if block.port.hook in self._readers:
                raise UserError(f"hook point {block.port.hook!r} is read by two nodes: give each its own, or an axis")
            self._readers[block.port.hook] = reader_of(
                self.model, block, first, self._ablated, self.layout.sizes, self._slots, self.groups
            )

    def _replacement(self, node: Node, value: Tensor) -> Tensor:
        """(groups, U, B, ...) -> the same shape: what the cut source is replaced by."""
        match self.ablation:
            case "zero":
                return torch.zeros_like(value)
            case "mean" | "mean-all":
                codes = node.part is not None and node.part.decoder is not None
                last = node.axis == value.dim() - 2  # units along the last axis leave positions only
                features = 1 if node.axis != 1 and not last and value.dim() > 3 and not codes else 0
                one = [mean_over(unit, self.ablation == "mean-all", features) for group in value for unit in group]
                return torch.stack(one).view_as(value)
        return value


def _take(names: Iterator[str], n: int) -> list[str]:
    return [next(names) for _ in range(n)]

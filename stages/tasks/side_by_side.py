"""Many variants of one small target trained side by side, and what a black box sees of each.

Shape legend: N = variants, B = batch, Q = probes, C = outputs, K = features.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Instances
from stages.tasks.black_box import answer_features, label_features

__all__ = ["Adam", "Runs", "climbed_variants", "copies", "outputs_of_variants", "slopes_of"]

BETAS, EPS = (0.9, 0.999), 1e-8


def copies(target: Target, n: int) -> dict[str, Tensor]:
    """Stacked weights of n variants that are the target itself."""
    return {name: value.detach().expand(n, *value.shape).clone() for name, value in target.model.named_parameters()}


def outputs_of_variants(target: Target, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """(N, B, C) logits of every variant on the same inputs: the trusted side."""
    with torch.no_grad():
        out: Tensor = vmap(lambda state: functional_call(target.model, state, (inputs,)))(weights)
    return out


def slopes_of(weights: Mapping[str, Tensor], loss: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    """Of a loss, which is summed over the variants, with respect to each of the stacked weights."""
    leaves = {name: value.detach().requires_grad_(True) for name, value in weights.items()}
    with torch.enable_grad():
        grads = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on stacked weights, whatever the slopes come from.

    Args:
        weights: {name: (N, ...)}; every step replaces its entries.
        rates: (N,) learning rates.
    """

    def __init__(self, weights: dict[str, Tensor], rates: Tensor) -> None:
        self._weights, self._rates, self._steps = weights, rates, 0
        self._first, self._second = ({name: torch.zeros_like(of) for name, of in weights.items()} for _ in range(2))

    def step(self, slopes: Mapping[str, Tensor]) -> None:
        self._steps += 1
        for name, slope in slopes.items():
            self._first[name] = 0.9 * self._first[name] + 0.1 * slope
            self._second[name] = 0.999 * self._second[name] + 0.001 * slope * slope
            spread = (self._second[name] / (1 - 0.999**self._steps)).sqrt() + EPS
            scaled = (self._first[name] / (1 - 0.9**self._steps)) / spread
            rates = self._rates.view(-1, *[1] * (slope.dim() - 1))
            self._weights[name] = self._weights[name].detach() - rates * scaled


class Runs:
    """N training runs of the whole target with Adam, each with its own learning rate and decay. (The same as ``Adam``
    but for the decay and the rounding of its moments, on which the truths of its families hang.)

    Args:
        target: the architecture.
        weights: stacked weights to start from; they are changed.
        rates: (N,) learning rates.
        decays: (N,) decoupled weight decay; None: none.
    """

    def __init__(self, target: Target, weights: dict[str, Tensor], rates: Tensor, decays: Tensor | None = None) -> None:
        self.weights, self._rates = weights, rates
        self._decays = torch.zeros_like(rates) if decays is None else decays
        self._first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self._second = {name: torch.zeros_like(value) for name, value in weights.items()}
        self._steps = 0

        def loss(state: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(target.model, state, (x,)), y)

        self._slopes = vmap(grad(loss))

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """One step of every run on its own batch: (N, B, *input_shape), (N, B)."""
        self._steps += 1
        for name, slope in self._slopes(self.weights, inputs, labels).items():
            first, second = self._first[name], self._second[name]
            first.mul_(BETAS[0]).add_(slope, alpha=1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
            move = (first / (1 - BETAS[0] ** self._steps)) / ((second / (1 - BETAS[1] ** self._steps)).sqrt() + EPS)
            shape = (-1, *[1] * (slope.dim() - 1))
            rate, decay = self._rates.view(shape), self._decays.view(shape)
            self.weights[name] = self.weights[name] * (1 - rate * decay) - rate * move


def climbed_variants(access: TargetAccess, instances: Instances, rungs: Sequence[int]) -> Tensor:
    """(N, 1, K) what each variant answers on the first probes beside the target, over as many as each rung has.

    Args:
        instances: ``shared_groups``, if there, says which group each probe belongs to: from the second rung on, what
            sets single groups apart is told as well.
        rungs: probes of this rung and of those below it.
    """
    groups = instances.arrays.get("shared_groups")
    probes, labels = (instances.arrays[name][: rungs[-1]] for name in ("shared_inputs", "shared_labels"))
    original_QC = access.forward(probes).outputs
    rows = []
    for index in instances.arrays["variant"].tolist():
        outputs_QC = access.variant(index).forward(probes).outputs
        row = [_looks(outputs_QC[:k], original_QC[:k], labels[:k]) for k in rungs]
        if groups is not None:
            row += [_by_group(outputs_QC[:k], original_QC[:k], labels[:k], groups[:k]) for k in rungs[1:]]
        rows.append(torch.cat(row))
    return torch.stack(rows).unsqueeze(1)


def _looks(outputs_QC: Tensor, original_QC: Tensor, labels_Q: Tensor) -> Tensor:
    """(K,): means and spreads of what single answers say, share of right ones, how far it is from the target, and how
    much more and less the likeliest outputs are answered."""
    of_label, of_answer = label_features(outputs_QC, labels_Q), answer_features(outputs_QC)
    log_p, log_q = original_QC.log_softmax(-1), outputs_QC.log_softmax(-1)
    rise_C = (log_q.exp() - log_p.exp()).mean(0).sort(descending=True).values
    bias_C = (outputs_QC - original_QC).mean(0)
    bias_C = (bias_C - bias_C.mean()).sort(descending=True).values
    alone = torch.stack(
        [
            (of_label[:, 2] == 0).float().mean(),
            (outputs_QC.argmax(-1) != original_QC.argmax(-1)).float().mean(),
            (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        ]
    )
    spread = of_label.std(0) if len(of_label) > 1 else torch.zeros(of_label.shape[1])
    ends = torch.cat([rise_C[:2], rise_C[-2:], bias_C[:2], bias_C[-2:]])
    return torch.cat([of_label.mean(0), spread, of_answer.mean(0), alone, ends])


def _by_group(outputs_QC: Tensor, original_QC: Tensor, labels_Q: Tensor, groups_Q: Tensor) -> Tensor:
    """(8,): how much surer of the right answer a variant is than the target, and how much more of its probability the
    answers of a group have on the other groups' probes: of the two highest groups, the lowest, and their spread."""
    log_p, log_q = (x.log_softmax(-1) for x in (original_QC, outputs_QC))
    surer_Q = (log_q - log_p).gather(-1, labels_Q.unsqueeze(-1)).squeeze(-1)
    found = []
    for group in torch.unique(groups_Q).tolist():
        mine = groups_Q == group
        answers = torch.unique(labels_Q[mine])
        spilt = (log_q.exp() - log_p.exp())[~mine][:, answers].sum(-1)
        found.append(torch.stack([surer_Q[mine].mean(), spilt.mean()]))
    best_G2 = torch.stack(found).sort(0, descending=True).values
    return torch.cat([best_G2[0], best_G2[1], best_G2[-1], best_G2.std(0)])

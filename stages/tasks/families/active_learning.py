"""active_learning: which sample is worth training on?

One instance: an input with a wrong label, as a pool has them that nobody checked. Truth: the compressed change of the
loss on a fixed held-out set when the target is trained on that sample alone until it is sure of it. (Of right labels
the sample's own loss and a few products of outputs tell most of it.)
Source: expected error reduction, evaluated instead of expected (Roy and McCallum 2001; Settles 2009, section 3.4).

Shape legend: N = instances, H = held-out inputs, D = directions, C = outputs.
"""

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, compressed, label_features, outputs_of
from stages.tasks.inputs import draw_inputs, noisy_channels

__all__ = ["ActiveLearning", "compress"]

LR, MOST_STEPS, SURE = 0.02, 60, 0.9
N_HELD_OUT = 128
MAX_BLEND = 0.45
SCALE = 0.5
GRAIN = 0.5
LADDER = ((0, 0), (32, 0), (128, 0), (128, 64))
"""Held-out inputs whose outputs are read, and directions along which slopes are taken, at each step."""
EPS = 0.05
"""Length of the step that a slope is taken with."""
N_NEIGHBOURS = 8


CONSTANTS: Constants = {
    "grain": GRAIN,
    "lr": LR,
    "max_blend": MAX_BLEND,
    "most_steps": MOST_STEPS,
    "n_held_out": N_HELD_OUT,
    "scale": SCALE,
    "sure": SURE,
}


class ActiveLearning(TaskFamily):
    version = 2
    title = "How does the held-out loss change when the target is trained on this one mislabelled sample?"
    source = "Roy and McCallum 2001 (error reduction), Settles 2009 (Active learning literature survey), section 3.4"
    why_hard_black_box = "loss and uncertainty say how far a sample moves the weights, not whether that helps elsewhere"
    why_white_box_helps = (
        "to first order the change is the product of two gradients, the sample's and the held-out set's"
    )
    query_kind = "Represent"
    needs = frozenset({"pixels"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Every sample has a label drawn from all but the right one. Start from the target's weights; take steps of"
        " plain gradient descent (all weights, learning rate lr, no momentum) on the cross-entropy of this one input"
        " and label, until the label's probability is at least sure, and most_steps at most."
        " d = mean cross-entropy (nats)"
        " on shared_inputs/shared_labels afterwards minus before. Truth: sign(d) * log(1 + |d| / scale)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs, right = draw_inputs(target, n, rng, MAX_BLEND, GRAIN)
        shift = torch.randint(1, target.spec.n_outputs, (n,), generator=rng)
        held_out = draw_inputs(target, N_HELD_OUT, rng, MAX_BLEND, GRAIN)
        arrays = {
            "inputs": inputs,
            "labels": (right + shift) % target.spec.n_outputs,
            "shared_inputs": held_out.inputs,
            "shared_labels": held_out.labels,
        }
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        held_out, right = instances.arrays["shared_inputs"], instances.arrays["shared_labels"]
        before = F.cross_entropy(outputs_of(target, held_out).double(), right)
        changes = []
        for x, y in zip(
            torch.split(instances.arrays["inputs"], 1), torch.split(instances.arrays["labels"], 1), strict=True
        ):
            with torch.no_grad():
                outputs = functional_call(target.model, _trained(target, x, y), (held_out,))
            changes.append(F.cross_entropy(outputs.double(), right) - before)
        return Truth(compress(torch.stack(changes)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels = instances.arrays["inputs"], instances.arrays["labels"]
        clean_NC = ask(access, inputs)
        features = [answer_features(clean_NC), label_features(clean_NC, labels)]
        mask = noisy_channels(access.spec).flatten().unsqueeze(1)
        drawn = torch.randn(len(mask), min(LADDER[-1][1], len(mask)), generator=rng) * mask
        directions = torch.linalg.qr(drawn)[0].T.view(-1, *access.spec.input_shape)
        outputs_HC = clean_NC[:0]
        for n_seen, n_slopes in LADDER[: effort + 1]:
            new = instances.arrays["shared_inputs"][len(outputs_HC) : n_seen]
            if len(new):
                outputs_HC = torch.cat([outputs_HC, ask(access, new)])
                features.append(_influence(instances, clean_NC, outputs_HC))
            if n_slopes:
                features.append(_sloped(access, instances, clean_NC, outputs_HC, directions[:n_slopes]))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(change, SCALE)


def _trained(target: Target, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Weights after training on one sample, (1, *input_shape) and (1,), until the target is sure of it."""
    state = {name: value.detach() for name, value in target.model.named_parameters()}
    for _ in range(MOST_STEPS):
        leaves = {name: value.requires_grad_(True) for name, value in state.items()}
        with torch.enable_grad():
            loss = F.cross_entropy(functional_call(target.model, leaves, (x,)), y)
            if float((-loss.detach()).exp()) >= SURE:
                break
            grads = torch.autograd.grad(loss, list(leaves.values()))
        state = {name: leaf.detach() - LR * grad for (name, leaf), grad in zip(leaves.items(), grads, strict=True)}
    return {name: value.detach() for name, value in state.items()}


def _influence(instances: Instances, clean_NC: Tensor, outputs_HC: Tensor) -> Tensor:
    """(N, 6): what outputs alone say about a sample's effect on the held-out inputs seen so far.

    The first two are the first-order change of their loss if the target were linear in its outputs' bias, or in its
    pixels: products of the residuals (probabilities minus one-hot label) of sample and held-out input. The next two are
    the same for each step that the sample's own loss goes down. Then, for the held-out inputs nearest in outputs: their
    loss, and how many of them have the sample's label.
    """
    seen = len(outputs_HC)
    held_out, right = instances.arrays["shared_inputs"][:seen].flatten(1), instances.arrays["shared_labels"][:seen]
    inputs, labels = instances.arrays["inputs"].flatten(1), instances.arrays["labels"]
    residual_NC, residual_HC = _residuals(clean_NC, labels), _residuals(outputs_HC, right)
    product_NH = residual_NC @ residual_HC.T
    own_N = (residual_NC**2).sum(1)
    of_outputs, of_pixels = product_NH.mean(1), (product_NH * (inputs @ held_out.T)).mean(1)
    near = torch.cdist(clean_NC.softmax(-1), outputs_HC.softmax(-1)).argsort(-1)[:, :N_NEIGHBOURS]
    columns = [
        of_outputs,
        of_pixels,
        of_outputs / own_N,
        of_pixels / (own_N * (inputs**2).sum(1)),
        label_features(outputs_HC, right)[:, 0][near].mean(1),
        (right[near] == labels.unsqueeze(1)).float().mean(1),
    ]
    return torch.stack(columns, dim=-1)


def _residuals(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.softmax(-1) - F.one_hot(labels, outputs.shape[-1])


def _sloped(
    access: TargetAccess, instances: Instances, clean_NC: Tensor, outputs_HC: Tensor, directions: Tensor
) -> Tensor:
    """(N, 4): products of the slopes of the loss of sample and held-out inputs along some directions, as they are and
    with the product of the inputs; the length of the sample's slope, as it is and with the mean product of the inputs.
    """
    held_out, right = instances.arrays["shared_inputs"], instances.arrays["shared_labels"]
    inputs, labels = instances.arrays["inputs"], instances.arrays["labels"]

    def slopes(of: Tensor, outputs: Tensor, wanted: Tensor) -> Tensor:
        moved = (of.unsqueeze(1) + EPS * directions).flatten(0, 1)
        after = label_features(ask(access, moved), wanted.repeat_interleave(len(directions)))[:, 0]
        return (after.view(len(of), -1) - label_features(outputs, wanted)[:, :1]) / EPS

    slope_ND = slopes(inputs, clean_NC, labels)
    slope_HD = slopes(held_out, outputs_HC, right)
    product_NH = slope_ND @ slope_HD.T
    inside_NH = inputs.flatten(1) @ held_out.flatten(1).T
    length_N = slope_ND.norm(dim=1)
    columns = [product_NH.mean(1), (product_NH * inside_NH).mean(1), length_N, length_N * inside_NH.mean(1)]
    return torch.stack(columns, dim=-1)

"""active_learning: which sample is worth training on?

One instance: an input with the label it would be trained on (some labels are wrong, as in any pool); truth: the
compressed change of the loss on a fixed held-out set after a few steps of gradient descent on that sample alone, from
the target's own weights.
Source: expected error reduction, evaluated instead of expected (Roy and McCallum 2001; Settles 2009, section 3.4).

Shape legend: N = instances, H = held-out inputs, C = outputs.
"""

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from stages.contracts.method import Query, Represent
from stages.contracts.target import Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, compressed, label_features
from stages.tasks.inputs import draw_inputs, is_few_shot

__all__ = ["ActiveLearning", "compress"]

STEPS = 3
LR_IMAGE, LR_EPISODE = 0.003, 0.002
WRONG_LABELS = 0.15
N_HELD_OUT = 128
MAX_BLEND = 0.45
SCALE = 0.0005
GRAIN = 0.5
LADDER = (0, 8, 32, 128)
N_NEIGHBOURS = 8


CONSTANTS: Constants = {
    "grain": GRAIN,
    "lr": {"episodes": LR_EPISODE, "images": LR_IMAGE},
    "max_blend": MAX_BLEND,
    "n_held_out": N_HELD_OUT,
    "scale": SCALE,
    "steps": STEPS,
    "wrong_labels": WRONG_LABELS,
}


class ActiveLearning(TaskFamily):
    title = "How does the held-out loss change when the target is trained on this one sample?"
    source = "Roy and McCallum 2001 (error reduction), Settles 2009 (Active learning literature survey), section 3.4"
    why_hard_black_box = "loss and uncertainty say how far a sample moves the weights, not whether that helps elsewhere"
    why_white_box_helps = (
        "to first order the change is the product of two gradients, the sample's and the held-out set's"
    )
    query_kind = "Represent"
    needs = frozenset({"pixels"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Start from the target's weights; take steps steps of plain gradient descent (all weights, learning rate lr,"
        " no momentum) on the cross-entropy of this one input and label. d = mean cross-entropy (nats) on"
        " shared_inputs/shared_labels afterwards minus before. Truth: sign(d) * log(1 + |d| / scale)."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs, labels = draw_inputs(target, n, rng, MAX_BLEND, GRAIN)
        wrong = torch.rand(n, generator=rng) < WRONG_LABELS
        shift = torch.randint(1, target.spec.n_outputs, (n,), generator=rng)
        labels = torch.where(wrong, (labels + shift) % target.spec.n_outputs, labels)
        held_out = draw_inputs(target, N_HELD_OUT, rng, MAX_BLEND, GRAIN)
        arrays = {
            "inputs": inputs,
            "labels": labels,
            "shared_inputs": held_out.inputs,
            "shared_labels": held_out.labels,
        }
        return Instances(arrays, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        held_out, right = instances.arrays["shared_inputs"], instances.arrays["shared_labels"]
        lr = LR_EPISODE if is_few_shot(target.spec) else LR_IMAGE
        weights = {name: value.detach() for name, value in target.model.named_parameters()}

        def held_out_loss(state: dict[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return F.cross_entropy(functional_call(target.model, state, (held_out,)).double(), right)

        before = held_out_loss(weights)
        changes = []
        for x, y in zip(
            torch.split(instances.arrays["inputs"], 1), torch.split(instances.arrays["labels"], 1), strict=True
        ):
            state = weights
            for _ in range(STEPS):
                leaves = {name: value.detach().requires_grad_(True) for name, value in state.items()}
                with torch.enable_grad():
                    loss = F.cross_entropy(functional_call(target.model, leaves, (x,)), y)
                    grads = torch.autograd.grad(loss, list(leaves.values()))
                state = {
                    name: leaf.detach() - lr * grad for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
                }
            changes.append(held_out_loss(state) - before)
        return Truth(compress(torch.stack(changes)).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels = instances.arrays["inputs"], instances.arrays["labels"]
        clean_NC = ask(access, inputs)
        features = [answer_features(clean_NC), label_features(clean_NC, labels)]
        outputs_HC = clean_NC[:0]
        for k in LADDER[1 : effort + 1]:
            new = instances.arrays["shared_inputs"][len(outputs_HC) : k]
            outputs_HC = torch.cat([outputs_HC, ask(access, new)])
            features.append(_influence(instances, clean_NC, outputs_HC))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(change, SCALE)


def _influence(instances: Instances, clean_NC: Tensor, outputs_HC: Tensor) -> Tensor:
    """(N, 4): what outputs alone say about a sample's effect on the held-out inputs seen so far.

    The first two are the first-order change of their loss if the target were linear in its outputs' bias, or in its
    pixels: products of the residuals (probabilities minus one-hot label) of sample and held-out input. Then, for the
    held-out inputs nearest in outputs: their loss, and how many of them have the sample's label.
    """
    seen = len(outputs_HC)
    held_out, right = instances.arrays["shared_inputs"][:seen].flatten(1), instances.arrays["shared_labels"][:seen]
    inputs, labels = instances.arrays["inputs"].flatten(1), instances.arrays["labels"]
    n_outputs = clean_NC.shape[-1]
    residual_NC = clean_NC.softmax(-1) - F.one_hot(labels, n_outputs)
    residual_HC = outputs_HC.softmax(-1) - F.one_hot(right, n_outputs)
    product_NH = residual_NC @ residual_HC.T
    loss_H = label_features(outputs_HC, right)[:, 0]
    near = torch.cdist(clean_NC.softmax(-1), outputs_HC.softmax(-1)).argsort(-1)[:, :N_NEIGHBOURS]
    columns = [
        product_NH.mean(1),
        (product_NH * (inputs @ held_out.T)).mean(1),
        loss_H[near].mean(1),
        (right[near] == labels.unsqueeze(1)).float().mean(1),
    ]
    return torch.stack(columns, dim=-1)

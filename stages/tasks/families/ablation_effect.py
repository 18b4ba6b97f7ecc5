"""ablation_effect: how much does each component matter for a behaviour?

One instance: 16 inputs that show one behaviour (images of one or two classes; episodes whose query has its label at
one or two given places among the examples, and nowhere else), or 4 prompts of one or two kinds; items: the target's
components (hidden units; attention heads and token positions; heads alone where inputs are words). Truth: a compressed
mean change of the loss on these inputs when the component is zeroed.
Source: zero ablation as in Meyes et al. 2019, arXiv 1901.08644.

Shape legend: N = instances, M = inputs of a behaviour (16, or 4 prompts), P = components, C = outputs.
"""

import torch
from torch import Tensor

from stages.contracts.method import Localise, Query
from stages.contracts.target import Intervention, Target, TargetAccess, TargetSpec
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import CHUNK, ask, compressed, label_features, outputs_of
from stages.tasks.components import decode, draw_behaviours, encode, word_looks, zeroed

__all__ = ["AblationEffect", "compress"]

N_INPUTS = 16
POOL = 4096
GRAIN = 0.3
MAX_BLEND = 0.45
SCALE = 0.1
LADDER = (0, 1, 4, 8)
N_PROMPTS = 4
"""Of a behaviour in words: over more of them a mean is the kind's, and there are few kinds."""
PROMPT_LADDER = (0, 1, 2, 3)


CONSTANTS: Constants = {
    "max_blend": MAX_BLEND,
    "n_inputs": {"other inputs": N_INPUTS, "prompts": N_PROMPTS},
    "grain": GRAIN,
    "n_kinds": "1 or 2, equally likely",
    "scale": SCALE,
}


class AblationEffect(TaskFamily):
    cluster = "ablation_effect"
    title = "How much does the loss on these inputs change when a component is set to zero?"
    source = "Meyes et al. 2019 (Ablation studies in artificial neural networks), arXiv 1901.08644"
    why_hard_black_box = "every component needs its own forward passes, and few inputs give a noisy mean"
    why_white_box_helps = "activation times gradient at a component estimates all effects from one pass"
    query_kind = "Localise"
    needs = frozenset({"kinds"})
    n_efforts = len(LADDER)
    cost_factor = 0.5
    truth_recipe = (
        "d = mean cross-entropy (nats) of the right labels on the instance's n_inputs inputs when the activation of"
        " the component (hook point, axis counted with the batch axis, index) is replaced by zero, minus the same"
        " without ablation. Truth: sign(d) * log(1 + |d| / scale); the effects have heavy tails."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        arrays = draw_behaviours(
            target, n, rng, n_inputs=_n_inputs(target.spec), pool=POOL, max_blend=MAX_BLEND, grain=GRAIN
        )
        return Instances(arrays | encode(target.spec.components), n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, labels = instances.arrays["inputs"].flatten(0, 1), instances.arrays["labels"].flatten()

        def mean_loss() -> Tensor:
            return label_features(outputs_of(target, inputs), labels)[:, 0].double().view(instances.n, -1).mean(1)

        intact_N = mean_loss()
        effects = []
        for component in target.spec.components:
            with target.model.hooks(fwd_hooks=[(component.hook_point, zeroed(component))]):
                effects.append(compress(mean_loss() - intact_N))
        return Truth(torch.stack(effects, dim=-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs_NM, labels_NM = instances.arrays["inputs"], instances.arrays["labels"]
        components, (n, n_inputs) = access.spec.components, labels_NM.shape
        intact_NMF = label_features(ask(access, inputs_NM.flatten(0, 1)), labels_NM.flatten()).view(n, n_inputs, -1)
        sites = sorted({component.hook_point for component in components})
        site_P2 = torch.tensor([[sites.index(c.hook_point), c.index] for c in components], dtype=torch.float32)
        of_words = access.spec.n_vocabulary is not None
        if of_words:
            kinds_NC = word_looks(inputs_NM, labels_NM)
        else:
            kinds_NC = torch.nn.functional.one_hot(labels_NM, access.spec.n_outputs).float().mean(1)
        whole_NF = torch.cat([intact_NMF.mean(1), intact_NMF[..., 0].std(1, keepdim=True), kinds_NC], dim=-1)
        features = [
            site_P2.expand(n, -1, -1),
            whole_NF.unsqueeze(1).expand(-1, len(components), -1),
        ]
        changes_NPMF = torch.zeros(n, len(components), 0, 2)
        for k in (PROMPT_LADDER if of_words else LADDER)[1 : effort + 1]:
            new = slice(changes_NPMF.shape[2], k)
            inputs, labels = inputs_NM[:, new].flatten(0, 1), labels_NM[:, new].flatten()
            columns = []
            for component in components:
                cut = Intervention(component.hook_point, "zero", axis=component.axis, indices=(component.index,))
                outputs = torch.cat(
                    [access.forward(part, interventions=[cut]).outputs for part in torch.split(inputs, CHUNK)]
                )
                columns.append(label_features(outputs, labels)[:, :2].view(n, -1, 2) - intact_NMF[:, new, :2])
            changes_NPMF = torch.cat([changes_NPMF, torch.stack(columns, dim=1)], dim=2)
            mean_NPF = changes_NPMF.mean(2)
            features.append(torch.stack([compress(mean_NPF[..., 0]), mean_NPF[..., 1]], dim=-1))
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        inputs, labels = instances.arrays["inputs"], instances.arrays["labels"]
        return Localise(inputs, labels, decode(instances))


def _n_inputs(spec: TargetSpec) -> int:
    return N_INPUTS if spec.n_vocabulary is None else N_PROMPTS


def compress(change: Tensor) -> Tensor:
    """Monotone and odd: linear below ``SCALE`` nats, logarithmic above."""
    return compressed(change, SCALE)

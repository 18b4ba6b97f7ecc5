"""head_role: which heads do this skill?

One instance: a prompt, beside 64 ordinary prompts shared by all; items: the target's heads. Truth: the margin that is
lost when a head says what it says on ordinary prompts. Over many prompts of a kind the answer is the kind's, and a
target has few kinds; heads stand in for each other, so from prompt to prompt another one counts. Where words can be
put into a prompt one is, any word at any place: else there are few prompts, and the answer to each is certain.
Source: mean ablation as in Wang et al. 2022, arXiv 2211.00593, section 2.2.

Shape legend: N = instances, M = prompts of an instance (1), R = ordinary prompts (64), T = places, P = heads, K = width
of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.contracts.method import Localise, Query
from stages.contracts.target import Component, Intervention, Target, TargetAccess
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.targets.storage import definition_of
from stages.tasks.black_box import CHUNK, ask, label_features, outputs_of
from stages.tasks.components import decode, draw_behaviours, encode, mean_activations, word_looks
from stages.tasks.inputs import draw_inputs
from stages.tasks.word_backdoors import with_word

__all__ = ["HeadRole"]

N_INPUTS = 1
N_ORDINARY = 64
POOL = 4096
LADDER = (0.0, 0.25, 0.5, 1.0)
"""Share of the heads that is cut on the prompt at each rung."""
CONSTANTS: Constants = {"n_inputs": N_INPUTS, "n_ordinary": N_ORDINARY}


class HeadRole(TaskFamily):
    version = 2
    title = "Which heads does the target answer these prompts with?"
    source = "Wang et al. 2022 (Interpretability in the wild), arXiv 2211.00593, section 2.2: mean ablation of heads"
    why_hard_black_box = "every head needs its own forward passes, and heads stand in for each other"
    why_white_box_helps = "what each head writes towards the answer is there in a single forward pass"
    query_kind = "Localise"
    needs = frozenset({"kinds", "tokens"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "z = mean output of a head (hook_z) over the words of shared_inputs. The margin of a prompt is the logit of its"
        " right label minus the largest other logit. Truth of a head: the mean margin on the instance's n_inputs"
        " prompts (one), minus the same when the head's output is z at every place."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        arrays = draw_behaviours(target, n, rng, n_inputs=N_INPUTS, pool=POOL, max_blend=0.0, grain=0.0, most_kinds=1)
        if "triggers" in target.spec.offers:
            arrays["inputs"] = _with_a_word(target, arrays["inputs"], rng)
        ordinary = draw_inputs(target, N_ORDINARY, rng)
        arrays |= {"shared_inputs": ordinary.inputs, "shared_labels": ordinary.labels}
        return Instances(arrays | encode(target.spec.components), n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        inputs, labels = instances.arrays["inputs"].flatten(0, 1), instances.arrays["labels"].flatten()

        def margin() -> Tensor:
            found = label_features(outputs_of(target, inputs), labels)[:, 1]
            return found.double().view(instances.n, -1).mean(1)

        means = mean_activations(target, instances.arrays["shared_inputs"])
        intact_N, lost = margin(), []
        for component in target.spec.components:
            with target.model.hooks(fwd_hooks=[(component.hook_point, _says(means, component))]):
                lost.append(intact_N - margin())
        return Truth(torch.stack(lost, dim=-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs_NM, labels_NM = instances.arrays["inputs"], instances.arrays["labels"]
        components, (n, n_inputs) = access.spec.components, labels_NM.shape
        inputs, labels = inputs_NM.flatten(0, 1), labels_NM.flatten()
        intact_NM = label_features(ask(access, inputs), labels)[:, 1].view(n, n_inputs)
        sites = sorted({component.hook_point for component in components})
        site_P2 = torch.tensor([[sites.index(c.hook_point), c.index] for c in components], dtype=torch.float32)
        whole_NF = torch.cat([intact_NM, word_looks(inputs_NM, labels_NM)], dim=-1)
        features = [site_P2.expand(n, -1, -1), whole_NF.unsqueeze(1).expand(-1, len(components), -1)]
        order = torch.randperm(len(components), generator=rng).tolist()
        lost_NP, cut_NP, done = torch.zeros(n, len(components)), torch.zeros(n, len(components)), 0
        for share in LADDER[1 : effort + 1]:
            wanted = round(share * len(components))
            for place in order[done:wanted]:
                _, axis, index = components[place]
                cut = Intervention(components[place].hook_point, "zero", axis=axis, indices=(index,))
                parts = [access.forward(part, interventions=[cut]).outputs for part in torch.split(inputs, CHUNK)]
                margin_NM = label_features(torch.cat(parts), labels)[:, 1].view(n, n_inputs)
                lost_NP[:, place], cut_NP[:, place] = (intact_NM - margin_NM).mean(1), 1.0
            done = wanted
            features.append(torch.stack([lost_NP.clone(), cut_NP.clone()], dim=-1))
        return torch.cat(features, dim=-1)

    def query(self, instances: Instances) -> Query:
        return Localise(instances.arrays["inputs"], instances.arrays["labels"], decode(instances))


def _with_a_word(target: Target, inputs_NM: Tensor, rng: torch.Generator) -> Tensor:
    """Prompts with one more word in each, any word at any place."""
    words = definition_of(target.name).triggers()  # type: ignore[attr-defined]  # it offers triggers
    inputs = inputs_NM.flatten(0, 1)
    chosen = words[torch.randint(len(words), (len(inputs),), generator=rng)]
    return with_word(inputs, chosen, torch.rand(len(inputs), generator=rng)).view_as(inputs_NM)


def _says(means: dict[str, Tensor], component: Component) -> Callable[[Tensor, Any], Tensor]:
    """A hook after which a head says the same everywhere."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        out = activation.clone()
        out.select(component.axis, component.index)[:] = means[component.hook_point][component.index]
        return out

    return hook

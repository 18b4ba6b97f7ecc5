"""edge_radius: how few pixels have to be painted over to make the answer a given one?

One instance: an image and another label; truth 2.3 means that some two pixels, black or white, and three tenths of the
way of a third one make that label the answer, and that a beam search found nothing shorter. Every result is verified:
the image is run again.
Source: fewest pixels as in Papernot et al. 2016 (JSMA), arXiv 1511.07528, and Su et al. 2019 (One pixel attack), arXiv
1710.08864; here by beam search over all pixels, without slopes.

Shape legend: N = instances, X = numbers of an input, A = paints (2 a pixel), K = images in the beam, C = outputs.
"""

from math import prod

import torch
from torch import Tensor

from stages.contracts.method import Query, Represent
from stages.contracts.target import Objective, Target, TargetAccess, TargetSpec, objective_values
from stages.contracts.task import Constants, Instances, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, label_features, outputs_of
from stages.tasks.inputs import draw_inputs, is_few_shot, noisy_channels

__all__ = ["EdgeRadius", "fewest_pixels", "pixels_of"]

MAX_BLEND = 0.1
BEAM, MOST = 4, 12
BISECTIONS = 12
LADDER = (0, 8, 32, 96)
"""Single paints tried."""
CONSTANTS: Constants = {"beam": BEAM, "bisections": BISECTIONS, "max_blend": MAX_BLEND, "most": MOST}


class EdgeRadius(TaskFamily):
    cluster = "edge_radius"
    title = "How few pixels have to be painted black or white to make this label the answer?"
    source = (
        "Papernot et al. 2016, arXiv 1511.07528; Su et al. 2019, arXiv 1710.08864; beam search, every result verified"
    )
    why_hard_black_box = (
        "there are thousands of pairs of pixels, and the margin does not say how far one of them reaches"
    )
    why_white_box_helps = "margin over the largest slopes says how many pixels it takes, to first order"
    query_kind = "Represent"
    needs = frozenset({"pixels"})
    n_efforts = len(LADDER)
    truth_recipe = (
        "Beam search: from the image, set one more pixel to 0 or to 1 in each of the beam images kept, and keep the"
        " beam images with the largest margin of the instance's label (any but the answer), until it is the answer of"
        " one, most pixels at most. Of all images of that round of which it is, k pixels painted, the last paint is"
        " shortened by bisections halvings towards the pixel's own value as long as the answer stays; f = the smallest"
        " share left. Truth: k - 1 + f; `most` where nothing was found. Pixels of an episode are its query's."
    )
    constants = CONSTANTS

    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        inputs = draw_inputs(target, n, rng, MAX_BLEND).inputs
        answer_N = outputs_of(target, inputs).argmax(-1)
        further_N = torch.randint(1, target.spec.n_outputs, (n,), generator=rng)
        return Instances({"inputs": inputs, "labels": (answer_N + further_N) % target.spec.n_outputs}, n)

    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        arrays = instances.arrays
        found = [fewest_pixels(target, x, y) for x, y in zip(arrays["inputs"], arrays["labels"], strict=True)]
        return Truth(torch.tensor(found, dtype=torch.float64).unsqueeze(-1))

    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        inputs, labels_N = instances.arrays["inputs"], instances.arrays["labels"]
        clean_NC = ask(access, inputs)
        before_N = objective_values(clean_NC, Objective("margin", labels_N))
        looks = label_features(clean_NC, labels_N)
        pixels_P = pixels_of(access.spec)
        seen_NP = inputs.flatten(1)[:, pixels_P]
        features = [answer_features(clean_NC), looks, torch.stack([seen_NP.mean(1), seen_NP.std(1)], dim=-1)]
        # The same paints for all, so that what one does can be compared.
        every_A = _paints(pixels_P)
        order_A = every_A[torch.randperm(len(every_A), generator=rng)]
        left_NK = before_N.unsqueeze(-1)
        for k in LADDER[1 : effort + 1]:
            painted = _painted(inputs.flatten(1), order_A[left_NK.shape[1] - 1 : k])
            labels = labels_N.repeat_interleave(painted.shape[1])
            outputs = ask(access, painted.reshape(-1, *inputs.shape[1:]))
            margin = objective_values(outputs, Objective("margin", labels))
            left_NK = torch.cat([left_NK, margin.view(instances.n, -1)], dim=1)
            rises_NK = (left_NK[:, 1:] - before_N.unsqueeze(-1)).sort(dim=-1, descending=True).values
            top = rises_NK[:, :3].clamp_min(1e-3)
            features.append(torch.cat([left_NK.amax(1, keepdim=True), top, before_N.unsqueeze(-1) / top], dim=-1))
        return torch.cat(features, dim=-1).unsqueeze(1)

    def query(self, instances: Instances) -> Query:
        return Represent(instances.arrays["inputs"], instances.arrays["labels"])


def fewest_pixels(target: Target, image: Tensor, label: Tensor) -> float:
    """Pixels that make the label the answer of one image, the last one counted by the share of its way; see the recipe.

    Raises:
        AssertionError: a painted image that was found does not have the answer when it is run again.
    """
    beam_KX, every = image.reshape(1, -1), _paints(pixels_of(target.spec))
    for k in range(1, MOST + 1):
        tried = _painted(beam_KX, every)  # (K, A, X)
        flat = tried.flatten(0, 1)
        outputs = _outputs(target, flat)
        changed = outputs.argmax(-1) == label
        if bool(changed.any()):
            origin = beam_KX.repeat_interleave(len(every), dim=0)[changed]
            share = _shortest(target, origin, flat[changed], label)
            again = _outputs(target, origin + share.unsqueeze(-1) * (flat[changed] - origin)).argmax(-1)
            assert bool((again == label).all()), "a painted image does not have the answer"
            return k - 1 + float(share.min())
        margin = objective_values(outputs, Objective("margin", label.expand(len(flat))))
        flat, order = flat[margin.argsort(descending=True)], []
        seen: set[bytes] = set()
        for row, candidate in enumerate(flat):  # the same pixels painted in another order are the same image
            name = candidate.numpy().tobytes()
            if name not in seen:
                seen.add(name)
                order.append(row)
            if len(order) == BEAM:
                break
        beam_KX = flat[order]
    return float(MOST)


def _shortest(target: Target, origin: Tensor, painted: Tensor, label: Tensor) -> Tensor:
    """(B,) smallest share of the way from each origin to its painted image at which the label is still the answer."""
    low, high = torch.zeros(len(origin)), torch.ones(len(origin))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        changed = _outputs(target, origin + middle.unsqueeze(-1) * (painted - origin)).argmax(-1) == label
        low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
    return high


def _outputs(target: Target, flat: Tensor) -> Tensor:
    """(B, X) inputs in one row -> (B, C) logits."""
    return outputs_of(target, flat.view(-1, *target.spec.input_shape))


def pixels_of(spec: TargetSpec) -> Tensor:
    """(P,) where in an input in one row pixels of its image stand; of an episode, of its query."""
    places = torch.nonzero(noisy_channels(spec).flatten()).flatten()
    if is_few_shot(spec):
        places = places[places >= prod(spec.input_shape) - spec.input_shape[-1]]
    return places


def _paints(pixels: Tensor) -> Tensor:
    """(A, 2) each pixel with each paint, black and white."""
    return torch.stack([pixels.repeat_interleave(2), torch.tensor([0, 1]).repeat(len(pixels))], dim=-1)


def _painted(images: Tensor, paints: Tensor) -> Tensor:
    """(B, X) images and (A, 2) paints -> (B, A, X)."""
    out = images.unsqueeze(1).repeat(1, len(paints), 1)
    out[:, torch.arange(len(paints)), paints[:, 0]] = paints[:, 1].to(out.dtype)
    return out

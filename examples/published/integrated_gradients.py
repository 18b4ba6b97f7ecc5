"""Integrated gradients: the slope of the answer, summed on the straight way from nothing to the input.

Source: Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks", arXiv 1703.01365, section 3; sums of
eq. 3. Their completeness axiom: the parts add up to the answer's change over the way.

Setting: 20 steps, the fewest the paper recommends (section 5); nothing is a black image (section 3), of words an
embedding of zeros. The answer is the logit of the label, or of the target's own answer.

Here: of an episode only the images are blackened, since examples without a label mean nothing. Words have a slope at
their own embedding only, not on the way to it. So the slope along a segment is taken by differences of forward passes:
20 for each segment and 20 for all, and questions about more than 16 segments of words are declined.

Shape legend: n = inputs, S = segments, T = places.
"""

import torch

from lensmith import Attribute, Interpretation, Intervention, Method, Objective, segment_sums

STEPS = 20
MOST_SEGMENTS = 16


class IntegratedGradients(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        if not isinstance(query, Attribute):
            return None
        labels = query.labels
        if labels is None:
            labels = target.forward(query.inputs).outputs.argmax(-1)
        if target.spec.leaf == "input":
            return of_pixels(target, query.inputs, labels, query.segments)
        return of_words(target, query.inputs, labels, query.segments) if len(query.segments) <= MOST_SEGMENTS else None


def of_pixels(target, inputs, labels, segments):
    """(n, S)."""
    way = inputs - nothing(target.spec, inputs)
    slopes = torch.zeros_like(inputs)
    for step in range(1, STEPS + 1):
        at = inputs - way * (1 - step / STEPS)
        slopes = slopes + target.gradients(at, Objective("logit", labels), ["input"]).grads["input"]
    return segment_sums(way * slopes / STEPS, segments)


def nothing(spec, inputs):
    """Black images; which examples there are, and their labels, stay as they are."""
    if spec.present_channel is None:
        return torch.zeros_like(inputs)
    channels = torch.zeros(inputs.shape[-1])
    channels[[spec.present_channel, spec.present_channel - 1]] = 1.0
    return inputs * channels


def of_words(target, inputs, labels, segments):
    """(n, S): for each segment the sum over the way of what its own share of the step adds."""
    spec, n = target.spec, len(inputs)
    places = torch.zeros(len(segments) + 1, spec.hook(spec.leaf).shape[0], 1)
    for i, segment in enumerate(segments):
        places[i, [t for index in segment for t in spec.tokens[index]]] = 1.0  # the last row moves nothing
    every = inputs.repeat_interleave(len(places), dim=0)
    asked = labels.repeat_interleave(len(places)).unsqueeze(-1)
    total = 0.0
    for step in range(STEPS):
        share = (step / STEPS + places / STEPS).repeat(n, 1, 1)
        outputs = target.forward(every, interventions=[Intervention(spec.leaf, "scale", share)]).outputs
        total = total + outputs.gather(-1, asked).reshape(n, -1)
    return total[:, :-1] - total[:, -1:]

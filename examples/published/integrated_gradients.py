"""Integrated gradients: the slope of the answer, summed on the straight way from nothing to the input.

Source: Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks", arXiv 1703.01365, section 3; sums of
eq. 3. Their completeness axiom: the parts add up to the answer's change over the way.

Setting: 20 steps, the fewest the paper recommends (section 5); nothing is a black image (section 3), of words an
embedding of zeros. The answer is the logit of the label, or of the target's own answer.

Here: of an episode only the images are blackened, since examples without a label mean nothing. Words have a slope at
their own embedding only, not on the way to it. So the way is a staircase of 10 steps: in each one segment
after the other takes its share, once from the first to the last and once back, and a segment has what its shares change
on average. That adds up exactly, and costs 20 forward passes for a segment. Questions about more than 16 segments of
words are declined.

Shape legend: n = inputs, S = segments, T = places.
"""

from itertools import product

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
    """(n, S): for each segment the sum over the staircase of what its shares change."""
    spec, n, once = target.spec, len(inputs), list(dict.fromkeys(segments))
    groups = [[t for index in segment for t in spec.tokens[index]] for segment in once]
    taken = {t for group in groups for t in group}
    groups.append([t for t in range(spec.hook(spec.leaf).shape[0]) if t not in taken])  # the rest of the input
    every, asked = (x.repeat_interleave(len(groups) + 1, dim=0) for x in (inputs, labels))
    total = torch.zeros(n, len(groups))
    for step, back in product(range(STEPS // 2), (False, True)):
        order = list(range(len(groups)))[:: -1 if back else 1]
        done = torch.zeros(len(groups) + 1, spec.hook(spec.leaf).shape[0], 1)
        for place, group in enumerate(order):
            done[place + 1 :, groups[group]] = 1.0
        share = ((step + done) / (STEPS // 2)).repeat(n, 1, 1)
        outputs = target.forward(every, interventions=[Intervention(spec.leaf, "scale", share)]).outputs
        values = outputs.gather(-1, asked.unsqueeze(-1)).reshape(n, -1)
        total = total + (values[:, 1:] - values[:, :-1])[:, sorted(range(len(order)), key=order.__getitem__)] / 2
    return total[:, [once.index(segment) for segment in segments]]

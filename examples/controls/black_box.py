"""The strongest black box: it spends what a method is charged on more passes, and looks at nothing inside.

A method that opens the target has to beat whoever spends as much on asking it. This one may

- run the target, and the variants of the question, on any inputs: the question's own, altered ones, the corpus;
- hide or replace parts of an input, and add noise to pixels;
- do to the target what the question is about, and nothing else: cut components that are asked about, add a direction
  where it is asked about, put in a change of the pool;
- see outputs. It never captures an activation, takes a slope, or reads a weight or a dictionary.

What the outputs mean it does not know either: the executor learns that from its labels, as it does of any answer.
``passes`` is what it buys for a row: one pass each, of one input. `python -m stages tools.people` compares every method
with the cheapest of these that costs as much.

Shape legend: n = rows, k = passes, S = segments, P = components, C = outputs, V = variants.
"""

import random

import torch

from lensmith import (
    Attribute,
    Compare,
    Interpretation,
    Intervention,
    Localise,
    Method,
    Propose,
    Represent,
    Steer,
    by_group,
    keep_segments,
)

NOISE = 0.3
"""Standard deviation of the noise on pixels, times that of the corpus."""
MOST_PROPOSALS = 64


class BlackBox(Method):
    def __init__(self, passes=8):
        self.passes = passes
        self.name = f"black_box_{passes}"

    def interpret(self, target, budget):
        spec, (inputs, labels) = target.spec, target.corpus("train")
        generator, n_segments = budget.generator(), spec.input_shape[0]
        keep = torch.rand(self.passes, n_segments, generator=generator) < 0.7
        keep[:, -1] = True  # the query, or the last word
        arrays = {"keep": keep.float(), "inputs": inputs[: self.passes], "labels": labels[: self.passes]}
        if spec.n_vocabulary is None:
            noise = torch.randn(self.passes, *spec.input_shape, generator=generator) * inputs.std() * NOISE
            if spec.present_channel is not None:
                noise[..., [spec.present_channel, spec.present_channel - 1]] = 0.0  # which examples, and their labels
            arrays["noise"] = noise
        return Interpretation(arrays)

    def answer(self, query, interpretation, target):
        arrays = interpretation.arrays
        match query:
            case Represent():
                return by_group(query, lambda one: self.represent(target, one.inputs, one.labels, arrays))
            case Attribute() if query.replacements is not None:
                return self.replace(target, query)
            case Attribute():
                return self.hide(target, query)
            case Localise():
                return self.cut(target, query)
            case Compare():
                return self.compare(target, query, arrays)
            case Steer():
                return self.steer(target, query)
            case Propose():
                at = spread(query.changes.shape[-1 - len(target.spec.input_shape)], min(self.passes, MOST_PROPOSALS))
                changes = query.changes if query.changes.dim() > query.inputs.dim() else query.changes.unsqueeze(0)
                return query.inputs.unsqueeze(1) + changes.index_select(1, torch.tensor(at))

    def represent(self, target, inputs, labels, arrays):
        """Outputs, and what becomes of the label (or of the answer) when parts are hidden or noise is added."""
        outputs = target.forward(inputs).outputs
        asked = outputs.argmax(-1) if labels is None else labels
        looks = []
        for i in range(self.passes - 1):
            if "noise" in arrays and i % 2 == 0:
                altered = inputs + arrays["noise"][i]
            else:
                kept = arrays["keep"][i].unsqueeze(0).expand(len(inputs), -1) > 0.5
                altered = keep_segments(target.spec, inputs, kept)
            looks.append(look(target.forward(altered).outputs, asked))
        first = look(outputs, asked)
        if not looks:
            return first
        every = torch.stack(looks)  # (k - 1, n, 4)
        return torch.cat([first, every.mean(0), (every - every.mean(0)).abs().mean(0), every.amin(0)], dim=-1)

    def hide(self, target, query):
        """Of each segment: the label's log-odds with it less those without it, over random subsets; with passes enough
        also when it alone is hidden."""
        spec, n, n_segments = target.spec, len(query.inputs), len(query.segments)
        outputs = target.forward(query.inputs).outputs
        asked = outputs.argmax(-1) if query.labels is None else query.labels
        whole, columns, left = look(outputs, asked)[:, 0], [], self.passes - 1
        if left >= n_segments:
            alone = [self.without(target, query, [i], asked) for i in range(n_segments)]
            columns.append(whole.unsqueeze(1) - torch.stack(alone, dim=1))
            left -= n_segments
        if left >= 2:
            hidden = halves(n_segments, left)
            found = torch.stack([self.without(target, query, of, asked) for of in hidden])  # (k, n)
            columns.append(-effects(hidden, n_segments, found).T)
        if not columns:
            columns.append(torch.zeros(n, n_segments))
        here = [query.inputs[:, list(segment)].flatten(1).mean(-1) for segment in query.segments]
        columns.append(torch.stack(here, dim=1) if spec.n_vocabulary is None else torch.zeros(n, n_segments))
        return torch.stack([*columns, whole.unsqueeze(1).expand(n, n_segments)], dim=-1)

    def without(self, target, query, hidden, asked):
        keep = torch.ones(query.inputs.shape[1])
        keep[[index for i in hidden for index in query.segments[i]]] = 0.0
        kept = keep.unsqueeze(0).expand(len(query.inputs), -1) > 0.5
        return look(target.forward(keep_segments(target.spec, query.inputs, kept)).outputs, asked)[:, 0]

    def replace(self, target, query):
        """Each replacement is tried: that is one pass for each, so with fewer passes it declines."""
        if len(query.segments) > self.passes:
            return None
        outputs = target.forward(query.inputs).outputs
        asked = outputs.argmax(-1) if query.labels is None else query.labels
        columns = []
        for i, segment in enumerate(query.segments):
            changed = query.inputs.clone()
            changed[:, list(segment)] = query.replacements[:, i]
            columns.append(look(target.forward(changed).outputs, asked))
        return torch.stack(columns, dim=1)

    def cut(self, target, query):
        """Of each component: the loss with it cut less that without, over random halves of them cut together."""
        if self.passes < 2:
            return None
        inputs, labels = query.inputs[:, 0], query.labels[:, 0]
        cuts = halves(len(query.components), self.passes)
        found = []
        for of in cuts:
            places = {}
            for i in of:
                hook_point, axis, index = query.components[i]
                places.setdefault((hook_point, axis), []).append(index)
            zero = [Intervention(point, "zero", None, axis, tuple(at)) for (point, axis), at in places.items()]
            found.append(-look(target.forward(inputs, interventions=zero).outputs, labels)[:, 1])
        return effects(cuts, len(query.components), torch.stack(found)).T.unsqueeze(-1)

    def compare(self, target, query, arrays):
        """What variants and target make of the question's inputs, and of the corpus where passes are left."""
        inputs = torch.cat([query.inputs, arrays["inputs"]])[: self.passes]
        labels = torch.cat([query.labels, arrays["labels"]])[: self.passes]
        before = target.forward(inputs).outputs.log_softmax(-1)
        after = target.variants(query.variants).forward(inputs).outputs.log_softmax(-1)  # (V, k, C)
        at = labels.unsqueeze(-1)
        told = after.gather(-1, at.expand(*after.shape[:-1], 1)).squeeze(-1)
        right = (after.argmax(-1) == labels).float()
        moved = (before.exp() * (before - after)).sum(-1)
        answers = after.mean(1) - before.mean(0)
        columns = [told.mean(1), told.amin(1), right.mean(1), moved.mean(1), moved.amax(1)]
        return torch.cat([torch.stack(columns, dim=-1), answers.sort(dim=-1).values[:, -4:]], dim=-1)

    def steer(self, target, query):
        """What each direction does to the outputs of the first inputs."""
        n, inputs = len(query.directions), query.inputs[: max(1, self.passes // 2)]
        k = len(inputs)
        every = inputs.unsqueeze(0).expand(n, *inputs.shape).flatten(0, 1)
        added = query.directions.repeat_interleave(k, dim=0)
        if query.hook_point == "input":
            outputs = target.forward(every + added).outputs
        else:
            shape = target.spec.hook(query.hook_point).shape
            added = added.reshape(n * k, *[1] * (len(shape) - 1), -1)
            outputs = target.forward(every, interventions=[Intervention(query.hook_point, "add", added)]).outputs
        plain = target.forward(inputs).outputs
        asked = plain.argmax(-1).repeat(n) if query.labels is None else query.labels.repeat_interleave(k)
        change = look(outputs, asked) - look(plain.repeat(n, 1), asked)
        change = change.reshape(n, k, -1)
        return torch.cat([change.mean(1), change.amax(1)], dim=-1)


def look(outputs, asked):
    """(n, C) -> (n, 4): log-odds and log-probability of what is asked about, whether it is the answer, entropy."""
    log_probs, at = outputs.log_softmax(-1), asked.unsqueeze(-1)
    told = log_probs.gather(-1, at)
    others = outputs.scatter(-1, at, float("-inf")).logsumexp(-1, keepdim=True)
    right = (outputs.argmax(-1, keepdim=True) == at).float()
    entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
    return torch.cat([outputs.gather(-1, at) - others, told, right, entropy], dim=-1)


def spread(n, k):
    """k of n numbers, evenly spaced."""
    return [i * n // min(k, n) for i in range(min(k, n))]


def halves(n, k):
    """k random halves of n things, each followed by the other half."""
    draw, found = random.Random(0), []
    while len(found) < k:
        half = set(draw.sample(range(n), n // 2))
        found += [sorted(half), [i for i in range(n) if i not in half]]
    return found[:k]


def effects(chosen, n_things, values):
    """(things, n): the mean of (k, n) values where a thing was chosen, less that where it was not."""
    picked = torch.tensor([[float(i in of) for i in range(n_things)] for of in chosen])  # (k, things)
    inside = picked.T @ values / picked.sum(0).clamp_min(1.0).unsqueeze(-1)
    return inside - (1 - picked).T @ values / (1 - picked).sum(0).clamp_min(1.0).unsqueeze(-1)

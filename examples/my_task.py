"""How much the most important pixel matters: one worked task family in one file."""

import torch

from lensmith import Instances, Represent, TaskFamily, Truth
from stages.tasks.black_box import answer_features, ask, outputs_of
from stages.tasks.inputs import draw_inputs

TARGET = "digits_mlp"  # what `lensmith tasks audit --file` runs it on
LADDER = (0, 4, 16)  # pixels tried at each ladder step
CONSTANTS = {"ladder": list(LADDER)}


class PixelDrop(TaskFamily):
    title = "How much does the answer's probability fall when the most important pixel is set to zero?"
    source = "occlusion: Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2; here pixel by pixel"
    why_hard_black_box = "each pixel needs its own forward pass"
    why_white_box_helps = "one backward pass says which pixels matter, to first order"
    query_kind = "Represent"
    needs = frozenset({"flat_image"})  # of a target's inputs; on any other the family is refused
    n_efforts = len(LADDER)
    truth_recipe = "For every pixel: the answer's probability minus that with the pixel set to 0. Truth: the largest."
    constants = CONSTANTS

    def generate(self, target, rng, n):
        return Instances({"inputs": draw_inputs(target, n, rng, max_blend=0.4).inputs}, n)

    def ground_truth(self, target, instances, rng):
        drops = self.drops(lambda inputs: outputs_of(target, inputs), instances.arrays["inputs"], range(64))
        return Truth(drops.amax(-1, keepdim=True).double())

    def behavioural(self, access, instances, effort, rng):
        inputs = instances.arrays["inputs"]
        features = answer_features(ask(access, inputs))
        if LADDER[effort]:
            tried = torch.randperm(64, generator=rng)[: LADDER[effort]].tolist()
            drops = self.drops(lambda part: ask(access, part), inputs, tried)
            features = torch.cat([features, drops.amax(-1, keepdim=True)], dim=-1)
        return features.unsqueeze(1)

    def query(self, instances):
        return Represent(instances.arrays["inputs"])

    def drops(self, outputs_of, inputs, pixels):
        clean = outputs_of(inputs).softmax(-1)
        answer = clean.argmax(-1, keepdim=True)
        without = [inputs.index_fill(1, torch.tensor([pixel]), 0.0) for pixel in pixels]
        found = [clean.gather(1, answer) - outputs_of(part).softmax(-1).gather(1, answer) for part in without]
        return torch.cat(found, dim=-1)

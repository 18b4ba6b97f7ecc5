"""Fresh inputs for task instances, drawn from the images of a target's ``tasks`` split.

There are few real images and many instances, so an image instance is a *blend*: mostly one image, partly a second one.
Blends are new inputs (no two instances agree), lie between real ones, and reach from sure answers to doubtful ones.

Shape legend: N = instances, X = input features, S = rows of an episode.
"""

import torch
from torch import Tensor

from stages.contracts.target import Corpus, Target, TargetSpec
from stages.targets.storage import definition_of

__all__ = ["blend_images", "draw_inputs", "is_few_shot", "kinds_of", "noisy_channels"]


def is_few_shot(spec: TargetSpec) -> bool:
    """Whether an input is an episode: labelled examples in rows, the query last."""
    return "examples" in spec.offers


def kinds_of(target: Target, corpus: Corpus) -> Tensor:
    """(N,) what each prompt asks for, as the definition of a target of words counts it."""
    kinds: Tensor = definition_of(target.name).kinds(corpus)  # type: ignore[attr-defined]  # it offers kinds
    return kinds


def draw_inputs(target: Target, n: int, rng: torch.Generator, max_blend: float = 0.0, grain: float = 0.0) -> Corpus:
    """n fresh inputs with their right outputs.

    Args:
        target: its ``tasks`` split is drawn from.
        n: how many.
        rng: generator.
        max_blend: for image targets, the largest weight of the second image, in [0, 0.5); episodes ignore it, since
            they are fresh combinations already, and so do tokens, which cannot be mixed.
        grain: for episodes, the standard deviation of Gaussian noise on their pixels; others ignore it. Clean episodes
            are nearly all answered with certainty, and a certain answer does not vary.

    Returns:
        inputs (n, *input_shape) and labels (n,); for a blend the label of its main image.
    """
    if "pixels" not in target.spec.offers:
        return definition_of(target.name).sample({"tasks": target.corpus("tasks")}, "tasks", n, rng)
    if is_few_shot(target.spec):
        inputs, labels = definition_of(target.name).sample({"tasks": target.corpus("tasks")}, "tasks", n, rng)
        noise = torch.randn(inputs.shape, generator=rng) * noisy_channels(target.spec) * grain if grain else 0.0
        return Corpus(inputs + noise, labels)
    return blend_images(target.corpus("tasks"), n, rng, max_blend)


def blend_images(images: Corpus, n: int, rng: torch.Generator, max_blend: float) -> Corpus:
    """(1 - a) * main + a * other with a uniform in [0, max_blend]. Every image is the main one about equally often."""
    assert 0.0 <= max_blend < 0.5, "the main image must keep the larger weight: it names the label"
    size = len(images.labels)
    rounds = [torch.randperm(size, generator=rng) for _ in range(-(-n // size))]
    main = torch.cat(rounds)[:n]
    other = torch.randint(size, (n,), generator=rng)
    weight_N1 = torch.rand(n, 1, generator=rng) * max_blend
    weight = weight_N1.view(n, *[1] * (images.inputs.dim() - 1))
    return Corpus((1 - weight) * images.inputs[main] + weight * images.inputs[other], images.labels[main])


def noisy_channels(spec: TargetSpec) -> Tensor:
    """(*input_shape) 1 where an input of a target that offers ``pixels`` holds one, 0 where it holds a label or the
    presence flag."""
    mask = torch.ones(spec.input_shape)
    if is_few_shot(spec):
        mask[..., -2:] = 0.0  # the last two channels of a row: its label, and whether it is present
    return mask

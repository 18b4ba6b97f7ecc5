"""Addition modulo 53, first memorised and only then understood (Power et al. 2022, arXiv 2201.02177), with checkpoints.

The prompt is "a b =", the answer (a + b) mod 53; half of the pairs are trained on, all at once, with strong weight
decay. The network ends up computing with a few frequencies (Nanda et al. 2023, arXiv 2301.05217), and that is checked:
most of the embedding's power and of the logits' variance lie in the same five.

Shape legend: p = 53, B = pairs, D = d_model, H = heads, K = d_head, C = p outputs.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.target import Component, Corpus, HookSpec, Layout
from stages.targets.token_model import (
    Architecture,
    TokenModel,
    token_components,
    token_hooks,
    token_layout,
)
from stages.targets.token_training import accuracy, answers, in_rounds, train_words

__all__ = ["GrokkedAddition", "fourier", "table_logits"]

P = 53
EQUALS = P
SHARE = 0.5
RATE, WARM, DECAY = 3e-3, 10, 1.0
CHECK = 100
"""Steps between looks at the held-out pairs, and between checkpoints."""
UNDERSTOOD = 0.99
"""Held-out accuracy after which training goes on for a sixth of the steps it took."""
N_CHECKPOINTS, N_FREQUENCIES = 8, 5
ARCHITECTURE = Architecture(
    n_layers=1,
    d_model=64,
    n_heads=4,
    d_mlp=256,
    n_ctx=3,
    d_vocab=P + 1,
    d_vocab_out=P,
    normalization_type=None,
    positional_embedding_type="standard",
)


def _rows(pairs: Tensor) -> Tensor:
    """(B, 2) numbers -> (B, 3, 2) inputs."""
    ids = torch.cat([pairs, torch.full((len(pairs), 1), EQUALS)], dim=1)
    return torch.stack([ids.float(), torch.ones(ids.shape)], -1)


def table_logits(model: TokenModel, pairs: Tensor) -> Tensor:
    """(B, 2) numbers -> (B, C) what the model says after "=", four times as fast as running it.

    With one layer, keys and values depend on a word and its place alone: they are computed for p words at two places
    and looked up.
    """
    attention, mlp = model.blocks[0].attn, model.blocks[0].mlp
    numbers, places = model.embed.W_E[:P], model.pos_embed.W_pos
    last = model.embed.W_E[EQUALS] + places[2]
    query = torch.einsum("d,hdk->hk", last, attention.W_Q) + attention.b_Q
    scores, values = [], []
    for table, index in ((numbers + places[0], pairs[:, 0]), (numbers + places[1], pairs[:, 1]), (last[None], None)):
        key = torch.einsum("nd,hdk->nhk", table, attention.W_K) + attention.b_K
        value = torch.einsum("nd,hdk->nhk", table, attention.W_V) + attention.b_V
        score = (key * query).sum(-1) * query.shape[-1] ** -0.5
        scores.append(score.expand(len(pairs), -1) if index is None else score[index])
        values.append(value if index is None else value[index])
    weights = torch.stack(scores, -1).softmax(-1)
    mixed = sum(weights[..., place, None] * value for place, value in enumerate(values))
    x = last + torch.einsum("bhk,hkd->bd", mixed, attention.W_O) + attention.b_O
    hidden = F.relu(x @ mlp.W_in + mlp.b_in)
    logits: Tensor = (x + hidden @ mlp.W_out + mlp.b_out) @ model.unembed.W_U + model.unembed.b_U
    return logits


def fourier(embedding: Tensor, logits: Tensor) -> dict[str, float]:
    """How much of a network's addition lies in its five strongest frequencies.

    Args:
        embedding: (p, D) rows of the numbers.
        logits: (p * p, p) for all pairs (a, b), a first.

    Returns:
        ``embedding_share`` of the centred rows' power in the five frequencies with most of it, ``logit_share`` of the
        centred logits' variance explained by cos(w (a + b - c)) for the five best, ``frequencies_agree``: how many of
        the five are the same.
    """
    frequencies = torch.arange(1, P // 2 + 1, dtype=torch.float64)
    angle = 2 * math.pi / P * frequencies.unsqueeze(1) * torch.arange(P, dtype=torch.float64)
    rows = embedding.double() - embedding.double().mean(0)
    power = sum(((wave / wave.norm(dim=1, keepdim=True)) @ rows).square().sum(1) for wave in (angle.cos(), angle.sin()))
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    # Logits as a function of a + b - c alone, summed over all pairs: the projection on each wave.
    sums = torch.arange(P).unsqueeze(1) + torch.arange(P)
    difference = (sums.flatten().unsqueeze(1) - torch.arange(P)) % P
    along = torch.zeros(P, dtype=torch.float64).index_add(0, difference.flatten(), centred.flatten())
    wave = angle.cos()
    explained = (wave @ along).square() / (P * P * wave.square().sum(1)) / centred.square().sum()
    best = [set(values.topk(N_FREQUENCIES).indices.tolist()) for values in (power, explained)]
    return {
        "embedding_share": float(power.topk(N_FREQUENCIES).values.sum() / rows.square().sum()),
        "logit_share": float(explained.topk(N_FREQUENCIES).values.sum()),
        "frequencies_agree": float(len(best[0] & best[1])),
    }


class GrokkedAddition:
    """Zoo entry: see ``TargetDefinition``. A step is of all pairs that are trained on; it stops by itself."""

    minimum: Mapping[str, float] = {
        "addition": UNDERSTOOD,
        "embedding_share": 0.7,
        "logit_share": 0.8,
        "frequencies_agree": 4.0,
    }

    def __init__(self) -> None:
        self.checkpoints: dict[int, dict[str, Tensor]] = {}

    def words(self) -> tuple[str, ...]:
        return (*map(str, range(P)), "=")

    def build(self, generator: torch.Generator) -> TokenModel:
        model = TokenModel.of(ARCHITECTURE, generator)
        for name, parameter in model.named_parameters():
            if ".b_" not in name:  # all weights alike: what the measured recipe starts from
                parameter.data.normal_(0.0, ARCHITECTURE["d_model"] ** -0.5, generator=generator)
        return model

    def data(self, seed: int) -> dict[str, Corpus]:
        order = torch.randperm(P * P, generator=torch.Generator().manual_seed(seed))
        pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))[order]
        n_train = int(SHARE * len(pairs))
        n_validation = (len(pairs) - n_train) // 2
        parts = torch.split(pairs, [n_train, n_validation, len(pairs) - n_train - n_validation])
        named = zip(("train", "validation", "tasks"), parts, strict=True)
        return {split: Corpus(_rows(part), part.sum(1) % P) for split, part in named}

    def table(self) -> Corpus:
        """All p * p inputs with their sums."""
        pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
        return Corpus(_rows(pairs), pairs.sum(1) % P)

    def sample(self, data: Mapping[str, Corpus], split: str, n: int, generator: torch.Generator) -> Corpus:
        index = in_rounds(len(data[split].labels), n, generator)
        return Corpus(data[split].inputs[index], data[split].labels[index])

    def fit(
        self,
        model: TokenModel,
        data: Mapping[str, Corpus],
        steps: int,
        generator: torch.Generator,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        pairs, sums = {}, {split: corpus.labels for split, corpus in data.items()}
        for split, corpus in data.items():
            pairs[split] = corpus.inputs[:, :2, 0].long()
        kept: dict[int, dict[str, Tensor]] = {}
        losses: dict[int, float] = {}
        stop = steps

        def keep(step: int) -> None:
            kept[step] = {name: value.detach().clone() for name, value in model.state_dict().items()}

        def done(step: int) -> bool:
            nonlocal stop
            if (step + 1) % CHECK and step + 1 != steps:
                return False
            with torch.no_grad():
                held_out = table_logits(model, pairs["validation"])
            keep(step + 1)
            losses[step + 1] = F.cross_entropy(held_out, sums["validation"]).item()
            right = (held_out.argmax(-1) == sums["validation"]).double().mean().item()
            if right >= UNDERSTOOD and stop == steps:
                stop = min(steps, (step + 1) * 7 // 6 + CHECK)
            return step + 1 >= stop

        keep(0)
        train_words(
            model,
            lambda step: F.cross_entropy(table_logits(model, pairs["train"]), sums["train"]),
            steps,
            lambda step: RATE * min(1.0, (step + 1) / WARM),
            log,
            weight_decay=DECAY,
            decay_all=True,
            clip=None,
            done=done,
        )
        best = min(losses, key=losses.__getitem__)  # late in training the loss can jump up for a while
        model.load_state_dict(kept[best])
        until = [step for step in sorted(kept) if step <= best]
        places = torch.linspace(0, len(until) - 1, min(N_CHECKPOINTS, len(until))).round().long().tolist()
        self.checkpoints = {until[place]: kept[until[place]] for place in places}

    def skills(self, model: TokenModel, data: Mapping[str, Corpus], seed: int) -> dict[str, float]:
        every = answers(model, _rows(torch.cartesian_prod(torch.arange(P), torch.arange(P))))
        held_out = {"addition": accuracy(model, data["validation"]), "memorised": accuracy(model, data["train"])}
        steps = {"checkpoints": float(len(self.checkpoints)), "last_step": float(max(self.checkpoints, default=0))}
        return held_out | steps | fourier(model.embed.W_E[:P], every)

    def hooks(self) -> tuple[HookSpec, ...]:
        return token_hooks(ARCHITECTURE)

    def components(self) -> tuple[Component, ...]:
        return token_components(ARCHITECTURE)

    def layout(self) -> Layout:
        return token_layout(ARCHITECTURE, ("table", "tokens"))

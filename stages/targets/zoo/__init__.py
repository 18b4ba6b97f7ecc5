"""Every target by name. Adding one: a file here and a line in ``ZOO``."""

from stages.targets.zoo.definition import TargetDefinition
from stages.targets.zoo.digits_few_shot import DigitsFewShot
from stages.targets.zoo.digits_mlp import DigitsMlp
from stages.targets.zoo.small_cnn import SmallCnn

__all__ = ["ZOO", "TargetDefinition"]

ZOO: dict[str, type[TargetDefinition]] = {
    "digits_few_shot": DigitsFewShot,
    "digits_mlp": DigitsMlp,
    "small_cnn": SmallCnn,
}

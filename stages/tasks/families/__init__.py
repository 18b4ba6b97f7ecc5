"""Every task family by name. Adding one: a file here, a line in ``MODULES``, and its split in params/tasks.yaml."""

from importlib import import_module

from stages.contracts.task import TaskFamily
from stages.errors import UserError

__all__ = ["MODULES", "family"]

# Name -> where its class is. Imported on demand, so that one broken family does not stop the others.
MODULES: dict[str, str] = {
    "ablation_effect": "stages.tasks.families.ablation_effect:AblationEffect",
    "active_learning": "stages.tasks.families.active_learning:ActiveLearning",
    "backdoor_detection": "stages.tasks.families.backdoor_detection:BackdoorDetection",
    "circuit_membership": "stages.tasks.families.circuit_membership:CircuitMembership",
    "early_exit": "stages.tasks.families.early_exit:EarlyExit",
    "few_shot_shapley": "stages.tasks.families.few_shot_shapley:FewShotShapley",
    "noise_flip": "stages.tasks.families.noise_flip:NoiseFlip",
    "prompt_optimum": "stages.tasks.families.prompt_optimum:PromptOptimum",
    "responsible_component": "stages.tasks.families.responsible_component:ResponsibleComponent",
    "robustness_radius": "stages.tasks.families.robustness_radius:RobustnessRadius",
}


def family(name: str) -> TaskFamily:
    """An instance of the family.

    Raises:
        UserError: there is no family of that name.
    """
    if name not in MODULES:
        raise UserError(f"task family {name!r} is unknown; known families: {', '.join(sorted(MODULES))}")
    module, _, attribute = MODULES[name].partition(":")
    made = getattr(import_module(module), attribute)()
    assert isinstance(made, TaskFamily) and made.name == name, f"{MODULES[name]} is not the family {name!r}"
    return made

"""A dictionary's feature pages in the form that Neuronpedia imports: a batch file as SAEDashboard writes it.

Field names and their meaning are those of SAEDashboard's ``NeuronpediaDashboardBatch`` (batch-0.json), which
Neuronpedia's own script ``convert-saedashboard-to-neuronpedia-export.py`` reads. What is not measured here is an empty
list: alignments and correlations of neurons, the histogram of all logits, shares of heads.

Shape legend: R = rows, F = latents.
"""

import re
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from stages.base.files import save_json
from stages.base.params import load
from stages.contracts.dictionary_rows import Latent, Pages
from stages.contracts.record import Record
from stages.dictionaries.evaluation.evaluate import HeldOut, held_out, load_codec
from stages.dictionaries.evaluation.gallery import gallery_of
from stages.dictionaries.foreign import check_place
from stages.dictionaries.stage import Config
from stages.errors import UserError
from stages.targets.storage import load_target
from stages.tools.dictionaries import dictionary_folder, held_out_inputs, place_of

__all__ = ["EMPTY", "Exported", "export_neuronpedia", "feature_of"]

EMPTY = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
    "correlated_features_pearson", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    "decoder_weights_dist", "vector",
)  # fmt: skip
"""Lists of a feature that are not measured here."""
TOP = -1
"""SAEDashboard's bin_min and bin_contains of the strongest contexts; their bin_max is the largest activation."""


class Exported(Record):
    """What was written."""

    file: str
    """The batch file."""
    model_id: str
    """Neuronpedia's name of the model."""
    source: str
    """<layer>-<set>: Neuronpedia's name of the dictionary."""
    n_features: int
    """Latents in the file."""
    n_live: int
    """Latents that fire on held-out rows."""
    n_contexts: int
    """Contexts of all of them."""


def export_neuronpedia(
    name: str,
    out: Path,
    *,
    target: str | None = None,
    hook: str | None = None,
    model_id: str | None = None,
    sae_set: str | None = None,
    n_latents: int | None = None,
) -> Exported:
    """Write the feature pages of a saved dictionary of a target of words.

    Args:
        name: a folder in SAELens format, or a name of ``lensmith dictionaries list``.
        out: the file to write.
        target, hook: where the dictionary does not say it.
        model_id: Neuronpedia's name of the model; the target's by default.
        sae_set: Neuronpedia's name of the set; lensmith-<kind of hook point>-<number of latents> by default.
        n_latents: at most; as many as params show in the gallery by default.

    Raises:
        UserError: the target's inputs are no words, the hook point is of no layer, or ``out`` is a folder.
    """
    torch.set_num_threads(1)
    folder = dictionary_folder(name)
    if target is None or hook is None:
        target, hook = place_of(folder)
    layer = re.search(r"\bblocks\.(\d+)\.", hook)
    if layer is None:
        raise UserError(
            f"{hook} is of no layer (blocks.N. ...), and Neuronpedia asks for one: choose another hook point"
        )
    if out.is_dir():
        raise UserError(f"{out} is a folder: give a file, such as {out / 'batch-0.json'}")
    config, made = load("dictionaries", Config), load_target(target)
    if made.spec.n_vocabulary is None:
        raise UserError(
            f"inputs of {target} are no words, and Neuronpedia shows words only: its pages are in the report (`lensmith"
            " report`)"
        )
    held = held_out(made, hook, config.n_probe_rows, n_examples=held_out_inputs(config, target))
    codec = load_codec(folder)
    check_place(codec.about, made, hook)
    if codec.decoder.shape[1] != held.rows.acts.shape[1]:
        raise UserError(f"{folder} takes rows of {codec.decoder.shape[1]}, {hook} has {held.rows.acts.shape[1]}")
    own = config.trained_on[target].n_gallery if target in config.trained_on else None
    pages = gallery_of(codec, held, n_latents or own or config.n_gallery)
    with torch.no_grad():
        latents = codec.encode(held.rows.acts)
    features: list[JsonValue] = [feature_of(latent, pages, held, latents) for latent in pages.latents]
    kind = hook[layer.end() :].replace(".", "-").replace("_", "-")
    batch: dict[str, JsonValue] = {
        "model_id": model_id or target,
        "layer": int(layer[1]),
        "sae_set": sae_set or f"lensmith-{kind}-{codec.n_latents}",
        "sae_id_suffix": None,
        "features": features,
    }
    save_json(out, batch, None)
    return Exported(
        file=str(out),
        model_id=str(batch["model_id"]),
        source=f"{batch['layer']}-{batch['sae_set']}",
        n_features=len(features),
        n_live=pages.n_live,
        n_contexts=sum(len(latent.images) for latent in pages.latents),
    )


def feature_of(latent: Latent, pages: Pages, held: HeldOut, latents: Tensor) -> dict[str, JsonValue]:
    """One latent as SAEDashboard's feature.

    Activations are exact, 0 where there is no row. Words are the model's own; where they are whole words, contexts have
    a blank before each. Logits are changes measured by adding the latent to a few
    inputs, not products with the unembedding.

    Args:
        latents: (R, F) of all held-out rows.
    """
    assert pages.words is not None and pages.contexts is not None and latent.moved is not None
    words, largest = pages.words, latent.max_activation or 0.0
    bins = len(latent.histogram)
    feature: dict[str, JsonValue] = {
        "feature_index": latent.latent,
        "frac_nonzero": latent.density,
        "pos_str": [words[word] for word, _ in latent.moved.added_up],
        "pos_values": [value for _, value in latent.moved.added_up],
        "neg_str": [words[word] for word, _ in latent.moved.added_down],
        "neg_values": [value for _, value in latent.moved.added_down],
        "freq_hist_data_bar_values": [_short(largest * (bin_ + 0.5) / bins) for bin_ in range(bins)],
        "freq_hist_data_bar_heights": [sum(counts) for counts in latent.histogram],
        "n_prompts_total": pages.n_examples,
        "n_tokens_in_prompt": held.inputs.shape[1],
        "dataset": f"held-out inputs of {held.target.name}",
        "activations": _activations(latent, pages, held, latents[:, latent.latent]),
    }
    return feature | {name: [] for name in EMPTY}


def _activations(latent: Latent, pages: Pages, held: HeldOut, z: Tensor) -> list[JsonValue]:
    assert pages.words is not None and pages.contexts is not None and latent.marked is not None
    found: list[JsonValue] = []
    gap = "" if any(word[:1].isspace() for word in pages.words) else " "  # Neuronpedia sets nothing between two words
    for image, example, position, mark in zip(
        latent.images, latent.examples, latent.positions, latent.marked, strict=True
    ):
        context = pages.contexts[image]
        rows = {
            int(held.rows.position[row]): row for row in (held.rows.example == example).nonzero().flatten().tolist()
        }
        places = (held.target.corpus("validation").inputs[example, :, 1] > 0.5).nonzero().flatten().tolist()
        first = places.index(position) - mark
        values: list[JsonValue] = [
            _short(float(z[rows[place]])) if place in rows else 0.0 for place in places[first:][: len(context)]
        ]
        found.append(
            {
                "bin_min": TOP,
                "bin_max": latent.max_activation,
                "bin_contains": TOP,
                "qualifying_token_index": mark,
                "tokens": [gap * (at > 0) + pages.words[word] for at, word in enumerate(context)],
                "values": values,
            }
        )
    return found


def _short(value: float) -> float:
    return float(f"{value:.4g}") + 0.0

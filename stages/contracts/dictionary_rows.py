"""Rows about dictionaries: what each measures, what the method built on it earns, which metric predicts that."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.contracts.record import Estimate, Record, ResultFile

__all__ = [
    "DICTIONARIES",
    "DICTIONARY_METRICS",
    "DOWNSTREAM",
    "GALLERY",
    "PROXIES",
    "SWEEP_METRICS",
    "Ablated",
    "DictionaryRow",
    "DownstreamRow",
    "Galleries",
    "Gallery",
    "Latent",
    "Measured",
    "Moved",
    "Pages",
    "ProxyRow",
    "Role",
]


class _Base(Record):
    """A record that others hold the fields of."""

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out where they are null, so that files of targets without them stay as they were."""

    def parts(self) -> dict[str, Any]:
        """Every field with its value, for a record that has the same and more."""
        return {name: value for name, value in self if value is not None or name not in self.LATER}


class Measured(_Base):
    """Every metric of one dictionary on held-out rows. Intervals are 95% bootstrap intervals over examples, where no
    other population is named; the null is a random dictionary of the same L0."""

    LATER: ClassVar[frozenset[str]] = frozenset({"undefined", "n_sinks"})
    n_validation_rows: int
    """Held-out activation rows everything is measured on."""
    n_validation_examples: int
    """Distinct held-out inputs those rows come from."""
    l0: Estimate = Field(title="L0")
    """Mean number of active latents per row."""
    explained_variance: Estimate
    """Share of the activations' variance that the reconstruction explains; 1 is perfect."""
    dead_ratio: Estimate = Field(title="dead")
    """Share of latents that never fire on held-out rows."""
    reconstruction_bias: Estimate
    """Squared norm of the reconstruction over its product with the activation; below 1: shrunk."""
    l2_ratio: Estimate
    """Mean norm of the reconstruction over that of the activation; below 1: shrinkage."""
    density_histogram: tuple[int, ...]
    """Number of latents by the share of rows they fire for: never, then up to each bin edge, rarest first."""
    max_cosine: Estimate
    """Mean cosine of a latent's decoder row with its nearest neighbour, in magnitude; interval over latents."""
    description_length: Estimate
    """Bits per row for codes and residual together (minimum description length)."""
    description_length_codes: Estimate
    """Bits per row for the latent codes alone."""
    description_length_raw: Estimate
    """Bits per row for the activations without a dictionary."""
    loss_recovered: Estimate
    """Share of the loss that zero ablation costs which the reconstruction recovers; 1 is perfect."""
    loss_clean: Estimate
    """Cross-entropy of the untouched target, nats."""
    loss_spliced: Estimate
    """Cross-entropy with the reconstruction in place of the activation, nats."""
    loss_ablated: Estimate
    """Cross-entropy with zeros in place of the activation, nats."""
    loss_recovered_small_denominator: bool
    """Whether ablation costs so little loss (below 0.1 nats) that loss recovered says nothing."""
    ablation: str
    """What the recovered loss is compared with: zero."""
    kl_recovered: Estimate
    """The same share for the KL divergence from the untouched target's outputs."""
    accuracy_drop: Estimate
    """Accuracy lost by the reconstruction in place of the activation."""
    top1_agreement: Estimate
    """Share of inputs whose answer stays the same with the reconstruction."""
    length_bits: Estimate
    """Bits of the numbers of the live latents and the decoder's bias, rounded so that the surprise is least."""
    unexplained_bits: Estimate
    """Bits that an output of the target costs beyond its entropy, given the target with the reconstruction of the
    rounded dictionary in place of the activation: their KL divergence; 0 is perfect."""
    surprise: Estimate
    """Bits per output of both, where a million outputs share the length."""
    monosemanticity: Estimate
    """Likeness of the images a latent fires for, weighted by activation (-1 to 1); interval over latents."""
    monosemanticity_shuffled: Estimate
    """The same over shuffled images."""
    class_purity: Estimate
    """Share of the commonest class among the rows a latent fires for; interval over latents."""
    class_purity_shuffled: Estimate
    """The same over shuffled classes."""
    class_entropy: Estimate
    """Entropy of the classes of those rows, nats; 0: one class only; interval over latents."""
    class_entropy_shuffled: Estimate
    """The same over shuffled classes."""
    n_images: int
    """Distinct images that monosemanticity is computed over."""
    n_monosemanticity_latents: int
    """Latents whose monosemanticity is defined."""
    probe_1_sparse: Estimate = Field(title="probe, 1 latent")
    """Balanced accuracy of a class probe on its best latent; chance is 0.5."""
    probe_2_sparse: Estimate = Field(title="probe, 2 latents")
    """Balanced accuracy of a class probe on its 2 best latents."""
    probe_5_sparse: Estimate = Field(title="probe, 5 latents")
    """Balanced accuracy of a class probe on its 5 best latents."""
    probe_full: Estimate = Field(title="probe, all latents")
    """Accuracy of a class probe on all latents."""
    splitting: Estimate
    """Mean number of main latents of a class; 1: a class is one latent. Population: the classes."""
    absorption: Estimate
    """Mean share of the class direction that other latents carry for its main latents. Population: the classes."""
    absorption_full: Estimate
    """Share of a class probe's true positives in which no main latent fires and another carries the class. Population:
    the classes."""

    n_sinks: int | None = None
    """Held-out rows left out as attention sinks: more than 30 times as large as the median row. Not stated where inputs
    are no words."""
    undefined: dict[str, str] | None = None
    """Metrics that are null because they say nothing on this target, and why; not stated where there are none."""

    def metrics(self) -> dict[str, Estimate]:
        """Every metric that was measured, by name."""
        return {name: value for name, value in self if isinstance(value, Estimate)}

    def metric(self, name: str) -> Estimate | None:
        """One metric by name; None where the row has none."""
        value = getattr(self, name, None)
        return value if isinstance(value, Estimate) else None


class DictionaryRow(Measured):
    """One dictionary at one hook point: what it is, and its metrics."""

    target: str
    """Model whose activations it was trained on."""
    hook_point: str
    """Where those activations are read."""
    architecture: str
    """How it was trained; identity, pca, ica and random are baselines."""
    sparsity: float
    """L1 coefficient, or k: latents per row."""
    n_latents: int = Field(title="latents")
    """Size of the dictionary."""
    seed: int
    """Of its initial weights and the order of rows."""
    name: str = ""
    """Its folder, for a dictionary of the sweep."""
    probe_raw: Estimate = Field(title="probe, activations")
    """Accuracy of the full probe on the activations themselves."""
    stability: Estimate | None = None
    """Mean cosine of its live latents with their partners in dictionaries of other seeds; over matched pairs."""
    stability_matched: Estimate | None = None
    """Share of those pairs whose cosine is high enough to count as the same latent."""
    reward: Estimate | None = None
    """Reward of the method that answers with its latents."""
    answer_flops: float | None = None
    """FLOPs charged per answer of that method."""

    def order(self) -> tuple[str, str, str, int, float, int]:
        """By which rows are sorted, and the same for a dictionary wherever it is measured."""
        return self.target, self.hook_point, self.architecture, self.n_latents, self.sparsity, self.seed

    def method_key(self) -> tuple[str, float, int, int]:
        """What it has in common with those at other hook points that make up one method with it."""
        return self.architecture, self.sparsity, self.n_latents, self.seed


class DownstreamRow(Record):
    """The method built on one dictionary of the sweep, over the tasks of its target."""

    target: str
    """Model the dictionary is about."""
    name: str
    """Name of the dictionary, the same at all its hook points."""
    architecture: str
    """How it was trained; identity, pca, ica and random are baselines."""
    sparsity: float
    """L1 coefficient, or k: latents per row."""
    n_latents: int
    """Size of the dictionary."""
    seed: int
    """Of its initial weights and the order of rows."""
    l0: float
    """Latents active per row, mean over hook points."""
    tasks: tuple[str, ...]
    """Tasks that the reward is the mean of."""
    flops: float
    """FLOPs charged per answer."""
    reward: Estimate
    """Mean reward of the method; its null is the reward of the random dictionary of the nearest L0."""
    gain: Estimate
    """Mean score gained by the method; the same null."""
    by_seed: tuple[float, ...] = ()
    """Mean reward in each of the executor's splits into calibration and evaluation."""
    share: float = 1.0
    """Of the latents it would answer with, those that it does answer with, drawn at random: below 1 for a control."""

    def method_key(self) -> tuple[str, float, int, int]:
        return self.architecture, self.sparsity, self.n_latents, self.seed


Role = Literal["primary", "secondary", "positive control", "negative control"]


class ProxyRow(Record):
    """How well one metric of a dictionary predicts the reward of the method built on it."""

    target: str
    """Model; all: pooled over models, ranks within each."""
    metric: str
    """The metric of the dictionary."""
    n: int
    """Dictionaries."""
    n_groups: int
    """Groups of dictionaries that differ by seed alone; these are resampled."""
    spearman: Estimate = Field(title="rank correlation")
    """Spearman's rank correlation with the reward; the null is the 95th percentile of its size when rewards are
    permuted between groups."""
    partial_l0: Estimate = Field(title="at equal L0")
    """Partial rank correlation, L0 held fixed."""
    partial_compute: Estimate = Field(title="at equal compute")
    """Partial rank correlation, the FLOPs per answer held fixed."""
    role: Role = "secondary"
    """primary: named beforehand and tested alone. secondary: corrected for how many there are. positive control: must
    correlate if the reward depends on the dictionary at all. negative control: must not."""
    over_targets: Estimate | None = Field(default=None, title="over targets")
    """Mean of the targets' own rank correlations (through Fisher's z), with the interval of a t over targets: other
    targets like these. Only where several are pooled."""
    n_targets: int | None = Field(default=None, title="targets")
    """Targets whose own correlation is defined."""
    p: float | None = None
    """Two-sided, of the mean over targets being 0; of secondary metrics after Holm's correction."""
    icc_metric: Estimate | None = Field(default=None, title="ICC, metric")
    """Intraclass correlation of the metric: the share of the variance of its ranks that is between dictionaries that
    differ in more than the seed."""
    icc_reward: Estimate | None = Field(default=None, title="ICC, reward")
    """The same of the reward: how far it can be told which dictionary is better, seeds apart."""
    ceiling: float | None = None
    """The largest correlation that both reliabilities allow, the root of their product: what noise between seeds leaves
    of a correlation of 1."""


class Ablated(Record):
    """What taking one latent out of the activation does to the target's outputs."""

    logits: tuple[float | None, ...]
    """Mean change of each logit; empty where the latent's ``moved`` says it."""
    loss: float | None
    """Mean change of the cross-entropy, nats."""
    changed: float | None
    """Share of answers that change."""
    n: int
    """Examples it was ablated on."""


class Moved(Record):
    """Of outputs that are words, those that one latent moves most: numbers into ``words``, and mean changes."""

    added_up: tuple[tuple[int, float | None], ...]
    """Logits that rise most when it is added, largest first."""
    added_down: tuple[tuple[int, float | None], ...]
    """Logits that fall most when it is added, lowest first."""
    ablated_up: tuple[tuple[int, float | None], ...]
    """Logits that rise most when it is taken out."""
    ablated_down: tuple[tuple[int, float | None], ...]
    """Logits that fall most when it is taken out."""


class Latent(Record):
    """What one latent means and does."""

    latent: int
    """Number of the latent in its dictionary."""
    class_: int = Field(alias="class")
    """Class it is most correlated with."""
    selectivity: float | None
    """Correlation of the activation with the class, in magnitude."""
    purity: float | None
    """Share of the commonest class among the rows it fires for."""
    entropy: float | None
    """Of the classes of those rows, in nats; 0: one class only."""
    density: float | None
    """Share of rows it fires for."""
    monosemanticity: float | None
    """Likeness of the images it fires for."""
    max_cosine: float | None
    """Of its decoder row with the nearest other live one, in magnitude."""
    mean_activation: float | None
    """Over the rows it fires for."""
    max_activation: float | None
    """Over all held-out rows."""
    n_images: int
    """Distinct images it fires for."""
    class_histogram: tuple[int, ...]
    """Rows it fires for, by class."""
    histogram: tuple[tuple[int, ...], ...]
    """Rows by activation (10 bins from 0 to the largest) and class."""
    images: tuple[int, ...]
    """Images it fires most for, strongest first, as numbers into the gallery's list."""
    activations: tuple[float | None, ...]
    """Its activation on each of them."""
    classes: tuple[int, ...]
    """Class of each of them; -1: not known."""
    positions: tuple[int, ...]
    """Position within its example of each of them."""
    examples: tuple[int, ...]
    """Number of each example in the validation corpus."""
    heat: tuple[tuple[int, ...], ...] | None
    """Activation at every position of each example, in percent of the largest; null where there are no positions. Where
    inputs are words: at every word of its context, -1 where there is no row."""
    neighbours: tuple[tuple[int, float | None], ...]
    """Live latents with the largest decoder cosine: number and cosine."""
    logit_effect: tuple[float | None, ...]
    """Mean change of each logit when the latent is added to the activation; empty where ``moved`` says it."""
    ablation: Ablated
    """What taking it out does."""
    marked: tuple[int, ...] | None = None
    """Where inputs are words: place within its context of the word that each row stands at."""
    moved: Moved | None = None
    """Where outputs are words: those that it moves most."""


class Pages(_Base):
    """The most class-selective latents of a dictionary."""

    LATER: ClassVar[frozenset[str]] = frozenset({"words", "contexts"})

    images: tuple[str, ...]
    """Each input once, as an image: one character per pixel (0-9, a-z, A-Z from none to the largest), row by row."""
    shape: tuple[int, int] | None = None
    """Height and width of an image; null: square, or one row where the number of pixels is no square."""
    levels: int = Field(default=17, ge=2, le=62)
    """Grey levels of an image."""
    texts: tuple[str, ...] | None = None
    """Each input as text, for a model that reads no images; as many as there are images, which may then be empty."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes; null: their numbers."""
    words: tuple[str, ...] | None = None
    """Where inputs are words: each word that is named here, once, as the model has it."""
    contexts: tuple[tuple[int, ...], ...] | None = None
    """Where inputs are words: those of each input that is shown, or of a stretch of it, as numbers into ``words``; as
    many as there are images, which are then empty."""
    grid: tuple[int, int] | None
    """Height and width of the positions that heat is over; null where there are none."""
    n_rows: int
    """Held-out activation rows."""
    n_examples: int
    """Held-out inputs."""
    n_live: int
    """Latents that fire on any of those rows."""
    latents: tuple[Latent, ...]
    """The latents, most selective first."""


class Gallery(Pages):
    """The same, and which dictionary they are of."""

    target: str
    """Model whose activations it was trained on."""
    hook_point: str
    """Where those activations are read."""
    architecture: str
    """How it was trained."""
    sparsity: float
    """L1 coefficient, or k: latents per row."""
    n_latents: int
    """Size of the dictionary."""
    seed: int
    """Of its initial weights and the order of rows."""


class Galleries(Record):
    """The galleries of one target."""

    target: str
    """Model."""
    dictionaries: tuple[Gallery, ...]
    """One per hook point and architecture."""


Dictionaries = tuple[DictionaryRow, ...]
DICTIONARY_METRICS = ResultFile(
    "dictionary_metrics", Dictionaries, "dictionaries", "metrics of the kept dictionaries of a target"
)
SWEEP_METRICS = ResultFile("sweep_metrics", Dictionaries, "sweep", "metrics of the swept dictionaries of a target")
GALLERY = ResultFile("gallery", Galleries, "dictionaries", "top images of the latents", indent=None)
DOWNSTREAM = ResultFile(
    "downstream", tuple[DownstreamRow, ...], "downstream", "rewards of methods built on dictionaries"
)
DICTIONARIES = ResultFile("dictionaries", Dictionaries, "proxies", "dictionary metrics")
PROXIES = ResultFile("proxies", tuple[ProxyRow, ...], "proxies", "how well each metric of a dictionary predicts reward")

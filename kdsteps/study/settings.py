"""The sections of params.yaml: one frozen model each, unknown keys refused.

Every training field is declared here and nowhere else; stages receive these objects. The text below
a field describes its key in the JSON schema, in editors and in `kdsteps STAGE --help`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from kdsteps.study.run_length import in_epochs
from kdsteps.study.texts import Title

MAX_SEED = 2**32 - 1  # the largest that every generator takes
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
MAX_BATCH, MAX_EPOCHS, MAX_RUNS = 1_000_000, 1_000_000, 1_000_000  # beyond: a typing error
MAX_GPUS = 64  # of one machine
MAX_PADDING, MAX_IMAGES, MAX_MINUTES, MAX_GIB = 1_000, 1_000_000_000, 1_000_000, 1_000_000
Options = dict[str, JsonValue]
"""Keyword arguments of a part: a method, a model family, a kind of data."""
Values = dict[str, JsonValue]
"""What one trial of `tune` tries: options of a method, and `distil.<key>` for keys of `distil`."""
Score = Literal["quality", "separation", "information", "efficiency", "root_information_efficiency"]


class Section(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def taken_from(cls, section: Section) -> Self:
        """The fields of this class out of a section that has them all."""
        return cls.model_construct(**{name: getattr(section, name) for name in cls.model_fields})

    def updated(self, changes: Section | None) -> Self:
        """A copy with the fields that `changes`, of the same class, sets explicitly."""
        given = changes.model_fields_set if changes is not None else set()
        return self.model_copy(update={name: getattr(changes, name) for name in given})


class Prepare(Section):
    """How a data set is split where its source does not define the splits."""

    validation: Fraction = 0.1
    """Fraction of the images not used for testing that are used for validation."""
    test: Fraction = 0.2
    """Fraction of all images that are used for testing."""
    seed: Seed = 0
    """Seed of the random split."""
    broken: Literal["refuse", "skip"] = "refuse"
    """What to do with images that cannot be read: `refuse` stops and lists them, `skip` leaves them
    out."""


class ViewSettings(Section):
    """What a teacher's logits for a training image depend on, besides teacher and image.

    Random crops and flips give every image a fixed number of views. Precision and batch size count
    because rounding depends on them.
    """

    crop_padding: Annotated[int, Field(ge=0, le=MAX_PADDING)] = 0
    """Largest shift of a random crop, in pixels in each direction; 0: no random crop."""
    flip: bool = False
    """Whether images are randomly flipped, left to right."""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Number format of the forward and backward pass; weights and losses are always float32. `tf32`
    rounds the factors of products to 11 bits on GPUs with compute capability 8.0 or higher and is
    float32 elsewhere; `bfloat16` and `float16` use autocast, `float16` with gradient scaling."""
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 64
    """Images per training step."""

    @property
    def name(self) -> str:
        """A name for files, such as `crop4_flip_batch64`."""
        crop = [f"crop{self.crop_padding}"] if self.crop_padding else []
        shown = crop + ["flip"] * self.flip or ["plain"]
        precision = [self.precision] * (self.precision != "float32")
        return "_".join([*shown, *precision, f"batch{self.batch_size}"])

    def batch_problem(self, num_images: int) -> str | None:
        """What is wrong with `batch_size` for a number of training images, or None."""
        if self.batch_size <= num_images:
            return None
        return (
            f"batch_size is {self.batch_size}, but there are {num_images} training images; it "
            f"should be at most {num_images}"
        )


class AugmentationSettings(ViewSettings):
    """Everything that decides what a training image looks like."""

    randaugment: Annotated[int, Field(ge=0, le=30)] = 0
    """Magnitude of RandAugment; 0: off."""
    resized_crop: Fraction = 0.0
    """Smallest fraction of the area that a random resized crop keeps; 0: off."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of mixup; 0: off."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of CutMix; 0: off."""

    @property
    def per_image(self) -> bool:
        """Whether images are augmented one by one, which is faster in several processes."""
        return bool(self.randaugment or self.resized_crop)


class FixedDraws(Section):
    """How many draws of the augmentation of an image are fixed, and the seed that decides them."""

    draws: Annotated[int, Field(gt=0, le=MAX_EPOCHS)]
    seed: Seed = 0


class DrawSettings(AugmentationSettings):
    """What a teacher's logits depend on if they are those of fixed draws of the augmentation."""

    fixed: FixedDraws


# Functions and no properties: code identity would follow these wherever their names appear.


def num_views(views: ViewSettings) -> int:
    """Views of one image, as `data.views.Views` counts them, or its draws."""
    if isinstance(views, DrawSettings):
        return views.fixed.draws
    return (2 * views.crop_padding + 1) ** 2 * (1 + views.flip)


def name_of(views: ViewSettings) -> str:
    """A name for files, such as `draws8_randaugment9_crop4_flip_batch64`."""
    if not isinstance(views, DrawSettings):
        return views.name
    seed = [f"seed{views.fixed.seed}"] if views.fixed.seed else []
    strong = [
        f"{name}{_as_word(value)}"
        for name in sorted(AugmentationSettings.model_fields.keys() - ViewSettings.model_fields)
        if (value := getattr(views, name))
    ]
    return "_".join([f"draws{views.fixed.draws}", *seed, *strong, views.name])


def _as_word(value: float) -> str:
    """A number in lower-case letters and digits: 0.5 as `0p5`."""
    return repr(value).replace(".", "p").replace("-", "m").replace("+", "")


class Training(AugmentationSettings):
    """How a network is trained; the defaults are the CIFAR-100 benchmark's recipe."""

    epochs: Annotated[int, Field(gt=0, le=MAX_EPOCHS)] = 240
    """Passes over the training images."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: stochastic gradient descent with momentum, or AdamW."""
    learning_rate: PositiveFloat = 0.05
    """Peak learning rate, after the warm-up."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Whether sgd uses Nesterov momentum."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay; decoupled from the gradient for adamw."""
    schedule: Literal["constant", "cosine", "onecycle", "steps"] = "steps"
    """How the learning rate falls after the warm-up."""
    warmup: Fraction = 0.0
    """Fraction of all steps in which the learning rate rises; onecycle: 0.3 if this is 0."""
    milestones: tuple[PositiveFloat, ...] = (0.625, 0.75, 0.875)
    """Where the schedule `steps` lowers the rate: fractions of the run, or epochs."""
    decay: PositiveFloat = 0.1
    """Factor of the learning rate at each milestone."""
    clip_grad_norm: PositiveFloat | None = None
    """Largest norm of the gradient of all trained weights, including those of the method's own
    modules; larger gradients are scaled down to it; null: off."""
    accumulate: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 1
    """Number of equal micro-batches into which a batch is split to save memory. Gradients are
    averaged and the weights updated once per batch. Batch normalization uses the statistics of each
    micro-batch and updates its running statistics with each, as for batches of `batch_size /
    accumulate` images. Not allowed for methods that compare the images of a batch."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.9995, updated after every
    step; the averaged weights are validated, saved and deployed. The running statistics of batch
    normalization are averaged too. At step t the decay is at most (1 + t) / (10 + t), so that the
    initial weights are soon forgotten; null: off."""
    gpus: Annotated[int, Field(gt=0, le=MAX_GPUS)] = 1
    """Number of processes that train one network, each with a GPU and an equal part of every batch;
    on a machine without a GPU they share the cores. The result is the same as with one process up
    to rounding, except for random numbers drawn by the network (dropout). Not allowed for methods
    that compare the images of a batch."""
    sync_batchnorm: bool = True
    """With `gpus`, whether batch normalization uses the statistics of the whole batch. If not, each
    process uses those of its part, which is faster but changes the result; the running statistics
    are those of the first process."""
    head_learning_rate_factor: PositiveFloat = 1.0
    """Factor of the learning rate for a new classifier in a network that starts from a checkpoint
    or published weights."""
    compile: bool = False
    """Whether the network is compiled with torch.compile."""
    checkpoint_minutes: Annotated[float, Field(gt=0, le=MAX_MINUTES)] = 10.0
    """Minutes between saves of the training state, from which an interrupted run resumes."""

    @property
    def views(self) -> ViewSettings | None:
        """What the teacher's logits depend on; None if views cannot be numbered.

        Crops and flips can be numbered; all other augmentation is a continuum.
        """
        if self.per_image or self.mixup or self.cutmix:
            return None
        return ViewSettings.taken_from(self)

    def numbered_views(self, fixed: FixedDraws | None) -> ViewSettings | None:
        """`views`, or fixed draws if an image has more views than these; None if there are none."""
        views = self.views
        if fixed is None or (views is not None and num_views(views) <= fixed.draws):
            return views
        own = {name: getattr(self, name) for name in AugmentationSettings.model_fields}
        return DrawSettings.model_construct(**own, fixed=fixed)

    def milestone_epochs(self) -> list[float]:
        """Where the rate falls, in epochs from the start."""
        return [in_epochs(at, self.epochs) for at in self.milestones]

    def problem(self) -> str | None:
        """The first contradiction, as `key is value; what would be right`, or None."""
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            return "nesterov is true and momentum is 0; momentum should be above 0"
        if self.batch_size % (self.accumulate * self.gpus):
            parts = {"accumulate": self.accumulate, "gpus": self.gpus}
            given = " and ".join(f"{name} is {count}" for name, count in parts.items() if count > 1)
            return (
                f"{given} and batch_size is {self.batch_size}; batch_size should be a multiple of "
                f"{self.accumulate * self.gpus}"
            )
        if not self.sync_batchnorm and self.gpus == 1:
            return "sync_batchnorm is false and gpus is 1; leave it out, or set gpus above 1"
        if self.schedule != "steps" or not self.epochs:
            return None
        late = [at for at in self.milestones if at >= max(1, self.epochs)]
        if late:
            return (
                f"milestones has {late[0]:g} and epochs is {self.epochs}; milestones should be "
                "below epochs, or fractions of the run such as 0.75"
            )
        if any(at > 1 and at % 1 for at in self.milestones):
            return "milestones has a fraction of an epoch; use fractions of the run or whole epochs"
        return None


class Train(Training):
    """How every teacher is trained."""

    epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = 240
    """Passes over the training images; 0: no training, the network keeps the weights of
    `checkpoint` or `pretrained`."""
    seed: Seed = 0
    """Seed of the initial weights, the order of images and the augmentation."""
    teacher_check: Literal["stop", "warn"] = "stop"
    """What to do if the trained teacher fails its check: stop the study, or log a warning."""

    def batch_problem(self, num_images: int) -> str | None:
        """As for any training; a network that is not trained has no batches."""
        return super().batch_problem(num_images) if self.epochs else None


class Distil(Training):
    """How every student is trained."""


class Tune(Section):
    """How values are tried for methods with `tune`: the same budget for each."""

    trials: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 8
    """Trials of each method; a grid can have fewer combinations but not more."""
    search: Literal["grid", "random"] = "grid"
    """Whether all combinations of the listed values or random ones are tried."""
    seed: Seed = 0
    """Seed for choosing random values."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (100,)
    """Every trial is trained once with each of these seeds, none of them in the study's `seeds`."""
    halving: Annotated[int, Field(gt=1, le=MAX_RUNS)] | None = None
    """Successive halving: 2 means that after each seed only the better half of the trials continues
    to the next seed, 3 the best third, and so on; null: all trials are trained with all seeds."""


class FeatureSample(Section):
    """The images whose features are cached for the scores, balanced over the classes."""

    images: Annotated[int, Field(gt=0, le=MAX_IMAGES)] = 5000
    """Training images whose features are cached for the scores, balanced over the classes."""
    seed: Seed = 0
    """Seed for choosing the images, and for `draws`."""


class Combination(Section):
    """How the logits of several teachers become those of one."""

    combine: Literal["mean", "median", "confidence"] = "mean"
    """How the logits of several teachers are combined: their `mean` or `median`, class by class, or
    `confidence`, their mean weighted by how well each one predicts the label of the image."""
    space: Literal["logits", "standardized"] = "logits"
    """What is combined: `logits`, or logits `standardized` for each image and teacher, so that a
    teacher with larger logits does not have more weight."""


class Cache(FeatureSample):
    """What is cached of a teacher."""

    budget_gib: Annotated[float, Field(gt=0, le=MAX_GIB)] = 4.0
    """Largest size of a cache file, in GiB."""
    outputs: Literal["auto", "always", "never"] = "auto"
    """Whether the teacher's logits for training are cached; `auto`: if it saves time."""
    draws: Annotated[
        int | None, Field(gt=0, le=MAX_EPOCHS, exclude_if=lambda draws: draws is None)
    ] = None
    """Number of random augmentations (draws) per image that are fixed for all students, so that
    logits can be cached for any augmentation. Students see one of them in each epoch, in turn;
    `seed` decides them. Used if images have more views than this; null: off."""

    @property
    def fixed_draws(self) -> FixedDraws | None:
        """The draws that are fixed, if any."""
        return None if self.draws is None else FixedDraws(draws=self.draws, seed=self.seed)


class ScoreSection(Section):
    """How layers are scored and selected."""

    variant: Literal["intended", "as_coded"] = "intended"
    """The formula of knowledge quality: as the paper intends it, or as its authors' code computes
    it."""
    select: Score = "quality"
    """The score that selects layers."""
    num_layers: PositiveInt = 3
    """Number of layers to select."""


class BuildStones(Section):
    """The keys of `build` that stepping stones use."""

    cuts: Literal["stages", "quality"] | tuple[tuple[str, str], ...] = "stages"
    """Where the networks are cut: at the ends of their stages, at the layers of highest knowledge
    quality, or at a list of pairs [student layer, teacher layer]."""
    num_stones: PositiveInt | None = None
    """Number of stepping stones; by default one per stage."""
    connector: Literal["conv_norm", "conv", "three_layer", "identity"] = "conv_norm"
    """What connects a student's front to a teacher's tail."""


class BuildPairs(Section):
    """The keys of `build` that pairs of layers use."""

    select: Score | tuple[str, ...] | None = None
    """The teacher's layers: the score that selects them, or their names; by default those that the
    stage `score` selected."""
    num_pairs: PositiveInt | None = None
    """Number of pairs; by default one per stage of the student."""
    student_layers: tuple[str, ...] | None = None
    """The student's layers; by default the ends of its stages."""
    projector: Literal["conv", "three_layer"] = "conv"
    """What maps the student's features to the teacher's during training."""


class Build(BuildStones, BuildPairs):
    """How students and teachers are joined."""

    def of_plan(self, plan: str | None) -> BuildStones | BuildPairs:
        """The keys that a plan, "stones" or "pairs", uses."""
        return (BuildStones if plan == "stones" else BuildPairs).taken_from(self)


class MetricSettings(Section):
    """The keys of `evaluate` for metrics of predictions and networks."""

    calibration_bins: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 15
    """Bins of the expected calibration error."""
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 256
    """Images per batch for predictions."""
    metrics: tuple[str, ...] = ()
    """Your own metrics: `./file.py:name`, `package.module:name` or the name of an entry point."""


class TimingSettings(Section):
    """The keys of `evaluate` for measuring latency and throughput."""

    latency_runs: Annotated[int, Field(gt=0, le=MAX_RUNS)] = 100
    """Number of single images that are timed, after a warm-up."""
    throughput_batch: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 64
    """Images per batch for measuring throughput."""
    metrics: tuple[str, ...] = ()


class Evaluate(TimingSettings, MetricSettings):
    """How trained networks are evaluated."""

    metrics: tuple[str, ...] = ()
    """Your own metrics: `./file.py:name`, `package.module:name` or the name of an entry point."""


class Export(Section):
    """Which trained students are exported for use elsewhere; without this section, none."""

    runs: Literal["best", "all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "best"
    """`best`: for each pair, the run with the highest accuracy on the validation images; `all`;
    or a list of methods, runs as `pair/method/seed`, and `best`."""
    formats: Annotated[tuple[Literal["onnx", "safetensors", "timm"], ...], Field(min_length=1)] = (
        "onnx",
    )
    """`onnx`: the network with its normalization, for onnxruntime and `kdsteps predict`;
    `safetensors`: its weights; `timm`: a folder that timm can load."""
    int8: bool = False
    """Whether an 8-bit ONNX file, calibrated on training images, is written as well."""


class Report(Section):
    """What the report shows."""

    title: Title = "Distillation study"
    """Title of the report."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""


class Normalization(Section):
    """How a network's images are normalized: (x - mean) / std, on the scale 0 to 1."""

    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    """Mean of each channel."""
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Standard deviation of each channel."""


class Dataset(Section):
    """A data set: its kind with the options of that kind, and whether it has labels.

    Attributes:
        classes: Names of the classes of images without labels, if they are known.
    """

    kind: str
    options: Options
    labels: Literal["none"] | None = None
    classes: tuple[str, ...] | None = None


class Model(Section):
    """A network: its family with the options of that family, `checkpoint` among them.

    Attributes:
        normalize: How its images are normalized; None: as the data set's.
        image_size: (height, width) that it is built for; None: that of the data set's images.
        interpolation: How images of another size are resized; None: as published if `normalize` is
            "pretrained", else bilinear.
        classes: The names of its outputs in their order, or for each class of the data set the
            number of its output; None: the data set's classes.
    """

    family: str
    options: Options
    normalize: Literal["pretrained", "none"] | Normalization | None = None
    image_size: tuple[PositiveInt, PositiveInt] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    classes: tuple[str, ...] | tuple[NonNegativeInt, ...] | None = None

"""How networks are trained: the sections `train` and `distil`, and the augmentation in them.

Every training field is declared here and nowhere else; stages receive these objects. The text below
a field describes its key in the JSON schema, in editors and in `kdsteps STAGE --help`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from kdsteps.study.run_length import in_epochs
from kdsteps.study.section import (
    MAX_BATCH,
    MAX_EPOCHS,
    MAX_GPUS,
    MAX_MINUTES,
    MAX_PADDING,
    Fraction,
    Section,
    Seed,
)


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
    """Number format of the forward and backward pass; weights are always float32, and losses
    float32 or float64. `tf32` rounds the factors of products to 11 bits on GPUs with compute
    capability 8.0 or higher and is float32 elsewhere; `bfloat16` and `float16` use autocast,
    `float16` with gradient scaling."""
    batch_size: Annotated[int, Field(gt=0, le=MAX_BATCH)] = 64
    """Images per training step."""

    @property
    def name(self) -> str:
        """A name for files, such as `crop4_flip_batch64`."""
        crop = [f"crop{self.crop_padding}"] if self.crop_padding else []
        shown = crop + ["flip"] * self.flip or ["plain"]
        precision = [self.precision] * (self.precision != "float32")
        return "_".join([*shown, *precision, f"batch{self.batch_size}"])

    def misfit(self, num_images: int | None, size: tuple[int, int] | None) -> str | None:
        """What of these settings does not fit the training images, or None.

        Args:
            num_images: Training images; None: not known yet.
            size: Height and width of the images; None: not known yet.
        """
        if num_images is not None and self.batch_size > num_images:
            return (
                f"batch_size is {self.batch_size}, but there are {num_images} training images; it "
                f"should be at most {num_images}"
            )
        if size is not None and self.crop_padding >= min(size):
            return (
                f"crop_padding is {self.crop_padding}, but the images have {size[0]} x {size[1]} "
                "pixels, so some crops would show nothing of them; it should be at most "
                f"{min(size) - 1}"
            )
        return None


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
    """How the learning rate falls after the warm-up. `onecycle` is PyTorch's `OneCycleLR`: it rises
    from a 25th of the peak and falls to a 250,000th of it, both along a cosine; with adamw, beta1
    falls from 0.95 to 0.85 meanwhile, and rises again."""
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

    def misfit(self, num_images: int | None, size: tuple[int, int] | None) -> str | None:
        """As for any training; a network that is not trained has no batches."""
        return super().misfit(num_images, size) if self.epochs else None


class Distil(Training):
    """How every student is trained."""

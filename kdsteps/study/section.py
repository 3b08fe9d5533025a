"""The base class of all settings, and the limits of their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kdsteps.study.messages import shown

Items = TypeVar("Items", bound=Iterable[Hashable])


def _each_once(items: Items) -> Items:
    for item, count in Counter(items).items():
        if count > 1:
            raise ValueError(f"has {shown(item)} twice; list each one once")
    return items


EachOnce = Annotated[
    Items, AfterValidator(_each_once), Field(json_schema_extra={"uniqueItems": True})
]
"""A list without repetitions; its other limits belong inside, where the JSON schema has them."""

MAX_SEED = 2**32 - 1  # the largest that every generator takes
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
MAX_BATCH, MAX_EPOCHS, MAX_RUNS = 1_000_000, 1_000_000, 1_000_000  # beyond: a typing error
MAX_GPUS = 64  # of one machine
MAX_PADDING, MAX_IMAGES, MAX_MINUTES, MAX_GIB = 1_000, 1_000_000_000, 1_000_000, 1_000_000


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

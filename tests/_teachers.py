"""Teachers that are trained in seconds, through the stages as Snakemake runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from _pictures import as_bytes
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from kdsteps.cli.main import main
from kdsteps.files.text import read_json
from kdsteps.jobs import graph
from kdsteps.study.loading import load_study

COLORS = {"orange": (0.8, 0.45, 0.15), "teal": (0.1, 0.55, 0.45)}
SHAPES = ("cross", "disk", "frame", "stripes")
OTHER_SHAPES = ("bars", "corner", "dots", "slash")
CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)  # as they are numbered
SIZE = 20  # pixels
COUNTS = {"train": 640, "validation": 400, "test": 200}
RECIPE = {
    "epochs": 8,
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 0.004,
    "schedule": "onecycle",
}


def write_shapes(
    folder: Path, shapes: Sequence[str] = SHAPES, rare: Sequence[str] = ()
) -> dict[str, Any]:
    """Dark pictures of colored shapes in noise, split by their files; the entry of `datasets`.

    Args:
        shapes: Four of them, for the names in `SHAPES`.
        rare: Classes with one training image each.
    """
    rng = np.random.default_rng(0)
    entry: dict[str, Any] = {"kind": "parquet"}
    for split, count in COUNTS.items():
        labels = [CLASSES[number % len(CLASSES)] for number in range(count)]
        if split == "train":
            often = [label for label in labels if label not in rare]
            labels = [*often, *rare]
        images = [as_bytes(_picture(label, shapes, rng)) for label in labels]
        path = folder / f"{split}.parquet"
        pq.write_table(pa.table({"image": images, "label": labels}), path)
        entry[split] = str(path)
    return entry


def _picture(name: str, shapes: Sequence[str], rng: np.random.Generator) -> Image.Image:
    color, shape = name.split()
    rows, columns = np.mgrid[:SIZE, :SIZE]
    row, column = rng.uniform(7, SIZE - 7, 2)
    y, x, radius = rows - row, columns - column, rng.uniform(4, 6)
    square = np.maximum(abs(y), abs(x)) < radius
    masks = {
        "disk": y**2 + x**2 < radius**2,
        "frame": square & (np.maximum(abs(y), abs(x)) > radius - 2),
        "stripes": square & (rows % 3 == 0),
        "cross": square & (np.minimum(abs(y), abs(x)) < 1.2),
        "bars": square & (columns % 3 == 0),
        "corner": square & ((y < 2 - radius) | (x < 2 - radius)),
        "dots": square & (rows % 3 == 0) & (columns % 3 == 0),
        "slash": square & (abs(x - y) < 1.5),
    }
    mask = masks[shapes[SHAPES.index(shape)]]
    ink = np.array(COLORS[color]) + rng.normal(0, 0.1, 3)
    pixels = rng.uniform(0, 0.25, 3) + mask[..., None] * ink * rng.uniform(0.35, 0.6)
    pixels = pixels + rng.normal(0, 0.07, (SIZE, SIZE, 3))
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


@dataclass(frozen=True)
class Checked:
    """How the check of a teacher ended.

    Attributes:
        status: Of the command that failed first; 0 if none did.
        said: Its error message; empty if there is none.
        found: check.json; {} if it was not written.
    """

    status: int
    said: str
    found: dict[str, Any]


class Teachers:
    """A study in the current folder, with one data set and a student for every teacher."""

    def __init__(self, dataset: Mapping[str, Any], **sections: Any) -> None:
        self.content: dict[str, Any] = {
            "datasets": {"data": dict(dataset)},
            "models": {"small": {"family": "cifar_resnet", "depth": 8}},
            "pairs": {},
            "methods": {"kd": {}},
            "seeds": [0],
            "train": RECIPE,
            **sections,
        }

    def add(self, teacher: str, **model: Any) -> None:
        """Add a teacher; the first one also prepares the images."""
        self.content["models"][teacher] = model
        self.content["pairs"][teacher] = {"dataset": "data", "teacher": teacher, "student": "small"}
        Path("params.yaml").write_text(yaml.safe_dump(self.content))
        if not Path(graph.outputs("prepare", {"dataset": "data"})["summary"]).exists():
            assert main(["prepare", "--dataset", "data"]) == 0

    def train(self, teacher: str, **model: Any) -> int:
        """Train a teacher, or take it as it is; return the status of the command."""
        self.add(teacher, **model)
        return main(["train", "--dataset", "data", "--teacher", teacher])

    def check(self, capsys: Any, teacher: str, **model: Any) -> Checked:
        """Train and check a teacher as Snakemake does.

        Args:
            capsys: Of pytest.
        """
        capsys.readouterr()
        if status := self.train(teacher, **model):
            return Checked(status, capsys.readouterr().err, {})
        return self.check_trained(capsys, teacher)

    def check_trained(self, capsys: Any, teacher: str) -> Checked:
        """Check a teacher that is trained already."""
        names = {"dataset": "data", "teacher": teacher}
        path = Path(graph.outputs("train_check", names)["check"])
        path.unlink(missing_ok=True)
        status = self.run("train_check", **names)
        found = read_json(path) if path.exists() else {}
        return Checked(status, capsys.readouterr().err, found)

    def run(self, rule: str, **names: str) -> int:
        """Run a job on the files that are there; return the status of the command."""
        node = graph.node(load_study(), rule, names)
        outputs = graph.outputs(rule, names)
        return main(
            [
                *(graph.stage_of(rule), "--settings", node.text),
                *("--inputs", *(f"{key}={value}" for key, value in node.inputs.items())),
                *("--outputs", *(f"{key}={value}" for key, value in outputs.items())),
            ]
        )

    def weights(self, name: str) -> dict[str, Tensor]:
        """The plain weights of a trained teacher."""
        return load_file(graph.outputs("train", {"dataset": "data", "teacher": name})["model"])

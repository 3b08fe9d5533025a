"""Teachers that are trained in seconds, through the stages as Snakemake runs them."""

from __future__ import annotations

from collections.abc import Mapping
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
from kdsteps.study.study import load_study

SHAPES = ("disk", "frame", "stripes", "cross")
COLORS = {"orange": (0.8, 0.45, 0.15), "teal": (0.1, 0.55, 0.45)}
CLASSES = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
SIZE = 20  # pixels
RECIPE = {
    "epochs": 12,
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 0.004,
    "schedule": "onecycle",
}


def write_shapes(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Dark pictures of colored shapes in noise, split by their files; the entry of `datasets`."""
    rng = np.random.default_rng(seed)
    entry: dict[str, Any] = {"kind": "parquet"}
    for split, count in {"train": 800, "validation": 400, "test": 200}.items():
        labels = np.arange(count) % len(CLASSES)
        images = [as_bytes(_picture(CLASSES[label], rng)) for label in labels]
        path = folder / f"{split}.parquet"
        pq.write_table(pa.table({"image": images, "label": [CLASSES[n] for n in labels]}), path)
        entry[split] = str(path)
    return entry


def _picture(name: str, rng: np.random.Generator) -> Image.Image:
    color, shape = name.split()
    rows, columns = np.mgrid[:SIZE, :SIZE]
    row, column = rng.uniform(7, SIZE - 7, 2)
    y, x, radius = rows - row, columns - column, rng.uniform(4, 6)
    distance = np.maximum(abs(y), abs(x))
    masks = {
        "disk": y**2 + x**2 < radius**2,
        "frame": (distance < radius) & (distance > radius - 2),
        "stripes": (distance < radius) & (rows % 3 == 0),
        "cross": (distance < radius) & (np.minimum(abs(y), abs(x)) < 1.2),
    }
    light = rng.uniform(0.35, 0.6)
    ink = np.array(COLORS[color]) + rng.normal(0, 0.1, 3)
    pixels = rng.uniform(0, 0.25, 3) + masks[shape][..., None] * ink * light
    pixels = pixels + rng.normal(0, 0.07, (SIZE, SIZE, 3))
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))


@dataclass(frozen=True)
class Checked:
    """How the check of a teacher ended.

    Attributes:
        status: Of the command that failed first; 0 if none did.
        said: The error message; empty if there is none.
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

    def check(self, capsys: Any, teacher: str, **model: Any) -> Checked:
        """Train a teacher, or take it as it is, and check it as Snakemake does."""
        self.add(teacher, **model)
        capsys.readouterr()
        names = {"dataset": "data", "teacher": teacher}
        if status := main(["train", "--dataset", "data", "--teacher", teacher]):
            return Checked(status, capsys.readouterr().err, {})
        node, outputs = (part("train_check", names) for part in (self._node, graph.outputs))
        status = main(
            [
                *("train", "--settings", node.text),
                *("--inputs", *(f"{key}={path}" for key, path in node.inputs.items())),
                *("--outputs", *(f"{key}={path}" for key, path in outputs.items())),
            ]
        )
        path = Path(outputs["check"])
        found = read_json(path) if path.exists() else {}
        return Checked(status, capsys.readouterr().err, found)

    def weights(self, name: str) -> dict[str, Tensor]:
        """The plain weights of a trained teacher."""
        return load_file(graph.outputs("train", {"dataset": "data", "teacher": name})["model"])

    @staticmethod
    def _node(rule: str, names: graph.Names) -> graph.JobNode:
        return graph.node(load_study(), rule, names)

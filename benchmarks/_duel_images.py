"""The images of the duel as PNG files, its networks, and how good their features are."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIZE = 32
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)  # of CIFAR-100, for all networks
TEACHER: dict[str, Any] = {"name": "resnet18", "output_stride": 8, "channels": [32, 64, 128, 256]}
STUDENT: dict[str, Any] = {
    "name": "resnet10t",
    "output_stride": 8,
    "channels": [16, 24, 32, 48],
    "stem_width": 8,
}
"""Networks of timm; a stride of 8 leaves 4 x 4 patches of an image."""


def piece(path: Path) -> dict[str, Any] | None:
    """What an earlier call of this program measured, if it did."""
    return json.loads(path.read_text()) if path.exists() else None


def write(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)
    return dict(content)


def write_images(args: argparse.Namespace) -> None:
    """PNG files of CIFAR-100 with the first superclasses as classes, in five disjoint folders."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    done = args.work / "images" / "done"
    if done.exists():
        return
    sizes = {"bare": args.images, "teacher": args.teacher_images}
    sizes |= {"references": args.probe_images, "tuning": args.probe_images}
    for split, wanted in (("train", sizes), ("test", {"queries": args.probe_images})):
        paths = sorted(args.cifar100.glob(f"{split}-*.parquet"))
        tables = [pq.read_table(path, columns=["image", "coarse_label"]) for path in paths]
        table = pa.concat_tables(tables)
        images, labels = (table[name].to_pylist() for name in ("image", "coarse_label"))
        rows = np.flatnonzero(np.array(labels) < args.classes)
        rows = np.random.default_rng(0).permutation(rows)
        if sum(wanted.values()) > len(rows):
            raise SystemExit(f"{split} has {len(rows)} images of {args.classes} superclasses")
        starts = np.cumsum([0, *wanted.values()])
        for (name, count), start in zip(wanted.items(), starts, strict=False):
            for row in rows[start : start + count].tolist():
                inner = "" if name == "bare" else f"{labels[row]:02d}"
                path = args.work / "images" / name / inner / f"{row:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.open(io.BytesIO(images[row])).save(path)
    done.touch()


def probed(name: str, network: Mapping[str, Any], weights: Any, queries: str, args: Any) -> Any:
    """How good the features of a network are, as `probe` of a study measures it.

    Args:
        weights: A file, or the seed of an untrained network.
        queries: The folder of the queries.
    """
    path = args.work / "probes" / queries / f"{name}.json"
    if found := piece(path):
        return found
    import timm
    import torch
    from safetensors.torch import load_file

    from kdsteps.evaluation.probes import probe

    torch.set_num_threads(1)
    torch.manual_seed(weights if isinstance(weights, int) else 0)
    options = {key: value for key, value in network.items() if key != "name"}
    model = timm.create_model(network["name"], num_classes=0, **options)
    if not isinstance(weights, int):
        safe = str(weights).endswith(".safetensors")
        state = load_file(weights) if safe else torch.load(weights, weights_only=True)
        model.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    model.eval()
    folders = [args.work / "images" / each for each in ("references", queries)]
    (known, labels), (asked, expected) = (_features(model, folder) for folder in folders)
    how: dict[str, Any] = {"neighbors": 10, "fractions": (0.01, 0.1, 1.0), "draws": 5, "seed": 0}
    return write(path, probe(known, labels, asked, expected, **how))


def _features(model: Any, folder: Path) -> tuple[Any, Any]:
    """Features (N, D) and labels (N,) of a folder of classes."""
    import numpy as np
    import torch
    from PIL import Image

    files = sorted(folder.glob("*/*.png"))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        found = torch.cat([model(some) for some in images.split(256)])
    return found, torch.tensor([int(file.parent.name) for file in files])

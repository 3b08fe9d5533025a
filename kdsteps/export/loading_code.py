"""How to load an exported student, as code for its model card, with and without kdsteps."""

from __future__ import annotations

from kdsteps.data.form import pair
from kdsteps.export.description import INPUT, METADATA_KEY, OUTPUT
from kdsteps.export.markdown import code, code_block
from kdsteps.export.record import FILES, Record


def loading_code(record: Record) -> str | None:
    """The section on loading each file that was written; None without files."""
    parts = []
    if record.file("onnx"):
        parts += [_kdsteps(record), _onnxruntime(record)]
    if record.file("timm"):
        parts.append(_timm())
    if record.file("safetensors"):
        parts.append(_safetensors(record))
    return "\n\n".join(["## How to load", *parts]) if parts else None


def _kdsteps(record: Record) -> str:
    int8 = ", or with `--int8` the int8 file" if record.file("int8") else ""
    return "\n\n".join(
        [
            f"**With kdsteps**, in this folder{int8}; images are decoded exactly as in the study "
            "(kdsteps without its dependencies is enough, with onnxruntime, numpy and pillow):",
            code_block("kdsteps predict . image.jpg", "sh"),
            code_block(
                'import kdsteps\n\nstudent = kdsteps.load(".")\n'
                'print(student.predict("image.jpg")[0].label)',
                "python",
            ),
        ]
    )


def _onnxruntime(record: Record) -> str:
    channels, height, width = record.image_shape
    mode, batch = ("L", "[None, :, :, None]") if channels == 1 else ("RGB", "[None]")
    lines = [
        "import json",
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image, ImageOps",
        "",
        f'session = onnxruntime.InferenceSession("{FILES["onnx"]}")',
        f'about = json.loads(session.get_modelmeta().custom_metadata_map["{METADATA_KEY}"])',
        f'image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("{mode}")',
        *_resizing(record),
        f"pixels = np.asarray(image){batch}  # uint8 (N, {height}, {width}, {channels})",
        f'(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": pixels}})',
        'print(about["classes"][logits[0].argmax()])',
    ]
    return "\n\n".join(
        [
            "**With onnxruntime alone**; the normalization is part of the network. Pillow resizes "
            "with slightly other rounding than the study:",
            code_block("\n".join(lines), "python"),
        ]
    )


def _resizing(record: Record) -> list[str]:
    """Lines that make an image of any size one that the network takes."""
    _, height, width = record.image_shape
    store, resize, crop = (record.description.get(name) for name in ("store", "resize", "crop"))
    if store is None and resize is None and crop is None:
        return [f"assert image.size == ({width}, {height})  # W, H: the study resized nothing"]
    lines, size = [], "[round(scale * side) for side in image.size]"
    if store is not None:
        high, wide = pair(store)
        lines.append(f"scale = max({wide} / image.width, {high} / image.height)")
    elif isinstance(resize, int):
        lines.append(f"scale = {resize} / min(image.size)")
    elif resize is not None:
        size = str(pair(resize)[::-1])
    if store is not None or resize is not None:
        lines.append(f"image = image.resize({size}, Image.Resampling.BILINEAR)")
    crops = [pair(each)[::-1] for each in (store, crop, (height, width)) if each is not None]
    return [
        *lines,
        f"for width, height in {list(dict.fromkeys(crops))}:  # of the center",
        "    left, top = (image.width - width) // 2, (image.height - height) // 2",
        "    image = image.crop((left, top, left + width, top + height))",
    ]


def _timm() -> str:
    return "\n\n".join(
        [
            (
                "**With timm**, in this folder. **Without `pretrained=True`, timm returns random "
                "weights without a warning.** Images are normalized outside of this network. The "
                "transform of timm is not that of the study: it resizes images to the size of the "
                "network, and decodes those with an EXIF orientation, 16 bits or transparency in "
                "another way:"
            ),
            code_block(
                "import timm\n"
                "from PIL import Image\n"
                "\n"
                'network = timm.create_model("local-dir:.", pretrained=True).eval()\n'
                "config = timm.data.resolve_model_data_config(network)\n"
                "transform = timm.data.create_transform(**config, is_training=False)\n"
                'logits = network(transform(Image.open("image.jpg").convert("RGB"))[None])\n'
                'print(network.pretrained_cfg["label_names"][logits.argmax()])',
                "python",
            ),
        ]
    )


def _safetensors(record: Record) -> str:
    channels, height, width = record.image_shape
    size = tuple(record.network_size or (height, width))
    num_outputs = len(record.outputs or record.class_names)
    lines = [
        "import torch",
        "from safetensors.torch import load_file",
        "from kdsteps.models import build_model",
        "from kdsteps.models.checkpoints import load_weights",
        "",
        f"options = {dict(record.network_options)!r}",
        f"network = build_model({record.family!r}, num_classes={num_outputs},",
        f"    in_channels={channels}, image_size={size}, **options).plain().eval()",
        f'load_weights(network, load_file("{FILES["safetensors"]}"), where="the file")',
        f"mean, std = torch.tensor({_numbers(record, 'mean')}), "
        f"torch.tensor({_numbers(record, 'std')})",
        f"pixels = torch.zeros(1, {height}, {width}, {channels}, dtype=torch.uint8)  # one image",
    ]
    if record.network_size:
        lines += [
            "from kdsteps.models.input import Resize",
            f"resize = Resize({size}, {record.interpolation!r})",
            "pixels = resize(pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)",
        ]
    lines.append("logits = network(((pixels / 255 - mean) / std).permute(0, 3, 1, 2))")
    if record.outputs:
        columns = [list(record.outputs).index(name) for name in record.class_names]
        lines.append(f"logits = logits[:, {columns}]  # the classes, of {num_outputs} outputs")
    return "\n\n".join(
        [
            f"**The weights in torch**, by the names of the plain network, which is of the family "
            f"{code(record.family)} of kdsteps; a family in a file of the study needs that file:",
            code_block("\n".join(lines), "python"),
        ]
    )


def _numbers(record: Record, name: str) -> list[float]:
    return [float(value) for value in record.description[name]]

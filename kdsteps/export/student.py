"""An exported student at work; onnxruntime, numpy and Pillow are all that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kdsteps.data.decoding import Content, decode
from kdsteps.data.resizing import resized_by_numpy
from kdsteps.data.source import Broken
from kdsteps.errors import KdstepsError
from kdsteps.export.description import INPUT, METADATA_KEY, OUTPUT, Description
from kdsteps.export.record import FILES
from kdsteps.export.seal import is_intact, is_sealed
from kdsteps.export.session import first_line, open_session
from kdsteps.jobs.resources import cores_there

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OneImage = str | os.PathLike[str] | Image.Image | np.ndarray
Images = OneImage | Sequence[OneImage]
"""A path, an image of Pillow, uint8 pixels (H, W), (H, W, C) or (N, H, W, C); or several."""

BATCH_SIZE = 32
_MAX_BYTES = 2**31  # of a file: Protocol Buffers store no more
_AGAIN = "copy it again from where it was exported, or export it again"


@dataclass(frozen=True)
class Prediction:
    """What a student predicts for one image.

    Attributes:
        label: Name of the most probable class.
        probability: Of this class, 0 to 1.
        top: The most probable classes and their probabilities, in descending order.
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]


class ExportedStudent:
    """A network that was exported by kdsteps; call it with images for their logits.

    Attributes:
        description: Of the network, from its file.
    """

    def __init__(self, session: InferenceSession, description: Description, where: str) -> None:
        """Args:
        session: Takes uint8 pixels (N, H, W, C), returns logits (N, K).
        where: The beginning of an error's sentence.
        """
        self.description = description
        self._session, self._where = session, where
        self._threads = session.get_session_options().intra_op_num_threads

    @property
    def classes(self) -> tuple[str, ...]:
        """K names, in the order of the logits."""
        return tuple(self.description.classes)

    def __call__(self, images: Images) -> np.ndarray:
        """Logits (N, K), float32.

        Image files are decoded and resized as in the study, so the logits are those of its
        evaluation up to rounding. Images of Pillow and arrays are resized in the same way, but a
        large JPEG file that was decoded elsewhere differs slightly.

        Raises:
            KdstepsError: An image cannot be read, or is of a size that the network does not take.
            ValueError: An array is not of uint8, or of another shape.
        """
        contents = _contents(images)
        found = self.logits_of(content for content, _ in contents)
        output = np.empty((len(contents), len(self.classes)), np.float32)
        for row, (logits, (_, name)) in enumerate(zip(found, contents, strict=True)):
            if isinstance(logits, Broken):
                raise KdstepsError(f"{name}: {logits.reason}")
            output[row] = logits
        return output

    def predict(self, images: Images, top: int = 5) -> list[Prediction]:
        """The most probable class of each image, and the `top` most probable ones.

        Raises:
            KdstepsError, ValueError: As for logits.
        """
        return [self.prediction(logits, top) for logits in self(images)]

    def prediction(self, logits: np.ndarray, top: int = 5) -> Prediction:
        """The most probable classes by the logits (K,) of one image."""
        exponentials = np.exp(logits - logits.max(), dtype=np.float64)
        probabilities = exponentials / exponentials.sum()
        order = np.argsort(-logits, kind="stable")[
            : max(1, top)
        ]  # of equal ones the first, as argmax
        found = tuple((self.classes[number], float(probabilities[number])) for number in order)
        return Prediction(*found[0], found)

    def logits_of(
        self, contents: Iterable[Content], batch_size: int = BATCH_SIZE
    ) -> Iterator[np.ndarray | Broken]:
        """Logits (K,) of each image in order, or why there are none.

        Args:
            batch_size: Images that are decoded and computed at a time.

        Raises:
            KdstepsError: The network cannot be computed.
        """
        remaining = iter(contents)
        pixels_of = partial(_pixels, description=self.description)
        with ThreadPoolExecutor(self._threads) as pool:
            while batch := list(islice(remaining, batch_size)):
                found = list(pool.map(pixels_of, batch))
                readable = [pixels for pixels in found if not isinstance(pixels, Broken)]
                logits = iter(self._run(np.stack(readable)) if readable else ())
                for pixels in found:
                    yield pixels if isinstance(pixels, Broken) else _checked(next(logits))

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """Logits (N, K) of pixels (N, H, W, C)."""
        try:
            (logits,) = self._session.run([OUTPUT], {INPUT: pixels})
        except Exception as error:  # onnxruntime has many classes of errors and no common one
            raise KdstepsError(
                f"{self._where}: onnxruntime cannot compute it ({first_line(error)}); {_AGAIN}"
            ) from error
        if logits.shape != (len(pixels), len(self.classes)) or logits.dtype != np.float32:
            raise KdstepsError(
                f"{self._where}: {len(pixels)} images have outputs {logits.shape} of "
                f"{logits.dtype}, and there are {len(self.classes)} classes; export it again"
            )
        found: np.ndarray = logits
        return found


def load_student(
    path: str | os.PathLike[str], *, int8: bool = False, threads: int | None = None
) -> ExportedStudent:
    """Load an exported student.

    Args:
        path: An ONNX file that kdsteps exported, or the folder with it.
        int8: Whether to use the int8 file of the folder.
        threads: Cores to compute on; by default all.

    Raises:
        KdstepsError: There is no such file, it is damaged or from elsewhere, onnxruntime is not
            installed, or `threads` is not a number from 1.
    """
    if threads is not None and threads < 1:
        raise KdstepsError(f"threads is {threads}; it should be 1 or more, or None for all cores")
    file = _file(Path(path), int8)
    content = _content(file)
    try:
        session = open_session(content, threads or cores_there())
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
        tensors = _tensors(session.get_inputs()), _tensors(session.get_outputs())
    except KdstepsError:
        raise
    except Exception as error:  # as in `_run`
        raise KdstepsError(
            f"{file}: onnxruntime cannot load it ({first_line(error)}); {_AGAIN}"
        ) from error
    description = Description.from_json(text, str(file))
    _check_interface(*tensors, description, str(file))
    return ExportedStudent(session, description, str(file))


def _file(path: Path, int8: bool) -> Path:
    name = FILES["int8" if int8 else "onnx"]
    if path.is_dir():
        if (path / name).is_file():
            return path / name
        wanted = "int8" if int8 else "the format onnx"
        raise KdstepsError(f"{path}: has no {name}; name a folder that was exported with {wanted}")
    if not path.exists():
        raise KdstepsError(f"{path}: does not exist; name an exported folder, or a file in it")
    if not path.is_file():
        raise KdstepsError(f"{path}: is not a regular file; name an exported folder")
    if int8:
        raise KdstepsError(f"{path}: is a file; int8 chooses {name} in a folder, so name that")
    return path


def _content(file: Path) -> bytes:
    """The bytes of a file that is as kdsteps wrote it."""
    try:
        if (size := file.stat().st_size) >= _MAX_BYTES:
            raise KdstepsError(f"{file}: has {size:,} bytes; an ONNX file has less than 2 GiB")
        content = file.read_bytes()
    except OSError as error:
        raise KdstepsError(f"{file}: cannot be read ({error.strerror})") from error
    if not is_sealed(content):
        raise KdstepsError(
            f"{file}: is not an ONNX file from `kdsteps export`, or is damaged; {_AGAIN}"
        )
    if not is_intact(content):
        raise KdstepsError(f"{file}: was changed or damaged after it was exported; {_AGAIN}")
    return content


_Tensors = list[tuple[str, str, list[int | None]]]
"""Name, type and shape of inputs or outputs; None: an axis of any length."""


def _tensors(found: Iterable[Any]) -> _Tensors:
    return [
        (each.name, each.type, [n if isinstance(n, int) else None for n in each.shape])
        for each in found
    ]


def _check_interface(
    inputs: _Tensors, outputs: _Tensors, description: Description, where: str
) -> None:
    """Raise KdstepsError if a network does not take and return what is described."""
    shape = [None, *description.image_size, description.channels]
    for found, wanted in (
        (inputs, (INPUT, "tensor(uint8)", shape)),
        (outputs, (OUTPUT, "tensor(float)", [None, len(description.classes)])),
    ):
        if found != [wanted]:
            raise KdstepsError(
                f"{where}: has {ascii(found)[:200]} where its description means {wanted}; export "
                "it again"
            )


def _contents(images: Images) -> list[tuple[Content, str]]:
    """Images before decoding, each with what to call it in a message."""
    if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
        images = [images]
    single: list[OneImage] = []
    for image in images:
        if isinstance(image, np.ndarray) and image.ndim == 4:
            single.extend(image)
        else:
            single.append(image)
    return [_content_of(image, number) for number, image in enumerate(single)]


def _content_of(image: OneImage, number: int) -> tuple[Content, str]:
    if isinstance(image, str | os.PathLike):
        return Path(image), os.fspath(image)
    name = f"image {number}"
    if isinstance(image, Image.Image):
        return image.copy, name  # decoding changes and closes what it opens
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name} is of {type(image)}; it should be a path, an image or an array")
    if image.dtype != np.uint8:
        raise ValueError(f"{name} has pixels of {image.dtype}; they should be uint8, 0 to 255")
    gray = image.ndim == 3 and image.shape[2] == 1
    pixels = image[:, :, 0] if gray else image
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or not image.size:
        raise ValueError(
            f"{name} has the shape {image.shape}; it should be (H, W, C) with 1, 3 or 4 channels"
        )
    return partial(Image.fromarray, np.ascontiguousarray(pixels)), name


def _pixels(content: Content, description: Description) -> np.ndarray | Broken:
    """The pixels (H, W, C) of one image that the network sees, as in evaluation."""
    picture = decode(content, description.form, resized_by_numpy)
    if isinstance(picture, Broken):
        return picture
    height, width = description.image_size
    found_height, found_width = picture.pixels.shape[1:]
    any_size = description.stored_size is not None or description.resize is not None
    if (found_height, found_width) != (height, width) and not (
        any_size and found_height >= height and found_width >= width
    ):
        return Broken(
            f"is {found_height} x {found_width}, and the network takes {height} x {width} without "
            "resizing; resize the image first"
        )
    top, left = (found_height - height) // 2, (found_width - width) // 2
    seen = picture.pixels[:, top : top + height, left : left + width]
    return seen.transpose(1, 2, 0)


def _checked(logits: np.ndarray) -> np.ndarray | Broken:
    if np.isfinite(logits).all():
        return logits
    return Broken("has logits that contain NaN or infinity; the network is not usable")

"""Knowledge distillation, stage by stage; `load` loads a student that a study has exported."""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, which is not imported before signals are handled
if TYPE_CHECKING:
    import os

    from kdsteps.export.student import ExportedStudent


def load(
    path: str | os.PathLike[str], *, int8: bool = False, threads: int | None = None
) -> ExportedStudent:
    """Load an exported student, which predicts images without torch.

    ```
    student = kdsteps.load("results/export/pair/best")
    student.predict(["cat.jpg", "dog.jpg"])[0].label  # a class name
    student("cat.jpg")  # logits (1, K)
    ```

    Args:
        path: An ONNX file that kdsteps exported, or the folder with it.
        int8: Whether to use the int8 file of the folder.
        threads: Cores to compute on; by default all.

    Raises:
        KdstepsError: There is no such file, it is damaged or from elsewhere, or onnxruntime is not
            installed.
    """
    from kdsteps.export.student import load_student

    return load_student(path, int8=int8, threads=threads)

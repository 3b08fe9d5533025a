"""Sessions of onnxruntime, which run an ONNX file; nothing here imports torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kdsteps.errors import KdstepsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_session(content: bytes, threads: int = 1) -> InferenceSession:
    """A session on the CPU.

    Args:
        content: Of an ONNX file without weights in other files.
        threads: Cores to compute on.

    Raises:
        KdstepsError: onnxruntime is not installed.
        Exception: It cannot load the file; its errors have no common class.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise KdstepsError(
            f"onnxruntime cannot be imported ({first_line(error)}); run `pip install onnxruntime`"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised as well
    # weights in other files are never exported; nothing can be in this folder
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", f"{os.devnull}/none"
    )
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], enable_fallback=False
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message, in characters that can be printed anywhere."""
    text = str(error).strip().partition("\n")[0]
    return ascii(text)[1:-1][:200] or type(error).__name__

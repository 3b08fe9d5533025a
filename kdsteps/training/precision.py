"""The number format of a run: TF32 on a GPU, gradient scaling, and what the card can do."""

from __future__ import annotations

import logging
import warnings

import torch

from kdsteps.errors import KdstepsError

log = logging.getLogger("kdsteps")

SMALLEST_SCALE = 2.0**-20  # an epoch that ends below it took hardly a step


def set_precision(precision: str, device: torch.device) -> None:
    """Allow TF32 for "tf32" and forbid it for every other precision, in the whole process.

    TF32 rounds the factors of float32 products to 11 bits. It applies to all that a GPU computes in
    float32, inside and outside of autocast; PyTorch's own default allows it for convolutions.

    Raises:
        KdstepsError: The card cannot compute in bfloat16.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if precision != "bfloat16" or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        name, version = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        raise KdstepsError(
            f"precision is bfloat16, and {name} has compute capability {version[0]}.{version[1]}; "
            "bfloat16 needs 8.0 or above, so use float16 or float32"
        )


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss and unscales gradients for "float16"; without effect for other precisions.

    Gradients below 6e-8 are zero in float16. A step whose gradients overflow is left out, and the
    next ones are scaled by half.
    """
    # the schedule moves on past a first step that is left out, of which it warns
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler.step\(\)` before")
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def warn_of_overflow(scaler: torch.amp.GradScaler) -> None:
    """Log a warning if gradients overflow however little they are scaled; waits for the device."""
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
        log.warning(
            "float16: the gradients of the last steps were NaN or infinite, and these steps were "
            "left out; use bfloat16 or float32, or lower the weights of the losses"
        )

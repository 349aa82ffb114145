"""What the command line says about an error: one line with the remedy, and an exit code."""

from __future__ import annotations

import errno

import click

from accuquant.cli._signals import Terminated
from accuquant.errors import AccuQuantError

#: What a shell says of a program that these signals ended: 128 plus their number.
INTERRUPTED, TERMINATED = 130, 143

#: Packages that are not in the base installation -> the extra that holds them.
_EXTRAS = {
    "diffusers": "calibrate",
    "jinja2": "calibrate",
    "onnxscript": "calibrate",
    "torch": "calibrate",
    "onnxruntime": "onnxruntime",
    "polygraphy": "tensorrt-rtx",
    "tensorrt": "gpu",
    "tensorrt_rtx": "tensorrt-rtx",
}
_OS_REMEDIES = {
    errno.ENOSPC: "Free some space, or write to another disk, and run the same command again",
    errno.EDQUOT: "Free some space, or write to another disk, and run the same command again",
    errno.EACCES: "Check the permissions, or choose another path",
    errno.EPERM: "Check the permissions, or choose another path",
    errno.EROFS: "Choose a path on a disk that can be written to",
    errno.ENOENT: "Check the path",
}


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line to print for `error`, and the exit code.

    That is 2 for usage, 130 for Ctrl-C, 143 for SIGTERM, else 1.
    """
    if isinstance(error, AccuQuantError):
        return str(error), error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        terminated = isinstance(error, Terminated) or isinstance(error.__cause__, Terminated)
        word, code = ("terminated", TERMINATED) if terminated else ("interrupted", INTERRUPTED)
        return f"{word}, without leaving half a file. Run it again; a calibration goes on where it was", code
    if isinstance(error, click.ClickException):
        return _explain_click(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in _EXTRAS:
        package = str(error.name).split(".")[0]
        extra = _EXTRAS[package]
        return f"the package {package} is not installed. Run: pip install 'accuquant[{extra}]'.", 1
    if isinstance(error, MemoryError):
        return "out of memory. Give smaller batches, or close other programs.", 1
    if _is_full_disk(error):
        return f"the disk is full ({error}). {_OS_REMEDIES[errno.ENOSPC]}.", 1
    if isinstance(error, OSError):
        remedy = _OS_REMEDIES.get(error.errno or 0, "Check the disk and the path")
        return f"{error.strerror or error}: {error.filename or 'a file'}. {remedy}.", 1
    reason = " ".join(str(error).split())
    return (
        f"internal error: {type(error).__name__}: {reason[:300]}. Run again with --debug for the traceback, "
        "and please report it.",
        1,
    )


def _explain_click(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{message} Run `{context.command_path} --help`." if context else message


def _is_full_disk(error: BaseException) -> bool:
    # safetensors and onnx report a full disk through exceptions of their own
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)

"""What the command line says about an error: one line with the remedy, and an exit code."""

from __future__ import annotations

import errno

import click

from accuquant._util.system_errors import is_out_of_memory, os_error_number
from accuquant.cli._signals import Terminated
from accuquant.errors import AccuQuantError, printable

#: What a shell says of a program that these signals ended: 128 plus their number.
INTERRUPTED, TERMINATED = 130, 143

#: Packages that are not in the base installation -> the extra that holds them.
_EXTRAS = {
    "cloudpickle": "cluster",
    "ray": "cluster",
    "diffusers": "calibrate",
    "jinja2": "calibrate",
    "onnxscript": "calibrate",
    "psutil": "calibrate",
    "torch": "calibrate",
    "onnxruntime": "onnxruntime",
    "polygraphy": "tensorrt-rtx",
    "tensorrt": "gpu",
    "tensorrt_rtx": "tensorrt-rtx",
}
_OS_REMEDIES = {
    errno.ENOSPC: "Free some space, or write to another disk, and run the same command again",
    errno.EDQUOT: "Free some space, or write to another disk, and run the same command again",
    errno.EFBIG: "Raise the limit of a file's size (`ulimit -f`), or write to a disk that takes larger files",
    errno.EACCES: "Check the permissions, or choose another path",
    errno.EPERM: "Check the permissions, or choose another path",
    errno.EROFS: "Choose a path on a disk that can be written to",
    errno.ENOENT: "Check the path",
}

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LONGEST = 4000


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line to print for `error`, and the exit code.

    That is 2 for usage, 130 for Ctrl-C, 143 for SIGTERM, else 1.
    """
    line, code = _explain(error)
    return printable(line, _LONGEST), code


def _explain(error: BaseException) -> tuple[str, int]:
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
    if is_out_of_memory(error) and "CUDA" in str(error):
        return "out of memory on the GPU. Give --device cpu, or close other programs that use it.", 1
    if is_out_of_memory(error):
        return "out of memory. Give smaller batches, or close other programs.", 1
    number = os_error_number(error)
    if number in _FULL:
        return f"the disk is full ({error}). {_OS_REMEDIES[number]}.", 1
    if isinstance(error, OSError):
        remedy = _OS_REMEDIES.get(error.errno or 0, "Check the disk and the path")
        return f"{error.strerror or error}: {error.filename or 'a file'}. {remedy}.", 1
    if number in _OS_REMEDIES:
        return f"{' '.join(str(error).split())[:300]}. {_OS_REMEDIES[number]}.", 1
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

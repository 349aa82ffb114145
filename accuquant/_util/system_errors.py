"""What the system says through a library's exception: that memory is short, or which errno."""

from __future__ import annotations

import errno
import os
import re

#: What libraries say when memory is short: torch, OpenVINO and ONNX Runtime in their own words.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "bad allocation",
    "Failed to allocate memory",
    "out of memory",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was short: torch, OpenVINO and ONNX Runtime have exceptions of their own."""
    if isinstance(error, MemoryError) or os_error_number(error) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _NO_MEMORY)


def os_error_number(error: BaseException) -> int | None:
    """Return the errno that an exception, or the one that it was raised from, carries or quotes.

    safetensors and onnx report a full disk through exceptions of their own.
    """
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return None
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        quoted = re.search(r"\(os error (\d+)\)", str(seen))
        if quoted:
            return int(quoted.group(1))
        for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.ENOMEM):
            if os.strerror(number) in str(seen):
                return number
        seen = seen.__cause__ or seen.__context__
    return None

"""What the CPU can do with int8, read where Linux tells it."""

from __future__ import annotations

import platform
from pathlib import Path

#: Instruction sets that make int8 fast on a CPU: name in /proc/cpuinfo -> name for people.
INT8_INSTRUCTIONS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "asimddp": "NEON dot product",
}


def describe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name and what it has for int8: "AMD EPYC (AVX2 without VNNI)"."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = next((line for line in text.splitlines() if line.startswith("model name")), "")
    name = found.partition(":")[2].strip() or platform.processor() or platform.machine()
    flags = cpu_flags(cpuinfo)
    if not flags:
        return name
    lacking = "AVX2 without VNNI" if "avx2" in flags else "no int8 dot product"
    return f"{name} ({', '.join(int8_instructions(flags)) or lacking})"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Return the processor's features as Linux names them; empty where they are unknown."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return set()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def int8_instructions(flags: set[str]) -> list[str]:
    """Return the names of the int8 instruction sets among `flags`."""
    return [name for flag, name in INT8_INSTRUCTIONS.items() if flag in flags]


def saturates_8_bit_weights(flags: set[str]) -> bool:
    """Say whether engines' int8 sums saturate with 8-bit weights on a processor with `flags`.

    x86 without VNNI adds pairs of products in 16 bits. On the CIFAR-sized UNet OpenVINO was off by 22 % of
    the output there, ONNX Runtime by 7 %; with 7-bit weights both by 7 %. A transformer's images were 35 dB
    from the simulation in ONNX Runtime, and 46 dB with 7-bit weights.
    """
    return "avx2" in flags and not int8_instructions(flags)

"""Ahead-of-time build: a kernel and its launch settings in, the resources ptxas gave it on sm_90 out. Needs no GPU.

Command: python -m flamscale_kernels.aot    (prints every kernel's as JSON; TRITON_INTERPRET must be unset)
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CASE_MODULES = ("slot_attention_launch", "slot_update_kernels", "temporal_attention_launch")


@dataclass(frozen=True, kw_only=True)
class AotCase:
    """One kernel with the settings that one real launch gives it.

    Attributes:
        kernel: the `triton.jit` function.
        types: Triton's type of every argument that is no constexpr, such as "*bf16", "i32" or "fp32".
        constexprs: value of every constexpr argument.
        num_warps, num_stages: launch options.
        aligned: integer arguments that are multiples of 16 in that launch; pointers always are.
    """

    kernel: Any
    types: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one thread or block of a kernel takes on sm_90."""

    registers: int
    stack_bytes: int
    spill_instructions: int
    shared_memory_bytes: int


def build(case: AotCase) -> Resources:
    """Compiles a kernel for sm_90 and reads its resources from the cubin."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    divisible = [["tt.divisibility", 16]]
    attributes = {(names.index(n),): divisible for n in names if signature[n].startswith("*") or n in case.aligned}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=case.constexprs, attrs=attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run(tools / "cuobjdump", "--dump-resource-usage", file.name)
        assembly = _run(tools / "nvdisasm", "-c", file.name)
    return Resources(
        registers=_number("REG", usage),
        stack_bytes=_number("STACK", usage),
        spill_instructions=len(re.findall(r"\b(?:STL|LDL)", assembly)),
        shared_memory_bytes=compiled.metadata.shared,
    )


def cases() -> dict[str, AotCase]:
    """Returns the cases of all kernels, by name."""
    found: dict[str, AotCase] = {}
    for module in CASE_MODULES:
        found |= importlib.import_module(f"flamscale_kernels.{module}").AOT_CASES
    return found


def _build_named(name: str) -> Resources:
    return build(cases()[name])


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _number(name: str, text: str) -> int:
    match = re.search(rf"{name}:(\d+)", text)
    assert match, f"cuobjdump tells no {name}"
    return int(match[1])


if __name__ == "__main__":
    import triton

    with ProcessPoolExecutor() as pool:
        names = sorted(cases())
        built = dict(zip(names, map(asdict, pool.map(_build_named, names)), strict=True))
    json.dump({"triton": triton.__version__, "kernels": built}, sys.stdout, indent=2)
    print()

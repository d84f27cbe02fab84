"""The GPU kernels alone, as fractions of what the device can read or compute.

    python -m bench gpu_kernels [--only linear,paged_attention] [--json FILE]

Each operation's module beside this one has `measure()`, which gives its rows. Needs a CUDA device and CuPy.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.gpu_kernels.timing import read_ceiling

OPERATIONS = (
    "batch_linear",
    "decode_attention",
    "gated_linear",
    "layer",
    "linear",
    "numba_attention",
    "paged_attention",
    "prefill_attention",
    "rms_norm",
    "rope_write_kv",
    "sample",
    "silu_mul",
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--only", default=",".join(OPERATIONS), help="operations, with commas")
    arguments.add_argument("--json", type=Path, help="keep the rows in a file")
    given = arguments.parse_args()
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(OPERATIONS):
        arguments.error(f"no operation {min(unknown)!r}; there are {', '.join(OPERATIONS)}")
    ceiling = read_ceiling()
    print(f"{torch.cuda.get_device_name()}: torch reads {ceiling / 1e12:.2f} TB/s")
    rows: list[dict[str, Any]] = []
    for name in wanted:
        for row in import_module(f"bench.gpu_kernels.{name}").measure():
            rows.append(row)
            print("  ".join(_told(key, value) for key, value in row.items()))
    if given.json is not None:
        device = {"name": torch.cuda.get_device_name(), "torch": torch.__version__, "read": ceiling}
        given.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _told(key: str, value: Any) -> str:
    return f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"


if __name__ == "__main__":
    main()

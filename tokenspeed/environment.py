"""What would compute here, in words: for a person before the first start, and for a report of a fault."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import torch

from tokenspeed import __version__
from tokenspeed.build import find_checkpoint
from tokenspeed.build_device import bounds_of, gpu_dtype, usable_cores
from tokenspeed.config import Config
from tokenspeed.model.cuda.device import find_device, versions
from tokenspeed.model.cuda.kernels import Context, choose
from tokenspeed.model.kernels import describe_choice
from tokenspeed.model.loading import described


def environment(config: Config) -> Iterator[str]:
    """A line for each fact. Raises what a start with this configuration would raise this early."""
    yield f"tokenspeed {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield "packages: " + ", ".join(f"{name} {version}" for name, version in versions().items())
    found = find_device(config.device.name)
    yield found.told
    checkpoint = find_checkpoint(config, lambda name: lambda done, total: None)
    spec = described(checkpoint, max_context=config.model.max_context or None).family.spec
    if found.device.type == "cpu":
        threads = config.device.threads or usable_cores()
        yield describe_choice(
            spec, config.kernels.decoder, config.model.dtype, config.cache.block_size, threads
        )
        return
    torch.cuda.set_device(found.device)
    free, total = torch.cuda.mem_get_info(found.device)
    capability = ".".join(map(str, torch.cuda.get_device_capability(found.device)))
    yield (
        f"CUDA {torch.version.cuda}, compute capability {capability}, "
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    )
    dtype = gpu_dtype(config.model.dtype, spec)
    context = Context(spec, dtype, bounds_of(config, spec), config.cache.block_size)
    chosen = choose(context, found.device, config.kernels)
    yield from (chosen.told, *chosen.warnings)

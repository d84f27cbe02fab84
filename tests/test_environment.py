"""What `tokenspeed env` tells."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from tokenspeed import config
from tokenspeed.build import build
from tokenspeed.cli import app
from tokenspeed.config import ConfigError
from tokenspeed.environment import environment


def test_it_tells_versions_the_device_and_what_would_compute() -> None:
    lines = list(environment(config.load(None, ["device.name=cpu", "device.threads=3"])))
    assert lines[0].startswith("tokenspeed ")
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[1]
    assert lines[2] == "device: the CPU, as [device] name says"
    assert lines[3] == "decoder: numba, bfloat16, 3 threads (the fastest for this CPU)"


def test_the_command_prints_it() -> None:
    done = CliRunner().invoke(app, ["env", "--set", "device.name=cpu"])
    assert done.exit_code == 0
    assert "decoder: numba" in done.output


@pytest.mark.parametrize(
    "setting", ["kernels.paged_attention=numba", "device.memory_fraction=0.5", "device.graphs_mib=0"]
)
def test_what_only_a_gpu_reads_is_refused_where_the_cpu_serves(setting: str) -> None:
    settings = config.load(None, ["device.name=cpu", setting])
    table, key = setting.partition("=")[0].split(".")
    with pytest.raises(ConfigError, match=rf"\[{table}\] {key} has no effect on the CPU, which serves"):
        build(settings, stage=lambda name: lambda done, total: None, say=lambda line: None)

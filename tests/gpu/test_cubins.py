"""Compiled sources as files, without a device: for which architecture, and that each is compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu.cubins import Capability, UnsupportedDeviceError, architecture, cubin
from gpu.source import Source


class Counting:
    """A compiler that tells what it was asked for."""

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.asked: list[tuple[str, ...]] = []

    def compile(self, text: str, name: str, options: tuple[str, ...]) -> bytes:
        self.asked.append(options)
        return f"{text} {options}".encode()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "op" / "kernel.cu"
    path.parent.mkdir()
    path.write_text("text")
    return Source(path, functions=("f",), variants=({},))


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (("sm_80", "sm_90"), (8, 0), "sm_80"),
        (("sm_80", "sm_90"), (8, 6), "sm_86"),
        (("sm_80", "sm_90"), (10, 0), "sm_100"),
        (("sm_90a",), (9, 0), "sm_90a"),
        (("sm_80", "sm_90a"), (9, 0), "sm_90a"),
        (("sm_80", "sm_90a"), (10, 0), "sm_100"),
    ],
)
def test_a_source_is_compiled_for_the_very_device(
    architectures: tuple[str, ...], capability: Capability, expected: str
) -> None:
    source = Source(Path("gpu/op/kernel.cu"), (), (), architectures=architectures)
    assert architecture(source, capability) == expected


@pytest.mark.parametrize(
    ("architectures", "capability"), [(("sm_90a",), (10, 0)), (("sm_80", "sm_89"), (7, 5))]
)
def test_a_device_that_a_source_is_not_for_is_refused(
    architectures: tuple[str, ...], capability: Capability
) -> None:
    source = Source(Path("gpu/op/kernel.cu"), (), (), architectures=architectures)
    with pytest.raises(UnsupportedDeviceError, match=r"gpu/op is for .*: choose another kernel"):
        architecture(source, capability)


def test_it_is_compiled_once_for_each_text_constant_device_and_compiler(source: Source) -> None:
    compiler = Counting()
    first = cubin(source, {"A": 1}, (9, 0), compiler)
    assert cubin(source, {"A": 1}, (9, 0), compiler) == first
    assert compiler.asked == [("-std=c++17", "-lineinfo", "-DA=1", "-arch=sm_90")]
    others = {
        cubin(source, {"A": 2}, (9, 0), compiler),
        cubin(source, {"A": 1}, (8, 0), compiler),
        cubin(source, {"A": 1}, (9, 0), Counting("2")),
    }
    source.path.write_text("changed")
    others.add(cubin(source, {"A": 1}, (9, 0), compiler))
    assert len(others | {first}) == 5
    assert {path.name for path in first.parent.iterdir()} == {path.name for path in others | {first}}


def test_a_cache_that_cannot_be_written_is_told_with_the_mend(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="set XDG_CACHE_HOME to a folder that can be written"):
        cubin(source, {}, (9, 0), Counting())

"""Launches through the driver: kinds of arguments, threads, capture and the cache of compiled sources."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest
import torch

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from gpu.launch import CompilationError, Kernels
from gpu.source import Source

pytestmark = pytest.mark.gpu

TEXT = """
extern "C" __global__ void keep(const float* from, float* to, int at, float by, const float* more) {
    to[at + blockIdx.y * gridDim.x + blockIdx.x] = from[threadIdx.x] * by + (more ? *more : 0.0f);
}
extern "C" __global__ void fill(float* to, int count) {
    extern __shared__ float room[];
    for (int i = threadIdx.x; i < count; i += blockDim.x) room[i] = 3.0f;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = room[count - 1 - i];
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "op" / "kernel.cu"
    path.parent.mkdir()
    path.write_text(TEXT)
    return Source(path, functions=("keep", "fill"), variants=({},))


def test_arguments_of_every_kind_arrive(source: Source) -> None:
    kernels = Kernels(source, {})
    one, many = torch.full((1,), 2.0, device="cuda"), torch.zeros(12, device="cuda")
    for launch in (kernels.launch, kernels.launch_early):
        many.zero_()
        launch("keep", (2, 3), (1,), one, many, 4, 1.5, None)
        launch("keep", (1,), (1,), one, many, 0, -1.0, one)
        assert many.tolist() == [0.0] * 4 + [3.0] * 6 + [0.0] * 2
    with pytest.raises(TypeError, match=r"keep: .* kinds of its first launch"):
        kernels.launch("keep", (1,), (1,), one, many, 1.0, 1.0, None)
    with pytest.raises(RuntimeError, match=r"refused to launch keep as \(0,\) blocks"):
        kernels.launch("keep", (0,), (1,), one, many, 0, 1.0, None)


def test_much_shared_memory_is_given_where_it_was_asked_for(source: Source) -> None:
    count = 25_000
    kernels, out = Kernels(source, {}, shared_bytes={"fill": 4 * count}), torch.zeros(count, device="cuda")
    kernels.launch("fill", (1,), (256,), out, count, shared_bytes=4 * count)
    assert (out == 3.0).all()


def test_threads_launch_at_once_each_on_its_stream(source: Source) -> None:
    kernels = Kernels(source, {})
    one, outs = torch.ones(1, device="cuda"), torch.zeros(8, 500, device="cuda")
    torch.cuda.synchronize()

    def work(row: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for at in range(500):
                kernels.launch("keep", (1,), (1,), one, outs[row], at, float(1000 * row + at), None)

    threads = [Thread(target=work, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    expected = 1000 * torch.arange(8)[:, None] + torch.arange(500)
    assert torch.equal(outs.cpu(), expected.float())


def test_a_thread_that_never_used_the_device_may_launch(source: Source) -> None:
    kernels = Kernels(source, {})
    one, out = torch.ones(1, device="cuda"), torch.zeros(1, device="cuda")
    thread = Thread(target=lambda: kernels.launch("keep", (1,), (1,), one, out, 0, 5.0, None))
    thread.start()
    thread.join()
    assert out.item() == 5.0


def test_captured_launches_keep_their_own_arguments(source: Source) -> None:
    kernels = Kernels(source, {})
    one, out = torch.ones(1, device="cuda"), torch.zeros(20, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(20):
            kernels.launch("keep", (1,), (1,), one, out, at, float(at), None)
    assert not out.any()
    graph.replay()
    assert out.tolist() == [float(at) for at in range(20)]


def test_a_source_is_compiled_once(source: Source, tmp_path: Path) -> None:
    Kernels(source, {"A": 1})
    kept = sorted((tmp_path / "cache" / "tokenspeed" / "cubins").iterdir())
    Kernels(source, {"A": 1})
    assert sorted(kept[0].parent.iterdir()) == kept
    Kernels(source, {"A": 2})
    assert len(list(kept[0].parent.iterdir())) == 2


def test_what_does_not_compile_is_told_in_one_line(source: Source) -> None:
    source.path.write_text('extern "C" __global__ void keep(int* a) { *a = NONE; }')
    with pytest.raises(CompilationError, match=r'kernel.cu.*identifier "NONE" is undefined') as caught:
        Kernels(source, {})
    assert "\n" not in str(caught.value)

"""What the figures are held against: our goals, and what vLLM 0.24.0 reached with its defaults.

One NVIDIA H200, bf16, random weights in the shape of the model, the same workloads through HTTP on that host.
"""

from __future__ import annotations

from typing import NamedTuple

READ_BANDWIDTH = 4.67e12  # bytes/s that an H200 was measured to read: bounds the decode rate of one stream


class Target(NamedTuple):
    """In the figure's unit; None where there is none."""

    goal: float | None
    vllm: float | None


# By kind of request and key of figure.
TARGETS: dict[str, dict[tuple[str, str], Target]] = {
    "llama8b": {
        ("1 stream", "decode_p50"): Target(280, 206),
        ("1 stream", "ttft_p50"): Target(None, 12.9),
        ("8 streams", "output_rate"): Target(None, 1452),
        ("64 streams", "output_rate"): Target(None, 6480),
        ("64 streams", "ttft_p50"): Target(None, 657),
        ("64 streams", "ttft_p99"): Target(None, 763),
        ("256 streams", "output_rate"): Target(12_000, 9557),
        ("256 streams", "ttft_p50"): Target(None, 1960),
        ("256 streams", "ttft_p99"): Target(None, 3198),
        ("256 streams", "gap_p99"): Target(None, 197),
        ("2,048 tokens", "ttft_p50"): Target(None, 55),
        ("8,192 tokens", "ttft_p50"): Target(200, 223),
        ("30,000 tokens", "ttft_p50"): Target(900, 1102),
        ("all", "output_rate"): Target(None, 9601),
        ("short", "ttft_p50"): Target(50, 924),
        ("short", "ttft_p95"): Target(None, 2217),
        ("short", "ttft_p99"): Target(100, 2312),
        ("short", "gap_p99"): Target(60, 346),
        ("long", "ttft_p50"): Target(2287, 2287),  # no worse
        ("long", "ttft_p95"): Target(2461, 2461),
        ("start", "first_token"): Target(10, 62),  # vLLM's is until /health, the least of its starts
    },
    "qwen600m": {
        ("1 stream", "decode_p50"): Target(1500, 618),
        ("1 stream", "ttft_p50"): Target(None, 11.2),
        ("8 streams", "output_rate"): Target(None, 4051),
        ("64 streams", "output_rate"): Target(None, 16_742),
        ("64 streams", "ttft_p50"): Target(None, 179),
        ("64 streams", "ttft_p99"): Target(None, 212),
        ("256 streams", "output_rate"): Target(30_000, 21_689),
        ("256 streams", "ttft_p50"): Target(None, 396),
        ("256 streams", "ttft_p99"): Target(None, 599),
        ("start", "first_token"): Target(None, 101),
    },
}

// One chunk a thread: two or four were no faster on many rows, and slower on few.

constexpr int WIDTH = 16 / sizeof(Element);
typedef Chunk<WIDTH> Wide;

// Strides are in elements; a row has `chunks`, whose blocks lie along y.
extern "C" __global__ void __launch_bounds__(256) silu_mul(
    const Element* gate, const Element* up, Element* out, int chunks, int gate_stride, int up_stride, int out_stride
) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const long long row = blockIdx.x;
    const int chunk = blockIdx.y * blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    Wide gates = reinterpret_cast<const Wide*>(gate + row * gate_stride)[chunk];
    const Wide ups = reinterpret_cast<const Wide*>(up + row * up_stride)[chunk];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        gates.of[i] = narrowed(rounded(silu(widened(gates.of[i]))) * widened(ups.of[i]));
    }
    reinterpret_cast<Wide*>(out + row * out_stride)[chunk] = gates;
}

// One block a row: the row stays in registers between the sum of its squares and its scaling.

constexpr int WIDTH = 16 / sizeof(Element);
typedef Chunk<WIDTH> Wide;

// The sum of `part` over the block, in every thread.
__device__ __forceinline__ float summed_over_block(float part) {
    __shared__ float by_warp[32];
    part = summed_over_lanes<32>(part);
    if (blockDim.x == 32) return part;
    const int lane = threadIdx.x % 32;
    if (lane == 0) by_warp[threadIdx.x / 32] = part;
    __syncthreads();
    return summed_over_lanes<32>(lane < blockDim.x / 32 ? by_warp[lane] : 0.0f);
}

// Thread t holds chunks t, t + threads, ... of a row of `chunks`; at most EACH of them. Strides are in elements.
template <int EACH, bool ADDING>
__device__ __forceinline__ void normalise(
    Element* x, const Element* weight, Element* out, const Element* delta, int chunks, float eps, int x_stride,
    int out_stride, int delta_stride
) {
    let_next_kernel_start();
    const long long row = blockIdx.x;
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = threadIdx.x + each * blockDim.x;
        if (chunk < chunks) expect(reinterpret_cast<const Wide*>(weight) + chunk);
    }
    wait_for_previous_kernel();
    Wide* const own = reinterpret_cast<Wide*>(x + row * x_stride);
    Wide* const to = reinterpret_cast<Wide*>(out + row * out_stride);
    const Wide* const added = reinterpret_cast<const Wide*>(delta + row * delta_stride);
    Wide held[EACH], more[EACH];
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = threadIdx.x + each * blockDim.x;
        if (chunk < chunks) {
            held[each] = own[chunk];
            if (ADDING) more[each] = added[chunk];
        }
    }
    float squares = 0.0f;
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = threadIdx.x + each * blockDim.x;
        if (chunk < chunks) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                if (ADDING) held[each].of[i] = narrowed(widened(held[each].of[i]) + widened(more[each].of[i]));
                const float wide = widened(held[each].of[i]);
                squares += wide * wide;
            }
            if (ADDING) own[chunk] = held[each];
        }
    }
    const float scale = rsqrtf(summed_over_block(squares) / static_cast<float>(chunks * WIDTH) + eps);
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = threadIdx.x + each * blockDim.x;
        if (chunk < chunks) {
            // Loading these sooner takes registers that would hold more rows: slower.
            const Wide weights = reinterpret_cast<const Wide*>(weight)[chunk];
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                held[each].of[i] = narrowed(rounded(widened(held[each].of[i]) * scale) * widened(weights.of[i]));
            }
            to[chunk] = held[each];
        }
    }
}

// Rows of float32, which stay as they are, to rows of Element.
template <int EACH>
__device__ __forceinline__ void normalise_wide(
    const float* x, const Element* weight, Element* out, int chunks, float eps, int x_stride, int out_stride
) {
    let_next_kernel_start();
    const long long row = blockIdx.x;
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = threadIdx.x + each * blockDim.x;
        if (chunk < chunks) expect(reinterpret_cast<const Wide*>(weight) + chunk);
    }
    wait_for_previous_kernel();
    const float4* const own = reinterpret_cast<const float4*>(x + row * x_stride);
    Wide* const to = reinterpret_cast<Wide*>(out + row * out_stride);
    float4 held[EACH][WIDTH / 4];
    float squares = 0.0f;
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = threadIdx.x + each * blockDim.x;
#pragma unroll
        for (int i = 0; i < WIDTH / 4; i++) {
            held[each][i] = chunk < chunks ? own[chunk * (WIDTH / 4) + i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const float4 four = held[each][i];
            squares += four.x * four.x + four.y * four.y + four.z * four.z + four.w * four.w;
        }
    }
    const float scale = rsqrtf(summed_over_block(squares) / static_cast<float>(chunks * WIDTH) + eps);
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = threadIdx.x + each * blockDim.x;
        if (chunk < chunks) {
            const Wide weights = reinterpret_cast<const Wide*>(weight)[chunk];
            Wide scaled;
#pragma unroll
            for (int i = 0; i < WIDTH / 4; i++) {
                const float4 four = held[each][i];
                scaled.of[4 * i] = narrowed(four.x * scale * widened(weights.of[4 * i]));
                scaled.of[4 * i + 1] = narrowed(four.y * scale * widened(weights.of[4 * i + 1]));
                scaled.of[4 * i + 2] = narrowed(four.z * scale * widened(weights.of[4 * i + 2]));
                scaled.of[4 * i + 3] = narrowed(four.w * scale * widened(weights.of[4 * i + 3]));
            }
            to[chunk] = scaled;
        }
    }
}

#define KERNEL(EACH)                                                                                                \
    extern "C" __global__ void __launch_bounds__(1024) rms_norm_##EACH(                                             \
        Element* x, const Element* weight, Element* out, int chunks, float eps, int x_stride, int out_stride        \
    ) {                                                                                                             \
        normalise<EACH, false>(x, weight, out, x, chunks, eps, x_stride, out_stride, x_stride);                     \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024) add_rms_norm_##EACH(                                         \
        Element* x, const Element* weight, Element* out, int chunks, float eps, int x_stride, int out_stride,       \
        const Element* delta, int delta_stride                                                                      \
    ) {                                                                                                             \
        normalise<EACH, true>(x, weight, out, delta, chunks, eps, x_stride, out_stride, delta_stride);              \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024) wide_rms_norm_##EACH(                                        \
        const float* x, const Element* weight, Element* out, int chunks, float eps, int x_stride, int out_stride    \
    ) {                                                                                                             \
        normalise_wide<EACH>(x, weight, out, chunks, eps, x_stride, out_stride);                                    \
    }

KERNEL(1)
KERNEL(2)

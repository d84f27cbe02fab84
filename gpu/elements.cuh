// Elements of 16 or 32 bits, moved up to 16 bytes at a time and computed with in float32. DTYPE: 0 float32,
// 1 bfloat16, 2 float16.

#if DTYPE == 0
typedef float Element;
#else
typedef unsigned short Element;  // its bits
#endif

__device__ __forceinline__ float widened(Element element) {
#if DTYPE == 0
    return element;
#elif DTYPE == 1
    return __uint_as_float(static_cast<unsigned>(element) << 16);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(element));
    return wide;
#endif
}

// To the nearest, ties to even.
__device__ __forceinline__ Element narrowed(float wide) {
#if DTYPE == 0
    return wide;
#else
    Element element;
#if DTYPE == 1
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(element) : "f"(wide));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(element) : "f"(wide));
#endif
    return element;
#endif
}

// What the dtype keeps of a number.
__device__ __forceinline__ float rounded(float wide) { return widened(narrowed(wide)); }

// COUNT neighbours, moved by one access: COUNT * sizeof(Element) is a power of two, at most 16, and divides the address.
template <int COUNT>
struct alignas(COUNT * sizeof(Element)) Chunk {
    Element of[COUNT];
};

// Programmatic dependent launch, as in common.cuh: before `wait_for_previous_kernel` only what no kernel writes may be
// read, and nothing written. Every thread waits, so that a kernel's end tells that all kernels before it have ended.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Brings the line of a constant to the L2, at the price of no register.
__device__ __forceinline__ void expect(const void* constant) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(constant));
}

// Sums over groups of SIZE neighbouring lanes, a power of two up to 32; all of the warp takes part.
template <int SIZE>
__device__ __forceinline__ float summed_over_lanes(float part) {
#pragma unroll
    for (int apart = SIZE / 2; apart > 0; apart /= 2) part += __shfl_xor_sync(0xffffffffu, part, apart);
    return part;
}

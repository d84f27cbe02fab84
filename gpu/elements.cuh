// Elements of 16 or 32 bits, moved up to 16 bytes at a time and computed with in float32; put after base.cuh.
// DTYPE: 0 float32, 1 bfloat16, 2 float16.

#if DTYPE == 0
typedef float Element;
#else
typedef unsigned short Element;  // its bits
#endif

DEVICE float widened(Element element) {
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
DEVICE Element narrowed(float wide) {
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
DEVICE float rounded(float wide) { return widened(narrowed(wide)); }

// COUNT neighbours, moved by one access: COUNT * sizeof(Element) is a power of two, at most 16, and divides the address.
template <int COUNT>
struct alignas(COUNT * sizeof(Element)) Chunk {
    Element of[COUNT];
};

// Brings the line of a constant to the L2, at the price of no register.
DEVICE void expect(const void* constant) {
    asm volatile("prefetch.global.L2 [%0];" :: "l"(constant));
}

// Sums over groups of SIZE neighbouring lanes, a power of two up to 32; all of the warp takes part.
template <int SIZE>
DEVICE float summed_over_lanes(float part) {
#pragma unroll
    for (int apart = SIZE / 2; apart > 0; apart /= 2) part += __shfl_xor_sync(0xffffffffu, part, apart);
    return part;
}

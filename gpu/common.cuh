// What most CUDA sources here share; put after base.cuh.
// Elements are raw 16 bits: bfloat16, or float16 where HALF is 1.

#ifndef HALF
#define HALF 0
#endif
#ifndef WIDE_OUT
#define WIDE_OUT 0
#endif

typedef unsigned short Element;
typedef unsigned int Word;            // two elements
typedef unsigned long long Policy;    // how the L2 keeps what is read

struct alignas(16) Eight { Word x, y, z, w; };  // eight elements

DEVICE Eight eight_zeros() { return Eight{0, 0, 0, 0}; }

// Read-only data that this kernel reads once: not kept in the L1, first out of the L2.
DEVICE Policy evict_first() {
    Policy policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Starts 16 bytes on their way to shared memory, or 16 bytes of zeros where not `wanted`: nothing is read then.
DEVICE void copy_once(Word shared, const void* address, bool wanted, Policy policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
                 :: "r"(shared), "l"(address), "r"(wanted ? 16 : 0), "l"(policy) : "memory");
}

DEVICE void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups but the latest `LATEST` are there.
template <int LATEST>
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" :: "n"(LATEST) : "memory");
}

DEVICE Word shared_address(const void* pointer) { return static_cast<Word>(__cvta_generic_to_shared(pointer)); }

DEVICE Eight load_shared(Word address) {
    Eight v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

// Data that the kernel before may have written, and that other warps of the multiprocessor read too.
DEVICE Eight load_shared_by_warps(const void* address) {
    Eight v;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address) : "memory");
    return v;
}

DEVICE float to_float(Element value) {
#if HALF
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
#else
    return __uint_as_float(static_cast<Word>(value) << 16);
#endif
}

DEVICE Element to_element(float value) {
    Element narrow;
#if HALF
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
#endif
    return narrow;
}

// What results are written as: WIDE_OUT makes them float32.
#if WIDE_OUT
typedef float Output;
DEVICE float widened(float value) { return value; }
DEVICE float narrowed(float value) { return value; }
#else
typedef Element Output;
DEVICE float widened(Element value) { return to_float(value); }
DEVICE Element narrowed(float value) { return to_element(value); }
#endif

// Two elements, `low` in the lower half.
DEVICE Word to_elements(float low, float high) {
    Word both;
#if HALF
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

DEVICE float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// sum += a[16 x 16] * b[16 x 8], by a warp.
DEVICE void multiply_add(float (&sum)[4], Word a0, Word a1, Word a2, Word a3, Word b0, Word b1) {
#if HALF
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
#endif
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

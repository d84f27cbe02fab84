// What sources for Hopper (sm_90a) share; put after common.cuh. Addresses in shared memory are words. What the tensor
// cores multiply lies there in rows of 128 swizzled bytes, 8 of them (1024 bytes) after the other.

// ---- barriers in shared memory ----

DEVICE void prepare(Word barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

// Those that this thread has prepared, to bulk copies and to the cluster.
DEVICE void show_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void expect(Word barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}

DEVICE void arrive(Word barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}

// When all copies that this thread has started are there.
DEVICE void arrive_with_copies(Word barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" :: "r"(barrier) : "memory");
}

DEVICE void wait(Word barrier, Word parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra AGAIN;\n"
        "}" :: "r"(barrier), "r"(parity) : "memory");
}

// A ring's place and its pass: parity 0 is the first to be filled.
struct Place {
    Word stage = 0, parity = 0;
    DEVICE void advance(int stages) {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

// ---- clusters ----

DEVICE Word own_block() {
    Word rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// A place in that block of the cluster, by the same place in one's own.
DEVICE Word place_in(Word block, Word place) {
    Word there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(place), "r"(block));
    return there;
}

// At the barrier in that block of the cluster that is at this place in one's own.
DEVICE void arrive_at(Word barrier, Word block) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(place_in(block, barrier)) : "memory");
}

// Every thread of a cluster enters, then meets the others: what these did before they entered is done.
DEVICE void enter_cluster() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
DEVICE void meet_cluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// ---- bulk copies of a matrix's boxes, which arrive at barriers ----

struct alignas(64) TensorMap { unsigned char opaque[128]; };

DEVICE void fetch(Word to, const TensorMap& map, int column, int row, Word barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        :: "r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

DEVICE void fetch_once(Word to, const TensorMap& map, int column, int row, Word barrier, Policy policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3}], [%4], %5;"
        :: "r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy) : "memory");
}

// To the same place, with news at the same barrier, in both blocks of a cluster.
DEVICE void fetch_for_both(Word to, const TensorMap& map, int column, int row, Word barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;"
        :: "r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<unsigned short>(3)) : "memory");
}

DEVICE void bring_to_l2(const TensorMap& map, int column, int row, Policy policy) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.L2::cache_hint [%0, {%1, %2}], %3;"
                 :: "l"(&map), "r"(column), "r"(row), "l"(policy) : "memory");
}

// ---- the tensor cores ----

// What this thread has written to shared memory, or knows to be there, may be read by tensor cores and bulk copies.
DEVICE void show_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Where swizzled rows may begin, in a block's dynamic shared memory.
DEVICE Word swizzled_rows(const void* dynamic) { return (shared_address(dynamic) + 1023) / 1024 * 1024; }

// Such rows, for the tensor cores. `apart`: bytes between groups of 64 columns, where rows run along the outer
// dimension.
DEVICE unsigned long long described(Word shared, Word apart = 0) {
    return static_cast<unsigned long long>(shared >> 4) | static_cast<unsigned long long>(apart >> 4) << 16 |
           static_cast<unsigned long long>(1024 >> 4) << 32 | 1ull << 62;
}

// Registers that a thread of this warpgroup may have from here on: fewer, or more that others have left.
template <int COUNT> DEVICE void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(COUNT));
}
template <int COUNT> DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(COUNT));
}

// Nothing of these registers is read or written across this point.
template <int COUNT> DEVICE void pin(float (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(values[i]) :: "memory");
}

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all but the latest `LATER` groups of products are done.
template <int LATER> DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LATER) : "memory");
}

#if HALF
#define TYPES ".f32.f16.f16"
#else
#define TYPES ".f32.bf16.bf16"
#endif

#define LIST_8(a, i) \
    "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]), "+f"(a[i + 6]), \
    "+f"(a[i + 7])
#define LIST_16(a, i) LIST_8(a, i), LIST_8(a, i + 8)
#define LIST_24(a, i) LIST_16(a, i), LIST_8(a, i + 16)
#define LIST_32(a, i) LIST_16(a, i), LIST_16(a, i + 16)
#define LIST_40(a, i) LIST_32(a, i), LIST_8(a, i + 32)
#define LIST_48(a, i) LIST_32(a, i), LIST_16(a, i + 32)
#define LIST_56(a, i) LIST_48(a, i), LIST_8(a, i + 48)
#define LIST_64(a, i) LIST_32(a, i), LIST_32(a, i + 32)
#define LIST_128(a, i) LIST_64(a, i), LIST_64(a, i + 64)
#define NAMES_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NAMES_16 NAMES_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define NAMES_24 NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define NAMES_32 NAMES_24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define NAMES_40 NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define NAMES_48 NAMES_40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define NAMES_56 NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55"
#define NAMES_64 NAMES_56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_128 \
    NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87," \
    "%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110," \
    "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// By a warpgroup; A to E name the operands behind the COUNT sums of a thread.
// sums[64 x N] (+)= a[64 x 16] * b[16 x N], both in shared memory, 16 neighbours of the inner dimension in a row.
// sums[64 x N] += a[64 x 16] * b[16 x N], a in registers and b in shared memory, N neighbours in rows of 64.
#define MULTIPLY(N, COUNT, A, B, C, D, E) \
    DEVICE void multiply(float (&sums)[COUNT], unsigned long long a, unsigned long long b, int kept = 1) { \
        asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, " C ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16" TYPES " {" NAMES_##COUNT "}, " A ", " B \
                     ", kept, 1, 1, 0, 0;\n}" \
                     : LIST_##COUNT(sums, 0) : "l"(a), "l"(b), "r"(kept)); \
    } \
    DEVICE void multiply_add(float (&sums)[COUNT], Word a0, Word a1, Word a2, Word a3, unsigned long long b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16" TYPES " {" NAMES_##COUNT "}, {" A "," B "," C "," D \
                     "}, " E ", 1, 1, 1, 1;" \
                     : LIST_##COUNT(sums, 0) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b)); \
    }

MULTIPLY(16, 8, "%8", "%9", "%10", "%11", "%12")
MULTIPLY(32, 16, "%16", "%17", "%18", "%19", "%20")
MULTIPLY(48, 24, "%24", "%25", "%26", "%27", "%28")
MULTIPLY(64, 32, "%32", "%33", "%34", "%35", "%36")
MULTIPLY(80, 40, "%40", "%41", "%42", "%43", "%44")
MULTIPLY(96, 48, "%48", "%49", "%50", "%51", "%52")
MULTIPLY(112, 56, "%56", "%57", "%58", "%59", "%60")
MULTIPLY(128, 64, "%64", "%65", "%66", "%67", "%68")
MULTIPLY(256, 128, "%128", "%129", "%130", "%131", "%132")

// Four lanes have four words each of four neighbouring chunks of 16 bytes, as sums are dealt out: afterwards each has a
// chunk.
DEVICE void gather_chunks(Word (&words)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const Word got = __shfl_xor_sync(~0u, odd ? words[i] : words[i + 1], 1);
        (odd ? words[i] : words[i + 1]) = got;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const Word got = __shfl_xor_sync(~0u, upper ? words[i] : words[i + 2], 2);
        (upper ? words[i] : words[i + 2]) = got;
    }
}

// Many rows through a matrix of gates and ups, on the tensor cores of Hopper (sm_90a): silu(gate) * up.
//
// A cluster of two blocks has 256 rows of x at a time, and WIDTH rows of the matrix, one half gates and one half the
// ups that belong to them: each block has its 128 rows of x and all of those of the matrix, of which it fetches one
// half for both. One warp fetches (bulk tensor copies, 128 bytes of a row at once, swizzled, zeros past the end) into a
// ring of STAGES; two warpgroups multiply, 64 rows of x each, and may be apart by as much as the ring holds. A thread
// has a gate and its up at the same place of its two halves of sums, so neither is ever written. Clusters stay and take
// every so-many-th tile; neighbours in time share rows of x and of the matrix in the L2.
//
// Constants: HALF, WIDTH (128 or 256), STAGES.

#ifndef WIDTH
#define WIDTH 256
#endif
#ifndef STAGES
#define STAGES 4
#endif

constexpr int WORKERS = 2;                     // warpgroups that multiply
constexpr int ROWS = 64 * WORKERS;             // of x, of a block
constexpr int CLUSTER = 2;                     // blocks, with the same rows of the matrix
constexpr int OWN = WIDTH / CLUSTER;           // outputs of a tile; rows of the matrix that a block fetches
constexpr int DEPTH = 64;                      // elements of k in a stage: a swizzled row of 128 bytes
constexpr int X_BYTES = ROWS * 128, MATRIX_BYTES = WIDTH * 128, STAGE_BYTES = X_BYTES + MATRIX_BYTES;
constexpr int THREADS = 128 * (1 + WORKERS);
constexpr int SUMS = WIDTH / 2;                // of a thread
constexpr int TOGETHER = 8;                    // rows of tiles that are walked side by side: 2048 rows of x

struct alignas(64) TensorMap { unsigned char opaque[128]; };

struct Shared {
    unsigned long long there[STAGES], done[STAGES];
};

// ---- barriers in shared memory, and copies that arrive at them ----

DEVICE void prepare(Word barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

DEVICE void expect(Word barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}

// At the barrier in that block of the cluster that is at this place in one's own.
DEVICE void arrive_at(Word barrier, Word block) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" :: "r"(barrier), "r"(block) : "memory");
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

DEVICE void fetch(Word to, const TensorMap* map, int column, int row, Word barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// To the same place, with news at the same barrier, in both blocks.
DEVICE void fetch_for_both(Word to, const TensorMap* map, int column, int row, Word barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;"
        :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<unsigned short>(3)) : "memory");
}

DEVICE Word own_block() {
    Word rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEVICE void meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A ring's place and its pass: parity 0 is the first to be filled.
struct Place {
    Word stage = 0, parity = 0;
    DEVICE void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// ---- the tensor cores ----

#if HALF
#define TYPES ".f32.f16.f16"
#else
#define TYPES ".f32.bf16.bf16"
#endif

#define REGISTERS_16(a, i) \
    "+f"(a[i]), "+f"(a[i + 1]), "+f"(a[i + 2]), "+f"(a[i + 3]), "+f"(a[i + 4]), "+f"(a[i + 5]), "+f"(a[i + 6]), \
    "+f"(a[i + 7]), "+f"(a[i + 8]), "+f"(a[i + 9]), "+f"(a[i + 10]), "+f"(a[i + 11]), "+f"(a[i + 12]), \
    "+f"(a[i + 13]), "+f"(a[i + 14]), "+f"(a[i + 15])
#define LIST_64(a) REGISTERS_16(a, 0), REGISTERS_16(a, 16), REGISTERS_16(a, 32), REGISTERS_16(a, 48)
#define LIST_128(a) \
    LIST_64(a), REGISTERS_16(a, 64), REGISTERS_16(a, 80), REGISTERS_16(a, 96), REGISTERS_16(a, 112)
#define NAMES_64 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
    "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
    "%56,%57,%58,%59,%60,%61,%62,%63"
#define NAMES_128 \
    NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87," \
    "%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110," \
    "%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// sums[64 x N] (+)= a[64 x 16] * b[16 x N], 16 neighbours of k in a row of each.
#define MULTIPLY(N, COUNT, A, B, KEPT) \
    DEVICE void multiply(float (&sums)[COUNT], unsigned long long a, unsigned long long b, int kept) { \
        asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, " KEPT ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16" TYPES " {" NAMES_##COUNT "}, " A ", " B \
                     ", kept, 1, 1, 0, 0;\n}" \
                     : LIST_##COUNT(sums) : "l"(a), "l"(b), "r"(kept)); \
    }

MULTIPLY(128, 64, "%64", "%65", "%66")
MULTIPLY(256, 128, "%128", "%129", "%130")

DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LATER> DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(LATER) : "memory");
}

// Rows of 128 swizzled bytes, 8 of them (1024 bytes) after the other.
DEVICE unsigned long long described(Word shared) {
    return static_cast<unsigned long long>(shared >> 4) | static_cast<unsigned long long>(1024 >> 4) << 32 | 1ull << 62;
}

// ---- tiles ----

struct Tile {
    int rows, outputs;  // the first of them

    // Tiles side by side in x lie next to each other in the order, TOGETHER of them, then comes the next of the matrix.
    DEVICE Tile(int index, int down, int across, Word block) {
        const int band = index / (TOGETHER * across), first = band * TOGETHER;
        const int height = min(TOGETHER, down - first), within = index - first * across;
        rows = ((first + within % height) * CLUSTER + block) * ROWS;
        outputs = within / height * OWN;
    }
};

// ---- what becomes of the sums ----

DEVICE float silu(float x) {
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return x * inverse;
}

DEVICE Word pair(float low, float high) { return to_element(low) | static_cast<Word>(to_element(high)) << 16; }

// Four lanes have four words each of four neighbouring runs of 8 outputs: afterwards each has a run.
DEVICE void exchange(Word (&words)[4], int lane) {
    const bool odd = lane & 1, upper = lane & 2;
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

// A thread has rows `row` and `row + 8` of its warp, and of each run of 8 outputs the pair that begins at 2 * (lane % 4).
DEVICE void write(float (&sums)[SUMS], const Element* bias, Element* out, int row, int first, int rows, int outputs) {
    const int lane = threadIdx.x % 32, quarter = lane % 4;
    if (bias != nullptr) {
#pragma unroll
        for (int i = 0; i < SUMS / 2; i++) {
            const int at = first + i / 4 * 8 + quarter * 2 + i % 2;
            if (at < outputs) {
                sums[i] += to_float(bias[at]);
                sums[i + SUMS / 2] += to_float(bias[outputs + at]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < SUMS / 2; i++) sums[i] = silu(sums[i]) * sums[i + SUMS / 2];
#pragma unroll
    for (int below = 0; below < 2; below++) {
        const int at_row = row + 8 * below;
        Element* const to = out + static_cast<long long>(at_row) * outputs + first + 8 * quarter;
#pragma unroll
        for (int runs = 0; runs < OWN / 8; runs += 4) {
            Word words[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                words[i] = pair(sums[4 * (runs + i) + 2 * below], sums[4 * (runs + i) + 2 * below + 1]);
            exchange(words, lane);
            if (at_row < rows && first + 8 * (runs + quarter) < outputs)
                *reinterpret_cast<Eight*>(to + 8 * runs) = Eight{words[0], words[1], words[2], words[3]};
        }
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
gated_linear(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap matrix, const Element* bias,
             Element* out, int rows, int inputs, int outputs) {
    extern __shared__ unsigned char unaligned[];
    __shared__ Shared shared;
    const Word ring = (shared_address(unaligned) + 1023) / 1024 * 1024;
    const Word there = shared_address(shared.there), done = shared_address(shared.done);
    const Word block = own_block();
    const int warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            prepare(there + 8 * stage, 1);
            prepare(done + 8 * stage, CLUSTER * WORKERS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    meet_cluster();
    let_next_kernel_start();
    wait_for_previous_kernel();

    const int down = (rows + CLUSTER * ROWS - 1) / (CLUSTER * ROWS), across = (outputs + OWN - 1) / OWN;
    const int steps = (inputs + DEPTH - 1) / DEPTH, clusters = gridDim.x / CLUSTER;
    Place place;
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            for (int index = blockIdx.x / CLUSTER; index < down * across; index += clusters) {
                const Tile tile(index, down, across, block);
                const int from = tile.outputs + static_cast<int>(block) * outputs;  // gates, or ups
                for (int step = 0; step < steps; step++, place.advance()) {
                    const Word stage = ring + place.stage * STAGE_BYTES, news = there + 8 * place.stage;
                    wait(done + 8 * place.stage, place.parity ^ 1);
                    expect(news, STAGE_BYTES);
                    fetch(stage, &x, step * DEPTH, tile.rows, news);
                    fetch_for_both(stage + X_BYTES + block * OWN * 128, &matrix, step * DEPTH, from, news);
                }
            }
        }
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const int worker = warpgroup - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
        float sums[SUMS];
#pragma unroll
        for (int i = 0; i < SUMS; i++) sums[i] = 0;  // for the compiler: the first product of a tile keeps nothing
        for (int index = blockIdx.x / CLUSTER; index < down * across; index += clusters) {
            const Tile tile(index, down, across, block);
            Word before = 0;
            for (int step = 0; step < steps; step++) {
                const Word stage = ring + place.stage * STAGE_BYTES;
                const unsigned long long a = described(stage + worker * 64 * 128), b = described(stage + X_BYTES);
                wait(there + 8 * place.stage, place.parity);
                products_begin();
#pragma unroll
                for (int i = 0; i < DEPTH / 16; i++) multiply(sums, a + 2 * i, b + 2 * i, step > 0 || i > 0);
                products_end();
                products_wait<1>();
                if (step > 0 && lane < CLUSTER) arrive_at(done + 8 * before, lane);
                before = place.stage;
                place.advance();
            }
            products_wait<0>();
            if (lane < CLUSTER) arrive_at(done + 8 * before, lane);
            write(sums, bias, out, tile.rows + worker * 64 + warp * 16 + lane / 4, tile.outputs, rows, outputs);
        }
    }
    meet_cluster();  // none leaves while the other may still arrive at its barriers
}

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

struct Shared {
    unsigned long long there[STAGES], done[STAGES];
};

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

DEVICE Word pair(float low, float high) { return to_element(low) | static_cast<Word>(to_element(high)) << 16; }

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
            gather_chunks(words);
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
    const Word ring = swizzled_rows(unaligned);
    const Word there = shared_address(shared.there), done = shared_address(shared.done);
    const Word block = own_block();
    const int warpgroup = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            prepare(there + 8 * stage, 1);
            prepare(done + 8 * stage, CLUSTER * WORKERS * 4);
        }
        show_barriers();
    }
    enter_cluster();
    meet_cluster();
    let_next_kernel_start();
    wait_for_previous_kernel();

    const int down = (rows + CLUSTER * ROWS - 1) / (CLUSTER * ROWS), across = (outputs + OWN - 1) / OWN;
    const int steps = (inputs + DEPTH - 1) / DEPTH, clusters = gridDim.x / CLUSTER;
    Place place;
    if (warpgroup == 0) {
        leave_registers<40>();
        if (threadIdx.x == 0) {
            for (int index = blockIdx.x / CLUSTER; index < down * across; index += clusters) {
                const Tile tile(index, down, across, block);
                const int from = tile.outputs + static_cast<int>(block) * outputs;  // gates, or ups
                for (int step = 0; step < steps; step++, place.advance(STAGES)) {
                    const Word stage = ring + place.stage * STAGE_BYTES, news = there + 8 * place.stage;
                    wait(done + 8 * place.stage, place.parity ^ 1);
                    expect(news, STAGE_BYTES);
                    fetch(stage, x, step * DEPTH, tile.rows, news);
                    fetch_for_both(stage + X_BYTES + block * OWN * 128, matrix, step * DEPTH, from, news);
                }
            }
        }
        __syncwarp();
    } else {
        take_registers<232>();
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
                place.advance(STAGES);
            }
            products_wait<0>();
            if (lane < CLUSTER) arrive_at(done + 8 * before, lane);
            write(sums, bias, out, tile.rows + worker * 64 + warp * 16 + lane / 4, tile.outputs, rows, outputs);
        }
    }
    enter_cluster();
    meet_cluster();  // none leaves while the other may still arrive at its barriers
}

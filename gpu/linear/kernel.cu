// A few rows through a matrix at the rate at which memory gives the matrix.
//
// A block sums a tile of 16 * TILES rows of the matrix at a time and walks over tiles. Its warps divide k: each copies
// its own pieces of the matrix to its own ring of STAGES in shared memory, 256 consecutive bytes of a row at once,
// STAGES ahead of the sums and across the ends of tiles. Nothing but the last sum of a tile is shared by warps. The
// matrix is the first operand of mma.m16n8k16; a lane takes 8 consecutive elements of a row as its share of two
// instructions, which permutes k, for both operands alike. Which piece goes to which warp, and the order of all sums,
// depend on neither the number nor the content of the rows.
//
// What a decode step has around its products is done here, so that it costs no kernels of its own:
//   NORMED   x is scaled to a root mean square of one, then by `norm`. Each block keeps x * norm in shared memory; the
//            finished sums are scaled, so nothing waits for the mean.
//   INTO     what becomes of a sum: 0 written to out, 1 added to out, 2 (the matrix is gates, then ups) silu(gate) * up.
//   WIDE_X, WIDE_OUT   x, or out, is float32.

#ifndef WARPS
#define WARPS 8
#endif
#ifndef TILES
#define TILES 1
#endif
#ifndef STAGES
#define STAGES 3
#endif
#ifndef BLOCKS
#define BLOCKS 2
#endif
#ifndef NORMED
#define NORMED 0
#endif
#ifndef INTO
#define INTO 0
#endif
#ifndef WIDE_X
#define WIDE_X 0
#endif
#ifndef HELD_X
#define HELD_X NORMED  // x is in shared memory, not read again for each tile
#endif

constexpr bool ADDING = INTO == 1, GATED = INTO == 2;
constexpr int TILE = 16 * TILES;                // rows of the matrix
constexpr int OWN = GATED ? TILE / 2 : TILE;    // outputs of a tile
constexpr int STEP = 32;                        // elements of k in a step: 4 lanes by 8
constexpr int STEPS = 4;                        // in a stage
constexpr int PIECE = STEP * STEPS;             // elements of k in a stage
constexpr int ROW_CHUNKS = PIECE / 8;           // of 16 bytes
constexpr int STAGE_BYTES = TILE * PIECE * 2;
constexpr int BATCH = WARPS * PIECE;            // elements of k that all warps take at once
constexpr int STRIDE = TILE + 4;                // floats from one row of sums to the next, over all banks
constexpr int THREADS = 32 * WARPS;

#if WIDE_X
typedef float Input;
#else
typedef Element Input;
#endif

DEVICE void widen(float (&wide)[8], const Eight& v) {
    const Word words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; i++) wide[i] = to_float(static_cast<Element>(words[i / 2] >> i % 2 * 16));
}

DEVICE Eight narrow(const float (&wide)[8]) {
    Word words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = to_element(wide[2 * i]) | static_cast<Word>(to_element(wide[2 * i + 1])) << 16;
    return Eight{words[0], words[1], words[2], words[3]};
}

DEVICE void store_shared(Word address, const Eight& v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// Eight neighbours of a row of x as they come from memory, and as numbers.
struct Raw {
#if WIDE_X
    Eight low, high;
    DEVICE void load(const Input* from) {
        low = load_shared_by_warps(from), high = load_shared_by_warps(from + 4);
    }
    DEVICE void widen_to(float (&wide)[8]) const {
        const Word words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < 8; i++) wide[i] = __uint_as_float(words[i]);
    }
#else
    Eight all;
    DEVICE void load(const Input* from) { all = load_shared_by_warps(from); }
    DEVICE void widen_to(float (&wide)[8]) const { widen(wide, all); }
#endif
};

// All warps that work; a launch may have idle ones besides.
DEVICE void meet() { asm volatile("bar.sync 0, %0;" :: "n"(THREADS) : "memory"); }

// Bytes from one row of x in shared memory to the next: neighbouring rows are half the banks apart.
DEVICE int held_stride(int inputs) { return (inputs * 2 + 127) / 128 * 128 + 64; }

// GROUPS of 8 rows of x, by `norm`, into shared memory; the scales of the rows into `scales`. A thread takes the same
// chunks of every row, so that the order of a row's sum does not depend on the rows.
template <int GROUPS>
DEVICE void hold_x(const Input* x, const Element* norm, float eps, int rows, int inputs, Word held, float* scales) {
    constexpr int AHEAD = WIDE_X ? 1 : 2, TOGETHER = 4;  // chunks of a row, rows that are on their way at once
    __shared__ float parts[8 * GROUPS][WARPS];
    const int chunks = inputs / 8, lane = threadIdx.x % 32, warp = threadIdx.x / 32, stride = held_stride(inputs);
    float squares[8 * GROUPS] = {};
    for (int first = threadIdx.x; first < chunks; first += AHEAD * THREADS) {
        Eight weights[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (NORMED && first + a * THREADS < chunks)
                weights[a] = load_shared_by_warps(norm + (first + a * THREADS) * 8);
#pragma unroll
        for (int group = 0; group < 8 * GROUPS; group += TOGETHER) {
            Raw raw[AHEAD][TOGETHER];
#pragma unroll
            for (int r = 0; r < TOGETHER; r++)
#pragma unroll
                for (int a = 0; a < AHEAD; a++)
                    if (group + r < rows && first + a * THREADS < chunks)
                        raw[a][r].load(x + (size_t)(group + r) * inputs + (first + a * THREADS) * 8);
#pragma unroll
            for (int r = 0; r < TOGETHER; r++)
#pragma unroll
                for (int a = 0; a < AHEAD; a++)
                    if (group + r < rows && first + a * THREADS < chunks) {
                        float wide[8], by[8];
                        raw[a][r].widen_to(wide);
                        if (NORMED) {
                            widen(by, weights[a]);
#pragma unroll
                            for (int i = 0; i < 8; i++) {
                                squares[group + r] += wide[i] * wide[i];
                                wide[i] *= by[i];
                            }
                        }
                        store_shared(held + (group + r) * stride + (first + a * THREADS) * 16, narrow(wide));
                    }
        }
    }
    if (NORMED) {
#pragma unroll
        for (int r = 0; r < 8 * GROUPS; r++)
            if (r < rows) {
                float part = squares[r];
#pragma unroll
                for (int apart = 16; apart; apart /= 2) part += __shfl_xor_sync(0xffffffffu, part, apart);
                if (lane == 0) parts[r][warp] = part;
            }
    }
    meet();
    if (NORMED && threadIdx.x < rows) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum += parts[threadIdx.x][i];
        scales[threadIdx.x] = rsqrtf(sum / static_cast<float>(inputs) + eps);
    }
}

// GROUPS of 8 rows of x. There are `outputs` of a row; the matrix has twice as many rows where it is GATED.
template <int GROUPS>
DEVICE void product(const Input* x, const Element* weight, const Element* bias, const Element* norm, Output* out,
                    float eps, int rows, int inputs, int outputs) {
    constexpr int BUFFERS = 2 * WARPS * 8 * GROUPS * STRIDE * 4 <= 24576 ? 2 : 1;
    constexpr int EACH = (8 * GROUPS * OWN + THREADS - 1) / THREADS;  // outputs of a tile, for a thread
    __shared__ float sums[BUFFERS][WARPS][8 * GROUPS * STRIDE];
    __shared__ float scales[8 * GROUPS];
    extern __shared__ __align__(128) Eight stages[];  // [WARPS][STAGES][TILE][ROW_CHUNKS], then x
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, part = lane % 4;
    const int tiles = (outputs + OWN - 1) / OWN, batches = (inputs + BATCH - 1) / BATCH;
    const Policy once = evict_first();
    let_next_kernel_start();
    if (threadIdx.x >= THREADS) return;  // it was there to take registers: see cupy_kernel._warps_alone

    // A copy takes two rows of the tile; a lane takes the same chunk of each second row.
    const Word ring = shared_address(stages) + warp * (STAGES * STAGE_BYTES);
    const int copied_row = lane / ROW_CHUNKS, copied_chunk = lane % ROW_CHUNKS;
    const Word target = ring + (copied_row * ROW_CHUNKS + (copied_chunk ^ copied_row % 2 * 4)) * 16;
    const int copied_k = warp * PIECE + copied_chunk * 8;
    const auto copy = [&](int tile, int batch, int stage) {
        const int k = batch * BATCH + copied_k, left = outputs - tile * OWN - copied_row;
        const bool inside = tile < tiles && k < inputs;
        const Element* from = weight + (size_t)(tile * OWN + copied_row) * inputs + k;
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            copy_once(target + stage * STAGE_BYTES + i * 512, from, inside && 2 * i % OWN < left, once);
            from += 2 * inputs;
            if (2 * (i + 1) == OWN) from += (size_t)(outputs - OWN) * inputs;  // from the gates to the ups
        }
        end_group_of_copies();
    };
    Eight v[STEPS][GROUPS];
    const int lane_k = warp * PIECE + part * 8;
#if HELD_X
    const int stride = held_stride(inputs);
    const Word held = shared_address(stages) + WARPS * STAGES * STAGE_BYTES;
    const Word held_lane = held + row * stride + lane_k * 2;
#else
    const Input* const x_lane = x + row * inputs + lane_k;
#endif
    const auto load_x = [&](int batch, int step) {
        const int k = batch * BATCH + step * STEP;
#pragma unroll
        for (int n = 0; n < GROUPS; n++) {
            v[step][n] = eight_zeros();
            if (lane_k + k < inputs && n * 8 + row < rows) {
#if HELD_X
                v[step][n] = load_shared(held_lane + n * 8 * stride + k * 2);
#else
                v[step][n] = load_shared_by_warps(x_lane + n * 8 * inputs + k);
#endif
            }
        }
    };

    int tile = blockIdx.x, batch = 0, buffer = 0, stage = 0;
    const int walk = gridDim.x;
    int copied_tile = tile, copied_batch = 0;
    const auto copy_next = [&](int stage) {
        copy(copied_tile, copied_batch, stage);
        if (++copied_batch == batches) copied_batch = 0, copied_tile += walk;
    };
    // What the end of a tile needs besides its sums is read when the tile begins.
    Output before[EACH];
    Element biases[EACH], up_biases[EACH];
    const auto expect_end = [&]() {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int e = threadIdx.x + i * THREADS, output = tile * OWN + e % OWN;
            if (e < rows * OWN && output < outputs) {
                if (ADDING) before[i] = out[(size_t)(e / OWN) * outputs + output];
                if (bias) biases[i] = bias[output];
                if (GATED && bias) up_biases[i] = bias[outputs + output];
            }
        }
    };
    for (int s = 0; s < STAGES; s++) copy_next(s);
    if (NORMED)
        for (int i = threadIdx.x; i < inputs / 8; i += THREADS)
            asm volatile("prefetch.global.L2 [%0];" :: "l"(norm + i * 8));
    wait_for_previous_kernel();
#if HELD_X
    hold_x<GROUPS>(x, norm, eps, rows, inputs, held, scales);
#endif
#pragma unroll
    for (int s = 0; s < STEPS; s++) load_x(0, s);
    expect_end();

    // A row's two halves of 4 chunks change places in each second row, so that 8 lanes read from 32 banks.
    const Word source = ring + row * 256 + (part ^ row % 2 * 4) * 16;
    float sum[TILES][GROUPS][4] = {};
    while (tile < tiles) {
        const bool last = batch + 1 == batches;
        const int next_batch = last ? 0 : batch + 1;
        wait_for_copies<STAGES - 1>();
        __syncwarp();
        const Word from = source + stage * STAGE_BYTES;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                const Word at = (from ^ s % 2 * 64) + s / 2 * 128 + i * 4096;
                const Eight a = load_shared(at), b = load_shared(at + 2048);
#pragma unroll
                for (int n = 0; n < GROUPS; n++) {
                    const Eight& c = v[s][n];
                    multiply_add(sum[i][n], a.x, b.x, a.y, b.y, c.x, c.y);
                    multiply_add(sum[i][n], a.z, b.z, a.w, b.w, c.z, c.w);
                }
            }
            load_x(next_batch, s);
        }
        __syncwarp();
        copy_next(stage);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        batch = next_batch;
        if (last) {
            float* mine = sums[buffer % BUFFERS][warp];
#pragma unroll
            for (int i = 0; i < TILES; i++)
#pragma unroll
                for (int n = 0; n < GROUPS; n++) {
                    float* at = mine + (n * 8 + 2 * part) * STRIDE + i * 16 + row;
                    if (n * 8 + 2 * part < rows) {
                        at[0] = sum[i][n][0], at[STRIDE] = sum[i][n][1];
                        at[8] = sum[i][n][2], at[STRIDE + 8] = sum[i][n][3];
                    }
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[i][n][j] = 0;
                }
            meet();
            const auto total = [&](int r, int o) {
                float all = 0;
#pragma unroll
                for (int i = 0; i < WARPS; i++) all += sums[buffer % BUFFERS][i][r * STRIDE + o];
                return NORMED ? all * scales[r] : all;
            };
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                const int e = threadIdx.x + i * THREADS, r = e / OWN, o = e % OWN, output = tile * OWN + o;
                if (e < rows * OWN && output < outputs) {
                    float result = total(r, o);
                    if (bias) result += to_float(biases[i]);
                    if (GATED) {
                        float up = total(r, o + OWN);
                        if (bias) up += to_float(up_biases[i]);
                        result = silu(result) * up;
                    }
                    if (ADDING) result += widened(before[i]);
                    out[(size_t)r * outputs + output] = narrowed(result);
                }
            }
            if (BUFFERS == 1) meet();
            buffer ^= 1;
            tile += walk;
            expect_end();
        }
    }
}

#define ARGUMENTS const Input *x, const Element *weight, const Element *bias, const Element *norm, Output *out, \
                  float eps, int rows, int inputs, int outputs

// A launch may have more threads than work. 96 registers leave room for the block of decode_attention ahead, or next.
extern "C" __global__ void __maxnreg__(96) linear_8(ARGUMENTS) {
    product<1>(x, weight, bias, norm, out, eps, rows, inputs, outputs);
}

extern "C" __global__ void __maxnreg__(BLOCKS == 1 ? 144 : 128) linear_16(ARGUMENTS) {
    product<2>(x, weight, bias, norm, out, eps, rows, inputs, outputs);
}

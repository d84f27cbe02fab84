// A few rows through a matrix at the rate at which memory gives the matrix.
//
// A block sums a tile of 16 * TILES outputs at a time and walks over tiles. Its
// warps divide k: each copies its own pieces of the matrix to its own ring of STAGES in shared memory, 256
// consecutive bytes of a row at once, STAGES ahead of the sums and across the ends of tiles. Nothing but the last
// sum of a tile is shared by warps. The matrix is the first operand of mma.m16n8k16; a lane takes 8 consecutive
// elements of a row as its share of two instructions, which permutes k, for both operands alike. Which piece goes
// to which warp, and the order of all sums, depend on neither the number nor the content of the rows.

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

constexpr int TILE = 16 * TILES;                // outputs
constexpr int STEP = 32;                        // elements of k in a step: 4 lanes by 8
constexpr int STEPS = 4;                        // in a stage
constexpr int PIECE = STEP * STEPS;             // elements of k in a stage
constexpr int ROW_CHUNKS = PIECE / 8;           // of 16 bytes
constexpr int STAGE_BYTES = TILE * PIECE * 2;
constexpr int BATCH = WARPS * PIECE;  // elements of k that all warps take at once
constexpr int STRIDE = TILE + 4;                // floats from one row of sums to the next, over all banks
constexpr int THREADS = 32 * WARPS;

// GROUPS of 8 rows of x.
template <int GROUPS>
DEVICE void product(const Element* x, const Element* weight, const Element* bias, Element* out, int rows,
                    int inputs, int outputs) {
    constexpr int BUFFERS = 2 * WARPS * 8 * GROUPS * STRIDE * 4 <= 24576 ? 2 : 1;
    __shared__ float sums[BUFFERS][WARPS][8 * GROUPS * STRIDE];
    extern __shared__ __align__(128) Eight stages[];  // [WARPS][STAGES][TILE][ROW_CHUNKS]
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, part = lane % 4;
    const int tiles = (outputs + TILE - 1) / TILE, batches = (inputs + BATCH - 1) / BATCH;
    const Policy once = evict_first();
    let_next_kernel_start();

    // A copy takes two rows of the tile; a lane takes the same chunk of each second row.
    const Word ring = shared_address(stages) + warp * (STAGES * STAGE_BYTES);
    const int copied_row = lane / ROW_CHUNKS, copied_chunk = lane % ROW_CHUNKS;
    const Word target = ring + (copied_row * ROW_CHUNKS + (copied_chunk ^ copied_row % 2 * 4)) * 16;
    const int copied_k = warp * PIECE + copied_chunk * 8;
    const auto copy = [&](int tile, int batch, int stage) {
        const int k = batch * BATCH + copied_k, left = outputs - tile * TILE - copied_row;
        const bool inside = tile < tiles && k < inputs;
        const Element* from = weight + (size_t)(tile * TILE + copied_row) * inputs + k;
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            copy_once(target + stage * STAGE_BYTES + i * 512, from, inside && 2 * i < left, once);
            from += 2 * inputs;
        }
        end_group_of_copies();
    };
    Eight v[STEPS][GROUPS];
    const Element* const x_lane = x + row * inputs + warp * PIECE + part * 8;
    const auto load_x = [&](int batch, int step) {
        const int k = batch * BATCH + step * STEP;
#pragma unroll
        for (int n = 0; n < GROUPS; n++) {
            v[step][n] = eight_zeros();
            if (warp * PIECE + part * 8 + k < inputs && n * 8 + row < rows)
                v[step][n] = load_shared_by_warps(x_lane + n * 8 * inputs + k);
        }
    };

    int tile = blockIdx.x, batch = 0, buffer = 0, stage = 0;
    const int walk = gridDim.x;
    int copied_tile = tile, copied_batch = 0;
    const auto copy_next = [&](int stage) {
        copy(copied_tile, copied_batch, stage);
        if (++copied_batch == batches) copied_batch = 0, copied_tile += walk;
    };
    for (int s = 0; s < STAGES; s++) copy_next(s);
    wait_for_previous_kernel();
#pragma unroll
    for (int s = 0; s < STEPS; s++) load_x(0, s);

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
            __syncthreads();
            for (int e = threadIdx.x; e < rows * TILE; e += THREADS) {
                const int r = e / TILE, o = e % TILE;
                float total = 0;
#pragma unroll
                for (int i = 0; i < WARPS; i++) total += sums[buffer % BUFFERS][i][r * STRIDE + o];
                const int output = tile * TILE + o;
                if (output < outputs) {
                    if (bias) total += to_float(bias[output]);
                    out[(size_t)r * outputs + output] = to_element(total);
                }
            }
            if (BUFFERS == 1) __syncthreads();
            buffer ^= 1;
            tile += walk;
        }
    }
}

#define ARGUMENTS const Element *x, const Element *weight, const Element *bias, Element *out, int rows, int inputs, \
                  int outputs

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_8(ARGUMENTS) {
    product<1>(x, weight, bias, out, rows, inputs, outputs);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) linear_16(ARGUMENTS) {
    product<2>(x, weight, bias, out, rows, inputs, outputs);
}

// Rotation, the cache's newest entry and attention of rows with one token each, in one kernel.
//
// An item is a row, a kv head and a part of the row's context: as many parts as share all contexts out over the blocks,
// but none of less than 16 tiles of 16 tokens, at most MOST_SPLITS. A block takes one item after the other; its warps take the part's tiles in turn, each through a ring of
// its own in shared memory, filled by cp.async, for all heads of the group at once, as paged_attention does (see there
// for how tiles lie in shared memory, and why). The warps' sums meet in shared memory. Where a row has several parts,
// each leaves its own, and the last to arrive joins them; it leaves the ticket as it found it.
//
// The newest key and value come from the product before this kernel, which puts them into its tile in shared memory and
// into the pool. All else that is read may be there much sooner: where it is `settled`, the first tiles are on their
// way before the kernel ahead ends.
//
// Constants: HEAD_DIM (64, 128), PAIRS (that turn), NORMED, HALF.

typedef unsigned char Byte;
typedef long long Wide;

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int TILE = 16;                         // tokens
constexpr int RING = 2;                          // tiles of keys and values on their way to a warp
constexpr int SPLIT_TILES = WARPS * RING;        // worth a part of their own
constexpr int MOST_SPLITS = 16, MOST_GROUP = 16;
constexpr int ROW_BYTES = HEAD_DIM * 2;          // a token's keys, or values, of a head
constexpr int HALF_BYTES = TILE * ROW_BYTES;     // of a tile: its keys, or its values
constexpr int PIECES = ROW_BYTES / 16;
constexpr int COLUMNS = HEAD_DIM / 8;            // tiles of 8 columns of the output
constexpr int EACH = HEAD_DIM / 32;              // elements of a head, for a lane that turns it
constexpr int SPAN = PAIRS / EACH;               // lanes that hold first elements of pairs
constexpr int JOINED = HEAD_DIM + 4;             // floats from one head's sums to the next, over all banks
constexpr float LEAST = -1e30f;                  // below any score, and finite

struct alignas(EACH * 2) Share { Element of[EACH]; };

DEVICE void copy16(Word to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
}

// Where piece `chunk` of 16 bytes of a token lies in its row.
DEVICE int key_place(int token, int chunk) { return chunk ^ (token & 1) << 2; }
DEVICE int value_place(int token, int chunk) { return chunk ^ (token >> 1 & 3) << 1; }

// What another block of this kernel has written: from the L2.
DEVICE float written(const float* address) {
    float value;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(address) : "memory");
    return value;
}

DEVICE float rounded(float wide) { return to_float(to_element(wide)); }

// That a row needs, from `begin` on.
DEVICE int tiles_of(int context, int window, int& begin) {
    begin = window ? max(0, context - window) / TILE : 0;
    return (context + TILE - 1) / TILE - begin;
}

// Rounded down: parts that are more than the blocks would make some blocks take two.
DEVICE int splits_of(int tiles, int share) { return tiles ? min(MOST_SPLITS, max(1, tiles / share)) : 0; }

// The share of a lane of one head: normalised, then turned. All of the warp takes part.
DEVICE Share turned(const Share& share, const Element* norm, const float* cos, const float* sin, float eps, int lane) {
    float x[EACH], cosines[EACH], sines[EACH];
    Share by_norm = {};
    if (NORMED) by_norm = reinterpret_cast<const Share*>(norm)[lane];
#pragma unroll
    for (int i = 0; i < EACH; i++) cosines[i] = cos[lane % SPAN * EACH + i], sines[i] = sin[lane % SPAN * EACH + i];
#pragma unroll
    for (int i = 0; i < EACH; i++) x[i] = to_float(share.of[i]);
    if (NORMED) {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) squares += x[i] * x[i];
#pragma unroll
        for (int apart = 16; apart; apart /= 2) squares += __shfl_xor_sync(~0u, squares, apart);
        const float by = rsqrtf(squares / HEAD_DIM + eps);
#pragma unroll
        for (int i = 0; i < EACH; i++) x[i] = rounded(rounded(x[i] * by) * to_float(by_norm.of[i]));
    }
    const int partner = lane < SPAN ? lane + SPAN : lane < 2 * SPAN ? lane - SPAN : lane;
    Share result;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const float other = __shfl_sync(~0u, x[i], partner);
        if (lane < SPAN) x[i] = x[i] * cosines[i] - other * sines[i];
        else if (lane < 2 * SPAN) x[i] = x[i] * cosines[i] + other * sines[i];
        result.of[i] = to_element(x[i]);
    }
    return result;
}

#if __CUDA_ARCH__ >= 900 && 2 * PAIRS == HEAD_DIM  // where some do not turn, so few registers spill
#define REGISTERS __maxnreg__(160)  // leave room for a block of linear_8 with 96, the one ahead or the next
#else
#define REGISTERS __launch_bounds__(THREADS, 1)
#endif

extern "C" __global__ void REGISTERS decode_attention(
    const Element* query, const Element* key, const Element* value, const float* cos, const float* sin,
    const Element* query_norm, const Element* key_norm, Element* key_pool, Element* value_pool,
    const int* block_tables, const int* contexts, Element* out, float* part_sums, float* part_weights,
    int* tickets, float eps, float scale, int rows, int heads, int kv_heads, int query_stride, int key_stride,
    int value_stride, int block_stride, int token_stride, int head_stride, int table_stride, int block_tiles,
    int window, int settled) {
    extern __shared__ __align__(128) Byte rings[];  // [WARPS][RING][keys, values][TILE][HEAD_DIM], then sums
    __shared__ __align__(16) Element queries[MOST_GROUP][HEAD_DIM + 8];
    __shared__ __align__(16) Element newest[2][HEAD_DIM];  // key and value
    __shared__ float2 weights[WARPS][MOST_GROUP];
    __shared__ int arrived;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, j = lane % 4;
    const int group = heads / kv_heads;
    let_next_kernel_start();
    if (!settled) wait_for_previous_kernel();
    bool waited = !settled;

    // Each warp finds out by itself which items there are: a lane a row.
    const int own_context = lane < rows ? contexts[lane] : 0;
    int own_begin;
    const int own_tiles = tiles_of(own_context, window, own_begin);
    int all_tiles = own_tiles;
#pragma unroll
    for (int apart = 16; apart; apart /= 2) all_tiles += __shfl_xor_sync(~0u, all_tiles, apart);
    const int blocks_in_all = gridDim.x;
    const int share = max(SPLIT_TILES, (all_tiles * kv_heads + blocks_in_all - 1) / blocks_in_all);
    int upto = splits_of(own_tiles, share) * kv_heads;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int before = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += before;
    }
    const auto items = [&]() { return __shfl_sync(~0u, upto, 31); };  // asked anew, not held in a register
    // The end of this kernel must tell that the one before has ended: its first block always waits.
    if (blockIdx.x >= items() && blockIdx.x) return;

    Byte* const mine = rings + warp * (RING * 2 * HALF_BYTES);
    const Word ring = shared_address(mine);
    for (int item = blockIdx.x; item < items(); item += gridDim.x) {
        const int row = __popc(__ballot_sync(~0u, upto <= item));
        const int context = __shfl_sync(~0u, own_context, row);
        int first;
        const int tiles = tiles_of(context, window, first);
        const int before = row ? __shfl_sync(~0u, upto, row - 1) : 0, within = item - before;
        const int splits = (__shfl_sync(~0u, upto, row) - before) / kv_heads;
        const int kv_head = within % kv_heads, split = within / kv_heads;
        const int begin = first + tiles * split / splits, end = first + tiles * (split + 1) / splits;
        const int* const table = block_tables + (Wide)row * table_stride;

        const int lane_offset = kv_head * head_stride + lane / PIECES * token_stride + lane % PIECES * 8;
        const auto look_up = [&](int tile) { return tile < end ? table[tile / block_tiles] : 0; };
        const auto copy = [&](int tile, int block, int slot) {
            if (tile < end) {
                const Wide at = (Wide)block * block_stride + tile % block_tiles * TILE * token_stride + lane_offset;
                const Element *keys = key_pool + at, *values = value_pool + at;
                const Word to = ring + slot * (2 * HALF_BYTES);
#pragma unroll
                for (int c = 0; c < HEAD_DIM / 16; c++) {
                    const int place = c * 32 + lane, token = place / PIECES, chunk = place % PIECES;
                    copy16(to + token * ROW_BYTES + key_place(token, chunk) * 16, keys);
                    copy16(to + HALF_BYTES + token * ROW_BYTES + value_place(token, chunk) * 16, values);
                    keys += 32 / PIECES * token_stride, values += 32 / PIECES * token_stride;
                }
            }
            end_group_of_copies();
        };
        int blocks[RING];
#pragma unroll
        for (int i = 0; i < RING; i++) blocks[i] = look_up(begin + warp + i * WARPS);
        const bool has_newest = split + 1 == splits;
        const int newest_block = has_newest ? table[(context - 1) / TILE / block_tiles] : 0;
#pragma unroll
        for (int i = 0; i < RING; i++) copy(begin + warp + i * WARPS, blocks[i], i);
        if (!waited) wait_for_previous_kernel();
        waited = true;

        for (int head = warp; head < group + (has_newest ? 2 : 0); head += WARPS) {
            const Element* from = query + (Wide)row * query_stride + (kv_head * group + head) * HEAD_DIM;
            if (head == group) from = key + (Wide)row * key_stride + kv_head * HEAD_DIM;
            if (head > group) from = value + (Wide)row * value_stride + kv_head * HEAD_DIM;
            Share share = reinterpret_cast<const Share*>(from)[lane];
            if (head <= group) {
                const Element* const norm = head < group ? query_norm : key_norm;
                share = turned(share, norm, cos + row * PAIRS, sin + row * PAIRS, eps, lane);
            }
            if (head < group) {
                reinterpret_cast<Share*>(queries[head])[lane] = share;
            } else {
                reinterpret_cast<Share*>(newest[head - group])[lane] = share;
                const Wide at = (Wide)newest_block * block_stride + (context - 1) % (TILE * block_tiles) * token_stride +
                                kv_head * head_stride;
                reinterpret_cast<Share*>((head == group ? key_pool : value_pool) + at)[lane] = share;
            }
        }
        __syncthreads();

        Word q[HEAD_DIM / 32][8];  // a lane's 8 dimensions of each 32, of heads g and g + 8
#pragma unroll
        for (int side = 0; side < 2; side++) {
            const int head = side * 8 + g;
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 32; d++) {
                Eight x = eight_zeros();
                if (head < group) x = *reinterpret_cast<const Eight*>(&queries[head][d * 32 + j * 8]);
                q[d][side] = x.x, q[d][2 + side] = x.y, q[d][4 + side] = x.z, q[d][6 + side] = x.w;
            }
        }
        float sums[COLUMNS][4] = {}, most[2] = {LEAST, LEAST}, weight[2] = {};
        int slot = 0;
        for (int tile = begin + warp; tile < end; tile += WARPS) {
            const int next = tile + RING * WARPS, next_block = look_up(next);
            wait_for_copies<RING - 1>();
            __syncwarp();
            Byte* const keys = mine + slot * (2 * HALF_BYTES);
            Byte* const values = keys + HALF_BYTES;
            const int real = context - tile * TILE;  // tokens of the tile, if fewer than all
            if (real <= TILE && lane < 2 * PIECES) {  // what the pool had there is older
                const int chunk = lane % PIECES, token = real - 1;
                const Eight x = *reinterpret_cast<const Eight*>(&newest[lane / PIECES][chunk * 8]);
                const int place = lane < PIECES ? key_place(token, chunk) : value_place(token, chunk);
                *reinterpret_cast<Eight*>((lane < PIECES ? keys : values) + token * ROW_BYTES + place * 16) = x;
            }
            __syncwarp();
            float scores[2][4] = {};
#pragma unroll
            for (int c = 0; c < HEAD_DIM / 16; c++) {
                const int place = key_place(g, c / 2 * 4 + j);  // of keys g, then g + 8
                const Eight k = *reinterpret_cast<const Eight*>(keys + (c % 2 * 8 + g) * ROW_BYTES + place * 16);
                const Word* a = q[c / 2];
                multiply_add(scores[c % 2], a[0], a[1], a[2], a[3], k.x, k.y);
                multiply_add(scores[c % 2], a[4], a[5], a[6], a[7], k.z, k.w);
            }
            const int least = window ? context - window - tile * TILE : 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int token = i / 4 * 8 + 2 * j + i % 2;
                float& score = scores[i / 4][i % 4];
                score = token < real && token >= least ? score * scale : __int_as_float(0xff800000);
            }
            float p[8];
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float larger = fmaxf(fmaxf(scores[0][2 * side], scores[0][2 * side + 1]),
                                     fmaxf(scores[1][2 * side], scores[1][2 * side + 1]));
                larger = fmaxf(larger, __shfl_xor_sync(~0u, larger, 1));
                larger = fmaxf(larger, __shfl_xor_sync(~0u, larger, 2));
                larger = fmaxf(larger, most[side]);
                const float less = power_of_two(most[side] - larger);
                most[side] = larger;
                weight[side] *= less;
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) sums[c][2 * side] *= less, sums[c][2 * side + 1] *= less;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float x = power_of_two(scores[i / 2][2 * side + i % 2] - larger);
                    weight[side] += x;
                    p[i / 2 * 4 + side * 2 + i % 2] = x;
                }
            }
            const Word a0 = to_elements(p[0], p[1]), a1 = to_elements(p[2], p[3]), a2 = to_elements(p[4], p[5]), a3 = to_elements(p[6], p[7]);
            const Byte* from = values + 2 * j * ROW_BYTES;
#pragma unroll
            for (int wide = 0; wide < HEAD_DIM / 64; wide++) {
                Eight v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int token = i / 2 * 8 + i % 2;
                    v[i] = *reinterpret_cast<const Eight*>(from + token * ROW_BYTES + value_place(2 * j, wide * 8 + g) * 16);
                    if (token + 2 * j >= real) v[i] = eight_zeros();  // beyond the context: may be NaN
                }
                const Word *v0 = &v[0].x, *v1 = &v[1].x, *v2 = &v[2].x, *v3 = &v[3].x;
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    const Word pick = e % 2 ? 0x7632 : 0x5410;
                    multiply_add(sums[wide * 8 + e], a0, a1, a2, a3, __byte_perm(v0[e / 2], v1[e / 2], pick),
                                 __byte_perm(v2[e / 2], v3[e / 2], pick));
                }
            }
            __syncwarp();
            copy(next, next_block, slot);
            slot ^= 1;
        }

        // The warps' sums, each over its own ring.
        wait_for_copies<0>();
        __syncwarp();
        float* const joined = reinterpret_cast<float*>(mine);
#pragma unroll
        for (int side = 0; side < 2; side++) {
            float total = weight[side];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const int head = side * 8 + g;
            if (head < group) {
#pragma unroll
                for (int c = 0; c < COLUMNS; c += 4)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        *reinterpret_cast<float4*>(joined + head * JOINED + c / 8 * 64 + j * 16 + i * 8 + c % 8) =
                            make_float4(sums[c][2 * side + i], sums[c + 1][2 * side + i], sums[c + 2][2 * side + i],
                                        sums[c + 3][2 * side + i]);
                if (j == 0) weights[warp][head] = make_float2(most[side], total);
            }
        }
        __syncthreads();
        const Wide place = (Wide)row * kv_heads + kv_head;
        Element* const to = out + ((Wide)row * heads + kv_head * group) * HEAD_DIM;
        for (int e = threadIdx.x; e < group * HEAD_DIM; e += THREADS) {
            const int head = e / HEAD_DIM, column = e % HEAD_DIM;
            float larger = LEAST, total = 0, sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) larger = fmaxf(larger, weights[w][head].x);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float by = power_of_two(weights[w][head].x - larger);
                total += by * weights[w][head].y;
                sum += by * reinterpret_cast<const float*>(rings + w * (RING * 2 * HALF_BYTES))[head * JOINED + column];
            }
            if (splits == 1) {
                to[e] = to_element(sum / total);
            } else {
                const Wide part = place * MOST_SPLITS + split;
                part_sums[part * group * HEAD_DIM + e] = sum;
                if (column == 0) {
                    part_weights[(part * group + head) * 2] = larger;
                    part_weights[(part * group + head) * 2 + 1] = total;
                }
            }
        }
        if (splits > 1) {
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) {
                arrived = atomicAdd(tickets + place, 1) + 1;
                if (arrived == splits) tickets[place] = 0;
            }
            __syncthreads();
            if (arrived == splits) {
                __threadfence();
                for (int e = threadIdx.x; e < group * HEAD_DIM; e += THREADS) {
                    const int head = e / HEAD_DIM;
                    const float* its = part_weights + (place * MOST_SPLITS * group + head) * 2;
                    float larger = LEAST, total = 0, sum = 0;
#pragma unroll 4
                    for (int s = 0; s < splits; s++) larger = fmaxf(larger, written(its + s * group * 2));
#pragma unroll 4
                    for (int s = 0; s < splits; s++) {
                        const float by = power_of_two(written(its + s * group * 2) - larger);
                        total += by * written(its + s * group * 2 + 1);
                        sum += by * written(part_sums + (place * MOST_SPLITS + s) * group * HEAD_DIM + e);
                    }
                    to[e] = to_element(sum / total);
                }
            }
        }
        __syncthreads();  // shared memory is the next item's
    }
    if (!waited) wait_for_previous_kernel();
}

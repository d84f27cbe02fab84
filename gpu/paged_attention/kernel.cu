// Attention of few query tokens a row over paged keys and values: flash-decoding on the tensor cores.
//
// The contexts of all rows, cut into tiles of 16 tokens, lie end to end on one line, which is shared out
// evenly among `streams`. A team of TILES warps reads one stream for one kv head: each tile once, for all heads
// of the group and all query tokens of the row at once (16 of these to a warp). Where a row lies in several
// streams, each leaves a part (its sums, its largest score, its sum of weights), and a second kernel joins them.
//
// Tiles flow through a ring in shared memory, a team's own, filled by cp.async, a token's whole row after the
// other (in pieces of 64 bytes, memory gave a third less). Head dimensions and output columns are permuted so that
// 16 contiguous bytes of a token are what a lane's mma fragments want: nothing is transposed. These pieces are
// swizzled, so that eight lanes never meet in a bank. A team of one warp needs no barrier.
//
// Constants: HEAD_DIM (64, 96, 128, 256), HALF (1 for float16), TILES (1, 2, 4, 8), WARPS, RING
// (half tiles in flight, at least 3), MOST_ROWS, BLOCKS (that share an SM).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

constexpr int TILE = 16;                   // tokens
constexpr int HALF_BYTES = TILE * HEAD_DIM * 2;  // the keys, or the values, of a tile
constexpr int TEAMS = WARPS / TILES;       // of a block
constexpr int THREADS = WARPS * 32;
constexpr int ROW_BYTES = HEAD_DIM * 2;    // a token's keys, or values, of a head
constexpr int KEY_CHUNKS = HEAD_DIM / 16;  // pieces a lane, of the keys of a tile
constexpr int WIDE = HEAD_DIM / 64;        // column groups of 64 whose values come in pieces of 16 bytes
constexpr int NARROW = HEAD_DIM % 64 / 32; // and of 32, in pieces of 8 bytes
constexpr int COLUMNS = HEAD_DIM / 8;     // tiles of 8 columns of the output
constexpr float LEAST = -1e30f;            // below any score, and finite

struct Line {  // how the tiles of all rows are shared out
    int streams, each, longer;
    __device__ Line(int tiles, int most_streams, int least_tiles) {
        streams = max(1, min(most_streams, tiles / least_tiles));
        each = tiles / streams;
        longer = tiles % streams;
    }
    __device__ int begin(int stream) const { return stream * each + min(stream, longer); }
    __device__ int of(int tile) const {
        int head = longer * (each + 1);
        return tile < head ? tile / (each + 1) : longer + (tile - head) / each;
    }
};

struct Span {  // the tiles that a row needs
    int context, tokens, begin, end;
    __device__ Span(const int* row_starts, const int* contexts, int row, int window) {
        context = contexts[row];
        tokens = row_starts[row + 1] - row_starts[row];
        begin = window ? max(0, context - tokens - window + 1) / TILE : 0;
        end = tokens > 0 ? (context + TILE - 1) / TILE : begin;
    }
};

__device__ __forceinline__ void copy16(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Where piece `chunk` of 16 bytes of a token lies in its row: the lanes that read together (two keys by 64 bytes;
// values of tokens 2j by 32 bytes) get banks of their own. Rows of 192 bytes keep keys apart by themselves.
__device__ __forceinline__ int key_place(int token, int chunk) {
    return HEAD_DIM == 96 ? chunk : chunk ^ (token & 1) << 2;
}

__device__ __forceinline__ int value_place(int token, int chunk) {
    return chunk >= WIDE * 8 ? chunk : chunk ^ (token >> 1 & 3) << 1;
}

__device__ __forceinline__ void team_wait(int team) {
    if (TILES == 1) __syncwarp();
    else asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(TILES * 32) : "memory");
}

__device__ __forceinline__ u16 narrow(float x) { return (u16)to_elements(x, 0.f); }

// Where each row begins on the line of tiles, into `first` [rows + 1]; by all threads of the block.
__device__ void lay_out(int* first, const int* row_starts, const int* contexts, int rows, int window) {
    __shared__ int sums[WARPS];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int each = (rows + THREADS - 1) / THREADS, row = threadIdx.x * each, mine = 0;
    for (int r = row; r < min(row + each, rows); r++) {
        Span span(row_starts, contexts, r, window);
        mine += span.end - span.begin;
    }
    int upto = mine;
    for (int step = 1; step < 32; step *= 2) {
        int before = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += before;
    }
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    for (int w = 0; w < warp; w++) upto += sums[w];
    int at = upto - mine;
    for (int r = row; r < min(row + each, rows); r++) {
        first[r] = at;
        if (each > 1) {
            Span span(row_starts, contexts, r, window);
            at += span.end - span.begin;
        }
    }
    if (threadIdx.x == THREADS - 1) first[rows] = upto;
    __syncthreads();
}

// Nothing here is __restrict__: what is read may be written while this kernel waits, so no load may move ahead of that.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) paged_attention_read(
    const u16* query, const u16* key_pool, const u16* value_pool,
    const int* block_tables, const int* row_starts, const int* contexts,
    u16* out, float* part_sums, float2* part_weights,
    int* line, int query_stride, int block_stride, int token_stride, int head_stride, int table_stride, int block_tiles,
    int rows, int heads, int kv_heads, int most_streams, int least_tiles, int window, float scale) {
    extern __shared__ __align__(16) u8 rings[];
    __shared__ int first[MOST_ROWS + 1];
    let_next_kernel_start();
    wait_for_previous_kernel();  // all threads do: the end of a kernel must tell that those before it have ended
    lay_out(first, row_starts, contexts, rows, window);
    if (blockIdx.x == 0)
        for (int r = threadIdx.x; r <= rows; r += THREADS) line[r] = first[r];

    const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
    const int warp = threadIdx.x / 32, team = warp / TILES, tile_of_queries = warp % TILES;
    const int reader = blockIdx.x * TEAMS + team, kv_head = reader % kv_heads, stream = reader / kv_heads;
    const Line shares(first[rows], most_streams, least_tiles);
    if (stream >= shares.streams) return;  // a whole team
    const int stream_begin = shares.begin(stream);
    int left = shares.begin(stream + 1) - stream_begin;  // tiles to consume
    if (left == 0) return;

    int row = 0;
    for (int over = rows; over - row > 1;) {  // the row of the stream's first tile: the last that begins at or before it
        int middle = (row + over) / 2;
        if (first[middle] <= stream_begin) row = middle; else over = middle;
    }
    const int group = heads / kv_heads;

    // Filling the ring: `next` is the tile whose block was looked up, `seek` the one after it.
    int seek_row = row, seek_left = left;
    Span seek(row_starts, contexts, row, window);
    int seek_tile = seek.begin + stream_begin - first[row];
    int next_block, next_inside;
    auto look_up = [&]() {
        if (seek_left == 0) { next_block = -1; return; }
        next_block = block_tables[(i64)seek_row * table_stride + seek_tile / block_tiles];
        next_inside = seek_tile % block_tiles * TILE;
        seek_tile++;
        seek_left--;
        while (seek_tile == seek.end && seek_left) {
            seek = Span(row_starts, contexts, ++seek_row, window);
            seek_tile = seek.begin;
        }
    };
    const u32 ring = shared_address(rings) + team * RING * HALF_BYTES;
    auto copy = [&](const u16* pool, int slot, bool keys) {
        if (next_block >= 0) {
            const u16* from = pool + ((i64)next_block * block_stride + next_inside * token_stride + kv_head * head_stride);
            const u32 to = ring + slot * HALF_BYTES;
            constexpr int PIECES = ROW_BYTES / 16;
#pragma unroll
            for (int c = 0; c < HEAD_DIM / 16; c++)
                if (TILES == 1 || c % TILES == tile_of_queries) {
                    const int at = c * 32 + lane, token = at / PIECES, chunk = at % PIECES;
                    const int place = keys ? key_place(token, chunk) : value_place(token, chunk);
                    copy16(to + token * ROW_BYTES + place * 16, from + token * token_stride + chunk * 8);
                }
        }
        end_group_of_copies();
    };
    auto copy_keys = [&](int slot) { copy(key_pool, slot, true); };
    auto copy_values = [&](int slot) {
        copy(value_pool, slot, false);
        look_up();
    };
    look_up();
#pragma unroll 1
    for (int half = 0; half < RING - 1; half++)
        if (half % 2 == 0) copy_keys(half); else copy_values(half);

    u32 q[HEAD_DIM / 32][8];     // a lane's 8 dimensions of each 32, of query rows g and g + 8
    float sums[COLUMNS][4];
    float most[2], weight[2];    // of query rows g and g + 8: the largest score so far, this lane's sum of weights
    int seen_from[2], seen_to[2];
    int slot = 0, segment = 0;
    const u8* mine = rings + team * RING * HALF_BYTES;
    auto turn = [&]() { slot = slot == RING - 1 ? 0 : slot + 1; };
    auto await = [&]() {
        wait_for_copies<RING - 2>();
        team_wait(team);
    };
    auto behind = [&]() { return slot == 0 ? RING - 1 : slot - 1; };

    for (; left; row++, segment++) {
        const Span span(row_starts, contexts, row, window);
        int tile = segment ? span.begin : span.begin + stream_begin - first[row];
        const int tile_end = min(span.end, tile + left);
        if (tile == tile_end) { segment--; continue; }  // a row without tokens
        const bool whole = tile == span.begin && tile_end == span.end;
        left -= tile_end - tile;
        const int start = row_starts[row];
#pragma unroll
        for (int side = 0; side < 2; side++) {
            int m = tile_of_queries * 16 + side * 8 + g, token = m / group;
            bool real = token < span.tokens;
            const uint4* from = (const uint4*)(query + (i64)(start + token) * query_stride +
                                               (kv_head * group + m % group) * HEAD_DIM + j * 8);
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 32; d++) {
                uint4 x = real ? from[d * 4] : make_uint4(0, 0, 0, 0);
                q[d][side] = x.x, q[d][2 + side] = x.y, q[d][4 + side] = x.z, q[d][6 + side] = x.w;
            }
            int at = span.context - span.tokens + token;
            seen_to[side] = at;
            seen_from[side] = window ? at - window + 1 : 0;
            most[side] = LEAST;
            weight[side] = 0.f;
        }
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) sums[c][0] = sums[c][1] = sums[c][2] = sums[c][3] = 0.f;
        const int all_see_to = span.context - span.tokens, all_see_from = window ? span.context - window : 0;

        for (; tile < tile_end; tile++) {
            await();
            if (RING % 2) copy_keys(behind()); else copy_values(behind());
            float scores[2][4] = {};
#pragma unroll
            for (int c = 0; c < KEY_CHUNKS; c++) {
                const int place = key_place(g, c / 2 * 4 + j);  // of keys g, then g + 8
                uint4 k = *(const uint4*)(mine + slot * HALF_BYTES + (c % 2 * 8 + g) * ROW_BYTES + place * 16);
                const u32* a = q[c / 2];
                multiply_add(scores[c % 2], a[0], a[1], a[2], a[3], k.x, k.y);
                multiply_add(scores[c % 2], a[4], a[5], a[6], a[7], k.z, k.w);
            }
            turn();
#pragma unroll
            for (int i = 0; i < 8; i++) scores[i / 4][i % 4] *= scale;
            if (tile * TILE + TILE - 1 > all_see_to || tile * TILE < all_see_from) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    int at = tile * TILE + i / 4 * 8 + 2 * j + i % 2, side = i % 4 / 2;
                    if (at > seen_to[side] || at < seen_from[side]) scores[i / 4][i % 4] = __int_as_float(0xff800000);
                }
            }
            float larger[2];
#pragma unroll
            for (int side = 0; side < 2; side++) {
                float x = fmaxf(fmaxf(scores[0][2 * side], scores[0][2 * side + 1]),
                                fmaxf(scores[1][2 * side], scores[1][2 * side + 1]));
                x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
                x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
                larger[side] = fmaxf(x, most[side]);
            }
            if (__any_sync(~0u, larger[0] > most[0] || larger[1] > most[1])) {
#pragma unroll
                for (int side = 0; side < 2; side++) {
                    float less = power_of_two(most[side] - larger[side]);
                    most[side] = larger[side];
                    weight[side] *= less;
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) sums[c][2 * side] *= less, sums[c][2 * side + 1] *= less;
                }
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int side = i % 4 / 2;
                scores[i / 4][i % 4] = power_of_two(scores[i / 4][i % 4] - most[side]);
                weight[side] += scores[i / 4][i % 4];
            }
            u32 p[4];
#pragma unroll
            for (int i = 0; i < 4; i++) p[i] = to_elements(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]);

            await();
            if (RING % 2) copy_values(behind()); else copy_keys(behind());
            const u8* from = mine + slot * HALF_BYTES + 2 * j * ROW_BYTES;
            const int real = span.context - tile * TILE - 2 * j;  // what lies beyond the context may be NaN
            const bool partial = span.context - tile * TILE < TILE;
#pragma unroll
            for (int wide = 0; wide < WIDE; wide++) {
                uint4 v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) 
                    v[i] = *(const uint4*)(from + (i / 2 * 8 + i % 2) * ROW_BYTES + value_place(2 * j, wide * 8 + g) * 16);
                if (partial)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (i / 2 * 8 + i % 2 >= real) v[i] = make_uint4(0, 0, 0, 0);
                const u32 *v0 = &v[0].x, *v1 = &v[1].x, *v2 = &v[2].x, *v3 = &v[3].x;
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    const u32 pick = e % 2 ? 0x7632 : 0x5410;
                    multiply_add(sums[wide * 8 + e], p[0], p[1], p[2], p[3], __byte_perm(v0[e / 2], v1[e / 2], pick),
                             __byte_perm(v2[e / 2], v3[e / 2], pick));
                }
            }
            if (NARROW) {
                uint2 v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) 
                    v[i] = *(const uint2*)(from + (i / 2 * 8 + i % 2) * ROW_BYTES + WIDE * 128 + g * 8);
                if (partial)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (i / 2 * 8 + i % 2 >= real) v[i] = make_uint2(0, 0);
                const u32 *v0 = &v[0].x, *v1 = &v[1].x, *v2 = &v[2].x, *v3 = &v[3].x;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const u32 pick = e % 2 ? 0x7632 : 0x5410;
                    multiply_add(sums[(WIDE * 8 + e) % COLUMNS], p[0], p[1], p[2], p[3], __byte_perm(v0[e / 2], v1[e / 2], pick),
                             __byte_perm(v2[e / 2], v3[e / 2], pick));
                }
            }
            turn();
        }

#pragma unroll
        for (int side = 0; side < 2; side++) {
            float total = weight[side];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            int m = tile_of_queries * 16 + side * 8 + g, token = m / group;
            if (token >= span.tokens) continue;
            if (whole) {
                const float share = 1.f / total;
                u16* to = out + (i64)(start + token) * heads * HEAD_DIM + (kv_head * group + m % group) * HEAD_DIM;
#pragma unroll
                for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        u32 x[4];
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            x[e] = to_elements(sums[wide * 8 + 2 * e][2 * side + i] * share,
                                        sums[wide * 8 + 2 * e + 1][2 * side + i] * share);
                        *(uint4*)(to + wide * 64 + j * 16 + i * 8) = make_uint4(x[0], x[1], x[2], x[3]);
                    }
                if (NARROW)
#pragma unroll
                    for (int i = 0; i < 2; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            to[WIDE * 64 + j * 8 + i * 4 + e] = narrow(sums[(WIDE * 8 + e) % COLUMNS][2 * side + i] * share);
            } else {
                const i64 part = ((i64)(2 * stream + (segment > 0)) * kv_heads + kv_head) * (16 * TILES) + m;
                float* to = part_sums + part * HEAD_DIM;
#pragma unroll
                for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
#pragma unroll
                        for (int e = 0; e < 8; e += 4)
                            *(float4*)(to + wide * 64 + j * 16 + i * 8 + e) =
                                make_float4(sums[wide * 8 + e][2 * side + i], sums[wide * 8 + e + 1][2 * side + i],
                                            sums[wide * 8 + e + 2][2 * side + i], sums[wide * 8 + e + 3][2 * side + i]);
                if (NARROW)
#pragma unroll
                    for (int i = 0; i < 2; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            to[WIDE * 64 + j * 8 + i * 4 + e] = sums[(WIDE * 8 + e) % COLUMNS][2 * side + i];
                if (j == 0) part_weights[part] = make_float2(most[side], total);
            }
        }
    }
}

// Joins the parts of rows that lie in several streams: `split` warps for each row, query token and head.
extern "C" __global__ void __launch_bounds__(256, 4) paged_attention_join(
    const int* row_starts, u16* out, const float* part_sums,
    const float2* part_weights, const int* line, int rows, int most_tokens, int heads,
    int kv_heads, int most_streams, int least_tiles, int split) {
    constexpr int WIDTH = HEAD_DIM / 32, AHEAD = HEAD_DIM > 128 ? 2 : 4;  // parts read at once
    __shared__ float found[8][HEAD_DIM];
    __shared__ float2 weights[8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, member = warp % split;
    const int index = (blockIdx.x * 8 + warp) / split;
    const int head = index % heads, row = index / heads / most_tokens, token = index / heads % most_tokens;
    float sums[WIDTH] = {}, most = LEAST, weight = 0.f;
    let_next_kernel_start();
    wait_for_previous_kernel();
    bool wanted = false;
    int start = 0;
    if (row < rows) {
        start = row_starts[row];
        const int begin = line[row], end = line[row + 1], tiles = line[rows];
        const Line shares(tiles, most_streams, least_tiles);
        const int from = shares.of(begin), to = end > begin ? shares.of(end - 1) : from;
        wanted = to > from && token < row_starts[row + 1] - start;
        if (wanted) {
            const int group = heads / kv_heads, late = shares.begin(from) != begin;
            const int within = head / group * (16 * TILES) + token * group + head % group;
            auto part = [&](int s) { return (i64)(2 * s + (s == from && late)) * kv_heads * (16 * TILES) + within; };
            for (int batch = from + member; batch <= to; batch += 32 * split) {
                int s = batch + lane * split;
                float2 mine = s <= to ? part_weights[part(s)] : make_float2(LEAST, 0.f);
                float larger = fmaxf(mine.x, most);
                for (int step = 16; step; step /= 2) larger = fmaxf(larger, __shfl_xor_sync(~0u, larger, step));
                float less = power_of_two(most - larger), share = power_of_two(mine.x - larger);
                most = larger;
                weight = weight * less + share * mine.y;  // a lane's own
#pragma unroll
                for (int i = 0; i < WIDTH; i++) sums[i] *= less;
                const int count = min(32, (to - batch) / split + 1);
                for (int k = 0; k < count; k += AHEAD) {
                    float x[AHEAD][WIDTH];
#pragma unroll
                    for (int u = 0; u < AHEAD; u++) {
                        const float* at = part_sums + part(batch + min(k + u, count - 1) * split) * HEAD_DIM + lane;
#pragma unroll
                        for (int i = 0; i < WIDTH; i++) x[u][i] = at[i * 32];
                    }
#pragma unroll
                    for (int u = 0; u < AHEAD; u++) {
                        float by = __shfl_sync(~0u, share, min(k + u, 31));
                        if (k + u >= count) by = 0.f;
#pragma unroll
                        for (int i = 0; i < WIDTH; i++) sums[i] += by * x[u][i];
                    }
                }
            }
            for (int step = 16; step; step /= 2) weight += __shfl_xor_sync(~0u, weight, step);
        }
    }
    if (split > 1) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) found[warp][i * 32 + lane] = sums[i];
        if (lane == 0) weights[warp] = make_float2(most, weight);
        __syncthreads();
        if (member == 0)
            for (int other = warp + 1; other < warp + split; other++) {
                float2 its = weights[other];
                float larger = fmaxf(most, its.x), less = power_of_two(most - larger), share = power_of_two(its.x - larger);
                most = larger;
                weight = weight * less + its.y * share;
#pragma unroll
                for (int i = 0; i < WIDTH; i++) sums[i] = sums[i] * less + found[other][i * 32 + lane] * share;
            }
    }
    if (wanted && member == 0)
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            out[((i64)(start + token) * heads + head) * HEAD_DIM + i * 32 + lane] = narrow(sums[i] / weight);
}

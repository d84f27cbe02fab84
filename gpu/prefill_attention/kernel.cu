// Attention of many query tokens a row over paged keys and values, on the tensor cores of Hopper (sm_90a).
//
// The query rows of a kv head, (token, head of the group) in that order, are cut into tiles of 128: so the keys and
// values of a tile serve the whole group, and the last tile of a row is only as empty as 128 query rows can be. Each
// of the blocks, one a multiprocessor, takes tile after tile from a line (`Line`): the longest rows first, of a row as
// many kv heads at a time as the L2 holds, and of these the latest tiles first. The order is found on the device, so a
// captured graph holds for any contexts.
//
// Three warpgroups: one copies (cp.async, 16 bytes, swizzled by hand, zeros past the last token that is seen) the
// queries, keys and values of its tile, and of the next, into rings; two multiply, 64 query rows each. Scores stay
// in registers, where they become the weights that the second product takes as they are. While the tensor cores do
// the scores of a block of tokens and the sums of the one before, the other warpgroup makes weights of its scores:
// the two take turns at a pair of named barriers.
//
// Blocks of tokens are walked from the latest to the first, so what is masked comes first, and then no more (but
// for a window's far end).
//
// Constants: HEAD_DIM (64, 96, 128, 256), HALF (1 for float16), GROUP (heads a kv head), TOKENS (of keys
// in a block: 64 or 128), QUERIES (tiles of queries that are there at once: 1 or 2), MOST_ROWS.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int WORKERS = 2;                       // warpgroups that multiply
constexpr int ROWS = 64 * WORKERS;               // query rows of a tile
constexpr int THREADS = 128 * (1 + WORKERS);
constexpr int STAGES = 2;                        // of the ring of keys, and of that of values
constexpr int COLUMN_GROUPS = (HEAD_DIM + 63) / 64;  // a swizzled row is 128 bytes: 64 columns
constexpr int QUERY_BYTES = COLUMN_GROUPS * ROWS * 128;
constexpr int BLOCK_BYTES = COLUMN_GROUPS * TOKENS * 128;  // the keys, or the values, of a block
constexpr int LANES = HEAD_DIM == 64 ? 8 : HEAD_DIM == 256 ? 32 : 16;  // that copy a token, 16 bytes each
constexpr int STEP = 32 / LANES;                 // tokens that a warp copies at once
constexpr int GRANULE = 16;                      // tokens that surely lie in one block of the pool
constexpr int PASSES = GRANULE / STEP;
constexpr int SECTION_BYTES = 20 << 20;          // of keys and values that are walked together: they stay in the L2
constexpr int SLOTS = 4;                         // of tiles told by the copying warpgroup to the others
constexpr float LEAST = -1e30f;                  // below any score, and finite
constexpr float STEEPEST = 67108864.f;           // score, in powers of two: larger ones are rounded too roughly

// ---- the tensor cores ----

__device__ __forceinline__ void turn_wait(int worker) {
    asm volatile("bar.sync %0, %1;" ::"r"(worker + 1), "n"(128 * WORKERS) : "memory");
}

__device__ __forceinline__ void turn_give(int worker) {
    asm volatile("bar.arrive %0, %1;" ::"r"(worker + 1), "n"(128 * WORKERS) : "memory");
}

// The compiler would wait for products as early as it can, and make weights when the tensor cores are through. So here
// is a store that hangs on all weights, by a sum that is never negative: nothing that waits is moved across it.
__device__ __forceinline__ void finish(float sum, u32 never) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.lt.f32 p, %0, 0f00000000;\n"
        "@p st.volatile.shared.f32 [%1], %0;\n"
        "}" ::"f"(sum), "r"(never) : "memory");
}

// scores[64 x TOKENS] = queries * keys
__device__ __forceinline__ void multiply_keys(float (&scores)[TOKENS / 2], u64 queries, u64 keys) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++)
        multiply(scores, queries + (i / 4 * ROWS * 128 + i % 4 * 32) / 16,
                 keys + (i / 4 * TOKENS * 128 + i % 4 * 32) / 16, i > 0);
}

// sums[64 x HEAD_DIM] += weights * values
__device__ __forceinline__ void multiply_values(float (&sums)[HEAD_DIM / 2], u32 (&weights)[TOKENS / 4], u64 values) {
#pragma unroll
    for (int i = 0; i < TOKENS / 16; i++)
        multiply_add(sums, weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3],
                     values + i * 16 * 128 / 16);
}

// ---- the line of tiles ----

struct alignas(16) Work {  // one tile
    int start, tokens;     // of the row, in the batch; no tokens: there are no more tiles
    int context, head;     // of the row; kv head
    int tile, row, filler_0, filler_1;
    __device__ __forceinline__ int query_rows() const { return tokens * GROUP; }
    __device__ __forceinline__ int position(int query_row) const {  // in the sequence; the last one's beyond the row
        return context - tokens + min(query_row, query_rows() - 1) / GROUP;
    }
};

// Only the lane that will tell that its warp is done with a tile reads what the slot holds: the others may lag behind.
__device__ __forceinline__ Work read_by_one(const Work& slot) {
    Work work = {};
    if (threadIdx.x % 32 == 0) work = slot;
    const auto share = [](int& word) { word = __shfl_sync(~0u, word, 0); };
    share(work.start), share(work.tokens), share(work.context), share(work.head), share(work.tile);
    return work;
}

struct Span {  // the blocks of tokens that a tile sees, and their end in tokens
    int begin, end, limit;
    __device__ __forceinline__ Span(const Work& work, int window) {
        limit = work.position(work.tile * ROWS + ROWS - 1) + 1;
        begin = max(0, work.position(work.tile * ROWS) - window + 1) / TOKENS;
        end = (limit + TOKENS - 1) / TOKENS;
    }
};

struct Line {  // the rows with the longest contexts first
    int starts[MOST_ROWS], tokens[MOST_ROWS], contexts[MOST_ROWS];
    int ends[MOST_ROWS];  // of their tiles, for all kv heads
    u16 rows[MOST_ROWS];

    static __device__ __forceinline__ int tiles(int tokens) { return (max(0, tokens) * GROUP + ROWS - 1) / ROWS; }

    // By all threads.
    __device__ __forceinline__ void build(const int* row_starts, const int* row_contexts, int count, int kv_heads) {
        for (int row = threadIdx.x; row < count; row += THREADS) ends[row] = row_contexts[row];
        __syncthreads();
#pragma unroll 1
        for (int row = threadIdx.x; row < count; row += THREADS) {
            const int own = ends[row], start = row_starts[row], end = row_starts[row + 1];
            int before = 0;
            for (int other = 0; other < count; other++) {
                const int its = ends[other];
                before += its > own || (its == own && other < row);
            }
            rows[before] = row;
            starts[before] = start;
            tokens[before] = end - start;
            contexts[before] = own;
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            const int lane = threadIdx.x;
            int sum = 0;
#pragma unroll 1
            for (int base = 0; base < count; base += 32) {
                int own = base + lane < count ? tiles(tokens[base + lane]) * kv_heads : 0;
#pragma unroll
                for (int apart = 1; apart < 32; apart *= 2) {
                    int other = __shfl_up_sync(~0u, own, apart);
                    if (lane >= apart) own += other;
                }
                if (base + lane < count) ends[base + lane] = sum + own;
                sum += __shfl_sync(~0u, own, 31);
            }
        }
        __syncthreads();
    }

    __device__ __forceinline__ Work at(int index, int count, int kv_heads) const {
        Work work = {};
        if (index >= ends[count - 1]) return work;
        int low = 0, high = count - 1;  // the first row that ends beyond the index
        while (low < high) {
            int middle = (low + high) / 2;
            if (ends[middle] > index) high = middle;
            else low = middle + 1;
        }
        if (low > 0) index -= ends[low - 1];
        work.row = rows[low];
        work.start = starts[low];
        work.tokens = tokens[low];
        work.context = contexts[low];
        const int all = tiles(work.tokens);
        int heads = kv_heads;  // side by side: as many as the L2 holds
        while (heads > 1 && static_cast<i64>(heads) * work.context * HEAD_DIM * 4 > SECTION_BYTES)
            heads = heads % 2 ? 1 : heads / 2;
        const int section = index / (all * heads), within = index % (all * heads);
        work.head = section * heads + within % heads;
        work.tile = all - 1 - within / heads;
        return work;
    }
};

struct Shared {
    Work work[SLOTS];
    u64 told[SLOTS];                                    // a slot of `work` is written
    u64 queries_there[2], queries_done[2];
    u64 keys_there[STAGES], keys_done[STAGES];
    u64 values_there[STAGES], values_done[STAGES];
    float never;  // is not written
    Line line;
};

// ---- copies ----

__device__ __forceinline__ void copy16(u32 to, const u16* from, bool wanted) {  // or zeros: then nothing is read
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 ::"r"(to), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy16(u32 to, const u16* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// What a lane copies: 16 bytes, in the same column, of every STEP-th of the 16 rows of a granule. A warp copies every
// fourth granule.
struct Copier {
    int warp, row, column;  // the first row of a granule; in elements
    u32 place;              // of it, in a granule of a group of 64 columns
    int group;
    __device__ __forceinline__ Copier() {
        const int lane = threadIdx.x % 32, chunk = lane % LANES;
        warp = threadIdx.x / 32 % 4;
        row = lane / LANES;
        column = chunk * 8;
        group = chunk / 8;
        place = row * 128 + ((chunk % 8 ^ row) << 4);
    }
    __device__ __forceinline__ bool idle() const { return HEAD_DIM == 96 && column >= HEAD_DIM; }
    // In a stage of `height` rows. The swizzle is by a row's last three bits.
    template <int HEIGHT> __device__ __forceinline__ u32 start(u32 stage, int granule) const {
        return stage + group * HEIGHT * 128 + granule * GRANULE * 128 + place;
    }
    __device__ __forceinline__ u32 at(u32 start, int pass) const {
        return (start ^ (pass * STEP % 8 << 4)) + pass * STEP * 128;
    }
};

// Offsets into a pool of the granules of a block of tokens, one a lane.
struct Granules {
    const int* table;
    i64 block_stride;
    int token_stride, each, limit;  // each: granules in a block of the pool
    __device__ __forceinline__ i64 of(int begin) const {
        const int lane = threadIdx.x % 32, granule = begin / GRANULE + lane;
        if (lane >= TOKENS / GRANULE || granule * GRANULE >= limit) return 0;  // the table may not know it
        return table[granule / each] * block_stride + static_cast<i64>(granule % each * GRANULE) * token_stride;
    }
};

template <bool WHOLE>
__device__ __forceinline__ void copy_block(
    u32 stage, const u16* from, i64 granules, int token_stride, const Copier& copier, int left) {
#pragma unroll
    for (int i = 0; i < TOKENS / GRANULE; i += 4) {
        const int granule = i + copier.warp;
        const u16* source = from + __shfl_sync(~0u, granules, granule);
        if (copier.idle()) continue;
        const u32 to = copier.start<TOKENS>(stage, granule);
#pragma unroll
        for (int pass = 0; pass < PASSES; pass++) {
            if (WHOLE) copy16(copier.at(to, pass), source);
            else copy16(copier.at(to, pass), source, granule * GRANULE + pass * STEP + copier.row < left);
            source += STEP * token_stride;
        }
    }
}

// ---- weights ----

struct Rows {  // the two query rows of a thread, 8 apart
    float most[2] = {LEAST, LEAST}, sum[2] = {0, 0};

    // Scores become weights; what was summed before must shrink by `factor`.
    __device__ __forceinline__ void weigh(float (&scores)[TOKENS / 2], float (&factor)[2], float scale) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float now = most[half], next = LEAST;
#pragma unroll
            for (int i = 2 * half; i < TOKENS / 2; i += 4) {
                now = fmaxf(now, scores[i]);
                next = fmaxf(next, scores[i + 1]);
            }
            now = fmaxf(now, next);
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 1));
            now = fmaxf(now, __shfl_xor_sync(~0u, now, 2));
            factor[half] = power_of_two((most[half] - now) * scale);
            most[half] = now;
            // Where now * scale is rounded by more than a few powers of two, weights must not overflow: there, what
            // is seen weighs the same.
            const float slope = fabsf(now * scale) > STEEPEST ? STEEPEST / -LEAST : scale;
            const float shift = now * slope;
            float added = 0;
#pragma unroll
            for (int i = 2 * half; i < TOKENS / 2; i += 4) {
                scores[i] = power_of_two(scores[i] * slope - shift);
                scores[i + 1] = power_of_two(scores[i + 1] * slope - shift);
                added += scores[i] + scores[i + 1];
            }
            sum[half] = sum[half] * factor[half] + added;
        }
    }
};

// `last`: the last column that each of the two rows sees; `beyond`: the last that it no longer sees.
__device__ __forceinline__ void hide_later(float (&scores)[TOKENS / 2], const int (&last)[2]) {
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++)
        if (i / 4 * 8 + i % 2 > last[i / 2 % 2]) scores[i] = LEAST;
}

__device__ __forceinline__ void hide(float (&scores)[TOKENS / 2], const int (&last)[2], const int (&beyond)[2]) {
#pragma unroll
    for (int i = 0; i < TOKENS / 2; i++) {
        int column = i / 4 * 8 + i % 2, half = i / 2 % 2;
        if (column > last[half] || column <= beyond[half]) scores[i] = LEAST;
    }
}

__device__ __forceinline__ void narrow(const float (&scores)[TOKENS / 2], u32 (&weights)[TOKENS / 4]) {
#pragma unroll
    for (int i = 0; i < TOKENS / 4; i++) weights[i] = to_elements(scores[2 * i], scores[2 * i + 1]);
}

// ---- the two roles ----

struct Inputs {
    const u16 *query, *key_pool, *value_pool;
    const int *block_tables, *row_starts, *contexts;
    u16* out;
    int query_stride, block_stride, token_stride, head_stride, table_stride, granules, rows, kv_heads, window;
    float scale;
};

__device__ __forceinline__ void copy_queries(const Inputs& in, const Work& work, const Copier& copier, u32 to) {
    if (copier.idle()) return;
    for (int granule = copier.warp; granule < ROWS / GRANULE; granule += 4) {
        const u32 start = copier.start<ROWS>(to, granule);
        for (int pass = 0; pass < PASSES; pass++) {
            const int query_row = work.tile * ROWS + granule * GRANULE + pass * STEP + copier.row;
            const bool wanted = query_row < work.query_rows();
            const int token = wanted ? query_row / GROUP : 0, head = wanted ? query_row % GROUP : 0;
            copy16(copier.at(start, pass),
                   in.query + static_cast<i64>(work.start + token) * in.query_stride +
                       (work.head * GROUP + head) * HEAD_DIM + copier.column,
                   wanted);
        }
    }
}

__device__ __forceinline__ void copy_tiles(
    const Inputs& in, Shared& shared, u32 queries, u32 keys, u32 values, int* counter) {
    const Copier copier;
    Place query_place, key_place, value_place;
    const bool first = threadIdx.x % 128 == 0;
    int next = blockIdx.x;
    auto tell = [&](u32 turn) {  // what comes in that turn, and ask for the next
        const Work work = shared.line.at(next, in.rows, in.kv_heads);
        shared.work[turn % SLOTS] = work;
        arrive(shared_address(&shared.told[turn % SLOTS]));
        if (work.tokens > 0) next = atomicAdd(counter, 1) + gridDim.x;
    };
    if (first) tell(0);
    for (u32 turn = 0;; turn++) {
        __syncwarp();
        wait(shared_address(&shared.told[turn % SLOTS]), turn / SLOTS & 1);
        const Work work = shared.work[turn % SLOTS];
        if (work.tokens <= 0) break;

        const Span span(work, in.window);
        const Granules granules = {in.block_tables + static_cast<i64>(work.row) * in.table_stride, in.block_stride,
                                   in.token_stride, in.granules, span.limit};
        const i64 own = static_cast<i64>(work.head) * in.head_stride + copier.row * in.token_stride + copier.column;
        i64 now = granules.of((span.end - 1) * TOKENS), before = 0;
        wait(shared_address(&shared.queries_done[query_place.stage]), query_place.parity ^ 1);
        copy_queries(in, work, copier, queries + query_place.stage * QUERY_BYTES);
        arrive_with_copies(shared_address(&shared.queries_there[query_place.stage]));
        query_place.advance(QUERIES);
        __syncwarp();

        // The keys of a block go with the values of the block before.
        for (int block = span.end - 1; block >= span.begin - 1; block--) {
            i64 then = block > span.begin ? granules.of((block - 1) * TOKENS) : 0;
            if (block >= span.begin) {
                wait(shared_address(&shared.keys_done[key_place.stage]), key_place.parity ^ 1);
                const u32 to = keys + key_place.stage * BLOCK_BYTES;
                const int left = span.limit - block * TOKENS;
                if (left >= TOKENS) copy_block<true>(to, in.key_pool + own, now, in.token_stride, copier, left);
                else copy_block<false>(to, in.key_pool + own, now, in.token_stride, copier, left);
                arrive_with_copies(shared_address(&shared.keys_there[key_place.stage]));
                key_place.advance(STAGES);
            }
            // Who reads the slot's last work has long done so: the rings hold no more than the blocks of three tiles.
            if (first && block == span.end - 1) tell(turn + 1);
            __syncwarp();
            if (block < span.end - 1) {
                wait(shared_address(&shared.values_done[value_place.stage]), value_place.parity ^ 1);
                const u32 to = values + value_place.stage * BLOCK_BYTES;
                const int left = span.limit - (block + 1) * TOKENS;
                if (left >= TOKENS) copy_block<true>(to, in.value_pool + own, before, in.token_stride, copier, left);
                else copy_block<false>(to, in.value_pool + own, before, in.token_stride, copier, left);
                arrive_with_copies(shared_address(&shared.values_there[value_place.stage]));
                value_place.advance(STAGES);
            }
            before = now;
            now = then;
        }
    }
    if (first && atomicAdd(counter + 1, 1) == static_cast<int>(gridDim.x) - 1) {  // the last one; leave it as it was
        counter[0] = 0;
        counter[1] = 0;
    }
}

__device__ __forceinline__ void write_sums(
    const Inputs& in, const Work& work, const float (&sums)[HEAD_DIM / 2], const Rows& rows, int query_row) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = rows.sum[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float share = __fdividef(1.f, sum);
        const int own = query_row + 8 * half;
        const int token = own / GROUP, head = work.head * GROUP + own % GROUP;
        u16* to = in.out + (static_cast<i64>(work.start + token) * in.kv_heads * GROUP + head) * HEAD_DIM +
                  threadIdx.x % 4 * 8;
#pragma unroll
        for (int group = 0; group < HEAD_DIM / 32; group++) {
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = (group * 4 + i) * 4 + 2 * half;
                words[i] = to_elements(sums[at] * share, sums[at + 1] * share);
            }
            gather_chunks(words);
            if (own < work.query_rows())
                asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to + group * 32), "r"(words[0]),
                             "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
        }
    }
}

__device__ __forceinline__ void multiply_tiles(
    const Inputs& in, Shared& shared, u32 queries, u32 keys, u32 values, int worker) {
    const bool teller = threadIdx.x % 32 == 0;
    const int row_in_tile = worker * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const int first_column = threadIdx.x % 4 * 2;
    Place query_place, key_place, value_place;
    if (worker == 1) turn_give(0);
    for (u32 turn = 0;; turn++) {
        wait(shared_address(&shared.told[turn % SLOTS]), turn / SLOTS & 1);
        const Work work = read_by_one(shared.work[turn % SLOTS]);
        if (work.tokens <= 0) break;
        const Span span(work, in.window);
        const int query_row = work.tile * ROWS + row_in_tile;
        const int positions[2] = {work.position(query_row), work.position(query_row + 8)};
        const int earliest = work.position(work.tile * ROWS + worker * 64);  // of this warpgroup
        const int latest = work.position(work.tile * ROWS + worker * 64 + 63);

        float scores[TOKENS / 2], sums[HEAD_DIM / 2] = {}, factor[2];
        u32 weights[TOKENS / 4];
        Rows rows;
        auto masked = [&](int block) {
            const int begin = block * TOKENS;
            if (begin + TOKENS - 1 > earliest || begin <= latest - in.window) {
                const int last[2] = {positions[0] - begin - first_column, positions[1] - begin - first_column};
                const int beyond[2] = {last[0] - in.window, last[1] - in.window};
                if (begin > latest - in.window) hide_later(scores, last);
                else hide(scores, last, beyond);
            }
        };
        const u64 query_rows = described(queries + query_place.stage * QUERY_BYTES + worker * 64 * 128, 16);

        wait(shared_address(&shared.queries_there[query_place.stage]), query_place.parity);
        wait(shared_address(&shared.keys_there[key_place.stage]), key_place.parity);
        show_shared();
        pin(scores);
        products_begin();
        multiply_keys(scores, query_rows, described(keys + key_place.stage * BLOCK_BYTES, 16));
        products_end();
        products_wait<0>();
        pin(scores);
        if (teller) arrive(shared_address(&shared.keys_done[key_place.stage]));
        key_place.advance(STAGES);
        masked(span.end - 1);
        rows.weigh(scores, factor, in.scale);
        narrow(scores, weights);

        for (int block = span.end - 2; block >= span.begin; block--) {
            wait(shared_address(&shared.keys_there[key_place.stage]), key_place.parity);
            wait(shared_address(&shared.values_there[value_place.stage]), value_place.parity);
            show_shared();
            turn_wait(worker);
            pin(scores);
            pin(sums);
            products_begin();
            multiply_keys(scores, query_rows, described(keys + key_place.stage * BLOCK_BYTES, 16));
            products_end();
            multiply_values(sums, weights, described(values + value_place.stage * BLOCK_BYTES, TOKENS * 128));
            products_end();
            turn_give(1 - worker);
            products_wait<1>();
            pin(scores);
            if (teller) arrive(shared_address(&shared.keys_done[key_place.stage]));
            key_place.advance(STAGES);
            masked(block);
            rows.weigh(scores, factor, in.scale);
            finish(rows.sum[0] + rows.sum[1], shared_address(&shared.never));
            products_wait<0>();
            pin(sums);
            if (teller) arrive(shared_address(&shared.values_done[value_place.stage]));
            value_place.advance(STAGES);
            narrow(scores, weights);
            if (__any_sync(~0u, factor[0] != 1.f || factor[1] != 1.f)) {  // seldom, once much has been seen
#pragma unroll
                for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] *= factor[i / 2 % 2];
            }
        }
        if (teller) arrive(shared_address(&shared.queries_done[query_place.stage]));
        query_place.advance(QUERIES);

        wait(shared_address(&shared.values_there[value_place.stage]), value_place.parity);
        show_shared();
        pin(sums);
        products_begin();
        multiply_values(sums, weights, described(values + value_place.stage * BLOCK_BYTES, TOKENS * 128));
        products_end();
        products_wait<0>();
        pin(sums);
        if (teller) arrive(shared_address(&shared.values_done[value_place.stage]));
        value_place.advance(STAGES);
        write_sums(in, work, sums, rows, query_row);
    }
    if (worker == 0) turn_wait(0);  // for the last turn that was given
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) prefill_attention(
    const u16* query, const u16* key_pool, const u16* value_pool, const int* block_tables, const int* row_starts,
    const int* contexts, u16* out, int* counter, int query_stride, int block_stride, int token_stride, int head_stride,
    int table_stride, int granules, int rows, int kv_heads, int window, float scale) {
    extern __shared__ char dynamic[];
    __shared__ Shared shared;
    const Inputs in = {query, key_pool, value_pool, block_tables, row_starts, contexts, out, query_stride, block_stride,
                       token_stride, head_stride, table_stride, granules, rows, kv_heads, window, scale};
    let_next_kernel_start();
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) prepare(shared_address(&shared.told[i]), 1);
        for (int i = 0; i < 2; i++) {
            prepare(shared_address(&shared.queries_there[i]), 128);
            prepare(shared_address(&shared.queries_done[i]), 4 * WORKERS);
        }
        for (int i = 0; i < STAGES; i++) {
            prepare(shared_address(&shared.keys_there[i]), 128);
            prepare(shared_address(&shared.keys_done[i]), 4 * WORKERS);
            prepare(shared_address(&shared.values_there[i]), 128);
            prepare(shared_address(&shared.values_done[i]), 4 * WORKERS);
        }
        show_barriers();
    }
    wait_for_previous_kernel();
    shared.line.build(row_starts, contexts, rows, kv_heads);

    const u32 queries = swizzled_rows(dynamic);
    const u32 keys = queries + QUERIES * QUERY_BYTES, values = keys + STAGES * BLOCK_BYTES;
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (warpgroup == 0) {
        leave_registers<88>();
        copy_tiles(in, shared, queries, keys, values, counter);
    } else {
        take_registers<208>();
        multiply_tiles(in, shared, queries, keys, values, warpgroup - 1);
    }
}

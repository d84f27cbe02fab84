// Up to 128 rows through a matrix at the rate at which memory gives the matrix, on the tensor cores of Hopper (sm_90a).
//
// 64 rows of x, however few there are, are the first operand of wgmma; the second are WIDTH rows of the matrix, a tile.
// One thread starts bulk tensor copies of both (64 elements of k of every row, swizzled, zeros past the ends) into one
// ring, which is full of the matrix before the kernel ahead has ended, and brings some more of it to the L2: x follows.
// A warpgroup multiplies for each 64 rows of x.
//
// Where there are fewer tiles than multiprocessors, the SPLIT blocks of a cluster divide k. Each adds up its own columns
// of the tile: the others copy their sums of these into its shared memory. The order of all sums depends on neither the
// number nor the content of the rows.
//
// INTO: what becomes of a sum: 0 written to out, 1 added to out, 2 (the matrix is gates, then ups) silu(gate) * up.
// WIDE_OUT: out is float32.

#ifndef WIDTH
#define WIDTH 128
#endif
#ifndef SPLIT
#define SPLIT 1
#endif
#ifndef INTO
#define INTO 0
#endif

constexpr bool ADDING = INTO == 1, GATED = INTO == 2;
constexpr int OWN = GATED ? WIDTH / 2 : WIDTH;    // outputs of a tile, and rows of the matrix that are copied at once
constexpr int PARTS = WIDTH / OWN;                // of a tile: the ups are far behind the gates
constexpr int UNIT = 128;                         // elements of k: blocks of a cluster have multiples of it
constexpr int MOST_STAGES = 16;
constexpr int COLUMNS = WIDTH / SPLIT;            // of sums, that a block of a cluster adds up
constexpr int TOTALS = OWN / SPLIT;               // outputs that come of them
constexpr int STRIDE = COLUMNS % 16 ? COLUMNS : COLUMNS + 8;  // floats from one row of sums to the next: over all banks

static_assert(TOTALS % 8 == 0, "columns go in runs of 8");

// What depends on the rows of x: 64 * TILES, or fewer.
template <int TILES> struct Sizes {
    static constexpr int WORKING = 128 * TILES;            // threads that multiply; one warp more copies
    static constexpr int THREADS = WORKING + 32;
    static constexpr int BOXES = TILES == 1 ? 2 : 1;       // of 64 elements of k, in a stage
    static constexpr int DEPTH = 64 * BOXES;
    static constexpr int X_BYTES = TILES * 64 * 128, MATRIX_BYTES = WIDTH * 128;  // of a box
    static constexpr int STAGE_BYTES = BOXES * (MATRIX_BYTES + X_BYTES);  // boxes of the matrix, then of x
};

struct Shared {
    unsigned long long there[MOST_STAGES], done[MOST_STAGES];  // a stage is copied; it is multiplied
    unsigned long long landed;                                 // all sums that others have sent
};

template <int COUNT> struct alignas(COUNT * sizeof(Output)) Run { Output at[COUNT]; };  // neighbouring outputs

#if WIDE_OUT && INTO != 1  // logits: too many to stay in the L2
DEVICE void put(Run<2>* to, const Run<2>& run) {
    asm volatile("st.global.cs.v2.f32 [%0], {%1, %2};" :: "l"(to), "f"(run.at[0]), "f"(run.at[1]) : "memory");
}
DEVICE void put(Run<4>* to, const Run<4>& run) {
    asm volatile("st.global.cs.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "l"(to), "f"(run.at[0]), "f"(run.at[1]), "f"(run.at[2]), "f"(run.at[3]) : "memory");
}
#else
template <int COUNT> DEVICE void put(Run<COUNT>* to, const Run<COUNT>& run) { *to = run; }
#endif

// ---- what becomes of the sums ----

struct Target {
    const Element* bias;
    Output* out;
    int rows, outputs;
    bool even;  // every row of out begins where a Run may

    // Neighbouring outputs of a row as they are; past the end nothing is read.
    template <int COUNT> DEVICE Run<COUNT> read(int row, int output) const {
        const Output* from = out + static_cast<long long>(row) * outputs + output;
        Run<COUNT> run = {};
        if (even && output < outputs) return *reinterpret_cast<const Run<COUNT>*>(from);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (output + i < outputs) run.at[i] = from[i];
        return run;
    }

    template <int COUNT>
    DEVICE void write(const float (&sums)[COUNT], const float (&ups)[COUNT], const Run<COUNT>& before, int row,
                      int output) const {
        Output* to = out + static_cast<long long>(row) * outputs + output;
        Run<COUNT> run;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const bool biased = bias && output + i < outputs;
            float result = sums[i];
            if (biased) result += to_float(bias[output + i]);
            if (GATED) result = silu(result) * (biased ? ups[i] + to_float(bias[outputs + output + i]) : ups[i]);
            if (ADDING) result += widened(before.at[i]);
            run.at[i] = narrowed(result);
        }
        if (!even) {
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                if (output + i < outputs) to[i] = run.at[i];
        } else if (output < outputs) {
            put(reinterpret_cast<Run<COUNT>*>(to), run);
        }
    }
};

// Of a thread: of each run of 8 columns the pair that begins at 2 * (lane % 4), in rows lane / 4 and 8 below, of 64.
typedef float Sums[WIDTH / 2];

// A whole tile, of this block alone.
DEVICE void write_alone(const Target& target, const Sums& sums, int tile, int row) {
    constexpr int RUNS = OWN / 8;
    const int first = tile * OWN + threadIdx.x % 4 * 2;
#pragma unroll
    for (int below = 0; below < 2; below++) {
        const int at_row = row + 8 * below;
        if (at_row >= target.rows) continue;
        Run<2> before[RUNS] = {};
#pragma unroll
        for (int run = 0; run < RUNS; run++)
            if (ADDING) before[run] = target.read<2>(at_row, first + 8 * run);
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            const int at = 4 * run + 2 * below, up = GATED ? at + 4 * RUNS : at;
            const float pair[2] = {sums[at], sums[at + 1]}, ups[2] = {sums[up], sums[up + 1]};
            target.write<2>(pair, ups, before[run], at_row, first + 8 * run);
        }
    }
}

template <int WORKING> DEVICE void meet_workers() { asm volatile("bar.sync 1, %0;" :: "n"(WORKING) : "memory"); }

DEVICE int sent_bytes(int rows) { return (rows + 7) / 8 * 8 * STRIDE * 4; }  // to each block of a cluster

// This block's sums of a tile, [rows][STRIDE] for each block of the cluster: its own where it adds them up, in `room`,
// those of others where the ring was.
template <int WORKING>
DEVICE void gather(const Sums& sums, Word parts, Word room, Word rank, int row, int rows) {
    constexpr int RUNS = OWN / 8, EACH = RUNS / SPLIT;  // of outputs: of gates, if it is gated; for each block
    meet_workers<WORKING>();  // all stages are multiplied
    const Word own = (row * STRIDE + threadIdx.x % 4 * 2) * 4;
#pragma unroll
    for (int block = 0; block < SPLIT; block++) {
        const Word there = (block == rank ? room : parts) + block * sent_bytes(rows) + own;
#pragma unroll
        for (int below = 0; below < 2; below++) {
            if (row + 8 * below >= rows) continue;
#pragma unroll
            for (int run = 0; run < COLUMNS / 8; run++) {
                const int from = 4 * (run / EACH * RUNS + block * EACH + run % EACH) + 2 * below;
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                             :: "r"(there + (8 * below * STRIDE + run * 8) * 4), "f"(sums[from]), "f"(sums[from + 1])
                             : "memory");
            }
        }
    }
    show_shared();
    meet_workers<WORKING>();
}

// To the other blocks of the cluster, which add them up.
DEVICE void send(Word parts, Word room, Word landed, Word rank, int rows) {
    if (threadIdx.x > 0) return;
    const int bytes = sent_bytes(rows);
#pragma unroll
    for (int i = 1; i < SPLIT; i++) {
        const Word to = (rank + i) % SPLIT;
        asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                     :: "r"(place_in(to, room + rank * bytes)), "r"(parts + to * bytes), "r"(bytes),
                        "r"(place_in(to, landed)) : "memory");
    }
}

// Four neighbouring outputs of a row at a time, by all that work.
template <int WORKING> struct Totals {
    static constexpr int GROUPS = TOTALS / 4;  // of a row
    static constexpr int EACH = GROUPS / 2;    // of a thread: 2 have a row
    Run<4> before[ADDING ? EACH : 1];

    DEVICE void read_before(const Target& target, int first) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int group = threadIdx.x + i * WORKING, row = group / GROUPS;
            if (ADDING && row < target.rows) before[i] = target.read<4>(row, first + group % GROUPS * 4);
        }
    }

    DEVICE void write(const Target& target, Word room, int first) const {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int group = threadIdx.x + i * WORKING, row = group / GROUPS, column = group % GROUPS * 4;
            if (row >= target.rows) continue;
            float sums[4] = {}, ups[4] = {};
#pragma unroll
            for (int rank = 0; rank < SPLIT; rank++) {
                const Word from = room + rank * sent_bytes(target.rows) + (row * STRIDE + column) * 4;
                add(sums, load_shared(from));
                if (GATED) add(ups, load_shared(from + TOTALS * 4));
            }
            target.write<4>(sums, ups, before[ADDING ? i : 0], row, first + column);
        }
    }

    static DEVICE void add(float (&sums)[4], const Eight& four) {
        sums[0] += __uint_as_float(four.x), sums[1] += __uint_as_float(four.y);
        sums[2] += __uint_as_float(four.z), sums[3] += __uint_as_float(four.w);
    }
};

// ---- the two kinds of threads ----

// A block's way: `steps` of k from the first, of every `walk`-th tile from the first.
template <int DEPTH> struct Way {
    int first_step, steps, first_tile, walk, tiles;
    DEVICE Way(int rank, int inputs, int outputs) {
        const int units = (inputs + UNIT - 1) / UNIT;
        first_step = rank * units / SPLIT * (UNIT / DEPTH);
        steps = (rank + 1) * units / SPLIT * (UNIT / DEPTH) - first_step;
        first_tile = blockIdx.x / SPLIT;
        walk = gridDim.x / SPLIT;
        tiles = (outputs + OWN - 1) / OWN;
    }
};

// Where on it.
template <int DEPTH> struct Walk {
    const Way<DEPTH>& way;
    int tile, step;
    DEVICE explicit Walk(const Way<DEPTH>& way) : way(way), tile(way.first_tile), step(way.first_step) {}
    DEVICE int column(int box) const { return step * DEPTH + box * 64; }
    DEVICE int row(int part, int outputs) const { return tile * OWN + part * outputs; }
    DEVICE bool ended() const { return tile >= way.tiles; }
    DEVICE void advance() {
        if (++step == way.first_step + way.steps) step = way.first_step, tile += way.walk;
    }
};

struct Ring {
    Word stages, there, done;  // addresses
    int count;
};

template <int TILES>
DEVICE void copy(const TensorMap& x, const TensorMap& matrix, const Ring& ring, const Way<Sizes<TILES>::DEPTH>& way,
                 int rows, int outputs, int more) {
    typedef Sizes<TILES> Size;
    typedef Walk<Size::DEPTH> Here;
    if (way.steps == 0) {
        if (SPLIT > 1) meet_cluster();
        return;
    }
    const Policy once = evict_first();
    const int bytes = Size::BOXES * (Size::MATRIX_BYTES + (rows + 7) / 8 * 8 * 128);  // of x no rows that are not there
    const auto fetch_matrix = [&](Word stage, const Here& here) {
        const Word to = ring.stages + stage * Size::STAGE_BYTES, news = ring.there + 8 * stage;
        expect(news, bytes);
#pragma unroll
        for (int i = 0; i < PARTS * Size::BOXES; i++)
            fetch_once(to + i * OWN * 128, matrix, here.column(i / PARTS), here.row(i % PARTS, outputs), news, once);
    };
    const auto fetch_x = [&](Word stage, const Here& here) {
#pragma unroll
        for (int box = 0; box < Size::BOXES; box++)
            fetch(ring.stages + stage * Size::STAGE_BYTES + Size::BOXES * Size::MATRIX_BYTES + box * Size::X_BYTES, x,
                  here.column(box), 0, ring.there + 8 * stage);
    };
    Here ahead(way), behind(way);
    int filled = 0;
    for (; filled < ring.count && !ahead.ended(); filled++, ahead.advance()) fetch_matrix(filled, ahead);
    Here beyond = ahead;
    for (int i = 0; i < more && !beyond.ended(); i++, beyond.advance())
        for (int j = 0; j < PARTS * Size::BOXES; j++)
            bring_to_l2(matrix, beyond.column(j / PARTS), beyond.row(j % PARTS, outputs), once);
    wait_for_previous_kernel();
    for (int stage = 0; stage < filled; stage++, behind.advance()) fetch_x(stage, behind);
    if (SPLIT > 1) meet_cluster();  // late, and before it depends on those that multiply, who meet it first
    for (Place place; !ahead.ended(); place.advance(ring.count), ahead.advance()) {
        wait(ring.done + 8 * place.stage, place.parity);
        fetch_matrix(place.stage, ahead);
        fetch_x(place.stage, ahead);
    }
}

template <int TILES>
DEVICE void multiply_tiles(const Target& target, const Ring& ring, const Way<Sizes<TILES>::DEPTH>& way, Word room,
                           Word landed, Word rank) {
    typedef Sizes<TILES> Size;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, worker = __shfl_sync(~0u, warp / 4, 0);
    const int row = worker * 64 + warp % 4 * 16 + lane / 4;
    wait_for_previous_kernel();
    Place place;
    for (int tile = way.first_tile; tile < way.tiles; tile += way.walk) {  // one, where a cluster divides k
        Totals<Size::WORKING> totals;
        const int first = tile * OWN + rank * TOTALS;
        if (SPLIT > 1) totals.read_before(target, first);
        Sums sums;
#pragma unroll
        for (int i = 0; i < WIDTH / 2; i++) sums[i] = 0;
        pin(sums);
        Word before = 0;
        for (int step = 0; step < way.steps; step++) {
            const Word stage = ring.stages + place.stage * Size::STAGE_BYTES;
            const unsigned long long a = described(stage + Size::BOXES * Size::MATRIX_BYTES + worker * 64 * 128);
            const unsigned long long b = described(stage);
            wait(ring.there + 8 * place.stage, place.parity);
            products_begin();
#pragma unroll
            for (int i = 0; i < Size::DEPTH / 16; i++)
                multiply(sums, a + i / 4 * (Size::X_BYTES / 16) + i % 4 * 2,
                         b + i / 4 * (Size::MATRIX_BYTES / 16) + i % 4 * 2);
            products_end();
            products_wait<1>();
            if (lane == 0 && step > 0) arrive(ring.done + 8 * before);
            before = place.stage;
            place.advance(ring.count);
        }
        products_wait<0>();
        if (lane == 0 && way.steps > 0) arrive(ring.done + 8 * before);
        pin(sums);
        if (SPLIT == 1) {
            write_alone(target, sums, tile, row);
        } else {
            gather<Size::WORKING>(sums, ring.stages, room, rank, row, target.rows);
            send(ring.stages, room, landed, rank, target.rows);
            wait(landed, 0);
            enter_cluster();  // what this block was sent is here
            totals.write(target, room, first);
            meet_cluster();  // what it sent is there
        }
    }
}

// 64 * TILES rows of x, or fewer. There are `outputs` of a row; the matrix has twice as many rows where it is GATED.
template <int TILES>
DEVICE void product(const TensorMap& x, const TensorMap& matrix, const Element* bias, Output* out, int rows, int inputs,
                    int outputs, int stages, int more) {
    typedef Sizes<TILES> Size;
    extern __shared__ unsigned char unaligned[];  // the ring, then room for the sums of a cluster
    __shared__ Shared shared;
    let_next_kernel_start();
    const Word first = swizzled_rows(unaligned), room = first + stages * Size::STAGE_BYTES;
    const Ring ring = {first, shared_address(shared.there), shared_address(shared.done), stages};
    const Word landed = shared_address(&shared.landed);
    const Word rank = SPLIT > 1 ? own_block() : 0;
    const Way<Size::DEPTH> way(rank, inputs, outputs);
    if (threadIdx.x == Size::WORKING) {
        for (int stage = 0; stage < stages; stage++) {
            prepare(ring.there + 8 * stage, 1);
            prepare(ring.done + 8 * stage, Size::WORKING / 32);
        }
        prepare(landed, 1);
        if (SPLIT > 1) expect(landed, (SPLIT - 1) * sent_bytes(rows));
        show_barriers();
    }
    __syncthreads();
    if (SPLIT > 1) enter_cluster();
    if (threadIdx.x < Size::WORKING) {
        if (SPLIT > 1) meet_cluster();  // its other blocks are there, and their barriers
        const Target target = {bias, out, rows, outputs, outputs % (SPLIT > 1 ? 4 : 2) == 0};
        multiply_tiles<TILES>(target, ring, way, room, landed, rank);
    } else {
        if (threadIdx.x == Size::WORKING) copy<TILES>(x, matrix, ring, way, rows, outputs, more);
        else if (SPLIT > 1) meet_cluster();
        __syncwarp();
        if (SPLIT > 1) {  // all threads of a cluster meet twice
            enter_cluster();
            meet_cluster();
        }
    }
}

#define ARGUMENTS const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap matrix, const Element *bias, \
                  Output *out, int rows, int inputs, int outputs, int stages, int more

extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(Sizes<1>::THREADS, 1)
batch_linear_64(ARGUMENTS) {
    product<1>(x, matrix, bias, out, rows, inputs, outputs, stages, more);
}

extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(Sizes<2>::THREADS, 1)
batch_linear_128(ARGUMENTS) {
    product<2>(x, matrix, bias, out, rows, inputs, outputs, stages, more);
}

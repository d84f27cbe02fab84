// Two kernels. `sample_peaks` reads all logits once and keeps the greatest of each part of each row; many blocks, little
// state, as fast as memory. `sample_draw` finishes the greedy rows, a warp each; then its blocks draw from the other
// rows, a part of a row at a time, which they hold in shared memory.
//
// The blocks of a row meet at a count of arrivals, each waiting for all. None waits for ever: parts are handed out in
// order, and a row has no more parts than there are multiprocessors. So while parts of the first unfinished row are not
// handed out, some resident block has none, and takes the next.
//
// Sums do not depend on who adds first: a weight is an integer, 2**44 for the best token.

constexpr int PEAK_THREADS = 256, THREADS = 512, LANES = 32, WARPS = THREADS / LANES;
constexpr Word ALL_LANES = 0xffffffffu;
typedef unsigned long long Long;

// ------------------------------------------------------------------------------------------------- loads and scans

// What other blocks of this grid wrote: past the L1.
DEVICE Word load_fresh(const Word* address) {
    Word value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

DEVICE Long load_fresh(const Long* address) {
    Long value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
    return value;
}

DEVICE Word load_acquired(const Word* address) {
    Word value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

DEVICE bool is_aligned(const float* row) { return reinterpret_cast<Long>(row) % 16 == 0; }

DEVICE Long greater(Long a, Long b) { return a > b ? a : b; }

DEVICE Long greatest_over_lanes(Long key) {
#pragma unroll
    for (int apart = LANES / 2; apart > 0; apart /= 2) key = greater(key, __shfl_xor_sync(ALL_LANES, key, apart));
    return key;
}

// The sum of `own` over the threads before this one, and over all. All threads of the block call it.
DEVICE Long sum_before(Long own, Long& total) {
    __shared__ Long by_warp[WARPS];
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    Long reached = own;
#pragma unroll
    for (int apart = 1; apart < LANES; apart *= 2) {
        const Long below = __shfl_up_sync(ALL_LANES, reached, apart);
        if (lane >= apart) reached += below;
    }
    __syncthreads();  // all have read what the call before left
    if (lane == LANES - 1) by_warp[warp] = reached;
    __syncthreads();
    Long before = 0;
    total = 0;
#pragma unroll 2
    for (int each = 0; each < WARPS; each++) {
        const Long sum = by_warp[each];
        if (each < warp) before += sum;
        total += sum;
    }
    return before + reached - own;
}

// ------------------------------------------------------------------------------------------------- the greatest logit

// A logit and its id as a number: greater for the greater logit, then for the lower id. NaN is the greatest of all.
constexpr Word NOT_FINITE = 0xff800000u;  // the upper half for +inf
constexpr Word NOTHING = 0x007fffffu;     // and for -inf

DEVICE Long key_of(float logit, int id) {
    Word bits = __float_as_uint(logit);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        bits = 0xffffffffu;
    } else if (bits != 0x80000000u) {  // of -0, which are those that stand for its equal, 0
        bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    }
    return static_cast<Long>(bits) << 32 | static_cast<Word>(~id);
}

DEVICE float logit_of(Long key) {
    const Word bits = static_cast<Word>(key >> 32);
    return __uint_as_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

DEVICE int id_of(Long key) { return static_cast<int>(~static_cast<Word>(key)); }

DEVICE int status_of(Long key) {
    const Word bits = static_cast<Word>(key >> 32);
    return bits >= NOT_FINITE ? 1 : bits <= NOTHING ? 2 : 0;
}

struct Best {
    float logit;
    int id;

    // Ids come in ascending order, so the first of equals stays; and so does a NaN.
    DEVICE void consider(float other, int at) {
        if (other > logit || other != other) {
            logit = other;
            id = at;
        }
    }

    DEVICE void consider(float4 others, int at) {
        consider(others.x, at);
        consider(others.y, at + 1);
        consider(others.z, at + 2);
        consider(others.w, at + 3);
    }
};

// Block (x, y): part x of row y, `size` logits of it, a multiple of 4; peaks [rows, parts].
extern "C" __global__ void __launch_bounds__(PEAK_THREADS) sample_peaks(
    const float* logits, Long* peaks, Word* handed_out, int vocab, int stride, int size
) {
    __shared__ Long by_warp[PEAK_THREADS / LANES];
    constexpr int STEP = 4 * PEAK_THREADS, AT_ONCE = 4;
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (blockIdx.x + blockIdx.y + threadIdx.x == 0) *handed_out = 0;  // for the other kernel
    const float* const row = logits + static_cast<long long>(blockIdx.y) * stride;
    const int first = blockIdx.x * size, end = min(first + size, vocab);
    Best best = {__uint_as_float(0xff800000u), first};  // -inf
    int rest = first;  // what is not read by fours
    if (is_aligned(row)) {
        rest = max(end / 4 * 4, first);
        const float4* const fours = reinterpret_cast<const float4*>(row);
        int id = first + 4 * threadIdx.x;
        for (; id + (AT_ONCE - 1) * STEP < rest; id += AT_ONCE * STEP) {
            float4 read[AT_ONCE];
#pragma unroll
            for (int each = 0; each < AT_ONCE; each++) read[each] = fours[(id + each * STEP) / 4];
#pragma unroll
            for (int each = 0; each < AT_ONCE; each++) best.consider(read[each], id + each * STEP);
        }
        for (; id < rest; id += STEP) best.consider(fours[id / 4], id);
    }
    for (int id = rest + threadIdx.x; id < end; id += PEAK_THREADS) best.consider(row[id], id);
    // A thread that saw nothing, or -inf alone, has an id that means nothing; it counts only where all are -inf.
    const Long key = greatest_over_lanes(key_of(best.logit, best.id));
    const int lane = threadIdx.x % LANES;
    if (lane == 0) by_warp[threadIdx.x / LANES] = key;
    __syncthreads();
    if (threadIdx.x >= LANES) return;
    const Long all = greatest_over_lanes(lane < PEAK_THREADS / LANES ? by_warp[lane] : 0);
    if (lane == 0) peaks[blockIdx.y * gridDim.x + blockIdx.x] = all;
}

// ------------------------------------------------------------------------------------------------- weights

// The argument of a weight's exponential is never above 0. Its bits without the sign, its magnitude, rank the tokens:
// 0 for the best. From `COLD` on, 32.0, weights round to 0.
constexpr Word COLD = 0x42000000u, ABSENT = 0x7fffffffu;

DEVICE Word magnitude_of(float logit, float peak, float temperature) {
    return __float_as_uint((logit - peak) / temperature) & 0x7fffffffu;
}

// 0 where it is less than `least` of the best token's.
DEVICE Long weight_of(Word magnitude, float least) {
    if (magnitude >= COLD) return 0;
    const float share = expf(-__uint_as_float(magnitude));
    return share < least ? 0 : __float2ull_rn(share * 0x1p44f);
}

// ------------------------------------------------------------------------------------------------- histograms

// The coarse digit of a magnitude below COLD: one for all below 2**-6, then 128 for each power of two.
constexpr Word FINE = 0x3c800000u;
constexpr int FINE_BITS = 30, DIGIT_BITS = 16, COARSE_BINS = 1 + ((COLD - FINE) >> DIGIT_BITS);
// A finer histogram tells the next so many bits. There are at most 4 of them, when starting below 2**-6; as often for
// counts as for masses.
constexpr int FINER_BITS = 8, FINER_BINS = 1 << FINER_BITS, LEVELS = 8;
constexpr int BINS = COARSE_BINS + LEVELS * FINER_BINS;
constexpr int BINS_A_THREAD = (COARSE_BINS + THREADS - 1) / THREADS;

// Four logits a thread; what fits into 48 KiB of shared memory beside a histogram.
constexpr int MOST_CHUNKS = 3;

DEVICE int coarse_digit(Word magnitude) {
    return magnitude < FINE ? 0 : 1 + static_cast<int>((magnitude - FINE) >> DIGIT_BITS);
}

struct Histogram {
    Word counts[COARSE_BINS];
    Word low[COARSE_BINS], high[COARSE_BINS];  // of masses: 64-bit atomics in shared memory would be slow

    DEVICE void clear(int bins) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < bins; bin += THREADS) counts[bin] = low[bin] = high[bin] = 0;
        __syncthreads();
    }

    DEVICE void add(int bin, Long mass) {
        atomicAdd(counts + bin, 1u);
        if (mass == 0) return;
        const Word added = static_cast<Word>(mass);
        const Word found = atomicAdd(low + bin, added);
        const Word carried = static_cast<Word>(mass >> 32) + (found + added < found ? 1u : 0u);
        if (carried) atomicAdd(high + bin, carried);
    }

    DEVICE void add_to(Word* all_counts, Long* all_masses, int bins) {
        __syncthreads();
        for (int bin = threadIdx.x; bin < bins; bin += THREADS) {
            if (counts[bin] == 0) continue;
            atomicAdd(all_counts + bin, counts[bin]);
            const Long mass = static_cast<Long>(high[bin]) << 32 | low[bin];
            if (mass) atomicAdd(all_masses + bin, mass);
        }
    }
};

// Where the tokens end that a filter leaves: the bin, and what is before it and in it.
struct Found {
    int bin;  // negative: after all bins
    Word count_before, count;
    Long mass_before, mass;
};

// What the filters leave: magnitudes below `magnitude`, and of those equal to it the first `ties` by id.
struct Cut {
    Word magnitude;
    Word ties;
    Long mass;  // of all these
};

// The part of a row that a block draws from, and the workspace of that row; in shared memory, written by one thread.
struct Part {
    int row, part, parts, chunks;
    bool counting;  // whether top_k leaves some out
    bool weighing;  // whether top_p may: whether histograms hold masses
    int passed;     // times that all blocks of the row have met
    int levels;     // finer histograms that are used up
    Word* counts;   // [BINS], 0 between launches, as are the next two
    Long* masses;   // [BINS]
    Word* arrived;  // blocks, since the launch began
    Long* sums;     // [parts]: of weights
    Word* ties;     // [parts]
    Cut cut;

    // Of the first of the four neighbours that this thread has in a chunk.
    DEVICE int id(int chunk) const { return 4 * ((part * chunks + chunk) * THREADS + static_cast<int>(threadIdx.x)); }
};

// Magnitudes, which each thread reads and writes its own of.
struct Held {
    uint4 fours[MOST_CHUNKS * THREADS];

    DEVICE uint4& of(int chunk) { return fours[chunk * THREADS + threadIdx.x]; }
};

DEVICE void load(Held& held, const Part& own, const float* row, int vocab, float peak, float temperature) {
    const bool aligned = is_aligned(row);
#pragma unroll 1
    for (int chunk = 0; chunk < own.chunks; chunk++) {
        const int first = own.id(chunk);
        uint4 four = {ABSENT, ABSENT, ABSENT, ABSENT};
        if (aligned && first + 3 < vocab) {
            const float4 read = *reinterpret_cast<const float4*>(row + first);
            four.x = magnitude_of(read.x, peak, temperature);
            four.y = magnitude_of(read.y, peak, temperature);
            four.z = magnitude_of(read.z, peak, temperature);
            four.w = magnitude_of(read.w, peak, temperature);
        } else {
            if (first < vocab) four.x = magnitude_of(row[first], peak, temperature);
            if (first + 1 < vocab) four.y = magnitude_of(row[first + 1], peak, temperature);
            if (first + 2 < vocab) four.z = magnitude_of(row[first + 2], peak, temperature);
            if (first + 3 < vocab) four.w = magnitude_of(row[first + 3], peak, temperature);
        }
        held.of(chunk) = four;
    }
}

template <typename Add>
DEVICE void add_all(Held& held, const Part& own, const Add& add) {
#pragma unroll 1
    for (int chunk = 0; chunk < own.chunks; chunk++) {
        const uint4 four = held.of(chunk);
        add(four.x);
        add(four.y);
        add(four.z);
        add(four.w);
    }
}

// Until all blocks of the row have come here; what they wrote before can then be read, by fresh loads.
DEVICE void meet(Part& own) {
    __syncthreads();
    if (threadIdx.x == 0) {
        own.passed++;
        __threadfence();
        atomicAdd(own.arrived, 1u);
        while (load_acquired(own.arrived) < static_cast<Word>(own.passed * own.parts)) {}
        __threadfence();
    }
    __syncthreads();
}

// The last block to leave cleans up for the next launch: then nobody waits or reads any more.
DEVICE void leave(const Part& own) {
    __shared__ bool is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        is_last = atomicAdd(own.arrived, 1u) == static_cast<Word>((own.passed + 1) * own.parts - 1);
    }
    __syncthreads();
    if (!is_last) return;
    const int used = own.counting || own.weighing ? COARSE_BINS + own.levels * FINER_BINS : 0;
    for (int bin = threadIdx.x; bin < used; bin += THREADS) {
        own.counts[bin] = 0;
        own.masses[bin] = 0;
    }
    if (threadIdx.x == 0) *own.arrived = 0;
}

// The coarse histogram of the whole row, in its workspace.
DEVICE void count_coarsely(Histogram& histogram, Held& held, Part& own) {
    histogram.clear(COARSE_BINS);
    const bool weighing = own.weighing;
    const auto add = [&](Word magnitude) {
        if (magnitude < COLD) histogram.add(coarse_digit(magnitude), weighing ? weight_of(magnitude, 0.0f) : 0);
    };
    add_all(held, own, add);
    histogram.add_to(own.counts, own.masses, COARSE_BINS);
    meet(own);
}

// The finer histogram of magnitudes in [low, low + 2**bits), by their bits from `shift` on; put at `offset`.
DEVICE void count_finely(Histogram& histogram, Held& held, Part& own, Word low, int bits, int shift, int offset) {
    histogram.clear(FINER_BINS);
    const bool weighing = own.weighing;
    const auto add = [&](Word magnitude) {
        const Word above = magnitude - low;  // wraps around below `low`
        if (magnitude >= COLD || above >> bits) return;
        histogram.add(static_cast<int>(above >> shift), weighing ? weight_of(magnitude, 0.0f) : 0);
    };
    add_all(held, own, add);
    histogram.add_to(own.counts + offset, own.masses + offset, FINER_BINS);
    meet(own);
}

// The bin in which the running sum of counts, or of masses, comes to `target`, which is at least 1. It stays in shared
// memory until the next call.
DEVICE const Found& find(const Word* counts, const Long* masses, int bins, Long target, bool by_mass) {
    __shared__ Found found;
    Word count_of[BINS_A_THREAD];
    Long mass_of[BINS_A_THREAD];
    Word count = 0;
    Long mass = 0, all_counts, all_masses;
#pragma unroll
    for (int each = 0; each < BINS_A_THREAD; each++) {
        const int bin = threadIdx.x * BINS_A_THREAD + each;
        count_of[each] = bin < bins ? load_fresh(counts + bin) : 0;
        mass_of[each] = bin < bins ? load_fresh(masses + bin) : 0;
        count += count_of[each];
        mass += mass_of[each];
    }
    Word count_before = static_cast<Word>(sum_before(count, all_counts));
    Long mass_before = sum_before(mass, all_masses);
    if (threadIdx.x == 0) found = {-1, static_cast<Word>(all_counts), 0, all_masses, 0};
    __syncthreads();
    const Long before = by_mass ? mass_before : count_before;
    if (before < target && target <= before + (by_mass ? mass : count)) {
        bool open = true;
#pragma unroll
        for (int each = 0; each < BINS_A_THREAD; each++) {
            const Long reached = by_mass ? mass_before + mass_of[each] : count_before + count_of[each];
            if (open && target <= reached) {
                const int bin = threadIdx.x * BINS_A_THREAD + each;
                found = {bin, count_before, count_of[each], mass_before, mass_of[each]};
                open = false;
            }
            count_before += count_of[each];
            mass_before += mass_of[each];
        }
    }
    __syncthreads();
    return found;
}

// The shortest prefix of the ranking with `target` tokens, or with a mass of `target`; of all where there is none.
DEVICE Cut select(Histogram& histogram, Held& held, Part& own, Long target, bool by_mass) {
    const Found& found = find(own.counts, own.masses, COARSE_BINS, target, by_mass);
    if (found.bin < 0) return {COLD, 0, found.mass_before};  // those left out weigh nothing
    Word low = found.bin == 0 ? 0 : FINE + (static_cast<Word>(found.bin - 1) << DIGIT_BITS);
    Word end = found.bin == 0 ? FINE : low + (1u << DIGIT_BITS);
    int bits = found.bin == 0 ? FINE_BITS : DIGIT_BITS;
    Long mass_before = found.mass_before;
    target -= by_mass ? found.mass_before : found.count_before;
    while (found.count > 1 && bits > 0) {
        const int shift = bits > FINER_BITS ? bits - FINER_BITS : 0;
        const int level = own.levels, offset = COARSE_BINS + level * FINER_BINS;
        __syncthreads();
        if (threadIdx.x == 0) own.levels = level + 1;
        count_finely(histogram, held, own, low, bits, shift, offset);
        find(own.counts + offset, own.masses + offset, 1 << (bits - shift), target, by_mass);
        low += static_cast<Word>(found.bin) << shift;
        end = low + (1u << shift);
        bits = shift;
        mass_before += found.mass_before;
        target -= by_mass ? found.mass_before : found.count_before;
    }
    if (found.count == 1) return {end, 0, mass_before + found.mass};
    // All of them are equal; the lowest ids go first.
    const Long weight = weight_of(low, 0.0f);
    const Long ties = by_mass ? (target + weight - 1) / weight : target;
    return {low, static_cast<Word>(ties), mass_before + ties * weight};
}

// What top_k, then top_p leave. One of them is asked for, at least.
DEVICE Cut filter(Histogram& histogram, Held& held, Part& own, int top_k, float top_p) {
    count_coarsely(histogram, held, own);
    Cut cut = {COLD, 0, 0};
    // Twice the same code, once in the machine's: two copies of it would spill registers.
#pragma unroll 1
    for (int by_mass = own.counting ? 0 : 1; by_mass < (own.weighing ? 2 : 1); by_mass++) {
        Long target = top_k;
        if (by_mass) {
            if (!own.counting) cut.mass = find(own.counts, own.masses, COARSE_BINS, ~0ull, true).mass_before;  // of all
            target = __double2ull_ru(static_cast<double>(top_p) * __ull2double_rn(cut.mass));
            target = target < 1 ? 1 : target > cut.mass ? cut.mass : target;
        }
        cut = select(histogram, held, own, target, by_mass);
    }
    return cut;
}

// In the block whose part the draw falls on: the token at which this part's running sum passes `target`.
// Of the equals at the cut, this part has the first `ties`.
DEVICE void pick(Held& held, const Part& own, float least, Long target, Word ties, int* token) {
    const Cut& cut = own.cut;
    const Long of_tie = weight_of(cut.magnitude, least);
    Word ties_before = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < own.chunks; chunk++) {
        const uint4 four = held.of(chunk);
        const Word magnitudes[4] = {four.x, four.y, four.z, four.w};
        Word equals = 0;
#pragma unroll
        for (int each = 0; each < 4; each++) equals += magnitudes[each] == cut.magnitude;
        Long all_equals, all;
        Word rank = ties_before + static_cast<Word>(sum_before(equals, all_equals));
        Long weights[4], sum = 0;
#pragma unroll
        for (int each = 0; each < 4; each++) {
            weights[each] = magnitudes[each] < cut.magnitude ? weight_of(magnitudes[each], least) : 0;
            if (magnitudes[each] == cut.magnitude) weights[each] = rank++ < ties ? of_tie : 0;
            sum += weights[each];
        }
        Long reached = sum_before(sum, all);
        if (reached <= target && target < reached + sum) {
            bool open = true;
#pragma unroll
            for (int each = 0; each < 4; each++) {
                reached += weights[each];
                if (open && target < reached) {
                    *token = own.id(chunk) + each;
                    open = false;
                }
            }
        }
        if (target < all) return;  // the same for all threads
        target -= all;
        ties_before += static_cast<Word>(all_equals);
    }
}

// Writes the token of the row, in the block whose part it is in. `chance` is a fraction of 2**64.
DEVICE void draw(Held& held, Part& own, float least, Long chance, int* token) {
    __shared__ bool is_here;
    __shared__ Long target_here;
    __shared__ Word ties_here;
    const Cut& cut = own.cut;
    Long mass = 0, equals = 0, all_mass, all_equals;
    const auto add = [&](Word magnitude) {
        if (magnitude < cut.magnitude) mass += weight_of(magnitude, least);
        equals += magnitude == cut.magnitude;
    };
    add_all(held, own, add);
    sum_before(mass, all_mass);
    sum_before(equals, all_equals);
    if (threadIdx.x == 0) {
        own.sums[own.part] = all_mass;
        own.ties[own.part] = static_cast<Word>(all_equals);
    }
    meet(own);
    // Thread t takes part t of the row.
    const int part = threadIdx.x;
    Long sum = part < own.parts ? load_fresh(own.sums + part) : 0, total;
    const Word found = part < own.parts ? load_fresh(own.ties + part) : 0;
    const Word ties_before = static_cast<Word>(sum_before(found, total));
    const Word ties_left = ties_before < cut.ties ? cut.ties - ties_before : 0;
    sum += min(found, ties_left) * weight_of(cut.magnitude, least);
    const Long before = sum_before(sum, total);
    const Long target = __umul64hi(chance, total);
    if (part == own.part) {
        is_here = before <= target && target < before + sum;
        target_here = target - before;
        ties_here = ties_left;
    }
    __syncthreads();
    if (is_here) pick(held, own, least, target_here, ties_here, token);
}

// ------------------------------------------------------------------------------------------------- rows

DEVICE Long mixed(Long x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

// 53 random bits as a fraction of 2**64.
DEVICE Long chance_of(Long seed, int position) {
    constexpr Long STEP = 0x9e3779b97f4a7c15ull;
    return mixed(mixed(seed + STEP) + static_cast<Long>(static_cast<long long>(position) + 1) * STEP) >> 11 << 11;
}

// By one warp.
DEVICE Long peak_of(const Long* peaks, int parts) {
    Long best = 0;
    for (int part = threadIdx.x % LANES; part < parts; part += LANES) best = greater(best, peaks[part]);
    return greatest_over_lanes(best);
}

// The next part of the rows that are no greedy ones, counted through all of them.
DEVICE int next_part(Word* handed_out) {
    __shared__ Word taken;
    __syncthreads();
    if (threadIdx.x == 0) taken = atomicAdd(handed_out, 1u);
    __syncthreads();
    return static_cast<int>(taken);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) sample_draw(
    const float* logits, const float* temperature, const int* top_k, const float* top_p, const float* min_p,
    const Long* seeds, const int* positions, int* tokens, int* status, const Long* peaks, Word* handed_out, Word* counts,
    Long* masses, Word* arrived, Long* sums, Word* ties, int rows, int vocab, int stride, int peak_parts, int parts,
    int chunks
) {
    __shared__ Held held;
    __shared__ Histogram histogram;
    __shared__ Part own;
    __shared__ Word drawn[WARPS];  // which of THREADS rows are no greedy ones, a bit each
    const int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    let_next_kernel_start();
    wait_for_previous_kernel();
    for (int row = blockIdx.x * WARPS + warp; row < rows; row += gridDim.x * WARPS) {
        if (temperature[row] != 0.0f) continue;
        const Long peak = peak_of(peaks + row * peak_parts, peak_parts);
        if (lane == 0) {
            status[row] = status_of(peak);
            tokens[row] = status_of(peak) ? 0 : id_of(peak);
        }
    }
    int taken = -1, before = 0;  // the part that this block is at; rows that are no greedy ones, before `first`
    for (int first = 0; first < rows; first += THREADS) {
        const int at = first + static_cast<int>(threadIdx.x);
        const Word lanes = __ballot_sync(ALL_LANES, at < rows && temperature[min(at, rows - 1)] != 0.0f);
        __syncthreads();
        if (lane == 0) drawn[warp] = lanes;
        __syncthreads();
        int here = 0;
        for (int of = 0; of < WARPS; of++) here += __popc(drawn[of]);
        if (here > 0 && taken < 0) taken = next_part(handed_out);
#pragma unroll 1
        for (; taken >= 0 && taken / parts < before + here; taken = next_part(handed_out)) {
            int nth = taken / parts - before, of = 0;
            while (nth >= __popc(drawn[of])) nth -= __popc(drawn[of++]);
            Word left = drawn[of];
            while (nth-- > 0) left &= left - 1;
            const int row = first + of * LANES + __ffs(left) - 1, part = taken % parts;
            const Long peak = peak_of(peaks + row * peak_parts, peak_parts);
            if (part == 0 && threadIdx.x == 0) {
                status[row] = status_of(peak);
                if (status_of(peak)) tokens[row] = 0;
            }
            if (status_of(peak)) continue;
            const long long apart = row;
            if (threadIdx.x == 0) {
                own.row = row;
                own.part = part;
                own.parts = parts;
                own.chunks = chunks;
                own.counting = top_k[row] > 0 && top_k[row] < vocab;
                own.weighing = top_p[row] < 1.0f;
                own.passed = own.levels = 0;
                own.counts = counts + apart * BINS;
                own.masses = masses + apart * BINS;
                own.arrived = arrived + apart;
                own.sums = sums + apart * parts;
                own.ties = ties + apart * parts;
                own.cut = {COLD, 0, 0};
            }
            __syncthreads();
            load(held, own, logits + apart * stride, vocab, logit_of(peak), fmaxf(temperature[row], 1e-30f));
            if (own.counting || own.weighing) {
                const Cut cut = filter(histogram, held, own, top_k[own.row], top_p[own.row]);
                if (threadIdx.x == 0) own.cut = cut;
            }
            __syncthreads();
            const Long chance = chance_of(seeds[own.row], positions[own.row]);
            draw(held, own, fminf(min_p[own.row], 1.0f), chance, tokens + own.row);
            leave(own);
        }
        before += here;
    }
}

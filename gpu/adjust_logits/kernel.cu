// Entries name few logits of a row, no two the same one, so their order does not matter. Where there is a mask, a block
// has a run of the row's logits: it adjusts the entries that fall into it, then masks.

constexpr int THREADS = 256, LANES = 32;

struct Entries {
    const int* starts;
    const int* tokens;
    const int* counts;
    const float* biases;
    const float* repetition;
    const float* frequency;
    const float* presence;
    float* kept;
};

DEVICE float adjusted(float logit, int count, float bias, float repetition, float frequency, float presence) {
    if (count >= 0 && repetition != 1.0f) logit = logit > 0.0f ? logit / repetition : logit * repetition;
    if (count > 0) {
        const double product = __dmul_rn(static_cast<double>(count), static_cast<double>(frequency));
        logit -= static_cast<float>(__dadd_rn(product, static_cast<double>(presence)));
    }
    return logit + bias;
}

// Those of the entries first, first + step, .. of a row whose tokens are in [low, high); for an entry outside of the
// vocabulary, NaN is kept where `telling`.
DEVICE void adjust(
    float* logits, const Entries& entries, int row, int vocab, int first, int step, int low, int high, bool telling
) {
    const int end = entries.starts[row + 1];
    const float repetition = entries.repetition[row], frequency = entries.frequency[row];
    const float presence = entries.presence[row];
    for (int entry = entries.starts[row] + first; entry < end; entry += step) {
        const int token = entries.tokens[entry];
        if (token >= low && token < high) {
            const float logit = logits[token];
            entries.kept[entry] = logit;
            const int count = entries.counts[entry];
            logits[token] = adjusted(logit, count, entries.biases[entry], repetition, frequency, presence);
        } else if (telling && (token < 0 || token >= vocab)) {
            entries.kept[entry] = __uint_as_float(0x7fc00000u);
        }
    }
}

// Block (x, y): some of the entries of row y.
extern "C" __global__ void __launch_bounds__(THREADS) adjust_logits(
    float* logits, const int* starts, const int* tokens, const int* counts, const float* biases, const float* repetition,
    const float* frequency, const float* presence, float* kept, int vocab, int stride
) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const Entries entries = {starts, tokens, counts, biases, repetition, frequency, presence, kept};
    const int row = blockIdx.y, first = blockIdx.x * THREADS + threadIdx.x;
    float* const own = logits + static_cast<long long>(row) * stride;
    adjust(own, entries, row, vocab, first, gridDim.x * THREADS, 0, vocab, true);
}

// Block (x, y): run x of row y, 32 * THREADS logits.
extern "C" __global__ void __launch_bounds__(THREADS) adjust_and_mask_logits(
    float* logits, const int* starts, const int* tokens, const int* counts, const float* biases, const float* repetition,
    const float* frequency, const float* presence, float* kept, int vocab, int stride, const Word* mask, int mask_stride
) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const Entries entries = {starts, tokens, counts, biases, repetition, frequency, presence, kept};
    const int row = blockIdx.y, low = blockIdx.x * LANES * THREADS, high = min(low + LANES * THREADS, vocab);
    float* const own = logits + static_cast<long long>(row) * stride;
    adjust(own, entries, row, vocab, threadIdx.x, THREADS, low, high, blockIdx.x == 0);
    __syncthreads();
    // A warp reads 32 words of the mask at once, then writes the logits of one after the other.
    const int lane = threadIdx.x % LANES, first_word = low / 32 + (threadIdx.x - lane), words = (vocab + 31) / 32;
    const int word = first_word + lane;
    const Word allowed = word < words ? mask[static_cast<long long>(row) * mask_stride + word] : 0;
    for (int each = 0; each < LANES; each++) {
        const Word bits = __shfl_sync(0xffffffffu, allowed, each);
        const int token = (first_word + each) * 32 + lane;
        if (token < high && !(bits >> lane & 1)) own[token] = __uint_as_float(0xff800000u);
    }
}

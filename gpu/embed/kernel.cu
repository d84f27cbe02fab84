// One block a token. Rows are moved in chunks of 16 bytes: as they are, or elements of 16 bits widened to 32.

constexpr int THREADS = 256;

// The cosine and the sine of an angle, to 2e-7. Float64 leaves an error of 1e-7 where the angle is 2**31, and the less
// the smaller it is; CUDA's own cosf would need a stack for its large arguments.
DEVICE void turn(float angle, float& cosine, float& sine) {
    constexpr double TWO_OVER_PI = 0.63661977236758134308, HALF_PI = 1.57079632679489661923;
    const int quarters = __double2int_rn(angle * TWO_OVER_PI);
    const float rest = static_cast<float>(fma(-static_cast<double>(quarters), HALF_PI, static_cast<double>(angle)));
    const float square = rest * rest;  // of at most pi / 4; the polynomials are those of Cephes
    const float s = rest + rest * square *
        (-1.6666654611e-1f + square * (8.3321608736e-3f + square * -1.9515295891e-4f));
    const float c = 1.0f - 0.5f * square + square * square *
        (4.166664568298827e-2f + square * (-1.388731625493765e-3f + square * 2.443315711809948e-5f));
    const bool swapped = quarters & 1;
    cosine = swapped ? s : c;
    sine = swapped ? c : s;
    if ((quarters + 1) & 2) cosine = -cosine;
    if (quarters & 2) sine = -sine;
}

struct Token {
    int id;
    float position;
};

// The block's token, filled in.
DEVICE Token begin(int* tokens, const int* sources, const int* sampled, const int* positions) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int at = blockIdx.x, source = sources[at], given = tokens[at];
    const Token token = {source >= 0 ? sampled[source] : given, static_cast<float>(positions[at])};
    if (source >= 0 && threadIdx.x == 0) tokens[at] = token.id;  // no thread uses what it had
    return token;
}

DEVICE void write_angles(
    float position, const float* inverse_frequencies, float* cos, float* sin, int pairs, float scaling
) {
    const long long first = static_cast<long long>(blockIdx.x) * pairs;
    for (int pair = threadIdx.x; pair < pairs; pair += THREADS) {
        float cosine, sine;
        turn(__fmul_rn(position, inverse_frequencies[pair]), cosine, sine);
        cos[first + pair] = cosine * scaling;
        sin[first + pair] = sine * scaling;
    }
}

struct alignas(16) Four { float x, y, z, w; };

DEVICE Four widened(Word low, Word high) {
    return {to_float(low & 0xffff), to_float(low >> 16), to_float(high & 0xffff), to_float(high >> 16)};
}

DEVICE void put(Eight* to, int chunk, Eight read) { to[chunk] = read; }

DEVICE void put(Four* to, int chunk, Eight read) {
    to[2 * chunk] = widened(read.x, read.y);
    to[2 * chunk + 1] = widened(read.z, read.w);
}

// `chunks` of 16 bytes in a row of the embedding; strides in 16 bytes.
template <typename To>
DEVICE void embed(
    int* tokens, const int* sources, const int* sampled, const int* positions, const Eight* embedding,
    const float* inverse_frequencies, To* hidden, float* cos, float* sin, int chunks, int pairs, float scaling,
    int embedding_stride, int hidden_stride
) {
    constexpr int AHEAD = 2;  // chunks on their way while the angles are computed
    const Token token = begin(tokens, sources, sampled, positions);
    const Eight* const from = embedding + static_cast<long long>(token.id) * embedding_stride;
    To* const to = hidden + static_cast<long long>(blockIdx.x) * hidden_stride;
    Eight read[AHEAD];
#pragma unroll
    for (int each = 0; each < AHEAD; each++) {
        const int chunk = threadIdx.x + each * THREADS;
        read[each] = chunk < chunks ? from[chunk] : eight_zeros();
    }
    write_angles(token.position, inverse_frequencies, cos, sin, pairs, scaling);
#pragma unroll
    for (int each = 0; each < AHEAD; each++) {
        const int chunk = threadIdx.x + each * THREADS;
        if (chunk < chunks) put(to, chunk, read[each]);
    }
    for (int chunk = threadIdx.x + AHEAD * THREADS; chunk < chunks; chunk += THREADS) put(to, chunk, from[chunk]);
}

#define KERNEL(NAME, TO)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                                        \
        int* tokens, const int* sources, const int* sampled, const int* positions, const Eight* embedding,             \
        const float* inverse_frequencies, TO* hidden, float* cos, float* sin, int chunks, int pairs, float scaling,    \
        int embedding_stride, int hidden_stride                                                                        \
    ) {                                                                                                                \
        embed(                                                                                                         \
            tokens, sources, sampled, positions, embedding, inverse_frequencies, hidden, cos, sin, chunks, pairs,      \
            scaling, embedding_stride, hidden_stride                                                                   \
        );                                                                                                             \
    }

KERNEL(embed_copied, Eight)
KERNEL(embed_widened, Four)

// GROUP neighbouring lanes a head: each takes WIDTH pairs at a time, and shares of what does not turn. Heads of a
// token lie one after the other: those of the query, of the key, of the value.
//
// Constants: HEAD_DIM; PAIRS, which turn; WIDTH, elements an access; GROUP, a power of two up to 32.

typedef Chunk<WIDTH> Wide;

constexpr int TURNING = PAIRS / WIDTH;                     // chunks of first elements, and again of second ones
constexpr int RESTING = HEAD_DIM / WIDTH - 2 * TURNING;    // chunks after them
constexpr int EACH = (TURNING + GROUP - 1) / GROUP;        // of the turning ones, for a lane
constexpr int OTHERS = (RESTING + GROUP - 1) / GROUP;

// The share of one head of one lane.
struct Share {
    Wide first[EACH], second[EACH], rest[OTHERS ? OTHERS : 1];
};

__device__ __forceinline__ void load(Share& share, const Element* head, int lane) {
    const Wide* const chunks = reinterpret_cast<const Wide*>(head);
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = lane + each * GROUP;
        if (chunk < TURNING) {
            share.first[each] = chunks[chunk];
            share.second[each] = chunks[TURNING + chunk];
        }
    }
#pragma unroll
    for (int each = 0; each < OTHERS; each++) {
        const int chunk = lane + each * GROUP;
        if (chunk < RESTING) share.rest[each] = chunks[2 * TURNING + chunk];
    }
}

__device__ __forceinline__ void store(const Share& share, Element* head, int lane) {
    Wide* const chunks = reinterpret_cast<Wide*>(head);
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = lane + each * GROUP;
        if (chunk < TURNING) {
            chunks[chunk] = share.first[each];
            chunks[TURNING + chunk] = share.second[each];
        }
    }
#pragma unroll
    for (int each = 0; each < OTHERS; each++) {
        const int chunk = lane + each * GROUP;
        if (chunk < RESTING) chunks[2 * TURNING + chunk] = share.rest[each];
    }
}

__device__ __forceinline__ float squares(const Wide& chunk) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) sum += widened(chunk.of[i]) * widened(chunk.of[i]);
    return sum;
}

__device__ __forceinline__ void scale_by(Wide& chunk, float scale, const Wide& weights) {
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        chunk.of[i] = narrowed(rounded(widened(chunk.of[i]) * scale) * widened(weights.of[i]));
    }
}

// To a root mean square of one, then by `norm`. All of the warp takes part.
__device__ __forceinline__ void normalise(Share& share, const Element* norm, float eps, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        if (lane + each * GROUP < TURNING) sum += squares(share.first[each]) + squares(share.second[each]);
    }
#pragma unroll
    for (int each = 0; each < OTHERS; each++) {
        if (lane + each * GROUP < RESTING) sum += squares(share.rest[each]);
    }
    const float scale = rsqrtf(summed_over_lanes<GROUP>(sum) / HEAD_DIM + eps);
    const Wide* const weights = reinterpret_cast<const Wide*>(norm);
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = lane + each * GROUP;
        if (chunk < TURNING) {
            scale_by(share.first[each], scale, weights[chunk]);
            scale_by(share.second[each], scale, weights[TURNING + chunk]);
        }
    }
#pragma unroll
    for (int each = 0; each < OTHERS; each++) {
        const int chunk = lane + each * GROUP;
        if (chunk < RESTING) scale_by(share.rest[each], scale, weights[2 * TURNING + chunk]);
    }
}

// By what the pairs of one lane turn.
struct Angles {
    struct alignas(WIDTH * 4 < 16 ? WIDTH * 4 : 16) Chunks {
        float of[WIDTH];
    } cos[EACH], sin[EACH];
};

__device__ __forceinline__ void load(Angles& angles, const float* cos, const float* sin, int lane) {
#pragma unroll
    for (int each = 0; each < EACH; each++) {
        const int chunk = lane + each * GROUP;
        if (chunk < TURNING) {
            angles.cos[each] = reinterpret_cast<const Angles::Chunks*>(cos)[chunk];
            angles.sin[each] = reinterpret_cast<const Angles::Chunks*>(sin)[chunk];
        }
    }
}

__device__ __forceinline__ void turn(Share& share, const Angles& angles) {
#pragma unroll
    for (int each = 0; each < EACH; each++) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            const float cos = angles.cos[each].of[i], sin = angles.sin[each].of[i];
            const float a = widened(share.first[each].of[i]), b = widened(share.second[each].of[i]);
            share.first[each].of[i] = narrowed(a * cos - b * sin);
            share.second[each].of[i] = narrowed(b * cos + a * sin);
        }
    }
}

// Strides are between tokens, in elements. A norm is null where there is none.
extern "C" __global__ void __launch_bounds__(256) rope_write_kv(
    Element* query, const Element* key, const Element* value, const float* cos, const float* sin, const int* slots,
    Element* key_pool, Element* value_pool, const Element* query_norm, const Element* key_norm, float eps, int heads,
    int kv_heads, int query_stride, int key_stride, int value_stride
) {
    let_next_kernel_start();
    const long long token = blockIdx.x;
    const int place = blockIdx.y * blockDim.x + threadIdx.x;
    const int lane = place % GROUP;
    const int head = place / GROUP;  // over query, key and value
    const bool in_query = head < heads, in_key = !in_query && head < heads + kv_heads;
    const bool in_value = !in_query && !in_key && head < heads + 2 * kv_heads;
    const int own = in_query ? head : in_key ? head - heads : head - heads - kv_heads;

    const Element* from = query + token * query_stride;
    if (in_key) from = key + token * key_stride;
    if (in_value) from = value + token * value_stride;
    if (query_norm != nullptr) {
        const Element* const norm = in_query ? query_norm : key_norm;
        expect(norm + lane * WIDTH);
        expect(norm + (TURNING + lane) * WIDTH);
    }
    wait_for_previous_kernel();
    // All loads are under way before the first is waited for.
    Share share = {};
    Angles angles = {};
    if (in_query || in_key || in_value) load(share, from + own * HEAD_DIM, lane);
    if (in_query || in_key) load(angles, cos + token * PAIRS, sin + token * PAIRS, lane);
    const long long slot = slots[token];

    if (query_norm != nullptr) {
        Share normalised = share;
        normalise(normalised, in_query ? query_norm : key_norm, eps, lane);
        if (in_query || in_key) share = normalised;
    }
    if (in_query || in_key) turn(share, angles);

    if (in_query) {
        store(share, query + token * query_stride + own * HEAD_DIM, lane);
    } else if (in_key || in_value) {
        store(share, (in_key ? key_pool : value_pool) + (slot * kv_heads + own) * HEAD_DIM, lane);
    }
}

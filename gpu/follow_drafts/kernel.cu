// One thread a row: there are few. The kernel behind this one must not start early, for kernels further on read
// contexts before they wait.

constexpr int THREADS = 64;

struct Row { int first, drafts, start, room; };

extern "C" __global__ void __launch_bounds__(THREADS) follow_drafts(
    const int* verified, const int* drawn, const Row* rows, const int* tables, int* tokens, int* positions, int* slots,
    int* contexts, int* draw_positions, int count, int width, int block_size, int spare_slot, int vocab
) {
    wait_for_previous_kernel();
    const int row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= count) return;
    const Row own = rows[row];
    int held = 0;
    while (held < own.drafts && drawn[own.first + held] == verified[own.first + held + 1]) held++;
    const bool whole = held == own.drafts;
    const int position = own.start + 1 + held, last = own.first + held;
    const int* const table = tables + static_cast<long long>(row) * width;
    for (int each = 0; each < 2; each++) {  // the token before the last one, then that
        const int at = position - 1 + each;
        const bool there = each == 1 || whole;
        const int token = there ? drawn[last - 1 + each] : 0;
        tokens[2 * row + each] = token < vocab ? token : 0;
        positions[2 * row + each] = at;
        slots[2 * row + each] =
            there && at < own.room ? table[at / block_size] * block_size + at % block_size : spare_slot;
    }
    contexts[row] = min(position + 1, own.room);
    draw_positions[2 * row + 1] += held;
}

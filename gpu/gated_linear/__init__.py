"""gated_linear(x, weight, bias, out): many rows through a matrix of gates and ups, and the one by the other.

    p[r, o] = sum_i x[r, i] * weight[o, i] + bias[o]
    out[r, o] = silu(p[r, o]) * p[r, outputs + o]

| tensor | shape                 | dtype             |
|--------|-----------------------|-------------------|
| x      | [rows, in]            | bfloat16, float16 |
| weight | [2 * outputs, in]     | as x              |
| bias   | [2 * outputs] or None | as x              |
| out    | [rows, outputs]       | as x              |

For any number of rows; inputs and outputs are multiples of 8, all is contiguous. Sums are in float32, and all
is rounded once, at the end. A row's result is the same bits whatever the other rows are, and however many.
"""

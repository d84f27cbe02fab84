"""linear(x, weight, bias, out): rows through a matrix stored as checkpoints store it.

    out[r, o] = sum_i x[r, i] * weight[o, i] + bias[o]

| tensor | shape        | dtype                      |
|--------|--------------|----------------------------|
| x      | [rows, in]   | float32, bfloat16, float16 |
| weight | [out, in]    | as x                       |
| bias   | [out] or None| as x                       |
| out    | [rows, out]  | as x                       |

Sums are in float32. The CUDA implementation takes 1..16 rows of bfloat16 or float16, contiguous, with a
multiple of 8 inputs; there a row's result is the same bits whatever the other rows are, and however many.
"""

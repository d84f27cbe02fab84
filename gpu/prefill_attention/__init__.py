"""prefill_attention(query, key_pool, value_pool, block_tables, row_starts, contexts, scale, window, out).

The contract of `gpu.paged_attention`, for rows of many query tokens: chunks of prompts, whose first tokens
may be in the pool already. Row r of the batch is the tokens [row_starts[r], row_starts[r + 1]), the last ones
of a sequence of contexts[r] tokens whose keys and values are all in the pool, its own included. Entry p of
the sequence lies in block block_tables[r, p // block_size] at p % block_size.

    out[t, h] = sum_p softmax_p(scale * query[t, h] . key[p, g]) * value[p, g],   g = h * kv_heads // heads

over the p that token t, at position q of its sequence, sees: p <= q, and p > q - window where there is one.

| tensor               | shape                                    | dtype                            |
|----------------------|------------------------------------------|----------------------------------|
| query                | [tokens, heads, head_dim]                | float32, bfloat16, float16       |
| key_pool, value_pool | [blocks, block_size, kv_heads, head_dim] | as query                         |
| block_tables         | [rows, most blocks of a row], padded     | int32                            |
| row_starts           | [rows + 1], places in query and in out   | int32                            |
| contexts             | [rows]                                   | int32                            |
| out                  | [tokens, heads, head_dim]                | as query; not query itself       |

`scale`, above 0, multiplies the scores; `window` is in tokens or None. Scores and sums are in float32. Tokens
of no row, and rows without tokens, are passed over. Entries of a table, and of blocks, past a context are not
read.

The CUDA kernel, `cupy_kernel.PrefillAttention`, is for Hopper alone (sm_90a). It is made for one model's
heads and one device. It takes bfloat16 and float16, heads 64, 96, 128 or 256 wide, blocks of a multiple of 16
and up to 1024 rows. Pools may be views with any strides but the last. It plans on the device, so a captured
graph holds for any rows and contexts. Elsewhere there is `torch_kernel.prefill_attention`, of torch's own
operations; it asks the device for the length of each row, so it waits, and cannot be captured.
"""

"""paged_attention(query, key_pool, value_pool, block_tables, row_starts, contexts, scale, window, out).

Each token of a batch attends, causally, the keys and values of its own sequence, which lie in blocks of a
pool. Row r of the batch is the tokens [row_starts[r], row_starts[r + 1]), the last ones of a sequence of
contexts[r] tokens whose keys and values are all in the pool, its own included. Entry p of the sequence lies
in block block_tables[r, p // block_size] at p % block_size.

    out[t, h] = sum_p softmax_p(scale * query[t, h] . key[p, g]) * value[p, g],   g = h * kv_heads // heads

over the p that token t, at position q of its sequence, sees: p <= q, and p > q - window where there is one.

| tensor               | shape                                    | dtype                            |
|----------------------|------------------------------------------|----------------------------------|
| query                | [tokens, heads, head_dim]                | float32, bfloat16, float16       |
| key_pool, value_pool | [blocks, block_size, kv_heads, head_dim] | as query                         |
| block_tables         | [rows, most blocks of a row], padded     | int32                            |
| row_starts           | [rows + 1]                               | int32                            |
| contexts             | [rows]                                   | int32                            |
| out                  | [tokens, heads, head_dim]                | as query; not query itself       |

`scale` multiplies the scores; `window` is in tokens or None. Scores and sums are in float32.

The CUDA kernel, `cupy_kernel.PagedAttention`, is for rows of few tokens: it is made for one model's heads,
one device and the most tokens of a row (1 to decode, more to verify), and owns its workspace. It takes
bfloat16 and float16, heads 64, 96, 128 or 256 wide, and blocks of a multiple of 16; rows without tokens are
passed over. Pools may be views with any strides but the last. It plans on the device, so a captured graph
holds for any contexts.
"""

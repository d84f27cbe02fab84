"""decode_attention(query, key, value, cos, sin, key_pool, value_pool, block_tables, contexts, scale, window,
out, norms=None): what lies between two products of a decode step, in one kernel.

Row r holds one new token, the last of a sequence of contexts[r] tokens. Its query and key are turned by its
position, after they are normalised where there are norms; key and value are stored; it attends all of its
sequence. That is, with starts = 0, 1, ... and slots[r] the place of entry contexts[r] - 1 of row r:

    rope_write_kv(query, key, value, cos, sin, slots, key_pool, value_pool, norms)
    paged_attention(query, key_pool, value_pool, block_tables, starts, contexts, scale, window, out)

but for query, which is left as it is. Rows with a context of 0 are passed over. No two rows may end in the
same entry of a block.

| tensor               | shape                                    | dtype                          |
|----------------------|------------------------------------------|--------------------------------|
| query                | [rows, heads, head_dim]                  | bfloat16, float16              |
| key, value           | [rows, kv_heads, head_dim]               | as query                       |
| cos, sin             | [rows, pairs], 2 * pairs <= head_dim     | float32                        |
| key_pool, value_pool | [blocks, block_size, kv_heads, head_dim] | as query                       |
| block_tables         | [rows, most blocks of a row], padded     | int32                          |
| contexts             | [rows]                                   | int32                          |
| out                  | [rows, heads, head_dim]                  | as query                       |
| norms.query, .key    | [head_dim]                               | as query                       |

The CUDA kernel takes up to 32 rows, heads 64 or 128 wide, up to 16 heads to a kv head, and blocks of a
multiple of 16. It holds for any contexts, so a captured graph does. A row's context is split into parts of
256 tokens or more, 16 at most; a row's result is the same bits whatever the other rows are as long as all
contexts together, times kv heads, are at most 256 tokens for each multiprocessor. `paged_attention` is faster
for rows of 8,192 tokens or more, and shares out one long row among short ones more evenly.
"""

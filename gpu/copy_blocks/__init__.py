"""copy_blocks(pool, sources, targets): copy whole blocks of KV memory, for copy-on-write.

    pool[p, targets[c]] = pool[p, sources[c]] for every plane p, where sources[c] >= 0

| tensor  | shape                  | dtype                                                              |
|---------|------------------------|--------------------------------------------------------------------|
| pool    | [planes, blocks, size] | int64: 8-byte words; a block has `size` of them in each plane      |
| sources | [copies]               | int32; one that is negative copies nothing                         |
| targets | [copies]               | int32                                                              |

A plane is the keys or the values of one layer. All copies are made at once: no target is also a source or
a target of another copy.
"""

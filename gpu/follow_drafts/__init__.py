"""follow_drafts(verified, drawn, rows, tables, block_size, spare_block, vocab, tokens, positions, slots,
contexts, draw_positions): where sequences go on whose drafts were just verified, unknown to the host.

A pass has computed tokens of several rows, `verified`, and drawn the next one behind each, `drawn`. Row r had
its token at place first[r], and its drafts behind it; `rows[r]` = (first, drafts, start, room). A draft holds
if it is what was drawn at the place before it, and those before it hold:

    held = the length of the longest run of drafts that hold, at most `drafts`
    position = start + 1 + held: of the token drawn last, which stands at place first + held

Another pass over the same sequences has two tokens a row, at 2 r and 2 r + 1. They become the last two of the
sequence, the earlier one only where all drafts have held: it was computed already otherwise.

| tensor         | shape               | dtype                                                               |
|----------------|---------------------|---------------------------------------------------------------------|
| verified       | [places]            | int32                                                               |
| drawn          | [places, or more]   | int32                                                               |
| rows           | [rows, 4]           | int32; `room`: tokens that the blocks of the row hold               |
| tables         | [rows, width]       | int32: the blocks of each row                                       |
| tokens         | [2 * rows, or more] | int32, written: 0 where there is none, or none below `vocab`        |
| positions      | as tokens           | int32, written: position - 1, position                              |
| slots          | as tokens           | int32, written: block * block_size + offset                         |
| contexts       | [rows, or more]     | int32, written: position + 1, at most `room`                        |
| draw_positions | as tokens           | int32: `held` is added at 2 r + 1                                   |

A token that there is not, or that `room` ends before, goes to the first slot of `spare_block`.
"""

"""adjust_logits(logits, starts, tokens, counts, biases, repetition, frequency, presence, mask, kept): apply
penalties, biases and bans, in place.

| tensor     | shape                   | dtype                                                             |
|------------|-------------------------|-------------------------------------------------------------------|
| logits     | [rows, vocab]           | float32; a row's logits are contiguous                            |
| starts     | [rows + 1]              | int32: row r has the entries starts[r] .. starts[r + 1] - 1       |
| tokens     | [entries]               | int32: of each row, no token twice                                |
| counts     | [entries]               | int32: -1 only biased, 0 in the prompt, n > 0 generated n times   |
| biases     | [entries]               | float32: added at last; -inf bans                                 |
| repetition | [rows]                  | float32: 1 is off                                                 |
| frequency  | [rows]                  | float32: 0 is off                                                 |
| presence   | [rows]                  | float32: 0 is off                                                 |
| mask       | [rows, ceil(vocab / 32)]| int32, or None: bit i % 32 of word i // 32 allows token i         |
| kept       | [entries]               | float32, written: the logit as it came                            |

The logit of an entry with a count of 0 or more is divided by `repetition` where positive, else multiplied;
then, with a count above 0, loses count * frequency + presence (rounded to float32 once); then gains its bias.
Logits that the mask does not allow become -inf at last, whatever they were. An entry whose token is not in
the vocabulary changes nothing and keeps NaN. Entries of no row are not read, nor is their `kept` written.
"""

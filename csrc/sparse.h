/* The gradient of a table, such as a word's vectors, of which a batch reaches a few rows.
 *
 * It lies in a gradient buffer as a dense one does, and beside it a set of rows, a bit per row, with the invariant:
 *
 *     a row that is not in the set has only zeros.
 *
 * So it can be read as a dense gradient at any time, and the set says what may be left out. A gradient is written in
 * three steps, and the invariant holds after each store of them, so also if the process is killed there:
 *
 *     clear   the rows of the set to zeros; then the set
 *     mark    the new rows in the set
 *     add     the new values to their rows
 */
#ifndef UNTORN_SPARSE_H
#define UNTORN_SPARSE_H

#include "kernels.h"

enum { SPARSE_ROWS = 64 }; /* the rows of a word of a set */

/* A table's gradient in a buffer. */
struct sparse_table {
    enum kernel_dtype dtype;
    uint64_t rows, row; /* row: the elements of one */
    void *values;       /* [rows][row] */
    uint64_t *set;      /* [sparse_words(rows)] */
};

static inline uint64_t sparse_words(uint64_t rows) { return rows / SPARSE_ROWS + (rows % SPARSE_ROWS != 0); }
/* Return the bits of the rows that a word of a set has. */
static inline uint64_t sparse_whole(uint64_t rows, uint64_t word)
{
    const uint64_t left = rows - word * SPARSE_ROWS;
    return left >= SPARSE_ROWS ? UINT64_MAX : (UINT64_C(1) << left) - 1;
}

/* Take the first run of rows out of a word. False if there is none. */
static inline bool sparse_next(uint64_t *word, uint64_t *first, uint64_t *count)
{
    if (*word == 0)
        return false;
    *first = (uint64_t)__builtin_ctzll(*word);
    const uint64_t rest = ~(*word >> *first);
    *count = rest == 0 ? SPARSE_ROWS : (uint64_t)__builtin_ctzll(rest);
    *word = *first + *count == SPARSE_ROWS ? 0 : *word >> (*first + *count) << (*first + *count);
    return true;
}

/* Make it all zeros. */
void sparse_clear(const struct sparse_table *table);
/* Add values, [count][row], to the rows with these indices, in this order; a row may come several times. Return whether
 * the results are finite. The indices are below rows. */
bool sparse_add(const struct sparse_table *table, uint64_t count, const int64_t *indices, const void *values);

#endif

/* Gradients of tables. See sparse.h for the invariant. */
#include "sparse.h"

#include <string.h>

#include "atomics.h"

/* The order of the stores is kept by the compiler only: the process that reads next takes the buffer over after this
 * one died, or after its commit. */
static void steps_order(void) { fence_full(); }

void sparse_clear(const struct sparse_table *table)
{
    const uint64_t row_nbytes = table->row * kernel_itemsize(table->dtype);
    for (uint64_t word = 0; word < sparse_words(table->rows); word++) {
        uint64_t rows = table->set[word] & sparse_whole(table->rows, word), first, count;
        while (sparse_next(&rows, &first, &count))
            memset((uint8_t *)table->values + (word * SPARSE_ROWS + first) * row_nbytes, 0, count * row_nbytes);
    }
    steps_order();
    memset(table->set, 0, sparse_words(table->rows) * sizeof *table->set);
    steps_order();
}

bool sparse_add(const struct sparse_table *table, uint64_t count, const int64_t *indices, const void *values)
{
    for (uint64_t i = 0; i < count; i++)
        table->set[(uint64_t)indices[i] / SPARSE_ROWS] |= UINT64_C(1) << (uint64_t)indices[i] % SPARSE_ROWS;
    steps_order();
    return kernel_rows_add(table->dtype, count, table->row, indices, values, table->values);
}

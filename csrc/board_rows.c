/* Updates of tables by rows. See board_rows.h. */
#include "board_rows.h"

#include <string.h>

/* Return the rows of a range that a version changed. */
static uint64_t *changes_of(const struct board *board, const struct board_range *range, uint64_t version)
{
    const uint64_t place = version % BOARD_ROW_STEPS * board->header->sets_nbytes;
    return (uint64_t *)(board->changes + place + (range->set_offset - board->header->sets_at));
}

/* Return the rows of a word that the step changes. */
static uint64_t rows_stepped(const struct rows_step *step, uint64_t word)
{
    uint64_t rows = 0;
    for (uint32_t i = 0; !step->skips && i < step->range.shards; i++)
        if (step->range.weights[i] != 0)
            rows |= step->sets[i] == NULL ? UINT64_MAX : step->sets[i][word];
    return rows;
}

/* Return the rows of a word that changed after the version `content`, up to the one before `version`. 0: not known. */
static uint64_t rows_changed(const struct board *board, const struct board_range *range, uint64_t word,
                             uint64_t content, uint64_t version)
{
    uint64_t rows = 0;
    if (content == 0 || version - content > BOARD_ROW_STEPS)
        return UINT64_MAX;
    for (uint64_t between = content + 1; between < version; between++)
        rows |= changes_of(board, range, between)[word];
    return rows;
}

/* The rows from `first` on, as a range of their own. The pointers to it stay valid as long as it does. */
struct rows_part {
    struct kernel_range range;
    const void *grads[BOARD_MAX_SHARDS], *state_in[KERNEL_MAX_STATES];
    void *state_out[KERNEL_MAX_STATES];
};

static void part_take(const struct rows_step *step, uint64_t offset, uint64_t count, struct rows_part *part)
{
    const struct kernel_range *whole = &step->range;
    part->range = *whole;
    part->range.count = count;
    part->range.params_in = (const uint8_t *)whole->params_in + offset;
    part->range.params_out = (uint8_t *)whole->params_out + offset;
    for (uint32_t i = 0; i < whole->shards; i++)
        part->grads[i] = (const uint8_t *)whole->grads[i] + offset;
    for (unsigned k = 0; k < step->states; k++) {
        part->state_in[k] = (const uint8_t *)whole->state_in[k] + offset;
        part->state_out[k] = (uint8_t *)whole->state_out[k] + offset;
    }
    part->range.grads = part->grads;
    part->range.state_in = part->state_in;
    part->range.state_out = part->state_out;
}

static void rows_copy(const struct rows_step *step, uint64_t offset, uint64_t nbytes)
{
    memcpy((uint8_t *)step->range.params_out + offset, (const uint8_t *)step->range.params_in + offset, nbytes);
    for (unsigned k = 0; k < step->states; k++)
        memcpy((uint8_t *)step->range.state_out[k] + offset, (const uint8_t *)step->range.state_in[k] + offset, nbytes);
}

/* Copy the state that the optimizer does not use: another group does, so it has always been the same. */
static void rows_copy_unused(const struct rows_step *step, uint64_t offset, uint64_t nbytes)
{
    for (unsigned k = kernel_state_count(step->optimizer, step->hyper); k < step->states; k++)
        memcpy((uint8_t *)step->range.state_out[k] + offset, (const uint8_t *)step->range.state_in[k] + offset, nbytes);
}

void rows_update(const struct board *board, uint32_t index, uint64_t version, unsigned slot,
                 const struct rows_step *step)
{
    const struct board_range *range = &board->ranges[index];
    const enum kernel_dtype dtype = range_dtype(range);
    const uint64_t rows = range->count / range->row, row_nbytes = range->row * kernel_itemsize(dtype);
    shared_u64 *content = &board->contents[(uint64_t)index * BOARD_SLOTS + slot];
    const uint64_t found = shared_load_relaxed(content); /* its writer is the owner of the range */
    for (uint64_t word = 0; word < sparse_words(rows); word++) {
        const uint64_t whole = sparse_whole(rows, word), stepped = rows_stepped(step, word) & whole;
        uint64_t copied = rows_changed(board, range, word, found, version) & whole & ~stepped, left = stepped;
        uint64_t first, count;
        while (sparse_next(&copied, &first, &count))
            rows_copy(step, (word * SPARSE_ROWS + first) * row_nbytes, count * row_nbytes);
        while (sparse_next(&left, &first, &count)) {
            struct rows_part part;
            const uint64_t offset = (word * SPARSE_ROWS + first) * row_nbytes;
            part_take(step, offset, count * range->row, &part);
            kernel_step(step->optimizer, dtype, step->hyper, &part.range);
            rows_copy_unused(step, offset, count * row_nbytes);
        }
        changes_of(board, range, version)[word] = stepped;
    }
    /* release: with the rows there, if this worker is killed behind it */
    shared_store_release(content, version);
}

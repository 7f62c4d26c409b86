/* Updates of a table, of which a step changes a few rows: the ranges of kind ROWS.
 *
 * The step changes the rows in the union of the shards' sets, see sparse.h; the other rows keep their parameters and
 * their state, whatever the optimizer. A version is written out of place, into a slot with some older version or with
 * anything. So the rest of the slot is brought up to date first, by copying the rows that changed since:
 *
 *     version   t - 3      t - 2      t - 1       t        t + 1
 *     changed    {4}       {1, 5}      {2}      {1, 9}    {3, 5}       changes: the newest BOARD_ROW_STEPS
 *     slot        A          B          C         A          B         contents: the version that a slot has
 *
 *     version t + 1 in slot B:  step rows 3 and 5, copy rows 2, 1 and 9 of t in A
 *
 * A slot whose version is not known, or too old, is copied whole. Only updates of this board write to its slots while
 * it is in use, and a board begins without knowing any.
 *
 * Doing a range again gives the same, whatever a killed worker has done of it: it reads version t, the sets, the older
 * changes and the slot's `contents`; it writes the rows, then the changes of t + 1, which it does not read, and last
 * `contents`. If that was written, every row that does not change in this step is right already.
 */
#ifndef UNTORN_BOARD_ROWS_H
#define UNTORN_BOARD_ROWS_H

#include "board_layout.h"

/* A range of rows in one step. */
struct rows_step {
    struct kernel_range range;   /* all of it; of its state all buffers */
    const uint64_t *const *sets; /* [range.shards] the rows of each shard's gradient; NULL: all */
    unsigned states;             /* the buffers of state, with those that the optimizer does not use */
    bool skips;                  /* whether no row changes */
    enum kernel_optimizer optimizer;
    const struct kernel_hyper *hyper;
};

/* Write this range of a version to a slot. */
void rows_update(const struct board *board, uint32_t index, uint64_t version, unsigned slot,
                 const struct rows_step *step);

#endif

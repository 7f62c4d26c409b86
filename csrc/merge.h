/* Merging the values that no optimizer here owns: a model's buffers, such as BatchNorm's means, parameters that are not
 * trained, and gradients of which the server makes the step.
 *
 *   MEAN   an element that every shard left with the same bits has these bits; otherwise it is the mean over the
 *          shards, weighted by their examples and summed in the tree of kernels.h. So a value that no shard changes
 *          stays as it is, infinities and NaNs too.
 *   FIRST  bytes: those of the first shard that has examples. For values without a mean, such as a counter.
 *   KEEP   bytes: as they are in the version before.
 *   SUM    the sum in the tree of kernels.h, of gradients; zeros if no shard has examples.
 *   SHARD  bytes: those of the one shard that owns them, or as they are in the version before if it has no examples.
 *
 * And which leaves, the arrays of the parameters, have no gradient. A shard says so with a byte per leaf that is not 0;
 * a step skips a leaf if every shard that has examples says so:
 *   ABSENT   a byte per leaf: 1 if it is skipped, otherwise 0.
 *   SKIPPED  a 64-bit counter per leaf, which grows by one if it is skipped and its group takes the step.
 * An empty batch skips no leaf.
 *
 * Like a step of an optimizer it is out of place, and doing it twice gives the same.
 */
#ifndef UNTORN_MERGE_H
#define UNTORN_MERGE_H

#include "kernels.h"

/* How an update computes a range. STEP is the optimizer's, and ROWS its step for the rows of a table that the gradient
 * of a shard has, see board_rows.h. */
enum merge_kind {
    MERGE_STEP = 0,
    MERGE_MEAN = 1,
    MERGE_FIRST = 2,
    MERGE_KEEP = 3,
    MERGE_SUM = 4,
    MERGE_ABSENT = 5,
    MERGE_SKIPPED = 6,
    MERGE_SHARD = 7,
    MERGE_ROWS = 8
};
enum { MERGE_KINDS = 9 };

/* Return whether the step skips this leaf. The gradients of the range are the shards' bytes, one per leaf. */
bool leaf_is_skipped(const struct kernel_range *flags, uint64_t leaf);

/* `kind` is none of MERGE_STEP, MERGE_ROWS and MERGE_SKIPPED, which depend on the step, and MERGE_SHARD. The range's
 * state is not used; of KEEP its gradients neither. */
void range_merge(enum merge_kind kind, enum kernel_dtype dtype, const struct kernel_range *range);
/* Merge a range of MERGE_SHARD, which this shard owns. */
void range_take(const struct kernel_range *range, uint64_t shard);

#endif

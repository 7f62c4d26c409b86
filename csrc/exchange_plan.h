/* How several nodes share the sum of a step: which parts of the tree each of them sums, and where the bytes go.
 *
 * A node is one of the boards of a training. Node k computes the shards [cuts[k], cuts[k + 1]). The sum is the tree of
 * kernels.h over all shards, so that it has the bits of one board. A node sums the largest subtrees that lie inside its
 * range, and their roots travel; who has all the roots folds the rest of the tree:
 *
 *     shard      0     1     2     3  |  4     5     6        node 0 has 0 to 3, node 1 has 4 to 6
 *                 \   /       \   /   |   \   /     |
 *                   +           +     |     +       |         roots: [0, 4) of node 0, [4, 6) and [6, 7) of node 1
 *                     \       /       |       \    /
 *                         +           |         +             folded by everyone who has all roots
 *                           \_________|________/
 *                                     +
 *
 * The payload is what of a gradient is summed, as one row of bytes. It is cut into chunks, which are the same on every
 * node. There are two ways to exchange it, and every node comes to the same choice:
 *
 *   one hop          everyone sends its roots to everyone, and folds the whole payload
 *   reduce-scatter   node j owns part j of the payload: it gets the roots of that part, folds it, and sends the sum to
 *                    everyone. With one root a node each node sends 2 (nodes - 1) / nodes times the payload, which is
 *                    the least possible
 *
 * What is not summed, such as the new values of a model's buffers, is called raw, and goes to everyone as it is.
 */
#ifndef UNTORN_EXCHANGE_PLAN_H
#define UNTORN_EXCHANGE_PLAN_H

#include "board_layout.h"

enum {
    EXCHANGE_MAX_NODES = BOARD_MAX_SHARDS,
    EXCHANGE_SMALL_NBYTES = 64 * 1024, /* that a node sends, for which fewer messages are worth more than fewer bytes */
    EXCHANGE_MIN_CHUNK = 32 * 1024,
    EXCHANGE_MAX_CHUNK = 256 * 1024,
};

/* A subtree over the shards [first, end) that one node sums. */
struct exchange_root {
    uint32_t node, first, end;
};

/* A piece of the payload, of one dtype, that travels as one frame. */
struct exchange_chunk {
    uint64_t at;          /* in the payload, a multiple of 64 */
    uint64_t grad_offset; /* in a gradient's buffer, and in the sum's */
    uint32_t nbytes;
    uint32_t owner; /* who folds it; with one hop everyone */
    enum kernel_dtype dtype;
};

/* A piece of a gradient's buffer that travels as it is. */
struct exchange_raw {
    uint64_t grad_offset, nbytes;
};

struct exchange_plan {
    uint32_t nodes, index, shards; /* index: of this node */
    uint32_t *cuts;                /* [nodes + 1] */
    uint64_t *counts[2];           /* [shards] examples of each shard of a full batch, and of an epoch's last batch */
    double *weights[2];            /* [shards] the same, divided by the examples of the batch */
    struct exchange_root *roots;   /* left to right, so node by node */
    uint8_t *folds;                /* [roots] as in struct kernel_fold */
    uint32_t *root_cuts;           /* [nodes + 1] node k has the roots [root_cuts[k], root_cuts[k + 1]) */
    uint8_t *present[2];           /* [roots] whether a shard below has examples: else the root does not travel */
    struct exchange_chunk *chunks; /* in the order of the payload, so part by part */
    uint32_t chunk_count;
    uint32_t *chunk_cuts; /* [nodes + 1] part k has the chunks [chunk_cuts[k], chunk_cuts[k + 1]) */
    uint32_t *order;      /* [chunk_count] in which this node sums its roots */
    uint64_t payload_nbytes;
    bool one_hop;
    struct exchange_raw *raw;
    uint32_t raw_count;
    uint64_t raw_nbytes; /* of a shard */
};

/* What a plan is made of. The arrays are copied. */
struct exchange_shape {
    uint32_t nodes, index, shards;
    const uint32_t *cuts;
    const uint64_t *counts; /* [2][shards] */
    const struct board_range *ranges;
    uint32_t range_count;
    uint64_t buffer_nbytes;
};

/* Return what is wrong with a shape, or NULL. */
const char *exchange_shape_error(const struct exchange_shape *shape);
/* Make the plan of a shape without errors; false without memory. */
bool exchange_plan_make(struct exchange_plan *plan, const struct exchange_shape *shape);
void exchange_plan_free(struct exchange_plan *plan);

/* The chunks that this node folds. */
static inline uint32_t plan_region_first(const struct exchange_plan *plan, uint32_t node)
{
    return plan->one_hop ? 0 : plan->chunk_cuts[node];
}
static inline uint32_t plan_region_end(const struct exchange_plan *plan, uint32_t node)
{
    return plan->one_hop ? plan->chunk_count : plan->chunk_cuts[node + 1];
}
/* Return the index of the chunk that begins at this place of the payload, or chunk_count. */
uint32_t plan_chunk_at(const struct exchange_plan *plan, uint64_t at);

#endif

/* Cutting the tree and the payload: see exchange_plan.h. */
#include "exchange_plan.h"

#include <stdlib.h>
#include <string.h>

enum { LINE = 64, CHUNKS_PER_REGION = 8 };

static uint64_t lines_round(uint64_t nbytes) { return (nbytes + LINE - 1) / LINE * LINE; }

/* -- the shape ---------------------------------------------------------------------------------------------------- */

/* Return the bytes that a shard has for an element of the range. */
static uint64_t range_itemsize(const struct board_range *range)
{
    switch (range_kind(range)) {
    case MERGE_FIRST:
    case MERGE_KEEP:
    case MERGE_ABSENT:
    case MERGE_SKIPPED:
    case MERGE_SHARD: return 1;
    default: return kernel_itemsize(range_dtype(range));
    }
}

static bool range_travels(const struct board_range *range) { return range_kind(range) != MERGE_KEEP; }

static bool range_fits(const struct board_range *range, uint64_t nbytes)
{
    if (range_dtype(range) > KERNEL_F64 || (uint32_t)range_kind(range) >= MERGE_KINDS)
        return false;
    const uint64_t itemsize = range_itemsize(range);
    return !range_travels(range) ||
           (range->grad_offset <= nbytes && range->count <= (nbytes - range->grad_offset) / itemsize &&
            range->grad_offset % itemsize == 0);
}

const char *exchange_shape_error(const struct exchange_shape *shape)
{
    if (shape->nodes == 0 || shape->nodes > EXCHANGE_MAX_NODES || shape->index >= shape->nodes)
        return "the number of nodes";
    if (shape->shards == 0 || shape->shards > BOARD_MAX_SHARDS)
        return "the number of shards";
    if (shape->cuts[0] != 0 || shape->cuts[shape->nodes] != shape->shards)
        return "the cuts do not cover the shards";
    for (uint32_t k = 0; k < shape->nodes; k++)
        if (shape->cuts[k] > shape->cuts[k + 1])
            return "the cuts are not in order";
    for (unsigned row = 0; row < 2; row++) {
        uint64_t total = 0;
        for (uint32_t s = 0; s < shape->shards; s++)
            if (__builtin_add_overflow(total, shape->counts[(uint64_t)row * shape->shards + s], &total))
                return "the numbers of examples";
    }
    for (uint32_t r = 0; r < shape->range_count; r++)
        if (!range_fits(&shape->ranges[r], shape->buffer_nbytes))
            return "a range lies outside of a gradient";
    return NULL;
}

/* -- the tree ------------------------------------------------------------------------------------------------------ */

static uint32_t node_of(const struct exchange_plan *plan, uint32_t shard)
{
    uint32_t k = 0;
    while (plan->cuts[k + 1] <= shard)
        k++;
    return k;
}

/* Add the roots below the subtree over [first, end), left to right. */
static void roots_add(struct exchange_plan *plan, uint32_t *count, uint32_t first, uint32_t end)
{
    const uint32_t node = node_of(plan, first);
    if (end <= plan->cuts[node + 1]) {
        plan->folds[*count] = 0;
        plan->roots[(*count)++] = (struct exchange_root){node, first, end};
        return;
    }
    uint32_t split = 1;
    while (split * 2 < end - first)
        split *= 2;
    roots_add(plan, count, first, first + split);
    roots_add(plan, count, first + split, end);
    plan->folds[*count - 1]++;
}

static void roots_make(struct exchange_plan *plan)
{
    uint32_t count = 0;
    roots_add(plan, &count, 0, plan->shards);
    for (uint32_t k = 0, i = 0; k <= plan->nodes; k++) {
        while (i < count && plan->roots[i].node < k)
            i++;
        plan->root_cuts[k] = i;
    }
    for (unsigned row = 0; row < 2; row++)
        for (uint32_t i = 0; i < count; i++) {
            plan->present[row][i] = 0;
            for (uint32_t s = plan->roots[i].first; s < plan->roots[i].end; s++)
                plan->present[row][i] |= plan->weights[row][s] != 0;
        }
}

/* The same numbers as a board computes from the buffers, to the bit. */
static void weights_make(struct exchange_plan *plan, const uint64_t *counts)
{
    for (unsigned row = 0; row < 2; row++) {
        uint64_t total = 0;
        for (uint32_t s = 0; s < plan->shards; s++) {
            plan->counts[row][s] = counts[(uint64_t)row * plan->shards + s];
            total += plan->counts[row][s];
        }
        for (uint32_t s = 0; s < plan->shards; s++)
            plan->weights[row][s] = total == 0 ? 0 : (double)plan->counts[row][s] / (double)total;
    }
}

/* -- the payload --------------------------------------------------------------------------------------------------- */

/* A run of the payload: ranges of one dtype that follow one another in a gradient, with the padding between them. */
struct run {
    uint64_t at, grad_offset, nbytes;
    enum kernel_dtype dtype;
};

/* Return the number of runs; `runs` has room for one per range. */
static uint32_t runs_make(const struct exchange_shape *shape, struct run *runs)
{
    uint32_t count = 0;
    for (uint32_t r = 0; r < shape->range_count; r++) {
        const struct board_range *range = &shape->ranges[r];
        const uint64_t nbytes = range->count * range_itemsize(range);
        if (!range_is_summed(range) || nbytes == 0)
            continue;
        struct run *last = count == 0 ? NULL : &runs[count - 1];
        if (last != NULL && last->dtype == range_dtype(range) && last->grad_offset % LINE == 0 &&
            range->grad_offset == last->grad_offset + lines_round(last->nbytes)) {
            last->nbytes = range->grad_offset + nbytes - last->grad_offset;
        } else {
            const uint64_t at = last == NULL ? 0 : last->at + lines_round(last->nbytes);
            runs[count++] = (struct run){at, range->grad_offset, nbytes, range_dtype(range)};
        }
    }
    return count;
}

/* Return the bytes that the node with the most to send would send in a reduce-scatter, in units of payload / nodes. */
static uint64_t scatter_cost(const struct exchange_plan *plan, uint32_t most_roots)
{
    return (uint64_t)(plan->nodes - 1) * (most_roots + 1);
}

static bool one_hop_choose(const struct exchange_plan *plan)
{
    uint32_t most = 0;
    for (uint32_t k = 0; k < plan->nodes; k++) {
        const uint32_t roots = plan->root_cuts[k + 1] - plan->root_cuts[k];
        most = roots > most ? roots : most;
    }
    return plan->payload_nbytes <= EXCHANGE_SMALL_NBYTES / (plan->nodes > 1 ? plan->nodes - 1 : 1) ||
           (uint64_t)(plan->nodes - 1) * most * plan->nodes <= scatter_cost(plan, most);
}

static uint64_t part_at(const struct exchange_plan *plan, uint32_t node)
{
    const uint64_t lines = plan->payload_nbytes / LINE;
    return (lines / plan->nodes * node + lines % plan->nodes * node / plan->nodes) * LINE;
}

static uint64_t chunk_size(const struct exchange_plan *plan)
{
    const uint64_t region = plan->one_hop ? plan->payload_nbytes : plan->payload_nbytes / plan->nodes;
    const uint64_t size = lines_round(region / CHUNKS_PER_REGION);
    return size < EXCHANGE_MIN_CHUNK ? EXCHANGE_MIN_CHUNK : size > EXCHANGE_MAX_CHUNK ? EXCHANGE_MAX_CHUNK : size;
}

/* Cut the runs at the parts' borders and into chunks; write them down if `chunks` is not NULL. Returns their number. */
static uint32_t chunks_cut(const struct exchange_plan *plan, const struct run *runs, uint32_t run_count,
                           struct exchange_chunk *chunks, uint32_t *cuts)
{
    const uint64_t size = chunk_size(plan);
    uint32_t count = 0, run = 0;
    for (uint32_t node = 0; node < plan->nodes; node++) {
        const uint64_t end = plan->one_hop ? plan->payload_nbytes : part_at(plan, node + 1);
        uint64_t at = plan->one_hop && node > 0 ? end : part_at(plan, node);
        if (cuts != NULL)
            cuts[node] = count;
        while (at < end) {
            while (at >= runs[run].at + lines_round(runs[run].nbytes))
                run++;
            const uint64_t inside = at - runs[run].at, run_left = runs[run].nbytes - inside;
            const uint64_t most = end - at < size ? end - at : size, nbytes = run_left < most ? run_left : most;
            if (chunks != NULL)
                chunks[count] = (struct exchange_chunk){at, runs[run].grad_offset + inside, (uint32_t)nbytes, node,
                                                        runs[run].dtype};
            count++;
            at += lines_round(nbytes);
        }
    }
    if (cuts != NULL)
        cuts[plan->nodes] = count;
    return count;
}

/* Each node begins with the part of its right neighbour, so that all are sent to alike, and goes round chunk by
 * chunk. */
static void order_make(struct exchange_plan *plan)
{
    uint32_t count = 0;
    for (uint32_t i = 0; plan->one_hop && i < plan->chunk_count; i++)
        plan->order[count++] = i;
    for (uint32_t round = 0; count < plan->chunk_count; round++)
        for (uint32_t i = 1; i <= plan->nodes; i++) {
            const uint32_t node = (plan->index + i) % plan->nodes, chunk = plan->chunk_cuts[node] + round;
            if (chunk < plan->chunk_cuts[node + 1])
                plan->order[count++] = chunk;
        }
}

static void raw_make(struct exchange_plan *plan, const struct exchange_shape *shape)
{
    for (uint32_t r = 0; r < shape->range_count; r++) {
        const struct board_range *range = &shape->ranges[r];
        const uint64_t nbytes = range->count * range_itemsize(range);
        if (range_is_summed(range) || !range_travels(range) || nbytes == 0)
            continue;
        plan->raw[plan->raw_count++] = (struct exchange_raw){range->grad_offset, nbytes};
        plan->raw_nbytes += nbytes;
    }
}

uint32_t plan_chunk_at(const struct exchange_plan *plan, uint64_t at)
{
    uint32_t low = 0, high = plan->chunk_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (plan->chunks[middle].at < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low < plan->chunk_count && plan->chunks[low].at == at ? low : plan->chunk_count;
}

/* -- the plan ------------------------------------------------------------------------------------------------------ */

static bool arrays_make(struct exchange_plan *plan, const struct exchange_shape *shape)
{
    const size_t nodes = plan->nodes + (size_t)1, shards = plan->shards;
    plan->cuts = calloc(nodes, sizeof *plan->cuts);
    plan->root_cuts = calloc(nodes, sizeof *plan->root_cuts);
    plan->chunk_cuts = calloc(nodes, sizeof *plan->chunk_cuts);
    plan->roots = calloc(shards, sizeof *plan->roots); /* a root covers a shard or more */
    plan->folds = calloc(shards, sizeof *plan->folds);
    plan->raw = calloc(shape->range_count + (size_t)1, sizeof *plan->raw);
    bool made = plan->cuts != NULL && plan->root_cuts != NULL && plan->chunk_cuts != NULL && plan->roots != NULL &&
                plan->folds != NULL && plan->raw != NULL;
    for (unsigned row = 0; row < 2; row++) {
        plan->counts[row] = calloc(shards, sizeof *plan->counts[row]);
        plan->weights[row] = calloc(shards, sizeof *plan->weights[row]);
        plan->present[row] = calloc(shards, sizeof *plan->present[row]);
        made = made && plan->counts[row] != NULL && plan->weights[row] != NULL && plan->present[row] != NULL;
    }
    return made;
}

static bool chunks_make(struct exchange_plan *plan, const struct exchange_shape *shape)
{
    struct run *runs = calloc(shape->range_count + (size_t)1, sizeof *runs);
    if (runs == NULL)
        return false;
    const uint32_t run_count = runs_make(shape, runs);
    plan->payload_nbytes = run_count == 0 ? 0 : runs[run_count - 1].at + lines_round(runs[run_count - 1].nbytes);
    plan->one_hop = one_hop_choose(plan);
    plan->chunk_count = chunks_cut(plan, runs, run_count, NULL, NULL);
    plan->chunks = calloc(plan->chunk_count + (size_t)1, sizeof *plan->chunks);
    plan->order = calloc(plan->chunk_count + (size_t)1, sizeof *plan->order);
    const bool made = plan->chunks != NULL && plan->order != NULL;
    if (made) {
        chunks_cut(plan, runs, run_count, plan->chunks, plan->chunk_cuts);
        order_make(plan);
    }
    free(runs);
    return made;
}

bool exchange_plan_make(struct exchange_plan *plan, const struct exchange_shape *shape)
{
    *plan = (struct exchange_plan){.nodes = shape->nodes, .index = shape->index, .shards = shape->shards};
    if (!arrays_make(plan, shape)) {
        exchange_plan_free(plan);
        return false;
    }
    memcpy(plan->cuts, shape->cuts, (plan->nodes + (size_t)1) * sizeof *plan->cuts);
    weights_make(plan, shape->counts);
    roots_make(plan);
    raw_make(plan, shape);
    if (!chunks_make(plan, shape)) {
        exchange_plan_free(plan);
        return false;
    }
    return true;
}

void exchange_plan_free(struct exchange_plan *plan)
{
    free(plan->cuts);
    free(plan->root_cuts);
    free(plan->chunk_cuts);
    free(plan->roots);
    free(plan->folds);
    free(plan->raw);
    for (unsigned row = 0; row < 2; row++) {
        free(plan->counts[row]);
        free(plan->weights[row]);
        free(plan->present[row]);
    }
    free(plan->chunks);
    free(plan->order);
    *plan = (struct exchange_plan){0};
}

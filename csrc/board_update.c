/* The arithmetic of a step: the sum of the shards' gradients, its norm, the next version and the step's log. */
#include "board_update.h"

#include <math.h>
#include <string.h>

#include "board_rows.h"
#include "board_tasks.h"
#include "futex.h"

/* The epsilon of torch.nn.utils.clip_grad_norm_: it avoids a division by 0. */
#define CLIP_EPSILON 1e-6

/* The gradients that a step is made of: those of all shards, or that of one batch in flight. All are committed. */
struct shards {
    uint32_t count;
    const uint8_t *sum; /* the sum of the gradients, if a link made it; NULL if it is still to be made */
    const struct board_buffer *buffers[BOARD_MAX_SHARDS];
    double weights[BOARD_MAX_SHARDS];
    double examples;
};

static void shards_collect(const struct board *board, uint32_t first, uint32_t count, struct shards *shards)
{
    uint64_t examples = 0;
    shards->count = count;
    shards->sum = NULL;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t task = shared_load_acquire(&board->shard_tasks[first + i].word); /* pairs with board_commit */
        shards->buffers[i] = board_buffer_at(board, task_buffer(task));
        examples += shards->buffers[i]->examples;
    }
    shards->examples = (double)examples;
    for (uint32_t i = 0; i < count; i++) /* an empty batch: every shard is absent, and no weight is NaN */
        shards->weights[i] = examples == 0 ? 0 : (double)shards->buffers[i]->examples / shards->examples;
}

/* Collect the gradients of the step, whose gradient is complete. A link makes the sum of a step before it commits a
 * shard, so every worker finds the same here. */
static void step_collect(const struct board *board, uint64_t step, struct shards *shards)
{
    shards_collect(board, 0, board->header->shards, shards);
    if (board->header->exchange && board_summed(board, step))
        shards->sum = board->sum;
}

/* Return one range's gradients; `grads` is room for their addresses. */
static struct kernel_range shards_range(const struct board *board, const struct shards *shards, uint32_t index,
                                        const void **grads)
{
    static const double whole = 1;
    const struct board_range *range = &board->ranges[index];
    if (shards->sum != NULL && range_is_summed(range)) {
        grads[0] = shards->sum + range->grad_offset;
        return (struct kernel_range){
            .count = range->count, .shards = 1, .grads = grads, .weights = &whole, .grad_scale = 1};
    }
    for (uint32_t i = 0; i < shards->count; i++)
        grads[i] = (const uint8_t *)(shards->buffers[i] + 1) + range->grad_offset;
    return (struct kernel_range){
        .count = range->count,
        .shards = shards->count,
        .grads = grads,
        .weights = shards->weights,
        .grad_scale = 1,
    };
}

/* -- norms -------------------------------------------------------------------------------------------------------- */

static uint32_t range_first(const struct board *board, uint32_t worker)
{
    uint32_t active = shared_load_relaxed(&board->header->active);
    return active == 0 ? 0 : (uint32_t)((uint64_t)worker * board->header->ranges / active % board->header->ranges);
}

/* Return the numbers of a group of parameters for a step. If lr is NaN, the group takes no step: its parameters and its
 * state stay, whatever their gradient is. */
static const struct kernel_rates *group_rates(const struct board *board, uint64_t step, uint64_t group)
{
    return &board->rates[step % board->header->steps * board->header->groups + group];
}

static void range_norm(const struct board *board, const struct shards *shards, uint64_t step, uint32_t index)
{
    const void *grads[BOARD_MAX_SHARDS];
    const struct board_range *range = &board->ranges[index];
    const struct kernel_range work = shards_range(board, shards, index, grads);
    const bool counts = range_is_step(range) && !isnan(group_rates(board, step, range_group(range))->lr);
    board->squares[index] = counts ? kernel_square_sum(range_dtype(range), &work) : 0;
}

bool norms_run(const struct board *board, uint32_t worker, uint64_t step)
{
    const struct board_header *header = board->header;
    uint32_t index, first = range_first(board, worker);
    uint64_t claim;
    struct shards shards = {0};
    bool done;
    while (range_claim(board->norm_tasks, header->ranges, first, step, worker, &index, &claim, &done)) {
        if (shards.count == 0)
            step_collect(board, step, &shards);
        range_norm(board, &shards, step, index);
        range_commit(&board->norm_tasks[index], claim);
        first = index + 1;
    }
    return done;
}

/* Return the norm of the step's whole gradient; its norm tasks are done. */
static double norm_collect(const struct board *board)
{
    return sqrt(kernel_tree_sum(board->header->ranges, board->squares));
}

/* Return the factor by which a gradient of this norm is scaled; clip_norm 0: no clipping. */
static double clip_scale(double clip_norm, double norm)
{
    if (clip_norm == 0)
        return 1;
    double scale = clip_norm / (norm + CLIP_EPSILON);
    return scale > 1 ? 1 : scale; /* a NaN stays a NaN, and every parameter shows it */
}

/* -- the step's record -------------------------------------------------------------------------------------------- */

static double shards_mean(const struct shards *shards, const double *(*pick)(const struct board_buffer *, int),
                          int which)
{
    double terms[BOARD_MAX_SHARDS];
    uint32_t present = 0;
    for (uint32_t i = 0; i < shards->count; i++) /* an empty shard has measured nothing */
        if (shards->weights[i] != 0)
            terms[present++] = shards->weights[i] * *pick(shards->buffers[i], which);
    return kernel_tree_sum(present, terms);
}

static const double *pick_loss(const struct board_buffer *buffer, int which) { return &buffer->loss; }
static const double *pick_metric(const struct board_buffer *buffer, int which) { return &buffer->metrics[which]; }

static void log_write(const struct board *board, uint64_t step, const struct shards *shards, double norm,
                      uint64_t staleness)
{
    struct board_log *log = &board->log[step % board->header->steps];
    log->examples = shards->examples;
    log->loss = shards_mean(shards, pick_loss, 0);
    log->staleness = (double)staleness;
    log->grad_norm = norm;
    for (int metric = 0; metric < BOARD_METRICS; metric++)
        log->metrics[metric] = shards_mean(shards, pick_metric, metric);
}

/* -- leaves ------------------------------------------------------------------------------------------------------- */

/* Return the leaf that has the byte at this place of a gradient. */
static uint64_t leaf_at(const struct board *board, uint64_t grad_offset)
{
    uint64_t low = 0, high = board->header->leaves;
    while (high - low > 1) { /* the last one that begins at or before it: an empty leaf has no bytes */
        const uint64_t middle = low + (high - low) / 2;
        if (leaf_start(board->leaves[middle]) <= grad_offset)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* What a step does with a leaf. */
struct leaf_work {
    bool skips;
    uint64_t skipped; /* steps before this one; 0 if the optimizer does not count them */
};

/* The bytes of all leaves, and their counters. */
struct leaf_table {
    struct kernel_range flags;
    const uint64_t *skipped; /* NULL: not counted */
};

static struct leaf_work leaf_look(const struct leaf_table *table, uint64_t leaf)
{
    return (struct leaf_work){leaf_is_skipped(&table->flags, leaf), table->skipped == NULL ? 0 : table->skipped[leaf]};
}

static bool leaf_works_agree(struct leaf_work one, struct leaf_work other)
{
    return one.skips == other.skips && one.skipped == other.skipped;
}

/* Count the steps that skip each leaf. A step that a leaf's group does not take is none. */
static void leaves_count(const struct board *board, uint64_t step, const struct kernel_range *flags)
{
    const uint64_t *before = flags->params_in;
    uint64_t *after = flags->params_out;
    for (uint64_t leaf = 0; leaf < flags->count; leaf++) {
        const bool steps = !isnan(group_rates(board, step, leaf_group(board->leaves[leaf]))->lr);
        after[leaf] = before[leaf] + (steps && leaf_is_skipped(flags, leaf));
    }
}

/* Take the step for a part of a range, whose leaves are alike. */
static void part_step(enum kernel_optimizer optimizer, enum kernel_dtype dtype, struct kernel_hyper hyper,
                      unsigned states, const struct kernel_range *range, struct leaf_work leaves)
{
    if (leaves.skips) {
        const uint64_t nbytes = range->count * kernel_itemsize(dtype);
        memcpy(range->params_out, range->params_in, nbytes);
        for (unsigned k = 0; k < states; k++)
            memcpy(range->state_out[k], range->state_in[k], nbytes);
        return;
    }
    if (leaves.skipped != 0 && leaves.skipped < (uint64_t)hyper.rates.step)
        hyper.rates = kernel_rates_at(optimizer, &hyper, (uint64_t)hyper.rates.step - leaves.skipped);
    kernel_step(optimizer, dtype, &hyper, range);
}

/* Take the step for a range, in as many parts as its leaves need: the bits of an element do not depend on them. */
static void range_step(const struct board *board, const struct board_range *range, const struct kernel_hyper *hyper,
                       enum kernel_optimizer optimizer, unsigned states, const struct kernel_range *work,
                       const struct leaf_table *table)
{
    const enum kernel_dtype dtype = range_dtype(range);
    const size_t itemsize = kernel_itemsize(dtype);
    const uint64_t begin = range->grad_offset, end = begin + range->count * itemsize;
    for (uint64_t at = begin; at < end;) {
        uint64_t leaf = leaf_at(board, at), stop = leaf_start(board->leaves[leaf + 1]);
        const struct leaf_work leaves = leaf_look(table, leaf);
        while (stop < end && leaf_works_agree(leaf_look(table, leaf + 1), leaves))
            stop = leaf_start(board->leaves[++leaf + 1]);
        stop = stop < end ? stop : end;
        const void *grads[BOARD_MAX_SHARDS], *state_in[KERNEL_MAX_STATES];
        void *state_out[KERNEL_MAX_STATES];
        struct kernel_range part = *work;
        for (uint32_t i = 0; i < work->shards; i++)
            grads[i] = (const uint8_t *)work->grads[i] + (at - begin);
        for (unsigned k = 0; k < states; k++) {
            state_in[k] = (const uint8_t *)work->state_in[k] + (at - begin);
            state_out[k] = (uint8_t *)work->state_out[k] + (at - begin);
        }
        part.count = (stop - at) / itemsize;
        part.grads = grads;
        part.state_in = state_in;
        part.state_out = state_out;
        part.params_in = (const uint8_t *)work->params_in + (at - begin);
        part.params_out = (uint8_t *)work->params_out + (at - begin);
        part_step(optimizer, dtype, *hyper, states, &part, leaves);
        at = stop;
    }
}

/* -- updates ------------------------------------------------------------------------------------------------------ */

/* Write the part of a version that no range covers: header and schema. Done with range 0, so it has one writer. */
static void version_begin(const struct board *board, uint64_t step, const uint8_t *from, uint8_t *to)
{
    const struct slot_header *source = (const struct slot_header *)from;
    struct slot_header *target = (struct slot_header *)to;
    memcpy(to, from, sizeof *source + source->schema_nbytes);
    target->version = board->header->base_version + step + 1;
    target->published_ns = clock_wall_ns();
}

/* Return the bytes of all leaves, and their counters; `flags` is room for the addresses of the bytes. */
static struct leaf_table leaves_find(const struct board *board, const struct shards *shards, const uint8_t *from,
                                     const void **flags)
{
    const struct board_range *absent = &board->ranges[board->header->absent_range];
    return (struct leaf_table){
        .flags = shards_range(board, shards, (uint32_t)board->header->absent_range, flags),
        .skipped = range_kind(absent) == MERGE_SKIPPED ? (const uint64_t *)(from + absent->slot_offset) : NULL,
    };
}

/* Take the step for the rows of a table, which is one leaf. */
static void table_step(const struct board *board, const struct shards *shards, uint64_t step, uint32_t index,
                       unsigned slot, struct rows_step *rows, const struct leaf_table *table)
{
    const struct board_range *range = &board->ranges[index];
    const struct leaf_work leaf = leaf_look(table, leaf_at(board, range->grad_offset));
    const uint64_t *sets[BOARD_MAX_SHARDS] = {NULL};
    struct kernel_hyper hyper = *rows->hyper;
    for (uint32_t i = 0; shards->sum == NULL && i < shards->count; i++)
        sets[i] = (const uint64_t *)((const uint8_t *)(shards->buffers[i] + 1) + range->set_offset);
    rows->skips = leaf.skips || isnan(hyper.rates.lr);
    if (leaf.skipped != 0 && leaf.skipped < (uint64_t)hyper.rates.step)
        hyper.rates = kernel_rates_at(rows->optimizer, &hyper, (uint64_t)hyper.rates.step - leaf.skipped);
    rows->sets = sets;
    rows->hyper = &hyper;
    rows_update(board, index, board->header->base_version + step + 1, slot, rows);
}

static void range_update(const struct board *board, const struct shards *shards, uint64_t step, uint32_t index,
                         double grad_scale, unsigned slot, const uint8_t *from, uint8_t *to)
{
    const struct board_header *header = board->header;
    const struct board_range *range = &board->ranges[index];
    const void *grads[BOARD_MAX_SHARDS], *flags[BOARD_MAX_SHARDS], *state_in[KERNEL_MAX_STATES];
    void *state_out[KERNEL_MAX_STATES];
    const enum merge_kind kind = range_kind(range);
    const bool is_step = range_is_step(range);
    const uint64_t index_of_group = is_step ? range_group(range) : 0;
    const struct board_group *group = &board->groups[index_of_group];
    const enum kernel_optimizer optimizer = (enum kernel_optimizer)group->optimizer;
    struct kernel_hyper hyper = group->hyper;
    hyper.rates = *group_rates(board, step, index_of_group);
    const bool rests = kind == MERGE_STEP && isnan(hyper.rates.lr);
    const unsigned states = kernel_state_count(optimizer, &hyper);
    const uint64_t nbytes = range->count * kernel_itemsize(range_dtype(range));
    for (unsigned k = 0; is_step && k < header->states; k++) {
        uint64_t offset = range->slot_offset + (k + 1) * header->state_stride;
        if (kind == MERGE_STEP && (rests || k >= states)) {
            memcpy(to + offset, from + offset, nbytes);
            continue;
        }
        state_in[k] = from + offset;
        state_out[k] = to + offset;
    }
    if (rests) {
        memcpy(to + range->slot_offset, from + range->slot_offset, nbytes);
        return;
    }
    struct kernel_range work = shards_range(board, shards, index, grads);
    work.grad_scale = grad_scale;
    work.params_in = from + range->slot_offset;
    work.params_out = to + range->slot_offset;
    work.state_in = state_in;
    work.state_out = state_out;
    if (kind == MERGE_ROWS) {
        const struct leaf_table table = leaves_find(board, shards, from, flags);
        struct rows_step rows = {
            .range = work, .states = (unsigned)header->states, .optimizer = optimizer, .hyper = &hyper};
        table_step(board, shards, step, index, slot, &rows, &table);
    } else if (kind == MERGE_STEP && header->leaves == 0) {
        kernel_step(optimizer, range_dtype(range), &hyper, &work);
    } else if (kind == MERGE_STEP) {
        const struct leaf_table table = leaves_find(board, shards, from, flags);
        range_step(board, range, &hyper, optimizer, states, &work, &table);
    } else if (kind == MERGE_SKIPPED) {
        leaves_count(board, step, &work);
    } else if (kind == MERGE_SHARD) {
        range_take(&work, range_group(range));
    } else if (range->slot_offset != 0) {
        range_merge(kind, range_dtype(range), &work);
    }
}

static bool slots_map(struct attachment *weights, unsigned slot, uint8_t **from, uint8_t **to)
{
    uint64_t capacity;
    unsigned newest = latest_slot(channel_latest(&weights->channel));
    return attachment_map(weights, newest, from, &capacity) == STATUS_OK &&
           attachment_map(weights, slot, to, &capacity) == STATUS_OK;
}

bool updates_run(const struct board *board, struct attachment *weights, uint32_t worker, uint64_t step, unsigned slot,
                 bool *refused)
{
    const struct board_header *header = board->header;
    uint32_t index, first = range_first(board, worker);
    uint64_t claim;
    uint8_t *from = NULL, *to = NULL;
    struct shards shards;
    double norm = 0;
    bool done;
    *refused = false;
    while (range_claim(board->range_tasks, header->ranges, first, step, worker, &index, &claim, &done)) {
        if (from == NULL) {
            if (!slots_map(weights, slot, &from, &to)) {
                range_give_back(&board->range_tasks[index], claim);
                *refused = true; /* no memory for a mapping: another worker may have some */
                return false;
            }
            step_collect(board, step, &shards);
            norm = header->clip_norm != 0 ? norm_collect(board) : 0;
        }
        if (index == 0) {
            version_begin(board, step, from, to);
            log_write(board, step, &shards, norm, 0);
        }
        range_update(board, &shards, step, index, clip_scale(header->clip_norm, norm), slot, from, to);
        range_commit(&board->range_tasks[index], claim);
        first = index + 1;
    }
    return done;
}

enum status inflight_update(const struct board *board, struct attachment *weights, uint32_t index, uint64_t step,
                            uint64_t staleness, unsigned slot)
{
    const struct board_header *header = board->header;
    uint8_t *from, *to;
    struct shards shards;
    double norm = 0;
    if (!slots_map(weights, slot, &from, &to))
        return STATUS_OS;
    shards_collect(board, index, 1, &shards);
    if (header->clip_norm != 0) {
        for (uint32_t index = 0; index < header->ranges; index++)
            range_norm(board, &shards, step, index);
        norm = norm_collect(board);
    }
    version_begin(board, step, from, to);
    log_write(board, step, &shards, norm, staleness);
    for (uint32_t index = 0; index < header->ranges; index++)
        range_update(board, &shards, step, index, clip_scale(header->clip_norm, norm), slot, from, to);
    return STATUS_OK;
}

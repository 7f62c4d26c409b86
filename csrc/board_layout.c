/* The board's memory: see board_layout.h. */
#include "board_layout.h"

#include <string.h>

#include "futex.h"

#define BOARD_MAGIC "untornB8"

/* -- layout ----------------------------------------------------------------------------------------------------- */

#define SECTIONS_NBYTES \
    (offsetof(struct board_header, names_at) + sizeof(uint64_t) - offsetof(struct board_header, workers_at))
_Static_assert(SECTIONS_NBYTES == 18 * sizeof(uint64_t), "the offsets of the sections lie in one piece");

#define CONTENTS_NBYTES(ranges) ((ranges) * (uint64_t)BOARD_SLOTS * sizeof(shared_u64))

static uint64_t nbytes_round(uint64_t nbytes, uint64_t to) { return (nbytes + to - 1) / to * to; }

static uint64_t section_place(uint64_t *end, uint64_t nbytes)
{
    uint64_t start = *end;
    *end = nbytes_round(start + nbytes, 64);
    return start;
}

static void sections_place(struct board_header *header, const struct board_config *config)
{
    uint64_t end = 4096;
    header->workers_at = section_place(&end, config->workers * sizeof(struct board_worker));
    header->shard_tasks_at = section_place(&end, config->shards * sizeof(struct board_task));
    header->range_tasks_at = section_place(&end, config->ranges * sizeof(struct board_task));
    header->norm_tasks_at = section_place(&end, config->ranges * sizeof(struct board_task));
    header->squares_at = section_place(&end, config->ranges * sizeof(double));
    header->ranges_at = section_place(&end, config->ranges * sizeof(struct board_range));
    header->groups_at = section_place(&end, config->groups * sizeof(struct board_group));
    header->log_at = section_place(&end, config->steps * sizeof(struct board_log));
    header->rates_at = section_place(&end, config->steps * config->groups * sizeof(struct kernel_rates));
    header->order_at = section_place(&end, config->examples * sizeof(int64_t));
    header->leaves_at = section_place(&end, (config->leaves + 1) * sizeof(uint64_t));
    header->names_at = section_place(&end, BOARD_NAMES_NBYTES);
    header->changes_at = section_place(&end, BOARD_ROW_STEPS * config->sets_nbytes);
    header->contents_at = section_place(&end, config->sets_nbytes == 0 ? 0 : CONTENTS_NBYTES(config->ranges));
    header->buffer_stride = nbytes_round(sizeof(struct board_buffer) + config->buffer_nbytes, 4096);
    end = nbytes_round(end, 4096);
    header->sum_at = section_place(&end, config->exchange ? header->buffer_stride : 0);
    header->buffers_at = section_place(&end, (config->shards + config->workers) * header->buffer_stride);
    header->errors_at = section_place(&end, (uint64_t)config->workers * BOARD_ERROR_NBYTES);
    header->nbytes = end;
}

uint64_t board_nbytes(const struct board_config *config)
{
    struct board_header header;
    sections_place(&header, config);
    return header.nbytes;
}

uint64_t board_nbytes_needed(const struct board_config *config)
{
    struct board_header header;
    sections_place(&header, config);
    header.shards = config->shards;
    return board_nbytes_used(&header, config->active);
}

uint64_t board_nbytes_used(const struct board_header *header, uint32_t workers)
{
    return header->buffers_at + (header->shards + workers) * header->buffer_stride;
}

static void board_find(struct board *board, void *memory)
{
    struct board_header *header = memory;
    uint8_t *base = memory;
    *board = (struct board){
        .header = header,
        .workers = (struct board_worker *)(base + header->workers_at),
        .shard_tasks = (struct board_task *)(base + header->shard_tasks_at),
        .range_tasks = (struct board_task *)(base + header->range_tasks_at),
        .norm_tasks = (struct board_task *)(base + header->norm_tasks_at),
        .ranges = (struct board_range *)(base + header->ranges_at),
        .groups = (struct board_group *)(base + header->groups_at),
        .squares = (double *)(base + header->squares_at),
        .log = (struct board_log *)(base + header->log_at),
        .rates = (struct kernel_rates *)(base + header->rates_at),
        .leaves = (uint64_t *)(base + header->leaves_at),
        .changes = base + header->changes_at,
        .contents = (shared_u64 *)(base + header->contents_at),
        .sum = base + header->sum_at,
    };
}

void board_format(struct board *board, void *memory, const struct board_config *config,
                  const struct board_range *ranges, const struct board_group *groups, const uint64_t *leaves)
{
    struct board_header *header = memory;
    sections_place(header, config);
    header->shards = config->shards;
    header->ranges = config->ranges;
    header->workers = config->workers;
    header->groups = config->groups;
    header->steps = config->steps;
    header->examples = config->examples;
    header->batch_size = config->batch_size;
    header->buffer_nbytes = config->buffer_nbytes;
    header->state_stride = config->state_stride;
    header->base_version = config->base_version;
    header->job = config->job;
    header->leaves = config->leaves;
    header->sets_at = config->sets_at;
    header->sets_nbytes = config->sets_nbytes;
    header->clip_norm = config->clip_norm;
    header->is_async = config->is_async;
    header->exchange = config->exchange;
    shared_store_relaxed(&header->phase, phase_make(config->first_step, PHASE_GRADIENT, 0));
    shared_store_relaxed(&header->active, config->active);
    shared_store_relaxed(&header->own, own_make(0, config->shards));
    board_find(board, memory);
    memcpy(board->ranges, ranges, config->ranges * sizeof *ranges);
    memcpy(board->groups, groups, config->groups * sizeof *groups);
    for (uint32_t group = 0; group < config->groups; group++) {
        const unsigned states =
            kernel_state_count((enum kernel_optimizer)groups[group].optimizer, &groups[group].hyper);
        header->states = states > header->states ? states : header->states;
    }
    if (config->leaves != 0)
        memcpy(board->leaves, leaves, config->leaves * sizeof *leaves);
    board->leaves[config->leaves] = UINT64_MAX;
    for (uint32_t r = 0; r < config->ranges; r++)
        if (range_kind(&ranges[r]) == MERGE_ABSENT || range_kind(&ranges[r]) == MERGE_SKIPPED)
            header->absent_range = r;
    for (uint32_t shard = 0; shard < config->shards; shard++) /* batches in flight come from the server */
        shared_store_relaxed(&board->shard_tasks[shard].word,
                             task_make(0, config->is_async ? TASK_EMPTY : TASK_FREE, 0, shard));
    for (uint32_t worker = 0; worker < config->workers; worker++) {
        shared_store_relaxed(&board->workers[worker].scratch, config->shards + worker);
        shared_store_relaxed(&board->workers[worker].record, record_settled(config->shards + worker));
    }
    memcpy(header->magic, BOARD_MAGIC, sizeof header->magic);
}

/* Return whether it is laid out as board_format() does it, within these bytes. Then every part lies inside. */
static bool board_fits(const struct board_header *header, uint64_t nbytes)
{
    struct board_header placed;
    const struct board_config config = {
        .shards = header->shards,
        .ranges = header->ranges,
        .groups = header->groups,
        .workers = header->workers,
        .steps = header->steps,
        .examples = header->examples,
        .buffer_nbytes = header->buffer_nbytes,
        .leaves = header->leaves,
        .sets_nbytes = header->sets_nbytes,
        .exchange = header->exchange != 0,
    };
    if (config.shards - 1 >= BOARD_MAX_SHARDS || config.workers - 1 >= BOARD_MAX_WORKERS ||
        config.groups - 1 >= BOARD_MAX_GROUPS || /* 0 wraps around */
        config.ranges > nbytes / sizeof(struct board_range) || config.steps > nbytes / sizeof(struct board_log) ||
        config.examples > nbytes / sizeof(int64_t) || config.leaves > nbytes / sizeof(uint64_t) ||
        config.sets_nbytes > nbytes / BOARD_ROW_STEPS || header->absent_range >= header->ranges ||
        config.buffer_nbytes > nbytes / (config.shards + config.workers))
        return false; /* the sums below would overflow */
    sections_place(&placed, &config);
    return placed.nbytes <= nbytes && placed.nbytes == header->nbytes &&
           memcmp(&placed.workers_at, &header->workers_at, SECTIONS_NBYTES) == 0;
}

enum status board_attach(struct board *board, void *memory, uint64_t nbytes)
{
    const struct board_header *header = memory;
    if (nbytes < sizeof *header || memcmp(header->magic, BOARD_MAGIC, sizeof header->magic) != 0 ||
        !board_fits(header, nbytes))
        return STATUS_FORMAT;
    board_find(board, memory);
    return STATUS_OK;
}

struct board_buffer *board_buffer_at(const struct board *board, uint32_t buffer)
{
    const struct board_header *header = board->header;
    return (struct board_buffer *)((uint8_t *)header + header->buffers_at + buffer * header->buffer_stride);
}

/* -- bells ------------------------------------------------------------------------------------------------------ */

void board_ring(const struct board *board)
{
    shared_add(&board->header->bell, 1); /* pairs with the shared_load_acquire in board_next */
    futex_wake(&board->header->sleepers);
}

void board_ring_server(const struct board *board)
{
    shared_add(&board->header->server_bell, 1);
    futex_wake(&board->header->server_sleepers);
}

void board_ring_link(const struct board *board)
{
    shared_add(&board->header->link_bell, 1); /* pairs with the shared_load_acquire in the link */
    futex_wake(&board->header->link_sleepers);
}

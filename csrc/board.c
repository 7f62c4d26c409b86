/* The board. See board.h for what it promises and how a step goes. */
#include "board.h"

#include <errno.h>
#include <string.h>

#include "board_tasks.h"
#include "board_update.h"
#include "futex.h"

#define BOARD_MAGIC "untornB4"

/* Waiting workers look around by themselves this often: a worker killed right after the last commit of a phase could
 * not move it on. */
static const int64_t LOOK_AROUND_NS = 10000000;

/* -- words ------------------------------------------------------------------------------------------------------ */

static uint64_t phase_make(uint64_t step, enum phase_kind kind, unsigned slot) { return step << 8 | kind << 6 | slot; }
static uint64_t phase_step(uint64_t phase) { return phase >> 8; }
static enum phase_kind phase_kind(uint64_t phase) { return (enum phase_kind)(phase >> 6 & 3); }
static unsigned phase_slot(uint64_t phase) { return (unsigned)(phase & 63); }

/* -- layout ----------------------------------------------------------------------------------------------------- */

#define SECTIONS_NBYTES (offsetof(struct board_header, names_at) + sizeof(uint64_t) - offsetof(struct board_header, workers_at))
_Static_assert(SECTIONS_NBYTES == 13 * sizeof(uint64_t), "the offsets of the sections lie in one piece");

static uint64_t round_up(uint64_t nbytes, uint64_t to) { return (nbytes + to - 1) / to * to; }

static uint64_t section(uint64_t *end, uint64_t nbytes)
{
    uint64_t start = *end;
    *end = round_up(start + nbytes, 64);
    return start;
}

static void sections_place(struct board_header *header, const struct board_config *config)
{
    uint64_t end = 4096;
    header->workers_at = section(&end, config->workers * sizeof(struct board_worker));
    header->shard_tasks_at = section(&end, config->shards * sizeof(struct board_task));
    header->range_tasks_at = section(&end, config->ranges * sizeof(struct board_task));
    header->norm_tasks_at = section(&end, config->ranges * sizeof(struct board_task));
    header->squares_at = section(&end, config->ranges * sizeof(double));
    header->ranges_at = section(&end, config->ranges * sizeof(struct board_range));
    header->log_at = section(&end, config->steps * sizeof(struct board_log));
    header->rates_at = section(&end, config->steps * sizeof(struct kernel_rates));
    header->order_at = section(&end, config->examples * sizeof(int64_t));
    header->names_at = section(&end, BOARD_NAMES_NBYTES);
    header->buffer_stride = round_up(sizeof(struct board_buffer) + config->buffer_nbytes, 4096);
    end = round_up(end, 4096);
    header->buffers_at = section(&end, (config->shards + config->workers) * header->buffer_stride);
    header->errors_at = section(&end, (uint64_t)config->workers * BOARD_ERROR_NBYTES);
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
        .squares = (double *)(base + header->squares_at),
        .log = (struct board_log *)(base + header->log_at),
        .rates = (struct kernel_rates *)(base + header->rates_at),
    };
}

void board_format(struct board *board, void *memory, const struct board_config *config,
                  const struct board_range *ranges)
{
    struct board_header *header = memory;
    sections_place(header, config);
    header->shards = config->shards;
    header->ranges = config->ranges;
    header->workers = config->workers;
    header->optimizer = config->optimizer;
    header->steps = config->steps;
    header->examples = config->examples;
    header->batch_size = config->batch_size;
    header->buffer_nbytes = config->buffer_nbytes;
    header->state_stride = config->state_stride;
    header->base_version = config->base_version;
    header->job = config->job;
    header->clip_norm = config->clip_norm;
    header->lanes = config->lanes;
    header->hyper = config->hyper;
    shared_store_relaxed(&header->active, config->active);
    board_find(board, memory);
    memcpy(board->ranges, ranges, config->ranges * sizeof *ranges);
    for (uint32_t shard = 0; shard < config->shards; shard++) /* lanes wait for the server to open them */
        shared_store_relaxed(&board->shard_tasks[shard].word, task_make(0, config->lanes ? TASK_EMPTY : TASK_FREE, 0, shard));
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
        .shards = header->shards, .ranges = header->ranges, .workers = header->workers, .steps = header->steps,
        .examples = header->examples, .buffer_nbytes = header->buffer_nbytes,
    };
    if (config.shards - 1 >= BOARD_MAX_SHARDS || config.workers - 1 >= BOARD_MAX_WORKERS || /* 0 wraps around */
        config.ranges > nbytes / sizeof(struct board_range) || config.steps > nbytes / sizeof(struct board_log) ||
        config.examples > nbytes / sizeof(int64_t) || config.buffer_nbytes > nbytes / (config.shards + config.workers))
        return false; /* what follows would overflow */
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

/* -- phases ----------------------------------------------------------------------------------------------------- */

static void phase_end_update(const struct board *board, struct attachment *weights, uint64_t phase)
{
    uint64_t step = phase_step(phase), latest = channel_latest(&weights->channel);
    uint64_t version = board->header->base_version + step + 1;
    if (latest_version(latest) + 1 == version) /* a second one that tries finds it done */
        channel_publish_if(&weights->channel, latest, version, phase_slot(phase));
    channel_wake(&weights->channel); /* whoever published may have been killed before it woke the waiting */
    if (!shared_swap_if(&board->header->phase, phase, phase_make(step + 1, PHASE_GRADIENT, 0)))
        return;
    board_ring(board);
    if (step + 1 == shared_load_acquire(&board->header->limit))
        board_ring_server(board);
}

/* Every shard's gradient is there, and the norm, where it is wanted. False if there is no free slot, or, `refused`, no
 * memory to map the newest version. */
static bool phase_begin_update(const struct board *board, struct attachment *weights, uint64_t phase, bool *refused)
{
    uint64_t latest = channel_latest(&weights->channel), capacity;
    uint8_t *from;
    unsigned slot;
    if (attachment_map(weights, latest_slot(latest), &from, &capacity) != STATUS_OK) {
        *refused = true;
        return false;
    }
    uint64_t nbytes = ((const struct slot_header *)from)->nbytes;
    if (attachment_pick_ready(weights, nbytes, &slot) != STATUS_OK)
        return false;
    if (shared_swap_if(&board->header->phase, phase, phase_make(phase_step(phase), PHASE_UPDATE, slot)))
        board_ring(board);
    return true;
}

static bool phase_end_gradient(const struct board *board, struct attachment *weights, uint64_t phase, bool *refused)
{
    if (board->header->clip_norm == 0)
        return phase_begin_update(board, weights, phase, refused);
    if (shared_swap_if(&board->header->phase, phase, phase_make(phase_step(phase), PHASE_NORM, 0)))
        board_ring(board);
    return true;
}

/* Wait for a change after `seen`. False when wait_ns is used up. */
static bool bell_wait(const struct board *board, uint32_t seen, int64_t spin_ns, int64_t end_ns)
{
    struct board_header *header = board->header;
    if (futex_spin(&header->bell, seen, spin_ns))
        return true;
    int64_t left = end_ns - clock_monotonic_ns();
    if (left <= 0)
        return false;
    return futex_sleep(&header->bell, seen, &header->sleepers, left < LOOK_AROUND_NS ? left : LOOK_AROUND_NS) !=
           FUTEX_INTERRUPTED;
}

/* -- refusals --------------------------------------------------------------------------------------------------- */

/* So often has each worker tried: for about a second, since it looks around every LOOK_AROUND_NS. */
enum { REFUSALS_MOST = 100 };

static uint64_t refused_step(uint64_t refused) { return refused >> 32; }
static uint64_t refused_times(uint64_t refused) { return refused >> 16 & 0xffff; }

static void refusal_count(const struct board *board, uint32_t worker, uint64_t step, int error)
{
    shared_u64 *word = &board->workers[worker].refused;
    uint64_t before = shared_load_relaxed(word), times = refused_step(before) == step ? refused_times(before) : 0;
    if (times < REFUSALS_MOST)
        times++;
    shared_store_release(word, step << 32 | times << 16 | (uint64_t)(error != 0 ? error : EIO)); /* pairs with board_refused */
    if (times == REFUSALS_MOST)
        board_ring_server(board);
}

void board_refuse(const struct board *board, uint32_t worker, const struct turn *turn, int error)
{
    uint64_t free = task_make(task_step(turn->claim), TASK_FREE, 0, task_buffer(turn->claim));
    shared_swap_if(&board->shard_tasks[turn->shard].word, turn->claim, free); /* failed: it was given to others before */
    refusal_count(board, worker, board_step(board), error);
    board_ring(board);
}

int board_refused(const struct board *board)
{
    uint32_t active = shared_load_acquire(&board->header->active);
    uint64_t step = board_step(board), refused = 0;
    for (uint32_t worker = 0; worker < active; worker++) {
        refused = shared_load_acquire(&board->workers[worker].refused);
        if (refused_step(refused) != step || refused_times(refused) < REFUSALS_MOST)
            return 0;
    }
    return (int)(refused & 0xffff);
}

/* The server is asked for a free slot. */
static void slot_ask(const struct board *board)
{
    shared_store_release(&board->header->need_slot, 1);
    board_ring_server(board);
}

struct turn board_next(const struct board *board, struct attachment *weights, uint32_t worker, bool spin,
                       int64_t wait_ns)
{
    struct board_header *header = board->header;
    int64_t end_ns = clock_monotonic_ns() + wait_ns, spin_ns = spin ? (int64_t)shared_load_relaxed(&header->spin_ns) : 0;
    if (weights->forked)
        return (struct turn){.kind = TURN_STOP}; /* a forked copy of a worker: its claims are the worker's */
    for (;;) {
        uint32_t seen = shared_load_acquire(&header->bell); /* before looking: a change after it ends the wait at once */
        if (shared_load_acquire(&header->stop) != 0)
            return (struct turn){.kind = TURN_STOP};
        if (worker >= shared_load_acquire(&header->active))
            return (struct turn){.kind = TURN_LEAVE};
        uint64_t phase = shared_load_acquire(&header->phase), step = phase_step(phase);
        struct turn turn;
        bool done = false, has_slot = true, refused = false;
        if (header->lanes) {
            if (lane_claim(board, worker, &turn))
                return turn;
            if (wait_ns == 0)
                return (struct turn){.kind = TURN_IDLE};
        } else if (step >= shared_load_acquire(&header->limit)) {
            if (wait_ns == 0)
                return (struct turn){.kind = TURN_IDLE};
        } else if (phase_kind(phase) == PHASE_UPDATE) {
            if (updates_run(board, weights, worker, step, phase_slot(phase), &refused)) {
                phase_end_update(board, weights, phase);
                continue;
            }
        } else if (phase_kind(phase) == PHASE_NORM) {
            done = norms_run(board, worker, step);
            has_slot = !done || phase_begin_update(board, weights, phase, &refused);
        } else if (shard_claim(board, worker, step, &turn, &done)) {
            return turn;
        } else if (done) {
            has_slot = phase_end_gradient(board, weights, phase, &refused);
        }
        if (done && has_slot)
            continue;
        if (refused) {
            refusal_count(board, worker, step, errno);
        } else if (!has_slot) {
            slot_ask(board);
            if (wait_ns == 0)
                return (struct turn){.kind = TURN_NEED_SLOT};
        }
        if (!bell_wait(board, seen, spin_ns, end_ns))
            return (struct turn){.kind = TURN_IDLE};
        if (shared_load_acquire(&header->bell) == seen)
            spin_ns = 0; /* nothing came while we spun, so it may take long: from here on only sleep */
    }
}

/* -- the server ------------------------------------------------------------------------------------------------- */

void board_open(const struct board *board, uint64_t limit)
{
    shared_store_release(&board->header->limit, limit); /* pairs with board_next: the epoch's order and rates come before */
    board_ring(board);
}

void board_stop(const struct board *board)
{
    shared_store_release(&board->header->stop, 1);
    board_ring(board);
}

void board_team(const struct board *board, uint32_t active, int64_t spin_ns)
{
    shared_store_relaxed(&board->header->spin_ns, (uint64_t)spin_ns);
    shared_store_release(&board->header->active, active);
    board_ring(board);
}

/* -- lanes ------------------------------------------------------------------------------------------------------ */

bool lane_open(const struct board *board, uint32_t lane, uint64_t batch)
{
    shared_u64 *word = &board->shard_tasks[lane].word;
    uint64_t task = shared_load_relaxed(word);
    if (task_state(task) != TASK_EMPTY)
        return false;
    shared_store_release(word, task_make(batch, TASK_FREE, 0, task_buffer(task))); /* only the server changes an empty lane */
    board_ring(board);
    return true;
}

void lane_empty(const struct board *board, uint32_t lane)
{
    shared_u64 *word = &board->shard_tasks[lane].word;
    uint64_t task = shared_load_acquire(word);
    commit_bury(board, lane, task);
    shared_store_release(word, task_make(task_step(task), TASK_EMPTY, 0, task_buffer(task)));
}

struct lane lane_look(const struct board *board, uint32_t lane)
{
    uint64_t task = shared_load_acquire(&board->shard_tasks[lane].word); /* pairs with board_commit */
    return (struct lane){
        .state = task_state(task),
        .batch = task_step(task),
        .version = task_state(task) == TASK_DONE ? board_buffer_at(board, task_buffer(task))->version : 0,
        .buffer = task_buffer(task),
    };
}

enum status lane_apply(const struct board *board, struct attachment *weights, uint32_t lane, uint64_t step,
                       uint64_t staleness)
{
    uint64_t capacity;
    uint8_t *from;
    unsigned slot;
    enum status status = attachment_map(weights, latest_slot(channel_latest(&weights->channel)), &from, &capacity);
    if (status == STATUS_OK)
        status = attachment_pick_ready(weights, ((const struct slot_header *)from)->nbytes, &slot);
    if (status == STATUS_OK)
        status = lane_update(board, weights, lane, step, staleness, slot);
    if (status != STATUS_OK)
        return status;
    channel_publish(&weights->channel, board->header->base_version + step + 1, slot);
    lane_empty(board, lane);
    shared_store_release(&board->header->phase, phase_make(step + 1, PHASE_GRADIENT, 0)); /* pairs with board_step */
    return STATUS_OK;
}

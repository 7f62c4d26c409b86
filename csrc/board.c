/* The board. See board.h for what it promises and how a step goes. */
#include "board.h"

#include <errno.h>

#include "board_update.h"
#include "futex.h"

/* Waiting workers look at the board by themselves at this interval: a worker killed right after the last commit of a
 * phase could not move it on. */
static const int64_t LOOK_AROUND_NS = 10000000;

_Static_assert((int)BOARD_SLOTS == (int)CHANNEL_MAX_SLOTS, "a board knows what each slot of the weights has");

/* -- phases ----------------------------------------------------------------------------------------------------- */

static void phase_end_update(const struct board *board, struct attachment *weights, uint64_t phase)
{
    uint64_t step = phase_step(phase), latest = channel_latest(&weights->channel);
    uint64_t version = board->header->base_version + step + 1;
    if (latest_version(latest) + 1 == version) /* a second worker that tries finds it done */
        channel_publish_if(&weights->channel, latest, version, phase_slot(phase));
    /* the worker that published may have been killed before it woke the waiting processes */
    channel_wake(&weights->channel);
    if (!shared_swap_if(&board->header->phase, phase, phase_make(step + 1, PHASE_GRADIENT, 0)))
        return;
    board_ring(board);
    if (board->header->exchange)
        board_ring_link(board);
    if (step + 1 == shared_load_acquire(&board->header->limit))
        board_ring_server(board);
}

/* Begin the update: every shard's gradient is there, and so is the norm, if clipping needs it. False if there is no
 * free slot, or, with `refused` set, no memory to map the newest version. */
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
static bool bell_wait(const struct board *board, struct futex_manner *manner, uint32_t seen, int64_t spin_ns,
                      int64_t end_ns)
{
    struct board_header *header = board->header;
    if (futex_spin_watchfully(manner, &header->bell, seen, spin_ns))
        return true;
    int64_t left = end_ns - clock_monotonic_ns();
    if (left <= 0)
        return false;
    return futex_sleep(&header->bell, seen, &header->sleepers, left < LOOK_AROUND_NS ? left : LOOK_AROUND_NS) !=
           FUTEX_INTERRUPTED;
}

/* -- refusals --------------------------------------------------------------------------------------------------- */

/* The number of refusals after which a worker counts as unable: about a second's, at one per LOOK_AROUND_NS. */
enum { REFUSALS_MAX = 100 };

static uint64_t refused_step(uint64_t refused) { return refused >> 32; }
static uint64_t refused_times(uint64_t refused) { return refused >> 16 & 0xffff; }

static void refusal_count(const struct board *board, uint32_t worker, uint64_t step, int error)
{
    shared_u64 *word = &board->workers[worker].refused;
    uint64_t before = shared_load_relaxed(word), times = refused_step(before) == step ? refused_times(before) : 0;
    if (times < REFUSALS_MAX)
        times++;
    /* pairs with board_refused */
    shared_store_release(word, step << 32 | times << 16 | (uint64_t)(error != 0 ? error : EIO));
    if (times == REFUSALS_MAX)
        board_ring_server(board);
}

void board_refuse(const struct board *board, uint32_t worker, const struct board_run *run, int error)
{
    uint64_t free = task_make(task_step(run->claim), TASK_FREE, 0, task_buffer(run->claim));
    /* failed: the task was given to others before */
    shared_swap_if(&board->shard_tasks[run->shard].word, run->claim, free);
    refusal_count(board, worker, board_step(board), error);
    board_ring(board);
}

int board_refused(const struct board *board)
{
    uint32_t active = shared_load_acquire(&board->header->active);
    uint64_t step = board_step(board), refused = 0;
    for (uint32_t worker = 0; worker < active; worker++) {
        refused = shared_load_acquire(&board->workers[worker].refused);
        if (refused_step(refused) != step || refused_times(refused) < REFUSALS_MAX)
            return 0;
    }
    return (int)(refused & 0xffff);
}

/* Ask the server for a free slot. */
static void slot_ask(const struct board *board)
{
    shared_store_release(&board->header->need_slot, 1);
    board_ring_server(board);
}

struct board_run board_next(const struct board *board, struct attachment *weights, uint32_t worker, bool spin,
                            int64_t wait_ns)
{
    struct board_header *header = board->header;
    int64_t end_ns = clock_monotonic_ns() + wait_ns,
            spin_ns = spin ? (int64_t)shared_load_relaxed(&header->spin_ns) : 0;
    if (weights->forked)
        return (struct board_run){.kind = RUN_STOP}; /* a forked copy of a worker: its claims are the worker's */
    for (;;) {
        /* before looking: a change after it ends the wait at once */
        uint32_t seen = shared_load_acquire(&header->bell);
        if (shared_load_acquire(&header->stop) != 0)
            return (struct board_run){.kind = RUN_STOP};
        if (worker >= shared_load_acquire(&header->active))
            return (struct board_run){.kind = RUN_LEAVE};
        uint64_t phase = shared_load_acquire(&header->phase), step = phase_step(phase);
        struct board_run run;
        bool done = false, has_slot = true, refused = false;
        if (header->is_async) {
            if (inflight_claim(board, worker, &run))
                return run;
            if (wait_ns == 0)
                return (struct board_run){.kind = RUN_IDLE};
        } else if (step >= shared_load_acquire(&header->limit)) {
            if (wait_ns == 0)
                return (struct board_run){.kind = RUN_IDLE};
        } else if (phase_kind(phase) == PHASE_UPDATE) {
            if (updates_run(board, weights, worker, step, phase_slot(phase), &refused)) {
                phase_end_update(board, weights, phase);
                continue;
            }
        } else if (phase_kind(phase) == PHASE_NORM) {
            done = norms_run(board, worker, step);
            has_slot = !done || phase_begin_update(board, weights, phase, &refused);
        } else if (shard_claim(board, worker, step, &run, &done)) {
            return run;
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
                return (struct board_run){.kind = RUN_NEED_SLOT};
        }
        if (!bell_wait(board, &weights->manner, seen, spin_ns, end_ns))
            return (struct board_run){.kind = RUN_IDLE};
        if (shared_load_acquire(&header->bell) == seen)
            spin_ns = 0; /* nothing came while we spun, so it may take long: from here on only sleep */
    }
}

/* -- the server ------------------------------------------------------------------------------------------------- */

void board_set_limit(const struct board *board, uint64_t limit)
{
    /* pairs with board_next: the epoch's order and rates come before */
    shared_store_release(&board->header->limit, limit);
    board_ring(board);
    if (board->header->exchange)
        board_ring_link(board); /* it may have no shard to wait for */
}

void board_stop(const struct board *board)
{
    shared_store_release(&board->header->stop, 1);
    board_ring(board);
}

void board_set_workers(const struct board *board, uint32_t active, int64_t spin_ns)
{
    shared_store_relaxed(&board->header->spin_ns, (uint64_t)spin_ns);
    shared_store_release(&board->header->active, active);
    board_ring(board);
}

void board_set_own(const struct board *board, uint32_t first, uint32_t end)
{
    shared_store_release(&board->header->own, own_make(first, end)); /* pairs with shard_claim */
    board_ring(board);
}

void board_set_linked(const struct board *board)
{
    uint64_t own = shared_load_relaxed(&board->header->own);
    shared_store_release(&board->header->own, own | OWN_LINKED); /* pairs with shard_claim */
}

uint64_t board_incomplete_step(const struct board *board)
{
    uint64_t phase = shared_load_acquire(&board->header->phase), step = phase_step(phase); /* pairs with its swaps */
    if (phase_kind(phase) != PHASE_GRADIENT)
        return step + 1;
    bool alone = own_is_alone(shared_load_acquire(&board->header->own), board->header->shards);
    bool complete = shards_done(board, step, 0, board->header->shards) && (alone || board_summed(board, step));
    return complete ? step + 1 : step;
}

/* -- batches in flight ------------------------------------------------------------------------------------------- */

bool inflight_open(const struct board *board, uint32_t index, uint64_t batch)
{
    shared_u64 *word = &board->shard_tasks[index].word;
    uint64_t task = shared_load_relaxed(word);
    if (task_state(task) != TASK_EMPTY)
        return false;
    /* only the server changes an empty place */
    shared_store_release(word, task_make(batch, TASK_FREE, 0, task_buffer(task)));
    board_ring(board);
    return true;
}

void inflight_empty(const struct board *board, uint32_t index)
{
    shared_u64 *word = &board->shard_tasks[index].word;
    uint64_t task = shared_load_acquire(word);
    record_settle_overwritten(board, index, task);
    shared_store_release(word, task_make(task_step(task), TASK_EMPTY, 0, task_buffer(task)));
}

struct inflight inflight_look(const struct board *board, uint32_t index)
{
    uint64_t task = shared_load_acquire(&board->shard_tasks[index].word); /* pairs with board_commit */
    return (struct inflight){
        .state = task_state(task),
        .batch = task_step(task),
        .version = task_state(task) == TASK_DONE ? board_buffer_at(board, task_buffer(task))->version : 0,
        .buffer = task_buffer(task),
    };
}

enum status inflight_apply(const struct board *board, struct attachment *weights, uint32_t index, uint64_t step,
                           uint64_t staleness)
{
    uint64_t capacity;
    uint8_t *from;
    unsigned slot;
    enum status status = attachment_map(weights, latest_slot(channel_latest(&weights->channel)), &from, &capacity);
    if (status == STATUS_OK)
        status = attachment_pick_ready(weights, ((const struct slot_header *)from)->nbytes, &slot);
    if (status == STATUS_OK)
        status = inflight_update(board, weights, index, step, staleness, slot);
    if (status != STATUS_OK)
        return status;
    channel_publish(&weights->channel, board->header->base_version + step + 1, slot);
    inflight_empty(board, index);
    shared_store_release(&board->header->phase, phase_make(step + 1, PHASE_GRADIENT, 0)); /* pairs with board_step */
    return STATUS_OK;
}

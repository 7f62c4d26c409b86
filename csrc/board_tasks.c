/* Claiming, committing and handing back: see board_tasks.h. */
#include "board_tasks.h"

/* -- claims ------------------------------------------------------------------------------------------------------- */

void record_settle_overwritten(const struct board *board, uint32_t shard, uint64_t task)
{
    if (task_state(task) != TASK_DONE || task_worker(task) >= board->header->workers)
        return;
    shared_u64 *word = &board->workers[task_worker(task)].record;
    /* at least as new as the commit: the task's word was stored after it */
    uint64_t record = shared_load_acquire(word);
    if (record == record_intent(task_step(task), shard, task_buffer(task), record_other(record)))
        /* failed: another process settled it, or its worker went on */
        shared_swap_if(word, record, record_settled(record_other(record)));
}

/* Return whether this step's task may be claimed. The phase may have moved on meanwhile, so the word may be of a later
 * step. */
static bool task_is_open(uint64_t task, uint64_t step)
{
    return task_step(task) < step || task_is(task, step, TASK_FREE);
}

/* Neighbours begin at shards that lie apart, so that they seldom compete for one. */
static uint32_t shard_first(const struct board *board, uint32_t worker, uint32_t count)
{
    uint32_t active = shared_load_relaxed(&board->header->active);
    return active == 0 || count == 0 ? 0 : (uint32_t)((uint64_t)worker * count / active % count);
}

static bool shard_take(const struct board *board, uint32_t worker, uint32_t shard, uint64_t task, uint64_t step,
                       struct board_run *run)
{
    uint64_t claim = task_make(step, TASK_CLAIMED, worker, task_buffer(task));
    record_settle_overwritten(board, shard, task);
    if (!shared_swap_if(&board->shard_tasks[shard].word, task, claim))
        return false;
    *run = (struct board_run){
        .kind = RUN_GRADIENT,
        .shard = shard,
        .buffer = (uint32_t)shared_load_relaxed(&board->workers[worker].scratch),
        .step = step,
        .claim = claim,
    };
    return true;
}

bool shards_done(const struct board *board, uint64_t step, uint32_t first, uint32_t end)
{
    for (uint32_t shard = first; shard < end; shard++) /* pairs with the shared_swap_if of commits */
        if (!task_is(shared_load_acquire(&board->shard_tasks[shard].word), step, TASK_DONE))
            return false;
    return true;
}

bool board_summed(const struct board *board, uint64_t step)
{
    return shared_load_acquire(&board->header->summed) == step + 1;
}

/* Return whether the gradient of the step is complete, while no own shard is missing. The server lowers the limit
 * before it makes all shards own. A worker that has looked at the limit before that sees the lower one here. */
static bool gradient_complete(const struct board *board, uint64_t step, uint64_t own)
{
    uint32_t shards = board->header->shards;
    if (own_is_alone(own, shards))
        return !board->header->exchange || step < shared_load_acquire(&board->header->limit);
    return shards_done(board, step, 0, own_first(own)) && shards_done(board, step, own_end(own), shards) &&
           board_summed(board, step);
}

bool shard_claim(const struct board *board, uint32_t worker, uint64_t step, struct board_run *run, bool *done)
{
    uint64_t own = shared_load_acquire(&board->header->own); /* pairs with board_set_own */
    uint32_t count = own_end(own) - own_first(own), first = shard_first(board, worker, count);
    *done = true;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t shard = own_first(own) + (first + i) % count;
        /* pairs with the shared_swap_if of commits */
        uint64_t task = shared_load_acquire(&board->shard_tasks[shard].word);
        if (task_is(task, step, TASK_DONE))
            continue;
        *done = false;
        if (task_is_open(task, step) && shard_take(board, worker, shard, task, step, run))
            return true;
    }
    *done = *done && gradient_complete(board, step, own);
    return false;
}

bool inflight_claim(const struct board *board, uint32_t worker, struct board_run *run)
{
    for (;;) {
        uint64_t oldest = UINT64_MAX; /* a word begins with its batch */
        uint32_t shard = 0;
        for (uint32_t i = 0; i < board->header->shards; i++) {
            uint64_t task = shared_load_acquire(&board->shard_tasks[i].word); /* pairs with inflight_open */
            if (task_state(task) == TASK_FREE && task < oldest) {
                oldest = task;
                shard = i;
            }
        }
        if (oldest == UINT64_MAX)
            return false;
        if (shard_take(board, worker, shard, oldest, task_step(oldest), run))
            return true; /* otherwise another worker was faster, and another batch may wait */
    }
}

bool range_claim(struct board_task *tasks, uint32_t count, uint32_t first, uint64_t step, uint32_t worker,
                 uint32_t *index, uint64_t *claim, bool *done)
{
    *done = true;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (first + i) % count;
        uint64_t task = shared_load_acquire(&tasks[at].word); /* pairs with the shared_swap_if of range_commit */
        if (task_is(task, step, TASK_DONE))
            continue;
        *done = false;
        *claim = task_make(step, TASK_CLAIMED, worker, 0);
        if (task_is_open(task, step) && shared_swap_if(&tasks[at].word, task, *claim)) {
            *index = at;
            return true;
        }
    }
    return false;
}

/* -- commits ------------------------------------------------------------------------------------------------------ */

void range_commit(struct board_task *task, uint64_t claim)
{
    shared_swap_if(&task->word, claim, task_make(task_step(claim), TASK_DONE, task_worker(claim), 0));
}

void range_give_back(struct board_task *task, uint64_t claim)
{
    shared_swap_if(&task->word, claim, task_make(task_step(claim), TASK_FREE, 0, 0));
}

/* Wake the link if this was the last of the own shards. Of two workers that commit at once, at least one sees both. A
 * worker that is killed before this tells nobody, so the link looks by itself, too. */
static void own_done_tell(const struct board *board, uint64_t step)
{
    fence_full();                                            /* pairs with itself, in another worker */
    uint64_t own = shared_load_acquire(&board->header->own); /* pairs with board_set_own */
    if (shards_done(board, step, own_first(own), own_end(own)))
        board_ring_link(board);
}

bool board_commit(const struct board *board, uint32_t worker, const struct board_run *run)
{
    struct board_worker *self = &board->workers[worker];
    uint32_t other = task_buffer(run->claim);
    uint64_t done = task_make(run->step, TASK_DONE, worker, run->buffer);
    shared_store_release(&self->record, record_intent(run->step, run->shard, run->buffer, other));
    bool counts = shared_swap_if(&board->shard_tasks[run->shard].word, run->claim, done);
    /* if the worker is killed before this store, the record tells; only the server reads a dead worker's scratch */
    if (counts) {
        shared_store_release(&self->scratch, other);
        shared_store_relaxed(&self->commits, shared_load_relaxed(&self->commits) + 1);
    }
    if (board->header->is_async)
        board_ring_server(board);
    else if (board->header->exchange)
        own_done_tell(board, run->step);
    return counts;
}

bool board_still_claimed(const struct board *board, const struct board_run *run)
{
    return shared_load_acquire(&board->shard_tasks[run->shard].word) == run->claim;
}

/* -- the link ----------------------------------------------------------------------------------------------------- */

void board_set_summed(const struct board *board, uint64_t step)
{
    shared_store_release(&board->header->summed, step + 1); /* pairs with board_summed */
}

uint64_t remote_claim(const struct board *board, uint32_t shard, uint64_t step)
{
    shared_u64 *word = &board->shard_tasks[shard].word;
    for (;;) {
        uint64_t task = shared_load_acquire(word), claim = task_make(step, TASK_CLAIMED, TASK_LINK, task_buffer(task));
        if (task_is(task, step, TASK_DONE))
            return task;
        record_settle_overwritten(board, shard, task);
        if (shared_swap_if(word, task, claim)) /* failed: its worker commits, or the server frees it */
            return claim;
    }
}

void remote_commit(const struct board *board, uint32_t shard, uint64_t claim)
{
    /* only the link changes a word that it has claimed */
    shared_store_release(&board->shard_tasks[shard].word,
                         task_make(task_step(claim), TASK_DONE, TASK_LINK, task_buffer(claim)));
}

/* -- the server --------------------------------------------------------------------------------------------------- */

static int64_t claims_free(struct board_task *tasks, uint32_t count, uint32_t worker)
{
    int64_t freed = -1;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t task = shared_load_acquire(&tasks[i].word);
        if (task_state(task) == TASK_CLAIMED && task_worker(task) == worker &&
            shared_swap_if(&tasks[i].word, task, task_make(task_step(task), TASK_FREE, 0, task_buffer(task))))
            freed = i;
    }
    return freed;
}

static bool claims_any(const struct board_task *tasks, uint32_t count, uint32_t worker)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t task = shared_load_acquire(&tasks[i].word);
        if (task_state(task) == TASK_CLAIMED && task_worker(task) == worker)
            return true;
    }
    return false;
}

/* The worker is dead, but others may settle its record at the same time. If a later commit replaced the dead worker's,
 * so that the word no longer names its scratch, the worker that claimed the word had settled the record before: then
 * our swap fails. */
static void record_settle_dead(const struct board *board, uint32_t worker)
{
    struct board_worker *dead = &board->workers[worker];
    for (;;) {
        /* pairs with board_commit and record_settle_overwritten */
        uint64_t record = shared_load_acquire(&dead->record);
        uint32_t scratch = record_scratch(record), mine = scratch;
        if (scratch != record_other(record)) {
            uint32_t named = task_buffer(shared_load_acquire(&board->shard_tasks[record_shard(record)].word));
            mine = named == scratch ? record_other(record) : scratch;
        }
        if (shared_swap_if(&dead->record, record, record_settled(mine))) {
            shared_store_release(&dead->scratch, mine);
            return;
        }
    }
}

int64_t board_recover(const struct board *board, uint32_t worker)
{
    int64_t shard = board_give_up(board, worker);
    claims_free(board->norm_tasks, board->header->ranges, worker);
    claims_free(board->range_tasks, board->header->ranges, worker);
    record_settle_dead(board, worker);
    shared_store_relaxed(&board->workers[worker].refused, 0); /* the worker that takes its place has not tried yet */
    board_ring(board);
    return shard;
}

int64_t board_give_up(const struct board *board, uint32_t worker)
{
    int64_t shard = claims_free(board->shard_tasks, board->header->shards, worker);
    if (shard >= 0)
        board_ring(board);
    return shard;
}

bool board_holds_range(const struct board *board, uint32_t worker)
{
    return claims_any(board->norm_tasks, board->header->ranges, worker) ||
           claims_any(board->range_tasks, board->header->ranges, worker);
}

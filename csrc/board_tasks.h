/* Claims and commits: the rules by which tasks of a board are claimed, committed and freed. See board.h.
 *
 * A gradient may be taken from a worker that is stopped and will go on later, so a claim that is gone does not prove
 * that a commit happened. The shard's word tells whether a killed worker's last commit happened: it names the buffer
 * that the commit put there. It does so until the next claim of the shard. So before a worker claims the shard, or the
 * server empties its place, it settles the record of the worker whose commit it overwrites. docs/protocol.md has the
 * proof, and tests/model/board_model.py checks it, kills and stops included.
 *
 * On a board with exchange, the workers claim the shards of the range `own` only. The others are remote: their
 * gradients come to the server's link, as a part of the sum. The link claims a remote shard under a number that is no
 * worker's, writes what was measured into the buffer that the word names, and commits; the buffer stays the shard's.
 */
#ifndef UNTORN_BOARD_TASKS_H
#define UNTORN_BOARD_TASKS_H

#include "board_layout.h"

enum run_kind { RUN_GRADIENT = 0, RUN_IDLE = 1, RUN_STOP = 2, RUN_NEED_SLOT = 3, RUN_LEAVE = 4 };

/* The number under which the link claims a shard. */
enum { TASK_LINK = 0x3fff };
_Static_assert((int)TASK_LINK >= (int)BOARD_MAX_WORKERS, "no worker has the link's number");

/* The next thing for a worker to do, and the claim that committing it takes. Private to one worker. */
struct board_run {
    enum run_kind kind;
    uint32_t shard, buffer;
    uint64_t step;
    uint64_t claim; /* the task word as claimed */
};

/* Commit the gradient in the worker's scratch. False if the task was given to another worker meanwhile: the gradient
 * does not count. */
bool board_commit(const struct board *board, uint32_t worker, const struct board_run *run);
/* Return whether the worker still holds the claim. */
bool board_still_claimed(const struct board *board, const struct board_run *run);
/* Claim the first own shard of this step that no worker has; false if there is none. *done: whether every task is done,
 * and the sum is there if remote shards are part of it. */
bool shard_claim(const struct board *board, uint32_t worker, uint64_t step, struct board_run *run, bool *done);
/* Claim the batch in flight that has waited longest for a gradient; false if none waits. */
bool inflight_claim(const struct board *board, uint32_t worker, struct board_run *run);
/* Return whether these shards of the step are all committed. */
bool shards_done(const struct board *board, uint64_t step, uint32_t first, uint32_t end);
/* Return whether the sum buffer has this step's sum. */
bool board_summed(const struct board *board, uint64_t step);
/* The link: state that the sum buffer has this step's sum, before the first remote shard is committed. The buffer was
 * free: the own shards of the step were done, so the update before it was over. */
void board_set_summed(const struct board *board, uint64_t step);
/* The link: claim a remote shard; take it from a worker that still has it. Returns the word: DONE if the shard has its
 * gradient already, and is to be left alone. Then commit the claim. */
uint64_t remote_claim(const struct board *board, uint32_t shard, uint64_t step);
void remote_commit(const struct board *board, uint32_t shard, uint64_t claim);
/* Claim a norm or an update. The search begins at `first`. */
bool range_claim(struct board_task *tasks, uint32_t count, uint32_t first, uint64_t step, uint32_t worker,
                 uint32_t *index, uint64_t *claim, bool *done);
void range_commit(struct board_task *task, uint64_t claim);
void range_give_back(struct board_task *task, uint64_t claim);
/* Before the task's word is overwritten: if it names a worker's last commit, settle the record of that worker. */
void record_settle_overwritten(const struct board *board, uint32_t shard, uint64_t task);

/* Free the claims of a dead worker and settle its record; returns the shard whose gradient it had claimed, or -1. */
int64_t board_recover(const struct board *board, uint32_t worker);
/* Give the gradient task of a stopped worker to others; returns its shard, or -1. */
int64_t board_give_up(const struct board *board, uint32_t worker);
/* Return whether the worker holds a norm or update task, which only its death can free. */
bool board_holds_range(const struct board *board, uint32_t worker);

#endif

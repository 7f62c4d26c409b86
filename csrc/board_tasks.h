/* The words of a board's tasks: who may claim, commit and hand back what. Private to board*.c; see board.h.
 *
 * A gradient may be taken from a worker that is stopped and will go on later, so "my claim is gone" does not say that
 * a commit happened. What a killed worker's last commit did is told from the shard's word: it names the buffer that
 * the commit put there. That is true until the next claim of the shard, so whoever claims it (or empties the lane)
 * settles first the record of the worker whose commit that buries. docs/protocol.md has the proof, and
 * tests/model/board_model.py checks it, kills and stops included.
 */
#ifndef UNTORN_BOARD_TASKS_H
#define UNTORN_BOARD_TASKS_H

#include "board_layout.h"

enum turn_kind { TURN_GRADIENT = 0, TURN_IDLE = 1, TURN_STOP = 2, TURN_NEED_SLOT = 3, TURN_LEAVE = 4 };

/* What to do next, and what it takes to commit it. Private to one worker. */
struct turn {
    enum turn_kind kind;
    uint32_t shard, buffer;
    uint64_t step;
    uint64_t claim;            /* the task word as claimed */
};

/* Commit the gradient in the worker's scratch. False if the task was given to another meanwhile: it counts nothing. */
bool board_commit(const struct board *board, uint32_t worker, const struct turn *turn);
/* Is the task still the worker's? */
bool board_stands(const struct board *board, const struct turn *turn);
/* Claim the first shard of this step that nobody has; false if there is none. *done: is every task done? */
bool shard_claim(const struct board *board, uint32_t worker, uint64_t step, struct turn *turn, bool *done);
/* Claim the lane whose batch has waited longest for a gradient; false if none waits. */
bool lane_claim(const struct board *board, uint32_t worker, struct turn *turn);
/* Claim a norm or an update. `first` is the one to look at first. */
bool range_claim(struct board_task *tasks, uint32_t count, uint32_t first, uint64_t step, uint32_t worker,
                 uint32_t *index, uint64_t *claim, bool *done);
void range_commit(struct board_task *task, uint64_t claim);
void range_give_back(struct board_task *task, uint64_t claim);
/* The task's word is about to lose what it names: if that is somebody's last commit, settle that record. */
void commit_bury(const struct board *board, uint32_t shard, uint64_t task);

/* Settle the affairs of a worker that is dead; which shard's gradient it had claimed, or -1. */
int64_t board_recover(const struct board *board, uint32_t worker);
/* Give the gradient task of a worker that is stopped to others; which shard's, or -1. */
int64_t board_give_up(const struct board *board, uint32_t worker);
/* Does it hold a norm or update task, which only its death can free? */
bool board_holds_range(const struct board *board, uint32_t worker);

#endif

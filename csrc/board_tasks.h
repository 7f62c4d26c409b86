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

#include "board.h"

static inline uint64_t task_make(uint64_t step, enum task_state state, uint32_t worker, uint32_t buffer)
{
    return step << 32 | (uint64_t)state << 30 | (uint64_t)worker << 16 | buffer;
}
static inline uint64_t task_step(uint64_t task) { return task >> 32; }
static inline enum task_state task_state(uint64_t task) { return (enum task_state)(task >> 30 & 3); }
static inline uint32_t task_worker(uint64_t task) { return (uint32_t)(task >> 16 & 0x3fff); }
static inline uint32_t task_buffer(uint64_t task) { return (uint32_t)(task & 0xffff); }
static inline bool task_is(uint64_t task, uint64_t step, enum task_state state)
{
    return task_step(task) == step && task_state(task) == state;
}

_Static_assert(BOARD_MAX_WORKERS <= 1 << 14, "a task's word has room for a worker");

/* What a worker's record says: which buffer is its own, or that it is one of two. Settled: scratch and other are the
 * same, which no intent's are. */
static inline uint64_t record_intent(uint64_t step, uint32_t shard, uint32_t scratch, uint32_t other)
{
    return step << 32 | (uint64_t)shard << 22 | (uint64_t)scratch << 11 | other;
}
_Static_assert(BOARD_MAX_SHARDS <= 1 << 10 && BOARD_MAX_SHARDS + BOARD_MAX_WORKERS <= 1 << 11,
               "a record has room for a shard and two buffers");
static inline uint64_t record_settled(uint32_t buffer) { return record_intent(0, 0, buffer, buffer); }
static inline uint32_t record_shard(uint64_t record) { return (uint32_t)(record >> 22 & 0x3ff); }
static inline uint32_t record_scratch(uint64_t record) { return (uint32_t)(record >> 11 & 0x7ff); }
static inline uint32_t record_other(uint64_t record) { return (uint32_t)(record & 0x7ff); }

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

#endif

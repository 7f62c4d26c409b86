/* The board: words in shared memory through which the workers themselves move sync training on.
 *
 * Guarantees: each shard's gradient of each step counts exactly once; the weights of step t+1 depend only on those of
 * step t, and not on which worker computes which part; a worker may be killed between any two instructions, and when
 * the server has freed its claims the other workers finish its work.
 *
 * One step t, from version base+t of the weights to version base+t+1:
 *
 *     phase (t, GRADIENT)        one task per shard: claim, compute into a scratch buffer, commit with one swap
 *         | all shards done: a worker that sees it moves the phase; with clipping to NORM, otherwise to UPDATE
 *     phase (t, NORM)            one task per range: claim, sum the shards in tree order, write down the sum of the
 *         |                      squares, commit
 *         | all ranges done: a worker that sees it picks a free slot, and moves the phase
 *     phase (t, UPDATE, slot)    one task per range: claim, sum the shards in tree order, step the optimizer out of
 *         |                      place into the slot, commit
 *         | all ranges done: a worker that sees it publishes the slot, and moves the phase
 *     phase (t+1, GRADIENT)
 *
 * Clipping is by the norm of the whole gradient: every update adds up the ranges' sums of squares in the tree over the
 * ranges, which depends on the parameters only, and so arrives at the same scale. Like an update, a norm task writes
 * its own place and reads memory that nobody changes, so running it twice is harmless.
 *
 * A slot begins with some older version, or with anything, and an update writes all of its range, whatever was there.
 * The ranges of a table are the exception: there an update copies only what changed since the slot was written, see
 * board_rows.h.
 *
 * A task is a word: step, state, worker, buffer. Words carry their step, so nothing is ever reset. Only the server
 * frees claims: all claims of a worker that the kernel declared dead, and the gradient of a worker that is stopped. A
 * claimed range belongs to its worker as long as that worker lives, so it has one writer.
 *
 * Buffers: every shard owns one, and every worker has one as scratch. A commit swaps them: the shard's word names the
 * scratch, and the buffer that it named before is the worker's new scratch. Before the swap, the worker writes to its
 * record what it is about to do; board_tasks.h explains how the record tells, after the worker's death, which buffer
 * belongs to whom.
 *
 * Workers come and go while steps run: rows below `active` take part, and a row has memory for its buffer once it was
 * active (board_nbytes_used).
 *
 * One training may run on several boards, each with the same weights and workers of its own: see exchange.h. On a board
 * with exchange, the workers compute the shards of the range `own`, and the server's link commits the others, after it
 * wrote the sum of all gradients to the sum buffer. Norms and updates read that sum.
 *
 * Batches in flight, for asynchronous training: each shard's task is then the place of one batch. The server puts a
 * batch in, a worker computes the gradient of all of it on the newest version that it finds, and the server applies the
 * gradient, in an order of its own; or it reads the gradient, and empties the place:
 *
 *     EMPTY --inflight_open--> FREE --claim--> CLAIMED --commit--> DONE --inflight_apply--> EMPTY, and a new version
 *                                                                  DONE --inflight_empty--> EMPTY
 */
#ifndef UNTORN_BOARD_H
#define UNTORN_BOARD_H

#include "attachment.h"
#include "board_tasks.h"

/* Take the worker's next gradient task; do all norms, updates and phase changes that are due before. Wait for work:
 * spin for a while, if `spin`, and sleep, up to wait_ns in all; then return RUN_IDLE. */
struct board_run board_next(const struct board *board, struct attachment *weights, uint32_t worker, bool spin,
                            int64_t wait_ns);
/* Hand the task back, and count the refusal: the worker has no memory to map what the gradient needs. */
void board_refuse(const struct board *board, uint32_t worker, const struct board_run *run, int error);
/* The server: let steps below `limit` run; let the workers below `active` take part, each spinning for `spin_ns`; stop
 * all workers. */
void board_set_limit(const struct board *board, uint64_t limit);
void board_set_workers(const struct board *board, uint32_t active, int64_t spin_ns);
void board_stop(const struct board *board);
/* The server of a board with exchange, while no link exchanges: let the workers compute the shards [first, end). If
 * these are all shards, the board is complete by itself until a link begins; before that it is at its limit, and no
 * worker in the middle of a step. */
void board_set_own(const struct board *board, uint32_t first, uint32_t end);
/* The server: a link with other nodes begins. From now on the sum comes from it, even if all shards are own. Its end
 * changes nothing: then steps wait, until board_set_own or another link. */
void board_set_linked(const struct board *board);
/* Return the first step whose gradient is not complete here: the newest step, or the one after it if the update is
 * about to be made. */
uint64_t board_incomplete_step(const struct board *board);
/* Return the errno with which every worker that takes part has refused this step again and again, so that training
 * cannot continue; 0 if one worker has not. */
int board_refused(const struct board *board);
/* The server of an asynchronous training: put a batch into an empty place; false if the place is not empty. No two
 * batches have the same number. */
bool inflight_open(const struct board *board, uint32_t index, uint64_t batch);
/* A place, and the batch in it. Of a batch that is DONE: the version of the weights that its gradient was computed on,
 * and the buffer with the gradient. */
struct inflight {
    enum task_state state;
    uint64_t batch, version;
    uint32_t buffer;
};
struct inflight inflight_look(const struct board *board, uint32_t index);
/* Empty the place of a DONE batch, whose gradient was read: the worker that commits to the place next gets its buffer.
 * Only the server changes a place that is DONE. */
void inflight_empty(const struct board *board, uint32_t index);
/* Apply the gradient of a DONE batch as this step, and record its staleness. The caller is the weights' publisher.
 * STATUS_NO_SLOT: nothing happened, and the server must make room. */
enum status inflight_apply(const struct board *board, struct attachment *weights, uint32_t index, uint64_t step,
                           uint64_t staleness);

#endif

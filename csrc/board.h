/* The board: sync training moved on by the workers themselves, through words in shared memory.
 *
 * What it promises: each shard's gradient of each step counts exactly once; the weights of step t+1 are a function of
 * those of step t alone, whoever computes which part; a worker may be killed between any two instructions, and when
 * the server has handed its claims back the others finish its work.
 *
 * One step t, from version base+t of the weights to version base+t+1:
 *
 *     phase (t, GRADIENT)        one task per shard: claim, compute into a scratch buffer, commit with one swap
 *         | all shards done: whoever sees it moves the phase; with clipping to NORM, otherwise to UPDATE
 *     phase (t, NORM)            one task per range: claim, sum the shards in tree order, write down the sum of the
 *         |                      squares, commit
 *         | all ranges done: whoever sees it picks a free slot, and moves the phase
 *     phase (t, UPDATE, slot)    one task per range: claim, sum the shards in tree order, step the optimizer out of
 *         |                      place into the slot, commit
 *         | all ranges done: whoever sees it publishes the slot, and moves the phase
 *     phase (t+1, GRADIENT)
 *
 * Clipping is by the norm of the whole gradient: every update adds up the ranges' sums of squares in the tree over the
 * ranges, which the parameters alone fix, and so arrives at the same scale. Like an update, a norm task writes a place
 * of its own and reads what stands still, so running it twice is harmless.
 *
 * A task is a word: step, state, worker, buffer. Words carry their step, so nothing is ever reset. Only the server
 * hands claims back: all those of a worker that the kernel declared dead, and the gradient of one that is stopped. A
 * claimed range is left to its worker as long as that lives, so it has one writer.
 *
 * Buffers: every shard owns one, every worker has one as scratch. A commit swaps them: the shard's word names the
 * scratch, and what it named before is the worker's new scratch. The worker writes down in its record what it is about
 * to do before the swap; board_tasks.h says how that tells, after its death, which buffer is whose.
 *
 * Workers come and go while steps run: rows below `active` take part, and a row has memory for its buffer once it was
 * active (board_nbytes_used).
 *
 * Lanes, for asynchronous training: a shard's task is then a lane, which holds a batch of its own. The server opens it,
 * a worker computes the whole batch's gradient on the newest version that it finds, and the server applies it, in an
 * order of its own; or it reads what is there, and empties the lane:
 *
 *     EMPTY --lane_open--> FREE --claim--> CLAIMED --commit--> DONE --lane_apply--> EMPTY, and a new version
 *                                                                   --lane_empty--> EMPTY
 */
#ifndef UNTORN_BOARD_H
#define UNTORN_BOARD_H

#include "attachment.h"
#include "board_tasks.h"

/* Take the worker's next gradient task, doing on the way all norms, updates and phase changes that are due. Waits for
 * work: spins for a while, if `spin`, sleeps up to wait_ns in all, then returns TURN_IDLE. */
struct turn board_next(const struct board *board, struct attachment *weights, uint32_t worker, bool spin,
                       int64_t wait_ns);
/* The worker has no memory to map what the gradient needs: hand the task back, and count the refusal. */
void board_refuse(const struct board *board, uint32_t worker, const struct turn *turn, int error);
/* The server: let steps below `limit` run; let the workers below `active` take part, spinning so long; stop all. */
void board_open(const struct board *board, uint64_t limit);
void board_team(const struct board *board, uint32_t active, int64_t spin_ns);
void board_stop(const struct board *board);
/* Nobody can go on: why every worker that takes part has refused this step again and again; 0 if one has not. */
int board_refused(const struct board *board);
/* The server, with lanes: put a batch into an empty lane; false if it is not. No two batches have the same number. */
bool lane_open(const struct board *board, uint32_t lane, uint64_t batch);
/* version: of the weights, once it is DONE; buffer: where its gradient is then */
struct lane { enum task_state state; uint64_t batch, version; uint32_t buffer; };
struct lane lane_look(const struct board *board, uint32_t lane);
/* What a DONE lane holds was read: its buffer goes to whoever commits next. Only the server changes such a lane. */
void lane_empty(const struct board *board, uint32_t lane);
/* Apply a lane's gradient, which is DONE, as this step, and record its staleness. The caller is the weights' publisher.
 * STATUS_NO_SLOT: nothing happened, and the server makes room. */
enum status lane_apply(const struct board *board, struct attachment *weights, uint32_t lane, uint64_t step,
                       uint64_t staleness);

#endif

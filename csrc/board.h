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
 * hands claims back, and only those of workers that the kernel declared dead; so a claimed range has one writer.
 *
 * Buffers: every shard owns one, every worker has one as scratch. A commit swaps them: the shard's word names the
 * scratch, and what it named before is the worker's new scratch. The worker writes down what it is about to do (its
 * intent) before the swap, so that board_recover can tell, from the one task word, whether a killed worker did it.
 */
#ifndef UNTORN_BOARD_H
#define UNTORN_BOARD_H

#include "attachment.h"
#include "kernels.h"
#include "merge.h"

enum { BOARD_METRICS = 16, BOARD_MAX_SHARDS = 1024, BOARD_MAX_WORKERS = 1024, BOARD_ERROR_NBYTES = 32768 };

/* task = step << 32 | state << 30 | worker << 16 | buffer */
enum task_state { TASK_FREE = 0, TASK_CLAIMED = 1, TASK_DONE = 2 };
/* phase = step << 8 | kind << 6 | slot */
enum phase_kind { PHASE_GRADIENT = 0, PHASE_UPDATE = 1, PHASE_NORM = 2 };

struct board_task { shared_u64 word; uint8_t pad[56]; };

struct board_worker {
    shared_u64 scratch;        /* its buffer; writer: the worker, or the server once it is dead */
    shared_u64 intent;         /* step << 32 | shard << 16 | the shard's old buffer; BOARD_NO_INTENT */
    shared_u64 commits;        /* gradients committed; writer: the worker */
    uint8_t pad[40];
};
#define BOARD_NO_INTENT UINT64_MAX

/* A contiguous run of parameters of one dtype: the work of one update task. Written once. */
struct board_range {
    uint64_t slot_offset;      /* from the start of a slot; state buffer k lies (k + 1) * state_stride further */
    uint64_t grad_offset;      /* from the start of a buffer's payload */
    uint64_t count;            /* elements */
    uint64_t dtype;            /* enum kernel_dtype | enum merge_kind << 8 */
};

/* A gradient with what was measured on the way. Written by the owner of the buffer. */
struct board_buffer {
    uint64_t examples;
    double loss;               /* mean over the examples */
    double metrics[BOARD_METRICS];
    uint8_t pad[112];
};

/* One step's record, for the server to read. Written by the update of range 0; writing it twice is harmless. */
struct board_log {
    double examples, loss, metrics[BOARD_METRICS];
    double grad_norm;          /* before clipping; 0 without */
};

struct board_header {
    char magic[8];
    uint64_t nbytes;
    uint32_t shards, ranges, workers, optimizer;
    uint64_t steps;            /* of an epoch: rates, log and order are the current epoch's */
    uint64_t examples, batch_size;
    uint64_t buffer_nbytes;    /* of a gradient, without its header */
    uint64_t state_stride;
    uint64_t base_version;     /* of the weights of step 0 */
    double clip_norm;          /* the greatest norm of a gradient; 0: no clipping */
    struct kernel_hyper hyper; /* but for the step's rates, which are rates[step] */
    /* offsets of the sections */
    uint64_t workers_at, shard_tasks_at, range_tasks_at, norm_tasks_at, ranges_at, squares_at, log_at, rates_at,
        order_at, buffers_at, buffer_stride, errors_at, names_at;
    /* the words */
    _Alignas(64) shared_u64 phase;
    _Alignas(64) shared_u32 bell;            /* counts changes that waiting workers should look at */
    shared_u32 sleepers;
    _Alignas(64) shared_u32 server_bell;     /* counts what the server should look at */
    shared_u32 server_sleepers;
    _Alignas(64) shared_u64 limit;           /* steps below it may run; writer: the server */
    shared_u32 stop;                         /* writer: the server */
    shared_u32 need_slot;                    /* raised by workers, lowered by the server */
    shared_u32 failed;                       /* 1 + the worker whose error text is complete; first one wins */
};
_Static_assert(sizeof(struct board_task) == 64 && sizeof(struct board_worker) == 64, "one line each");
_Static_assert(sizeof(struct board_buffer) == 256, "gradients stay aligned to lines");
_Static_assert(sizeof(struct board_header) <= 4096, "the first page");

struct board {
    struct board_header *header; /* the start of the mapping */
    struct board_worker *workers;
    struct board_task *shard_tasks, *range_tasks, *norm_tasks;
    struct board_range *ranges;
    double *squares;           /* of each range of the step; writer: the owner of its norm task */
    struct board_log *log;
    struct kernel_rates *rates;
};

struct board_config {
    uint32_t shards, ranges, workers, optimizer;
    uint64_t steps, examples, batch_size, buffer_nbytes, state_stride, base_version;
    double clip_norm;
    struct kernel_hyper hyper;
};

/* Bytes of a board; fills nothing. */
uint64_t board_nbytes(const struct board_config *config);
/* Lay a new board out in zeroed memory of board_nbytes. */
void board_format(struct board *board, void *memory, const struct board_config *config,
                  const struct board_range *ranges);
/* Find the parts of a board that another process laid out. */
enum status board_attach(struct board *board, void *memory, uint64_t nbytes);

struct board_buffer *board_buffer_at(const struct board *board, uint32_t buffer);

enum turn_kind { TURN_GRADIENT = 0, TURN_IDLE = 1, TURN_STOP = 2, TURN_NEED_SLOT = 3 };

/* What to do next, and what it takes to commit it. Private to one worker. */
struct turn {
    enum turn_kind kind;
    uint32_t shard, buffer;
    uint64_t step;
    uint64_t claim;            /* the task word as claimed */
};

/* Take the worker's next gradient task, doing on the way all norms, updates and phase changes that are due. Waits for work:
 * spins up to spin_ns, sleeps up to wait_ns in all, then returns TURN_IDLE. `first` is the shard to look at first. */
struct turn board_next(const struct board *board, struct attachment *weights, uint32_t worker, uint32_t first,
                       int64_t spin_ns, int64_t wait_ns);
/* Commit the gradient in the worker's scratch. False if the task was given to another meanwhile: it counts nothing.
 * (Today claims are taken from dead workers alone, so it is always true. Whoever takes them from stopped ones must
 * change intent_settle as well: tests/model/later_board_model.py has a way.) */
bool board_commit(const struct board *board, uint32_t worker, const struct turn *turn);

/* The server: let steps below `limit` run; stop everything; settle the affairs of a worker that is dead. */
void board_open(const struct board *board, uint64_t limit);
void board_stop(const struct board *board);
/* ...and say which shard's gradient it had claimed, or -1. */
int64_t board_recover(const struct board *board, uint32_t worker);
void board_ring(const struct board *board);
void board_ring_server(const struct board *board);
static inline uint64_t board_step(const struct board *board) { return load_acquire(&board->header->phase) >> 8; }

#endif

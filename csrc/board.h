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
#include "kernels.h"
#include "merge.h"

enum { BOARD_METRICS = 16, BOARD_MAX_SHARDS = 1024, BOARD_MAX_WORKERS = 1024, BOARD_NAMES_NBYTES = 4096,
       BOARD_ERROR_NBYTES = 32768 };

/* task = step << 32 | state << 30 | worker << 16 | buffer */
enum task_state { TASK_FREE = 0, TASK_CLAIMED = 1, TASK_DONE = 2, TASK_EMPTY = 3 };
/* phase = step << 8 | kind << 6 | slot */
enum phase_kind { PHASE_GRADIENT = 0, PHASE_UPDATE = 1, PHASE_NORM = 2 };

struct board_task { shared_u64 word; uint8_t pad[56]; };

struct board_worker {
    shared_u64 scratch;        /* its buffer; writer: the worker, or the server once it is dead */
    shared_u64 record;         /* of its last commit, see board_tasks.h; writers: the worker, and who settles it */
    shared_u64 commits;        /* gradients committed; writer: the worker */
    shared_u64 refused;        /* step << 32 | times << 16 | errno: what it could not map; writers: the worker, and the
                                * server once it is dead. The server loads it with acquire, and needs no more than it */
    uint8_t pad[32];
};

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
    uint64_t version;          /* of the weights that it was computed on; lanes only */
    uint8_t pad[104];
};

/* One step's record, for the server to read. Written by the update of range 0; writing it twice is harmless. */
struct board_log {
    double examples, loss, metrics[BOARD_METRICS];
    double staleness;          /* versions from the gradient's weights to those that it was applied to; lanes only */
    double grad_norm;          /* before clipping; 0 without */
};

struct board_header {
    char magic[8];
    uint64_t nbytes;
    uint32_t shards, ranges, workers, optimizer; /* workers: the most that there can be */
    uint32_t lanes;            /* 1: every shard is a lane */
    uint64_t steps;            /* of an epoch: rates, log and order are the current epoch's */
    uint64_t examples, batch_size;
    uint64_t buffer_nbytes;    /* of a gradient, without its header */
    uint64_t state_stride;
    uint64_t base_version;     /* of the weights of step 0 */
    uint64_t job;              /* the server's number for what is done here */
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
    shared_u32 active;                       /* workers from this one on leave; writer: the server */
    shared_u64 spin_ns;                      /* how long to spin before sleeping; writer: the server */
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
    uint32_t shards, ranges, workers, active, optimizer; /* workers, active: the most there can be, and at first */
    bool lanes;
    uint64_t steps, examples, batch_size, buffer_nbytes, state_stride, base_version, job;
    double clip_norm;
    struct kernel_hyper hyper;
};

/* Bytes of a board; fills nothing. */
uint64_t board_nbytes(const struct board_config *config);
/* How many of these, from the start, need memory at first, and while so many workers take part. Behind them are the
 * buffers of workers that may come later, and the texts of errors, which take memory when there are any. */
uint64_t board_nbytes_needed(const struct board_config *config);
uint64_t board_nbytes_used(const struct board_header *header, uint32_t workers);
/* Lay a new board out in zeroed memory of board_nbytes. */
void board_format(struct board *board, void *memory, const struct board_config *config,
                  const struct board_range *ranges);
/* Find the parts of a board that another process laid out. */
enum status board_attach(struct board *board, void *memory, uint64_t nbytes);

struct board_buffer *board_buffer_at(const struct board *board, uint32_t buffer);

enum turn_kind { TURN_GRADIENT = 0, TURN_IDLE = 1, TURN_STOP = 2, TURN_NEED_SLOT = 3, TURN_LEAVE = 4 };

/* What to do next, and what it takes to commit it. Private to one worker. */
struct turn {
    enum turn_kind kind;
    uint32_t shard, buffer;
    uint64_t step;
    uint64_t claim;            /* the task word as claimed */
};

/* Take the worker's next gradient task, doing on the way all norms, updates and phase changes that are due. Waits for
 * work: spins for a while, if `spin`, sleeps up to wait_ns in all, then returns TURN_IDLE. */
struct turn board_next(const struct board *board, struct attachment *weights, uint32_t worker, bool spin,
                       int64_t wait_ns);
/* Commit the gradient in the worker's scratch. False if the task was given to another meanwhile: it counts nothing. */
bool board_commit(const struct board *board, uint32_t worker, const struct turn *turn);
/* The worker has no memory to map what the gradient needs: hand the task back, and count the refusal. */
void board_refuse(const struct board *board, uint32_t worker, const struct turn *turn, int error);
/* Is the task still the worker's? */
bool board_stands(const struct board *board, const struct turn *turn);

/* The server: let steps below `limit` run; let the workers below `active` take part, spinning so long; stop all. */
void board_open(const struct board *board, uint64_t limit);
void board_team(const struct board *board, uint32_t active, int64_t spin_ns);
void board_stop(const struct board *board);
/* Settle the affairs of a worker that is dead; which shard's gradient it had claimed, or -1. */
int64_t board_recover(const struct board *board, uint32_t worker);
/* Give the gradient task of a worker that is stopped to others; which shard's, or -1. */
int64_t board_give_up(const struct board *board, uint32_t worker);
/* Nobody can go on: why every worker that takes part has refused this step again and again; 0 if one has not. */
int board_refused(const struct board *board);
/* Does it hold a norm or update task, which only its death can free? */
bool board_holds_range(const struct board *board, uint32_t worker);

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

void board_ring(const struct board *board);
void board_ring_server(const struct board *board);
static inline uint64_t board_step(const struct board *board) { return shared_load_acquire(&board->header->phase) >> 8; }

#endif

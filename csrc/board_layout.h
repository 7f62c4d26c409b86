/* The board's memory: its structs, words, layout and bells. board.h explains their use.
 *
 * Everything here is below the claims (board_tasks.h), the arithmetic (board_update.h) and the order of a step
 * (board.h).
 */
#ifndef UNTORN_BOARD_LAYOUT_H
#define UNTORN_BOARD_LAYOUT_H

#include <stddef.h>

#include "atomics.h"
#include "kernels.h"
#include "merge.h"
#include "sparse.h"
#include "status.h"

enum {
    BOARD_METRICS = 16,
    BOARD_MAX_SHARDS = 1024,
    BOARD_MAX_WORKERS = 1024,
    BOARD_MAX_GROUPS = 256,
    BOARD_ROW_STEPS = 16, /* the steps whose changed rows are known; a power of two */
    BOARD_SLOTS = 64,     /* CHANNEL_MAX_SLOTS */
    BOARD_NAMES_NBYTES = 4096,
    BOARD_ERROR_NBYTES = 32768
};

/* task = step << 32 | state << 30 | worker << 16 | buffer */
enum task_state { TASK_FREE = 0, TASK_CLAIMED = 1, TASK_DONE = 2, TASK_EMPTY = 3 };
/* phase = step << 8 | kind << 6 | slot */
enum phase_kind { PHASE_GRADIENT = 0, PHASE_UPDATE = 1, PHASE_NORM = 2 };

struct board_task {
    shared_u64 word;
    uint8_t pad[56];
};

struct board_worker {
    shared_u64 scratch; /* its buffer; writer: the worker, or the server once it is dead */
    shared_u64 record; /* of its last commit, see board_tasks.h; writers: the worker, and any process that settles it */
    shared_u64 commits; /* gradients committed; writer: the worker */
    shared_u64 refused; /* step << 32 | times << 16 | errno: what it could not map; writers: the worker, and the
                                * server once it is dead. The server loads it with acquire, and needs no more than it */
    uint8_t pad[32];
};

/* A contiguous run of parameters of one dtype: the work of one update task. Written once. */
struct board_range {
    uint64_t slot_offset; /* from the start of a slot; state buffer k lies (k + 1) * state_stride further */
    uint64_t grad_offset; /* from the start of a buffer's payload */
    uint64_t count;       /* elements */
    uint64_t dtype;       /* enum kernel_dtype | enum merge_kind << 8 | group << 16; of SHARD the shard */
    uint64_t row; /* of ROWS: the elements of a row, of which it has a multiple of SPARSE_ROWS, or the last ones */
    uint64_t set_offset; /* of ROWS: that of the set of its rows, see sparse.h, from the start of a buffer's payload */
};

/* Leaves are the arrays of the parameters, each in one group. A range may hold a part of one, or several, with the
 * padding behind each. The board has a word per leaf, offset in a gradient's payload | group << 48. */
static inline uint64_t leaf_start(uint64_t leaf) { return leaf & 0xffffffffffff; }
static inline uint64_t leaf_group(uint64_t leaf) { return leaf >> 48; }

static inline enum kernel_dtype range_dtype(const struct board_range *range)
{
    return (enum kernel_dtype)(range->dtype & 0xff);
}
static inline enum merge_kind range_kind(const struct board_range *range)
{
    return (enum merge_kind)(range->dtype >> 8 & 0xff);
}
static inline uint64_t range_group(const struct board_range *range) { return range->dtype >> 16; }
/* Return whether an update is a step of the optimizer. */
static inline bool range_is_step(const struct board_range *range)
{
    return range_kind(range) == MERGE_STEP || range_kind(range) == MERGE_ROWS;
}
/* Return whether an update needs no more than the sum of the shards. */
static inline bool range_is_summed(const struct board_range *range)
{
    return range_is_step(range) || range_kind(range) == MERGE_SUM;
}

/* The optimizer of a group of parameters. Written once. */
struct board_group {
    uint64_t optimizer;        /* enum kernel_optimizer */
    struct kernel_hyper hyper; /* except the step's rates, which are in rates[] */
};

/* A gradient, and what was measured with it. Written by the owner of the buffer. */
struct board_buffer {
    uint64_t examples;
    double loss; /* mean over the examples */
    double metrics[BOARD_METRICS];
    uint64_t version; /* of the weights that it was computed on; async only */
    uint8_t pad[104];
};

/* One step's record, for the server to read. The update of range 0 writes it; writing it twice is harmless. */
struct board_log {
    double examples, loss, metrics[BOARD_METRICS];
    double staleness; /* versions from the gradient's weights to those that it was applied to; async only */
    double grad_norm; /* before clipping; 0 without */
};

struct board_header {
    char magic[8];
    uint64_t nbytes;
    uint32_t shards, ranges, workers, groups; /* workers: the maximum number */
    uint32_t is_async;                        /* 1: the task of each shard is the place of a batch in flight */
    uint32_t exchange;                        /* 1: other boards may compute shards too, see board.h */
    uint64_t states;                          /* state buffers per parameter, of the group that has the most */
    uint64_t steps;                           /* of an epoch: rates, log and order are the current epoch's */
    uint64_t examples, batch_size;
    uint64_t buffer_nbytes; /* of a gradient, without its header */
    uint64_t state_stride;
    uint64_t leaves;               /* their number; 0: every leaf has a gradient in every step */
    uint64_t absent_range;         /* the range of kind ABSENT or SKIPPED */
    uint64_t sets_at, sets_nbytes; /* where a buffer's payload has the sets of rows, of all ranges of ROWS */
    uint64_t base_version;         /* of the weights of step 0 */
    uint64_t job;                  /* the server's number for this job */
    double clip_norm;              /* the greatest norm of a gradient; 0: no clipping */
    /* offsets of the sections */
    uint64_t workers_at, shard_tasks_at, range_tasks_at, norm_tasks_at, ranges_at, groups_at, squares_at, log_at,
        rates_at, order_at, leaves_at, changes_at, contents_at, sum_at, buffers_at, buffer_stride, errors_at, names_at;
    /* the words */
    _Alignas(64) shared_u64 phase;
    _Alignas(64) shared_u32 bell; /* counts the changes that waiting workers should look at */
    shared_u32 sleepers;
    _Alignas(64) shared_u32 server_bell; /* counts the changes that the server should look at */
    shared_u32 server_sleepers;
    _Alignas(64) shared_u64 limit; /* steps below it may run; writer: the server */
    shared_u32 stop;               /* writer: the server */
    shared_u32 need_slot;          /* raised by workers, lowered by the server */
    shared_u32 active;             /* workers from this index on leave; writer: the server */
    shared_u64 spin_ns;            /* how long to spin before sleeping; writer: the server */
    shared_u32 failed;             /* 1 + the first worker whose error text is complete */
    shared_u32 names;              /* checksum of the metrics' names, set by the first gradient; 0: none yet */
    /* of a board with exchange */
    shared_u64 own;    /* the shards that workers here compute, see own_make; writer: the server */
    shared_u64 summed; /* 1 + the newest step whose sum is in the sum buffer; writer: the server's link */
    _Alignas(64) shared_u32 link_bell; /* counts the changes that the link should look at */
    shared_u32 link_sleepers;
};
_Static_assert(sizeof(struct board_task) == 64 && sizeof(struct board_worker) == 64, "one line each");
_Static_assert(sizeof(struct board_buffer) == 256, "gradients stay aligned to lines");
_Static_assert(sizeof(struct board_header) <= 4096, "the first page");

struct board {
    struct board_header *header; /* the start of the mapping */
    struct board_worker *workers;
    struct board_task *shard_tasks, *range_tasks, *norm_tasks;
    struct board_range *ranges;
    struct board_group *groups;
    double *squares; /* of each range of the step; writer: the owner of its norm task */
    struct board_log *log;
    struct kernel_rates *rates; /* [steps][groups] */
    uint64_t *leaves;           /* [leaves + 1] see leaf_start; the last is UINT64_MAX. Written once */
    uint8_t *changes;           /* [BOARD_ROW_STEPS][sets_nbytes] the rows that a version changed; see board_rows.h */
    shared_u64 *contents;       /* [ranges][BOARD_SLOTS] the version that a slot has of a range of ROWS; likewise */
    uint8_t *sum; /* of all shards' gradients, laid out as a gradient without its header; only with exchange */
};

struct board_config {
    uint32_t shards, ranges, groups, workers, active; /* workers: the maximum number; active: the number at first */
    bool is_async, exchange;
    uint64_t steps, examples, batch_size, buffer_nbytes, state_stride, base_version, job;
    uint64_t first_step; /* the step that the board begins at */
    uint64_t leaves;
    uint64_t sets_at, sets_nbytes;
    double clip_norm;
};

/* Return the size of a board; write nothing. */
uint64_t board_nbytes(const struct board_config *config);
/* Return how many bytes, from the start, need memory at first, and while `workers` workers take part. Behind them lie
 * the buffers of workers that may come later, and the texts of errors, which take memory only when they are written. */
uint64_t board_nbytes_needed(const struct board_config *config);
uint64_t board_nbytes_used(const struct board_header *header, uint32_t workers);
/* Lay a new board out in zeroed memory of board_nbytes. `leaves`: a word for each. With leaves, one of the ranges has
 * their bytes, see merge.h; one of kind ABSENT at offset 0 of a slot is not written. */
void board_format(struct board *board, void *memory, const struct board_config *config,
                  const struct board_range *ranges, const struct board_group *groups, const uint64_t *leaves);
/* Find the parts of a board that another process laid out. */
enum status board_attach(struct board *board, void *memory, uint64_t nbytes);

struct board_buffer *board_buffer_at(const struct board *board, uint32_t buffer);

/* -- words -------------------------------------------------------------------------------------------------------- */

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

/* A worker's record states which buffer is its own, or that it is one of two. In a settled record scratch and other are
 * the same; in an intent they differ. */
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

static inline uint64_t phase_make(uint64_t step, enum phase_kind kind, unsigned slot)
{
    return step << 8 | kind << 6 | slot;
}
static inline uint64_t phase_step(uint64_t phase) { return phase >> 8; }
static inline enum phase_kind phase_kind(uint64_t phase) { return (enum phase_kind)(phase >> 6 & 3); }
static inline unsigned phase_slot(uint64_t phase) { return (unsigned)(phase & 63); }

/* A range of shards as one word. OWN_LINKED: there are other nodes, even if they have no shards. */
#define OWN_LINKED (UINT64_C(1) << 63)
static inline uint64_t own_make(uint32_t first, uint32_t end) { return (uint64_t)first << 32 | end; }
static inline uint32_t own_first(uint64_t own) { return (uint32_t)(own >> 32 & 0x7fffffff); }
static inline uint32_t own_end(uint64_t own) { return (uint32_t)own; }
/* Return whether all shards are own, and no link makes the sum. */
static inline bool own_is_alone(uint64_t own, uint32_t shards) { return own == own_make(0, shards); }

/* -- bells -------------------------------------------------------------------------------------------------------- */

/* Wake the workers that wait, or the server, or the link, to look at a change. */
void board_ring(const struct board *board);
void board_ring_server(const struct board *board);
void board_ring_link(const struct board *board);
static inline uint64_t board_step(const struct board *board) { return shared_load_acquire(&board->header->phase) >> 8; }

#endif

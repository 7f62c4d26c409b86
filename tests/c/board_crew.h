/* A job with its server and its workers, which are threads, each with its own attachment and row. Some of them die, are
 * given up, leave or come.
 *
 * A thread that dies leaves its words as they stand, half a gradient in its scratch, and closes its attachment, which
 * is what the kernel does for a process. Deaths inside a commit or an update are test_board.c's. A worker that is given
 * up is not stopped here, so that its commit and the server's swap meet.
 */
#ifndef UNTORN_TESTS_BOARD_CREW_H
#define UNTORN_TESTS_BOARD_CREW_H

#include <pthread.h>

#include "board_job.h"

static const uint64_t STEPS = SANITIZED ? 100 : 1000;
static const int64_t SPIN_NS = 20000;

struct worker {
    pthread_t thread;
    const struct job *job;
    uint32_t index;
    uint64_t stream;
    bool mortal, started;
    _Atomic bool ended;
    int64_t died_with; /* the shard that it had claimed */
};

/* The server, and how hard it makes it for its workers. */
struct crew {
    struct job job;
    struct worker *workers;
    uint32_t active;
    uint64_t stream;
    bool restless; /* it gives tasks of live workers to others, and changes their number */
    unsigned given_up;
};

static unsigned deaths, given_up; /* in all */

/* -- a worker ------------------------------------------------------------------------------------------------------ */

static inline bool worker_dies(struct worker *self, struct board_run *run)
{
    if (!self->mortal || check_random(&self->stream) % 50 != 0)
        return false;
    memset(board_buffer_at(&self->job->board, run->buffer), 0xee, sizeof(struct board_buffer) + 64);
    self->died_with = run->shard;
    return true;
}

static inline bool worker_turn(struct worker *self, struct attachment *weights, struct board_run *run)
{
    const struct job *job = self->job;
    const bool is_async = job->config.is_async;
    struct board_buffer *buffer = board_buffer_at(&job->board, run->buffer);
    struct pin pin;
    if (!CHECK(attachment_pin(weights, &pin) == STATUS_OK))
        return false;
    CHECK(is_async || pin.version == JOB_BASE_VERSION + run->step || !board_still_claimed(&job->board, run),
          "the weights of step %" PRIu64 " are version %" PRIu64, run->step, pin.version);
    if (worker_dies(self, run))
        return false;
    job_gradient(job, run->step, is_async ? 0 : run->shard, pin.address, buffer);
    if (self->mortal && check_random(&self->stream) % 8 == 0)
        sched_yield(); /* time to be given up in */
    buffer->version = pin.version;
    attachment_unpin(weights, pin.slot, pin.generation);
    board_commit(&job->board, self->index, run);
    return true;
}

static inline void *worker_run(void *argument)
{
    struct worker *self = argument;
    const struct board *board = &self->job->board;
    struct attachment *weights = files_attach(self->job->files, ROLE_WRITER);
    for (;;) {
        struct board_run run = board_next(board, weights, self->index, true, 20000000);
        if (run.kind == RUN_STOP || run.kind == RUN_LEAVE)
            break;
        if (run.kind == RUN_GRADIENT && !worker_turn(self, weights, &run))
            break;
    }
    attachment_close(weights);
    atomic_store(&self->ended, true);
    board_ring_server(board);
    return NULL;
}

/* -- the server ---------------------------------------------------------------------------------------------------- */

static inline void worker_start(struct worker *worker)
{
    worker->died_with = -1;
    worker->started = true;
    atomic_store(&worker->ended, false);
    CHECK(pthread_create(&worker->thread, NULL, worker_run, worker) == 0);
}

static inline void worker_reap(struct crew *crew, struct worker *worker)
{
    pthread_join(worker->thread, NULL);
    worker->started = false;
    const int64_t lost = board_recover(&crew->job.board, worker->index);
    CHECK(lost == worker->died_with || (lost == -1 && (crew->given_up > 0 || crew->job.config.exchange)));
    deaths += worker->died_with >= 0;
}

static inline void crew_start_missing(struct crew *crew)
{
    for (uint32_t w = 0; w < crew->active; w++)
        if (!crew->workers[w].started)
            worker_start(&crew->workers[w]);
}

static inline struct crew crew_open(uint32_t shards, uint32_t count, uint32_t max_slots, bool mortal,
                                    enum job_kind kind)
{
    struct crew crew = {
        .job = job_open(check_stream(shards), shards, count, STEPS, max_slots, kind),
        .workers = calloc(count, sizeof *crew.workers),
        .active = count,
        .stream = check_stream(1000 * count + shards),
        .restless = mortal,
    };
    for (uint32_t w = 0; w < count; w++)
        crew.workers[w] = (struct worker){.index = w, .mortal = mortal, .stream = check_stream(100 * shards + w)};
    return crew;
}

static inline void crew_start(struct crew *crew)
{
    for (uint32_t w = 0; w < crew->job.config.workers; w++)
        crew->workers[w].job = &crew->job;
    board_set_workers(&crew->job.board, crew->active, SPIN_NS);
    crew_start_missing(crew);
}

/* Give a worker's task to others; change the number of workers. */
static inline void crew_disturb(struct crew *crew)
{
    const uint32_t count = crew->job.config.workers;
    const uint64_t dice = check_random(&crew->stream);
    if (dice % 4 != 0)
        crew->given_up += board_give_up(&crew->job.board, (uint32_t)(dice >> 8) % count) >= 0;
    if (dice % 64 == 1) {
        crew->active = 1 + (uint32_t)(dice >> 8) % count;
        board_set_workers(&crew->job.board, crew->active, SPIN_NS);
    }
}

/* Space for workers who ask for it, a new worker for one that ended; then sleep until something is to be done. */
static inline void crew_supervise(struct crew *crew, uint32_t seen)
{
    struct job *job = &crew->job;
    struct board_header *header = job->board.header;
    if (shared_swap(&header->need_slot, 0) != 0) {
        const enum status status = attachment_grow(job->publisher, job->slot_nbytes);
        CHECK(status == STATUS_OK || status == STATUS_NO_SLOT, "status %d", (int)status);
        board_ring(&job->board);
    }
    for (uint32_t w = 0; w < job->config.workers; w++)
        if (crew->workers[w].started && atomic_load(&crew->workers[w].ended))
            worker_reap(crew, &crew->workers[w]);
    crew_start_missing(crew);
    if (crew->restless)
        crew_disturb(crew);
    futex_sleep(&header->server_bell, seen, &header->server_sleepers, crew->restless ? 50000 : 10000000);
}

/* All steps are done: the result is right, and every gradient counted once. */
static inline void crew_close(struct crew *crew, const struct job_applied *applied)
{
    struct job *job = &crew->job;
    board_stop(&job->board);
    for (uint32_t w = 0; w < job->config.workers; w++)
        if (crew->workers[w].started)
            worker_reap(crew, &crew->workers[w]);
    uint64_t commits = 0;
    for (uint32_t w = 0; w < job->config.workers; w++)
        commits += shared_load_relaxed(&job->board.workers[w].commits);
    struct job_reference reference = reference_run(job, applied);
    if (!CHECK(job_equals(job, &reference) & CHECK(job->config.exchange || commits == STEPS * job_parts(job)) &
               CHECK(job_buffers_are_owned_once(job))))
        printf("with %u %s, %u workers\n", job->config.shards, applied ? "batches in flight" : "shards",
               job->config.workers);
    given_up += crew->given_up;
    reference_free(&reference);
    free(crew->workers);
    job_close(job);
}

#endif

/* Workers as threads, each with its own attachment and row, some of which die, are given up, leave or come: the weights
 * and the log must equal the serial reference bit for bit, whatever the number of workers. With batches in flight, the
 * reference applies the same gradients in the same order.
 *
 * A thread that dies leaves its words as they stand, half a gradient in its scratch, and closes its attachment, which
 * is what the kernel does for a process. Deaths inside a commit or an update are test_board.c's. A worker that is given
 * up is not stopped here, so that its commit and the server's swap meet.
 */
#include <pthread.h>

#include "board_job.h"

enum { PLACES_MAX = 4 };

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

static bool worker_dies(struct worker *self, struct board_run *run)
{
    if (!self->mortal || check_random(&self->stream) % 50 != 0)
        return false;
    memset(board_buffer_at(&self->job->board, run->buffer), 0xee, sizeof(struct board_buffer) + 64);
    self->died_with = run->shard;
    return true;
}

static bool worker_turn(struct worker *self, struct attachment *weights, struct board_run *run)
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

static void *worker_run(void *argument)
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

static void worker_start(struct worker *worker)
{
    worker->died_with = -1;
    worker->started = true;
    atomic_store(&worker->ended, false);
    CHECK(pthread_create(&worker->thread, NULL, worker_run, worker) == 0);
}

static void worker_reap(struct crew *crew, struct worker *worker)
{
    pthread_join(worker->thread, NULL);
    worker->started = false;
    const int64_t lost = board_recover(&crew->job.board, worker->index);
    CHECK(lost == worker->died_with || (lost == -1 && crew->given_up > 0));
    deaths += worker->died_with >= 0;
}

static void crew_start_missing(struct crew *crew)
{
    for (uint32_t w = 0; w < crew->active; w++)
        if (!crew->workers[w].started)
            worker_start(&crew->workers[w]);
}

static struct crew crew_open(uint32_t shards, uint32_t count, uint32_t max_slots, bool mortal, bool is_async)
{
    struct crew crew = {
        .job = job_open(check_stream(shards), shards, count, STEPS, max_slots, is_async),
        .workers = calloc(count, sizeof *crew.workers),
        .active = count,
        .stream = check_stream(1000 * count + shards),
        .restless = mortal,
    };
    for (uint32_t w = 0; w < count; w++)
        crew.workers[w] = (struct worker){.index = w, .mortal = mortal, .stream = check_stream(100 * shards + w)};
    return crew;
}

static void crew_start(struct crew *crew)
{
    for (uint32_t w = 0; w < crew->job.config.workers; w++)
        crew->workers[w].job = &crew->job;
    board_set_workers(&crew->job.board, crew->active, SPIN_NS);
    crew_start_missing(crew);
}

/* Give a worker's task to others; change the number of workers. */
static void crew_disturb(struct crew *crew)
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
static void crew_supervise(struct crew *crew, uint32_t seen)
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
static void crew_close(struct crew *crew, const struct job_applied *applied)
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
    if (!CHECK(job_equals(job, &reference) & CHECK(commits == STEPS * job_parts(job)) &
               CHECK(job_buffers_are_owned_once(job))))
        printf("with %u %s, %u workers\n", job->config.shards, applied ? "batches in flight" : "shards",
               job->config.workers);
    given_up += crew->given_up;
    reference_free(&reference);
    free(crew->workers);
    job_close(job);
}

/* -- sync and async training -------------------------------------------------------------------------------------- */

static void train(uint32_t shards, uint32_t count, uint32_t max_slots, bool mortal)
{
    struct crew crew = crew_open(shards, count, max_slots, mortal, false);
    struct board_header *header = crew.job.board.header;
    crew_start(&crew);
    board_set_limit(&crew.job.board, STEPS);
    for (;;) {
        const uint32_t seen = shared_load_acquire(&header->server_bell);
        if (board_step(&crew.job.board) == STEPS)
            break;
        crew_supervise(&crew, seen);
    }
    crew_close(&crew, NULL);
}

/* Return whether this place's gradient may be applied now: only if all others, which are in flight since these steps,
 * can be applied after it, oldest first, and none of them is then more than `places` - 1 versions old. */
static bool place_may(uint32_t places, const uint64_t *since, const bool *under_way, uint64_t made, uint32_t index)
{
    for (uint32_t i = 0; i < places; i++) {
        uint64_t before = 0;
        for (uint32_t other = 0; other < places; other++)
            before += under_way[other] && other != index &&
                      (since[other] < since[i] || (since[other] == since[i] && other < i));
        if (under_way[i] && i != index && made + 1 + before - since[i] > places - 1)
            return false;
    }
    return true;
}

static bool lane_take(struct crew *crew, uint32_t index, uint64_t made, struct job_applied *applied)
{
    struct job *job = &crew->job;
    const struct inflight done = inflight_look(&job->board, index);
    const uint64_t staleness = JOB_BASE_VERSION + made - done.version;
    if (inflight_apply(&job->board, job->publisher, index, made, staleness) != STATUS_OK) {
        attachment_grow(job->publisher, job->slot_nbytes);
        return false;
    }
    CHECK(staleness < job->config.shards, "%" PRIu64 " versions", staleness);
    applied[made] = (struct job_applied){done.batch, done.version};
    return true;
}

static void train_async(uint32_t places, uint32_t count, bool mortal)
{
    struct crew crew = crew_open(places, count, count + 2, mortal, true);
    struct job_applied *applied = calloc(STEPS, sizeof *applied);
    struct board *board = &crew.job.board;
    uint64_t next = 0, made = 0, since[PLACES_MAX] = {0}, batches = 0;
    bool under_way[PLACES_MAX] = {0};
    crew_start(&crew);
    while (made < STEPS) {
        const uint32_t seen = shared_load_acquire(&board->header->server_bell);
        for (uint32_t index = 0; index < places; index++) {
            if (inflight_look(board, index).state == TASK_DONE && place_may(places, since, under_way, made, index) &&
                lane_take(&crew, index, made, applied)) {
                under_way[index] = false;
                batches += applied[made++].batch;
            }
            if (next < STEPS && !under_way[index]) {
                CHECK(inflight_open(board, index, next++));
                under_way[index] = true;
                since[index] = made;
            }
        }
        if (made < STEPS)
            crew_supervise(&crew, seen);
    }
    CHECK(batches == STEPS * (STEPS - 1) / 2, "each batch once");
    crew_close(&crew, applied);
    free(applied);
}

int main(void)
{
    static const uint32_t shard_counts[] = {1, 2, 3, 5, 8}, worker_counts[] = {1, 2, 3, 6};
    check_begin("stress_board");
    for (unsigned w = 0; w < sizeof worker_counts / sizeof *worker_counts; w++) {
        const uint32_t count = worker_counts[w];
        for (unsigned s = 0; s < sizeof shard_counts / sizeof *shard_counts; s++) {
            train(shard_counts[s], count, 64, false);
            train(shard_counts[s], count, count + 2, true);
        }
        for (uint32_t places = 1; places <= PLACES_MAX; places++)
            train_async(places, count, places % 2 == 0);
    }
    printf("stress_board: %" PRIu64 " steps each, %u deaths, %u given up\n", STEPS, deaths, given_up);
    return check_end();
}

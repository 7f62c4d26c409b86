/* Workers as threads, each with its own attachment and row, some of which die: the weights and the log must equal the
 * serial reference bit for bit, whatever the number of workers.
 *
 * A thread that dies leaves its words as they stand, half a gradient in its scratch, and closes its attachment, which
 * is what the kernel does for a process. Deaths inside a commit or an update are test_board.c's.
 */
#include <pthread.h>

#include "board_job.h"

static const uint64_t STEPS = SANITIZED ? 100 : 1000;

struct worker {
    pthread_t thread;
    const struct job *job;
    uint32_t index;
    uint64_t stream;
    bool mortal;
    _Atomic bool died;
    int64_t died_with; /* the shard that it had claimed */
};

static bool worker_dies(struct worker *self, struct turn *turn)
{
    if (!self->mortal || check_random(&self->stream) % 50 != 0)
        return false;
    memset(board_buffer_at(&self->job->board, turn->buffer), 0xee, sizeof(struct board_buffer) + 64);
    self->died_with = turn->shard;
    return true;
}

static bool worker_turn(struct worker *self, struct attachment *weights, struct turn *turn)
{
    const struct job *job = self->job;
    struct pin pin;
    if (!CHECK(attachment_pin(weights, &pin) == STATUS_OK))
        return false;
    CHECK(pin.version == JOB_BASE_VERSION + turn->step, "the weights of step %" PRIu64 " are version %" PRIu64, turn->step,
          pin.version);
    if (worker_dies(self, turn))
        return false;
    job_gradient(job, turn->step, turn->shard, pin.address, board_buffer_at(&job->board, turn->buffer));
    attachment_unpin(weights, pin.slot, pin.generation);
    CHECK(board_commit(&job->board, self->index, turn));
    return true;
}

static void *worker_run(void *argument)
{
    struct worker *self = argument;
    const struct board *board = &self->job->board;
    struct attachment *weights = files_attach(self->job->files, ROLE_WRITER);
    for (;;) {
        const uint32_t first = (uint32_t)check_random(&self->stream) % board->header->shards;
        struct turn turn = board_next(board, weights, self->index, first, 20000, 20000000);
        if (turn.kind == TURN_STOP || (turn.kind == TURN_GRADIENT && !worker_turn(self, weights, &turn)))
            break;
    }
    attachment_close(weights);
    atomic_store(&self->died, true);
    board_ring_server(board);
    return NULL;
}

static void worker_start(struct worker *worker)
{
    worker->died_with = -1;
    atomic_store(&worker->died, false);
    CHECK(pthread_create(&worker->thread, NULL, worker_run, worker) == 0);
}

/* The server's part: space for workers who ask for it, a new worker for one that died. */
static unsigned serve(struct job *job, struct worker *workers)
{
    struct board_header *header = job->board.header;
    unsigned deaths = 0;
    for (;;) {
        const uint32_t seen = load_acquire(&header->server_bell);
        if (board_step(&job->board) == job->config.steps)
            return deaths;
        if (swap(&header->need_slot, 0) != 0) {
            const enum status status = attachment_grow(job->publisher, job->slot_nbytes);
            CHECK(status == STATUS_OK || status == STATUS_NO_SLOT, "status %d", (int)status);
            board_ring(&job->board);
        }
        for (uint32_t w = 0; w < job->config.workers; w++)
            if (atomic_load(&workers[w].died)) {
                pthread_join(workers[w].thread, NULL);
                CHECK(board_recover(&job->board, w) == workers[w].died_with);
                worker_start(&workers[w]);
                deaths++;
            }
        futex_sleep(&header->server_bell, seen, &header->server_sleepers, 10000000);
    }
}

static unsigned train(uint32_t shards, uint32_t count, uint32_t max_slots, bool mortal)
{
    struct job job = job_open(check_stream(shards), shards, count, STEPS, max_slots);
    struct job_reference reference = reference_run(&job);
    struct worker *workers = calloc(count, sizeof *workers);
    for (uint32_t w = 0; w < count; w++) {
        workers[w] = (struct worker){.job = &job, .index = w, .mortal = mortal, .stream = check_stream(100 * shards + w)};
        worker_start(&workers[w]);
    }
    board_open(&job.board, STEPS);
    const unsigned deaths = serve(&job, workers);
    board_stop(&job.board);
    uint64_t commits = 0;
    for (uint32_t w = 0; w < count; w++) {
        pthread_join(workers[w].thread, NULL);
        commits += load_relaxed(&job.board.workers[w].commits);
    }
    if (!CHECK(job_equals(&job, &reference) & CHECK(commits == STEPS * shards) & CHECK(job_buffers_are_owned_once(&job))))
        printf("with %u shards, %u workers, at most %u slots\n", shards, count, max_slots);
    reference_free(&reference);
    free(workers);
    job_close(&job);
    return deaths;
}

int main(void)
{
    static const uint32_t shard_counts[] = {1, 2, 3, 5, 8}, worker_counts[] = {1, 2, 3, 6};
    unsigned deaths = 0;
    check_begin("stress_board");
    for (unsigned s = 0; s < sizeof shard_counts / sizeof *shard_counts; s++)
        for (unsigned w = 0; w < sizeof worker_counts / sizeof *worker_counts; w++) {
            train(shard_counts[s], worker_counts[w], 64, false);
            deaths += train(shard_counts[s], worker_counts[w], worker_counts[w] + 2, true);
        }
    printf("stress_board: %" PRIu64 " steps each, %u deaths\n", STEPS, deaths);
    return check_end();
}

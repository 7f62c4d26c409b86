/* Workers as threads, each with its own attachment and row, some of which die, are given up, leave or come: the weights
 * and the log must equal the serial reference bit for bit, whatever the number of workers. With batches in flight, the
 * reference applies the same gradients in the same order.
 */
#include "board_crew.h"

enum { PLACES_MAX = 4 };

/* -- sync and async training -------------------------------------------------------------------------------------- */

static void train(uint32_t shards, uint32_t count, uint32_t max_slots, bool mortal)
{
    struct crew crew = crew_open(shards, count, max_slots, mortal, JOB_SYNC);
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
    struct crew crew = crew_open(places, count, count + 2, mortal, JOB_ASYNC);
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

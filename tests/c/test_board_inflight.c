/* Batches in flight, one worker at a time: the life of a batch's place, word by word; then faults before every atomic
 * operation of a
 * worker, after each of which every batch must be applied exactly once, as the reference applies them, bit for bit.
 */
#include "hooks.h"

#include "board.c"
#include "board_layout.c"
#include "board_tasks.c"
#include "board_update.c"

#include "board_team.h"

enum { PLACES = 3, BATCHES = 7 };

/* The server's side: which batch is next, and what was applied. */
struct server {
    struct team team;
    uint64_t next, stream;
    struct job_applied applied[BATCHES];
};

static void server_open(struct server *server, uint64_t seed)
{
    *server = (struct server){.team = team_open(seed, PLACES, BATCHES, true), .stream = check_stream(seed)};
}

static uint64_t applied_count(const struct server *server) { return board_step(&server->team.job.board); }

static void place_apply(struct server *server, uint32_t index)
{
    struct job *job = &server->team.job;
    const uint64_t step = applied_count(server);
    const struct inflight done = inflight_look(&job->board, index);
    const uint64_t staleness = JOB_BASE_VERSION + step - done.version;
    enum status status = inflight_apply(&job->board, job->publisher, index, step, staleness);
    if (status == STATUS_NO_SLOT) {
        CHECK(applied_count(server) == step && inflight_look(&job->board, index).state == TASK_DONE,
              "nothing happened");
        CHECK(attachment_grow(job->publisher, job->slot_nbytes) == STATUS_OK);
        status = inflight_apply(&job->board, job->publisher, index, step, staleness);
    }
    CHECK(status == STATUS_OK && version_of(job) == JOB_BASE_VERSION + step + 1);
    CHECK(inflight_look(&job->board, index).state == TASK_EMPTY && applied_count(server) == step + 1);
    server->applied[step] = (struct job_applied){done.batch, done.version};
}

/* Apply what is there, in any order, and put batches into the empty places. */
static void serve(struct server *server)
{
    const struct board *board = &server->team.job.board;
    const uint32_t first = (uint32_t)(check_random(&server->stream) % PLACES);
    for (uint32_t i = 0; i < PLACES; i++) {
        const uint32_t index = (first + i) % PLACES;
        if (inflight_look(board, index).state == TASK_DONE)
            place_apply(server, index);
        if (server->next < BATCHES && inflight_look(board, index).state == TASK_EMPTY)
            CHECK(inflight_open(board, index, server->next++));
    }
}

static bool server_finish(struct server *server)
{
    const struct job *job = &server->team.job;
    for (unsigned turns = 0; applied_count(server) < BATCHES; turns++) {
        if (!CHECK(turns < 1000, "they come to a stop"))
            return false;
        serve(server);
        turn_run(&server->team, turns % WORKERS);
    }
    uint64_t batches = 0;
    for (uint64_t step = 0; step < BATCHES; step++)
        batches |= UINT64_C(1) << server->applied[step].batch;
    struct job_reference reference = reference_run(job, server->applied);
    const bool right = job_equals(job, &reference) & CHECK(batches == (1 << BATCHES) - 1, "each batch once") &
                       CHECK(job_buffers_are_owned_once(job));
    reference_free(&reference);
    return right;
}

/* -- by hand ------------------------------------------------------------------------------------------------------- */

static void test_life(void)
{
    struct server server;
    server_open(&server, 20);
    struct team *team = &server.team;
    const struct board *board = &team->job.board;
    CHECK(turn_take(team, 0).kind == RUN_IDLE, "all places are empty");
    CHECK(inflight_look(board, 1).state == TASK_EMPTY && shard_word(&team->job, 1) == task_make(0, TASK_EMPTY, 0, 1));
    const uint32_t bell = atomic_load(&board->header->bell), server_bell = atomic_load(&board->header->server_bell);
    CHECK(inflight_open(board, 1, 0) && atomic_load(&board->header->bell) != bell, "the workers hear of it");
    CHECK(!inflight_open(board, 1, 1) && inflight_look(board, 1).state == TASK_FREE, "it has a batch");
    struct board_run run = turn_take(team, 0);
    CHECK(run.kind == RUN_GRADIENT && run.shard == 1 && run.step == 0 && run.buffer == PLACES);
    CHECK(!inflight_open(board, 1, 1) && inflight_look(board, 1).state == TASK_CLAIMED);
    CHECK(turn_take(team, 1).kind == RUN_IDLE, "there is no other");
    turn_compute(team, 0, &run);
    CHECK(board_commit(board, 0, &run) && atomic_load(&board->header->server_bell) != server_bell);
    const struct inflight done = inflight_look(board, 1);
    CHECK(done.state == TASK_DONE && done.batch == 0 && done.version == JOB_BASE_VERSION && done.buffer == run.buffer);
    CHECK(!inflight_open(board, 1, 1), "its gradient is not applied");
    CHECK(record_of(&team->job, 0) == record_intent(0, 1, PLACES, 1));
    place_apply(&server, 1);
    CHECK(record_of(&team->job, 0) == record_settled(1), "the next batch of the place overwrites the commit");
    server.next = 1;
    server_finish(&server);
    board_set_workers(board, 1, 0);
    CHECK(turn_take(team, 1).kind == RUN_LEAVE);
    board_stop(board);
    CHECK(turn_take(team, 0).kind == RUN_STOP);
    team_close(team);
}

/* The gradient in a place may be read instead of applied: then it makes no version. */
static void test_empty(void)
{
    struct server server;
    server_open(&server, 24);
    struct team *team = &server.team;
    const struct board *board = &team->job.board;
    for (uint64_t batch = BATCHES; batch < BATCHES + 5; batch++) {
        const uint32_t worker = batch % WORKERS;
        CHECK(inflight_open(board, 0, batch) && turn_run(team, worker) == RUN_GRADIENT);
        const struct inflight done = inflight_look(board, 0);
        CHECK(done.state == TASK_DONE && done.batch == batch && board_buffer_at(board, done.buffer)->examples == 3);
        inflight_empty(board, 0);
        CHECK(inflight_look(board, 0).state == TASK_EMPTY && job_buffers_are_owned_once(&team->job));
        CHECK(record_of(&team->job, worker) == record_settled((uint32_t)scratch_of(&team->job, worker)));
    }
    CHECK(version_of(&team->job) == JOB_BASE_VERSION);
    server_finish(&server);
    team_close(team);
}

static void test_oldest_batch_first(void)
{
    struct server server;
    server_open(&server, 21);
    static const uint64_t batches[PLACES] = {2, 0, 1};
    for (uint32_t index = 0; index < PLACES; index++)
        CHECK(inflight_open(&server.team.job.board, index, batches[index]));
    server.next = PLACES;
    for (uint64_t batch = 0; batch < PLACES; batch++) {
        const struct board_run run = turn_take(&server.team, 0);
        CHECK(run.kind == RUN_GRADIENT && run.step == batch && batches[run.shard] == batch);
        if (batch == 0) /* handed back, it is the oldest again */
            CHECK(board_give_up(&server.team.job.board, 0) == run.shard && turn_take(&server.team, 1).step == 0);
    }
    for (uint32_t worker = 0; worker < WORKERS; worker++)
        CHECK(board_recover(&server.team.job.board, worker) >= 0);
    server_finish(&server);
    team_close(&server.team);
}

/* Two workers want the same place: the loser takes the other one. */
static struct team *rival_team;
static struct board_run rival_run;
static void rival_claims(void) { rival_run = turn_take(rival_team, 1); }

static void test_two_want_the_same(void)
{
    unsigned met = 0;
    for (uint64_t before = 0; before < 16; before++) {
        struct server server;
        server_open(&server, 22);
        const struct board *board = &server.team.job.board;
        CHECK(inflight_open(board, 0, 0) && inflight_open(board, 1, 1));
        server.next = 2;
        rival_team = &server.team;
        rival_run = (struct board_run){.kind = RUN_IDLE};
        fate_set(before, rival_claims, false);
        fate.armed = true;
        const struct board_run run = turn_take(&server.team, 0);
        fate.armed = false;
        CHECK(run.kind == RUN_GRADIENT && (rival_run.kind == RUN_IDLE || run.shard != rival_run.shard));
        met += run.step == 1;
        board_recover(board, 0);
        board_recover(board, 1);
        server_finish(&server);
        team_close(&server.team);
    }
    CHECK(met > 3, "%u", met);
}

static void test_give_up(void)
{
    struct server server;
    server_open(&server, 23);
    struct team *team = &server.team;
    serve(&server);
    const struct board_run late = turn_take(team, 0);
    CHECK(board_give_up(&team->job.board, 0) == late.shard);
    for (unsigned turns = 0; applied_count(&server) < BATCHES - 1 && turns < 100; turns++) {
        turn_run(team, 1);
        serve(&server);
    }
    turn_compute(team, 0, &late);
    CHECK(!board_commit(&team->job.board, 0, &late) && commits_of(&team->job) >= BATCHES - 1, "it counts nothing");
    server_finish(&server);
    CHECK(commits_of(&team->job) == BATCHES);
    team_close(team);
}

/* -- faults everywhere --------------------------------------------------------------------------------------------- */

static void others_go_on(void)
{
    struct server *server = (struct server *)stopped_team; /* its first member */
    for (unsigned i = 0; i < 4; i++) {
        serve(server);
        turn_run(&server->team, 1);
    }
}

/* Worker 0 has this fault before its operation number `left`, counted over its turns; false if it never had. */
static bool server_meets(struct server *server, const struct fault *fault, uint64_t left)
{
    stopped_team = &server->team;
    for (unsigned turns = 0; applied_count(server) < BATCHES && turns < 1000; turns++) {
        serve(server);
        if (turns % WORKERS != 0) {
            turn_run(&server->team, turns % WORKERS);
            continue;
        }
        fate_set(left, fault->stopped, fault->killed);
        const bool killed = turn_run_into_fate(&server->team, 0);
        if (killed)
            recover_twice(&server->team, 0, check_random(&server->stream) % 24);
        if (killed || fate.left == UINT64_MAX)
            return true;
        left -= fate.spent;
    }
    return false;
}

static void test_fault_before_every_operation(const struct fault *fault, uint64_t seed)
{
    uint64_t faults = 0;
    for (bool had = true; had; faults += had) {
        struct server server;
        server_open(&server, seed);
        had = server_meets(&server, fault, faults);
        if (!server_finish(&server))
            printf("%s before operation %" PRIu64 ", job %" PRIu64 "\n", fault->name, faults, seed);
        team_close(&server.team);
    }
    CHECK(faults > 30, "%" PRIu64, faults);
}

int main(void)
{
    check_begin("test_board_lanes");
    test_life();
    test_empty();
    test_oldest_batch_first();
    test_two_want_the_same();
    test_give_up();
    for (unsigned fault = 0; fault < FAULT_COUNT; fault++)
        for (uint64_t seed = 30; seed < 30 + MOST_SHARDS; seed++) /* without clipping, and with */
            test_fault_before_every_operation(&FAULTS[fault], seed);
    return check_end();
}

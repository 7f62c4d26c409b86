/* Lanes, one worker at a time: a lane's life, word by word; then faults before every single atomic operation of a
 * worker, after each of which every batch must be applied exactly once, as the reference applies them, bit for bit.
 */
#include "hooks.h"

#include "board.c"
#include "board_layout.c"
#include "board_tasks.c"
#include "board_update.c"

#include "board_team.h"

enum { LANES = 3, BATCHES = 7 };

/* The server's side: which batch is next, and what was applied. */
struct server {
    struct team team;
    uint64_t next, stream;
    struct job_applied applied[BATCHES];
};

static void server_open(struct server *server, uint64_t seed)
{
    *server = (struct server){.team = team_open(seed, LANES, BATCHES, true), .stream = check_stream(seed)};
}

static uint64_t applied_count(const struct server *server) { return board_step(&server->team.job.board); }

static void lane_take(struct server *server, uint32_t lane)
{
    struct job *job = &server->team.job;
    const uint64_t step = applied_count(server);
    const struct lane done = lane_look(&job->board, lane);
    const uint64_t staleness = JOB_BASE_VERSION + step - done.version;
    enum status status = lane_apply(&job->board, job->publisher, lane, step, staleness);
    if (status == STATUS_NO_SLOT) {
        CHECK(applied_count(server) == step && lane_look(&job->board, lane).state == TASK_DONE, "nothing happened");
        CHECK(attachment_grow(job->publisher, job->slot_nbytes) == STATUS_OK);
        status = lane_apply(&job->board, job->publisher, lane, step, staleness);
    }
    CHECK(status == STATUS_OK && version_of(job) == JOB_BASE_VERSION + step + 1);
    CHECK(lane_look(&job->board, lane).state == TASK_EMPTY && applied_count(server) == step + 1);
    server->applied[step] = (struct job_applied){done.batch, done.version};
}

/* Apply what is there, in any order, and put batches into the empty lanes. */
static void serve(struct server *server)
{
    const struct board *board = &server->team.job.board;
    const uint32_t first = (uint32_t)(check_random(&server->stream) % LANES);
    for (uint32_t i = 0; i < LANES; i++) {
        const uint32_t lane = (first + i) % LANES;
        if (lane_look(board, lane).state == TASK_DONE)
            lane_take(server, lane);
        if (server->next < BATCHES && lane_look(board, lane).state == TASK_EMPTY)
            CHECK(lane_open(board, lane, server->next++));
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
    CHECK(turn_take(team, 0).kind == TURN_IDLE, "all lanes are empty");
    CHECK(lane_look(board, 1).state == TASK_EMPTY && shard_word(&team->job, 1) == task_make(0, TASK_EMPTY, 0, 1));
    const uint32_t bell = atomic_load(&board->header->bell), server_bell = atomic_load(&board->header->server_bell);
    CHECK(lane_open(board, 1, 0) && atomic_load(&board->header->bell) != bell, "the workers hear of it");
    CHECK(!lane_open(board, 1, 1) && lane_look(board, 1).state == TASK_FREE, "it has a batch");
    struct turn turn = turn_take(team, 0);
    CHECK(turn.kind == TURN_GRADIENT && turn.shard == 1 && turn.step == 0 && turn.buffer == LANES);
    CHECK(!lane_open(board, 1, 1) && lane_look(board, 1).state == TASK_CLAIMED);
    CHECK(turn_take(team, 1).kind == TURN_IDLE, "there is no other");
    turn_compute(team, 0, &turn);
    CHECK(board_commit(board, 0, &turn) && atomic_load(&board->header->server_bell) != server_bell);
    const struct lane done = lane_look(board, 1);
    CHECK(done.state == TASK_DONE && done.batch == 0 && done.version == JOB_BASE_VERSION && done.buffer == turn.buffer);
    CHECK(!lane_open(board, 1, 1), "its gradient is not applied");
    CHECK(record_of(&team->job, 0) == record_intent(0, 1, LANES, 1));
    lane_take(&server, 1);
    CHECK(record_of(&team->job, 0) == record_settled(1), "what the lane names next buries the commit");
    server.next = 1;
    server_finish(&server);
    board_team(board, 1, 0);
    CHECK(turn_take(team, 1).kind == TURN_LEAVE);
    board_stop(board);
    CHECK(turn_take(team, 0).kind == TURN_STOP);
    team_close(team);
}

/* What is in a lane may be read instead of applied: then it makes no version. */
static void test_empty(void)
{
    struct server server;
    server_open(&server, 24);
    struct team *team = &server.team;
    const struct board *board = &team->job.board;
    for (uint64_t batch = BATCHES; batch < BATCHES + 5; batch++) {
        const uint32_t worker = batch % WORKERS;
        CHECK(lane_open(board, 0, batch) && turn_run(team, worker) == TURN_GRADIENT);
        const struct lane done = lane_look(board, 0);
        CHECK(done.state == TASK_DONE && done.batch == batch && board_buffer_at(board, done.buffer)->examples == 3);
        lane_empty(board, 0);
        CHECK(lane_look(board, 0).state == TASK_EMPTY && job_buffers_are_owned_once(&team->job));
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
    static const uint64_t batches[LANES] = {2, 0, 1};
    for (uint32_t lane = 0; lane < LANES; lane++)
        CHECK(lane_open(&server.team.job.board, lane, batches[lane]));
    server.next = LANES;
    for (uint64_t batch = 0; batch < LANES; batch++) {
        const struct turn turn = turn_take(&server.team, 0);
        CHECK(turn.kind == TURN_GRADIENT && turn.step == batch && batches[turn.shard] == batch);
        if (batch == 0) /* handed back, it is the oldest again */
            CHECK(board_give_up(&server.team.job.board, 0) == turn.shard && turn_take(&server.team, 1).step == 0);
    }
    for (uint32_t worker = 0; worker < WORKERS; worker++)
        CHECK(board_recover(&server.team.job.board, worker) >= 0);
    server_finish(&server);
    team_close(&server.team);
}

/* Two want the same lane: whoever loses it takes the other one. */
static struct team *rival_team;
static struct turn rival_turn;
static void rival_claims(void) { rival_turn = turn_take(rival_team, 1); }

static void test_two_want_the_same(void)
{
    unsigned met = 0;
    for (uint64_t before = 0; before < 16; before++) {
        struct server server;
        server_open(&server, 22);
        const struct board *board = &server.team.job.board;
        CHECK(lane_open(board, 0, 0) && lane_open(board, 1, 1));
        server.next = 2;
        rival_team = &server.team;
        rival_turn = (struct turn){.kind = TURN_IDLE};
        fate_set(before, rival_claims, false);
        fate.armed = true;
        const struct turn turn = turn_take(&server.team, 0);
        fate.armed = false;
        CHECK(turn.kind == TURN_GRADIENT && (rival_turn.kind == TURN_IDLE || turn.shard != rival_turn.shard));
        met += turn.step == 1;
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
    const struct turn late = turn_take(team, 0);
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

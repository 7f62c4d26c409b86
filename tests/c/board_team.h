/* A job whose workers are run by hand, in one thread, and may be killed or stopped before every single atomic operation
 * of the board's sources. Include it after hooks.h and those sources.
 *
 * A kill is a longjmp out of hook(): the words keep their values. The data that the dead worker was writing is
 * overwritten with garbage, as if it were half written. A stop is a call out of hook(): others continue, and then the
 * stopped worker continues with the values that it had loaded before, or is killed.
 */
#ifndef UNTORN_TESTS_BOARD_TEAM_H
#define UNTORN_TESTS_BOARD_TEAM_H

#include <setjmp.h>

#include "board_job.h"

enum { WORKERS = 2 };

/* There is one thread, so ThreadSanitizer has little to find here; and it is slow. */
#ifdef __SANITIZE_THREAD__
enum { MOST_SHARDS = 2 };
#else
enum { MOST_SHARDS = 4 };
#endif

static struct {
    bool armed;
    uint64_t left;         /* atomic operations until the fault; UINT64_MAX once it came */
    uint64_t spent;        /* while armed */
    void (*stopped)(void); /* runs the others meanwhile; NULL: it is killed at once */
    bool killed;           /* after that */
    jmp_buf end;
} fate;

static void hook(void)
{
    if (!fate.armed)
        return;
    fate.spent++;
    if (fate.left-- != 0)
        return;
    fate.armed = false;
    if (fate.stopped != NULL)
        fate.stopped();
    if (fate.killed)
        longjmp(fate.end, 1);
}

static inline void fate_set(uint64_t left, void (*stopped)(void), bool killed)
{
    fate.left = left;
    fate.spent = 0;
    fate.stopped = stopped;
    fate.killed = killed;
}

struct team {
    struct job job;
    struct attachment *weights[WORKERS];
    struct pin pins[WORKERS];
    bool pinned[WORKERS];
    bool given_up; /* some worker's task was given to others, so its commit may come too late */
};

static inline uint64_t shard_word(const struct job *job, uint32_t shard)
{
    return atomic_load(&job->board.shard_tasks[shard].word);
}
static inline uint64_t scratch_of(const struct job *job, uint32_t worker)
{
    return atomic_load(&job->board.workers[worker].scratch);
}
static inline uint64_t record_of(const struct job *job, uint32_t worker)
{
    return atomic_load(&job->board.workers[worker].record);
}
static inline uint64_t commits_of(const struct job *job)
{
    uint64_t commits = 0;
    for (uint32_t w = 0; w < WORKERS; w++)
        commits += atomic_load(&job->board.workers[w].commits);
    return commits;
}
static inline uint64_t version_of(const struct job *job)
{
    return latest_version(channel_latest(&job->publisher->channel));
}

static inline struct team team_open(uint64_t seed, uint32_t shards, uint64_t steps, enum job_kind kind)
{
    struct team team = {.job = job_open(seed, shards, WORKERS, steps, 8, kind)};
    for (uint32_t w = 0; w < WORKERS; w++)
        team.weights[w] = files_attach(team.job.files, ROLE_WRITER);
    if (kind != JOB_ASYNC)
        board_set_limit(&team.job.board, steps);
    return team;
}

static inline void team_close(struct team *team)
{
    for (uint32_t w = 0; w < WORKERS; w++)
        attachment_close(team->weights[w]);
    job_close(&team->job);
}

/* -- a worker ------------------------------------------------------------------------------------------------------ */

static inline struct board_run turn_take(struct team *team, uint32_t worker)
{
    return board_next(&team->job.board, team->weights[worker], worker, false, 0);
}

static inline void turn_unpin(struct team *team, uint32_t worker)
{
    if (team->pinned[worker])
        attachment_unpin(team->weights[worker], team->pins[worker].slot, team->pins[worker].generation);
    team->pinned[worker] = false;
}

static inline void turn_compute(struct team *team, uint32_t worker, const struct board_run *run)
{
    const struct job *job = &team->job;
    struct board_buffer *buffer = board_buffer_at(&job->board, run->buffer);
    struct pin *pin = &team->pins[worker];
    team->pinned[worker] = CHECK(attachment_pin(team->weights[worker], pin) == STATUS_OK);
    CHECK(job->config.is_async || pin->version == JOB_BASE_VERSION + run->step ||
          !board_still_claimed(&job->board, run));
    hook();
    job_gradient(job, run->step, job->config.is_async ? 0 : run->shard, pin->address, buffer);
    buffer->version = pin->version;
    turn_unpin(team, worker);
}

static inline enum run_kind turn_run(struct team *team, uint32_t worker)
{
    struct board_run run = turn_take(team, worker);
    if (run.kind != RUN_GRADIENT)
        return run.kind;
    turn_compute(team, worker, &run);
    bool counts = board_commit(&team->job.board, worker, &run);
    CHECK(counts || team->given_up);
    return RUN_GRADIENT;
}

/* One run; true if its fate was to be killed. */
static inline bool turn_run_into_fate(struct team *team, uint32_t worker)
{
    if (setjmp(fate.end) != 0)
        return true;
    fate.armed = true;
    turn_run(team, worker);
    fate.armed = false;
    return false;
}

/* -- the server ---------------------------------------------------------------------------------------------------- */

static inline void slots_grow(struct team *team)
{
    if (atomic_exchange(&team->job.board.header->need_slot, 0) != 0)
        CHECK(attachment_grow(team->job.publisher, team->job.slot_nbytes) == STATUS_OK);
}

static inline void team_give_up(struct team *team, uint32_t worker)
{
    if (board_give_up(&team->job.board, worker) >= 0)
        team->given_up = true;
}

/* Recovery, killed before its operation number `left`, and then done again by the next server. Nobody else is in the
 * middle of a commit. */
static inline void recover_twice(struct team *team, uint32_t dead, uint64_t left)
{
    struct job *job = &team->job;
    fate_set(left, NULL, true);
    if (setjmp(fate.end) == 0) {
        fate.armed = true;
        board_recover(&job->board, dead);
        fate.armed = false;
    }
    board_recover(&job->board, dead);
    CHECK(record_of(job, dead) == record_settled((uint32_t)scratch_of(job, dead)) && job_buffers_are_owned_once(job));
    memset(board_buffer_at(&job->board, (uint32_t)scratch_of(job, dead)), 0xee,
           sizeof(struct board_buffer) + job->config.buffer_nbytes);
    turn_unpin(team, dead); /* the kernel did, with the dead one's row */
}

/* -- faults of worker 0 -------------------------------------------------------------------------------------------- */

static struct team *stopped_team;
static void others_go_on(void); /* as far as they can, meanwhile; the test says how */
static inline void given_up_others_go_on(void)
{
    team_give_up(stopped_team, 0);
    others_go_on();
}

static const struct fault {
    const char *name;
    void (*stopped)(void);
    bool killed;
} FAULTS[] = {
    {"killed", NULL, true},
    {"killed, and found dead later", others_go_on, true},
    {"stopped and continued", others_go_on, false},
    {"stopped, given up and continued", given_up_others_go_on, false},
    {"stopped, given up and killed", given_up_others_go_on, true},
};
enum { FAULT_COUNT = sizeof FAULTS / sizeof *FAULTS };

#endif

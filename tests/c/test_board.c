/* The board, one worker at a time: its words, what each crash leaves in them and what recovery makes of it; then kills
 * before every single atomic operation of board.c, of workers and of the server's recovery, after each of which the
 * others must arrive at the reference's bits.
 *
 * A kill is a longjmp out of hook(): the words stand as they stood. What the dead was writing is overwritten with
 * garbage, as if it had been half-way.
 */
#include "hooks.h"

#include "board.c"

#include <setjmp.h>

#include "board_job.h"

enum { WORKERS = 2 };

/* -- kills ------------------------------------------------------------------------------------------------------ */

static struct {
    bool armed;
    uint64_t left;             /* atomic operations until the kill */
    uint64_t spent;            /* while armed */
    void (*stopped)(void);     /* instead of a kill: what the others do before it is continued */
    jmp_buf end;
} fate;

static void hook(void)
{
    if (!fate.armed)
        return;
    fate.spent++;
    if (fate.left-- == 0) {
        fate.armed = false;
        if (fate.stopped == NULL)
            longjmp(fate.end, 1);
        fate.stopped();
    }
}

/* -- the job, driven by hand ------------------------------------------------------------------------------------- */

static uint64_t shard_word(const struct job *job, uint32_t shard) { return atomic_load(&job->board.shard_tasks[shard].word); }
static uint64_t scratch_of(const struct job *job, uint32_t worker) { return atomic_load(&job->board.workers[worker].scratch); }
static uint64_t intent_of(const struct job *job, uint32_t worker) { return atomic_load(&job->board.workers[worker].intent); }
static uint64_t phase_of(const struct job *job) { return atomic_load(&job->board.header->phase); }
static uint64_t version_of(const struct job *job) { return latest_version(channel_latest(&job->publisher->channel)); }

struct team {
    struct job job;
    struct attachment *weights[WORKERS];
};

static struct team team_open(uint64_t seed, uint32_t shards, uint64_t steps)
{
    struct team team = {.job = job_open(seed, shards, WORKERS, steps, 8)};
    for (uint32_t w = 0; w < WORKERS; w++)
        team.weights[w] = files_attach(team.job.files, ROLE_WRITER);
    board_open(&team.job.board, steps);
    return team;
}

static void team_close(struct team *team)
{
    for (uint32_t w = 0; w < WORKERS; w++)
        attachment_close(team->weights[w]);
    job_close(&team->job);
}

static struct turn turn_take(struct team *team, uint32_t worker)
{
    return board_next(&team->job.board, team->weights[worker], worker, worker, 0, 0);
}

static void turn_compute(struct team *team, uint32_t worker, const struct turn *turn)
{
    struct pin pin;
    CHECK(attachment_pin(team->weights[worker], &pin) == STATUS_OK && pin.version == JOB_BASE_VERSION + turn->step);
    job_gradient(&team->job, turn->step, turn->shard, pin.address, board_buffer_at(&team->job.board, turn->buffer));
    attachment_unpin(team->weights[worker], pin.slot, pin.generation);
}

static enum turn_kind turn_run(struct team *team, uint32_t worker)
{
    struct turn turn = turn_take(team, worker);
    if (turn.kind != TURN_GRADIENT)
        return turn.kind;
    turn_compute(team, worker, &turn);
    CHECK(board_commit(&team->job.board, worker, &turn));
    return TURN_GRADIENT;
}

static void slots_grow(struct team *team)
{
    if (atomic_exchange(&team->job.board.header->need_slot, 0) != 0)
        CHECK(attachment_grow(team->job.publisher, team->job.slot_nbytes) == STATUS_OK);
}

/* Both take turns until nothing is left. */
static void team_finish(struct team *team)
{
    for (unsigned turns = 0; board_step(&team->job.board) < team->job.config.steps; turns++) {
        if (!CHECK(turns < 10000, "they come to a stop in phase %" PRIx64, phase_of(&team->job)))
            return;
        turn_run(team, turns % WORKERS);
        slots_grow(team);
    }
}

/* -- words and layout -------------------------------------------------------------------------------------------- */

static void test_words(void)
{
    uint64_t stream = check_stream(0);
    for (int i = 0; i < 1000; i++) {
        const uint64_t bits = check_random(&stream);
        const uint64_t step = bits >> 32;
        const uint32_t worker = (uint32_t)(bits >> 16 & 1023), buffer = (uint32_t)(bits & 2047);
        const enum task_state state = (enum task_state)(bits >> 11 & 1);
        const uint64_t task = task_make(step, state, worker, buffer);
        CHECK(task_step(task) == step && task_state(task) == state && task_worker(task) == worker &&
              task_buffer(task) == buffer);
        CHECK(task_is(task, step, state) && !task_is(task, step + 1, state) && !task_is(task, step, TASK_DONE));
        const unsigned slot = (unsigned)(bits & 63);
        const enum phase_kind kind = (enum phase_kind)(bits >> 20 & 1 ? PHASE_UPDATE : PHASE_NORM);
        const uint64_t phase = phase_make(step, kind, slot);
        CHECK(phase_step(phase) == step && phase_kind(phase) == kind && phase_slot(phase) == slot);
    }
    const uint64_t most = task_make(1, TASK_DONE, BOARD_MAX_WORKERS - 1, BOARD_MAX_SHARDS + BOARD_MAX_WORKERS - 1);
    CHECK(task_worker(most) == BOARD_MAX_WORKERS - 1 && task_buffer(most) == BOARD_MAX_SHARDS + BOARD_MAX_WORKERS - 1);
}

static void test_layout(void)
{
    struct job job = job_open(1, 3, WORKERS, 4, 8);
    struct board other;
    const uint64_t nbytes = board_nbytes(&job.config);
    CHECK(board_attach(&other, job.memory, nbytes) == STATUS_OK && memcmp(&other, &job.board, sizeof other) == 0);
    CHECK(board_attach(&other, job.memory, nbytes - 1) == STATUS_FORMAT);
    CHECK(board_attach(&other, job.memory, 0) == STATUS_FORMAT);
    job.board.header->magic[0] ^= 1;
    CHECK(board_attach(&other, job.memory, nbytes) == STATUS_FORMAT);
    const uint8_t *last = (const uint8_t *)board_buffer_at(&job.board, 3 + WORKERS - 1);
    CHECK(last + job.board.header->buffer_stride == (const uint8_t *)job.memory + nbytes, "the last buffer is the end");
    CHECK((uintptr_t)last % 4096 == 0 && job_buffers_are_owned_once(&job));
    job_close(&job);
}

/* -- a step by hand ------------------------------------------------------------------------------------------------ */

static void test_claim_and_commit(void)
{
    struct team team = team_open(2, 3, 1);
    struct job *job = &team.job;
    struct turn first = turn_take(&team, 0), second = turn_take(&team, 1);
    CHECK(first.kind == TURN_GRADIENT && first.shard == 0 && first.buffer == 3 && first.step == 0);
    CHECK(second.kind == TURN_GRADIENT && second.shard == 1 && second.buffer == 4);
    CHECK(shard_word(job, 0) == first.claim && task_is(first.claim, 0, TASK_CLAIMED) && task_worker(first.claim) == 0);
    turn_compute(&team, 0, &first);
    CHECK(board_commit(&job->board, 0, &first));
    CHECK(shard_word(job, 0) == task_make(0, TASK_DONE, 0, 3) && scratch_of(job, 0) == 0, "the buffers were swapped");
    CHECK(intent_of(job, 0) == BOARD_NO_INTENT && atomic_load(&job->board.workers[0].commits) == 1);
    CHECK(!board_commit(&job->board, 0, &first), "it counts once");
    CHECK(scratch_of(job, 0) == 0 && job_buffers_are_owned_once(job));
    team_close(&team);
}

static void test_step_by_hand(void)
{
    struct team team = team_open(14, 2, 1);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job);
    struct turn turns[2] = {turn_take(&team, 0), turn_take(&team, 1)};
    for (uint32_t w = 0; w < 2; w++)
        turn_compute(&team, w, &turns[w]);
    CHECK(board_commit(&job->board, 1, &turns[1]));
    CHECK(turn_take(&team, 1).kind == TURN_IDLE && phase_of(job) == phase_make(0, PHASE_GRADIENT, 0), "one is missing");
    CHECK(board_commit(&job->board, 0, &turns[0]));
    CHECK(turn_take(&team, 1).kind == TURN_NEED_SLOT, "there is one slot, and it is the latest");
    CHECK(atomic_load(&job->board.header->need_slot) == 1 && phase_of(job) == phase_make(0, PHASE_GRADIENT, 0));
    slots_grow(&team);
    const uint32_t bell = atomic_load(&job->board.header->server_bell);
    CHECK(turn_take(&team, 1).kind == TURN_IDLE, "sum, step, publish, and then the limit");
    CHECK(phase_of(job) == phase_make(1, PHASE_GRADIENT, 0) && version_of(job) == JOB_BASE_VERSION + 1);
    CHECK(atomic_load(&job->board.header->server_bell) != bell, "the server hears of the limit");
    CHECK(job_equals(job, &reference));
    board_stop(&job->board);
    CHECK(turn_take(&team, 0).kind == TURN_STOP);
    reference_free(&reference);
    team_close(&team);
}

/* The same with a norm task per range in between; the batch's gradient is longer than clip_norm. */
static void test_clipped_step_by_hand(void)
{
    struct team team = team_open(3 + 2 * 7, 2, 1);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job);
    CHECK(reference.norms[0] > job->config.clip_norm, "%g", reference.norms[0]);
    CHECK(turn_run(&team, 0) == TURN_GRADIENT && turn_run(&team, 1) == TURN_GRADIENT);
    CHECK(turn_take(&team, 0).kind == TURN_NEED_SLOT, "the norms are done, and there is no slot");
    CHECK(phase_of(job) == phase_make(0, PHASE_NORM, 0));
    for (uint32_t r = 0; r < JOB_RANGES; r++)
        CHECK(atomic_load(&job->board.norm_tasks[r].word) == task_make(0, TASK_DONE, 0, 0));
    CHECK(turn_take(&team, 1).kind == TURN_NEED_SLOT, "the other one finds them done");
    atomic_store(&job->board.norm_tasks[1].word, task_make(0, TASK_CLAIMED, 1, 0));
    job->board.squares[1] = NAN;
    CHECK(turn_take(&team, 0).kind == TURN_IDLE, "one is missing");
    CHECK(board_recover(&job->board, 1) == -1, "a norm is no shard's gradient");
    slots_grow(&team);
    team_finish(&team);
    CHECK(job_equals(job, &reference));
    reference_free(&reference);
    team_close(&team);
}

static void test_limit(void)
{
    struct team team = team_open(4, 1, 3);
    atomic_store(&team.job.board.header->limit, 0);
    CHECK(turn_take(&team, 0).kind == TURN_IDLE);
    for (uint64_t limit = 1; limit <= 3; limit++) {
        board_open(&team.job.board, limit);
        for (int i = 0; i < 8; i++) {
            turn_run(&team, i % WORKERS);
            slots_grow(&team);
        }
        CHECK(board_step(&team.job.board) == limit && version_of(&team.job) == JOB_BASE_VERSION + limit);
    }
    team_close(&team);
}

/* A batch of nothing leaves numbers behind, and is a step all the same. */
static void test_no_examples(void)
{
    struct team team = team_open(5, 2, 1);
    for (uint32_t w = 0; w < WORKERS; w++) {
        struct turn turn = turn_take(&team, w);
        turn_compute(&team, w, &turn);
        board_buffer_at(&team.job.board, turn.buffer)->examples = 0;
        CHECK(board_commit(&team.job.board, w, &turn));
    }
    team_finish(&team);
    uint8_t *slot;
    uint64_t capacity;
    const uint64_t latest = channel_latest(&team.job.publisher->channel);
    CHECK(latest_version(latest) == JOB_BASE_VERSION + 1);
    CHECK(attachment_map(team.job.publisher, latest_slot(latest), &slot, &capacity) == STATUS_OK);
    for (unsigned r = 0; r < JOB_RANGES; r++)
        for (uint64_t i = 0; i < team.job.ranges[r].count; i++)
            CHECK(isfinite(job_param(&team.job.ranges[r], slot, i)), "range %u, element %" PRIu64, r, i);
    CHECK(team.job.board.log[0].loss == 0 && team.job.board.log[0].examples == 0);
    team_close(&team);
}

/* Every slot is held: the workers ask, and go on when some are let go. */
static void test_need_slot(void)
{
    struct team team = team_open(6, 1, 20);
    struct attachment *reader = files_attach(team.job.files, ROLE_READER);
    struct pin pins[8];
    for (unsigned i = 0; i < 8; i++) {
        CHECK(attachment_pin(reader, &pins[i]) == STATUS_OK && pins[i].version == JOB_BASE_VERSION + i);
        for (int turns = 0; i < 7 && turns < 6 && version_of(&team.job) == pins[i].version; turns++) {
            turn_run(&team, 0);
            slots_grow(&team);
        }
    }
    turn_run(&team, 0);
    CHECK(turn_run(&team, 0) == TURN_NEED_SLOT);
    CHECK(attachment_grow(team.job.publisher, team.job.slot_nbytes) == STATUS_NO_SLOT);
    CHECK(turn_run(&team, 1) == TURN_NEED_SLOT && version_of(&team.job) == pins[7].version);
    for (unsigned i = 3; i < 5; i++) /* one for the latest, one for the next */
        attachment_unpin(reader, pins[i].slot, pins[i].generation);
    atomic_store(&team.job.board.header->need_slot, 0);
    team_finish(&team);
    struct job_reference reference = reference_run(&team.job);
    CHECK(job_equals(&team.job, &reference));
    reference_free(&reference);
    attachment_close(reader);
    team_close(&team);
}

/* -- what a crash leaves, and recovery --------------------------------------------------------------------------- */

static void test_recover_claim(void)
{
    struct team team = team_open(7, 2, 1);
    struct job *job = &team.job;
    CHECK(board_recover(&job->board, 0) == -1, "it had nothing");
    struct turn lost = turn_take(&team, 0);
    const uint64_t other = shard_word(job, 1);
    CHECK(board_recover(&job->board, 1) == -1 && shard_word(job, 0) == lost.claim, "only the dead worker's");
    CHECK(board_recover(&job->board, 0) == 0);
    CHECK(shard_word(job, 0) == task_make(0, TASK_FREE, 0, 0) && shard_word(job, 1) == other);
    CHECK(board_recover(&job->board, 0) == -1, "a second time there is nothing to do");
    struct turn again = turn_take(&team, 1);
    while (again.shard != lost.shard) {
        turn_compute(&team, 1, &again);
        CHECK(board_commit(&job->board, 1, &again));
        again = turn_take(&team, 1);
    }
    CHECK(!board_commit(&job->board, 0, &lost), "given to another, it counts nothing");
    turn_compute(&team, 1, &again);
    CHECK(board_commit(&job->board, 1, &again) && job_buffers_are_owned_once(job));
    team_close(&team);
}

/* board_commit, cut after each of its stores: the words written by hand. */
static void test_recover_commit(void)
{
    enum { BEFORE_SWAP, AFTER_SWAP, AFTER_SCRATCH, STEP_GONE_BY, CLAIMED_ANEW, CUTS };
    for (int cut = 0; cut < CUTS; cut++) {
        struct team team = team_open(8, 2, 2);
        struct job *job = &team.job;
        struct board_worker *self = &job->board.workers[0];
        const struct turn turn = turn_take(&team, 0);
        const uint64_t scratch = scratch_of(job, 0), old = task_buffer(turn.claim);
        atomic_store(&self->intent, turn.step << 32 | (uint64_t)turn.shard << 16 | old);
        if (cut >= AFTER_SWAP)
            atomic_store(&job->board.shard_tasks[turn.shard].word, task_make(0, TASK_DONE, 0, (uint32_t)scratch));
        if (cut == AFTER_SCRATCH)
            atomic_store(&self->scratch, old);
        if (cut == STEP_GONE_BY || cut == CLAIMED_ANEW) /* by another, whose scratch was 3 */
            atomic_store(&job->board.shard_tasks[turn.shard].word, task_make(1, TASK_CLAIMED, 1, (uint32_t)scratch));
        if (cut == STEP_GONE_BY) {
            atomic_store(&job->board.shard_tasks[turn.shard].word, task_make(1, TASK_DONE, 1, (uint32_t)scratch_of(job, 1)));
            atomic_store(&job->board.workers[1].scratch, scratch);
        }
        const uint64_t word = shard_word(job, turn.shard);
        const int64_t lost = board_recover(&job->board, 0);
        CHECK(intent_of(job, 0) == BOARD_NO_INTENT && job_buffers_are_owned_once(job), "cut %d", cut);
        if (cut == BEFORE_SWAP) {
            CHECK(lost == turn.shard && scratch_of(job, 0) == scratch);
            CHECK(shard_word(job, turn.shard) == task_make(0, TASK_FREE, 0, (uint32_t)old));
        } else {
            CHECK(lost == -1 && scratch_of(job, 0) == old && shard_word(job, turn.shard) == word, "cut %d", cut);
        }
        team_close(&team);
    }
}

/* The update is published, and whoever did it was killed before the phase moved on. */
static void test_published_and_not_moved_on(void)
{
    struct team team = team_open(9, 2, 2);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job);
    CHECK(attachment_grow(job->publisher, job->slot_nbytes) == STATUS_OK);
    board_open(&job->board, 1);
    while (version_of(job) == JOB_BASE_VERSION)
        turn_run(&team, 0);
    const uint64_t latest = channel_latest(&job->publisher->channel);
    atomic_store(&job->board.header->phase, phase_make(0, PHASE_UPDATE, latest_slot(latest)));
    board_open(&job->board, 2);
    const struct turn turn = turn_take(&team, 1);
    CHECK(turn.kind == TURN_GRADIENT && turn.step == 1 && phase_of(job) == phase_make(1, PHASE_GRADIENT, 0));
    CHECK(channel_latest(&job->publisher->channel) == latest, "it is not published twice");
    CHECK(board_recover(&job->board, 1) == turn.shard);
    team_finish(&team);
    CHECK(job_equals(job, &reference));
    reference_free(&reference);
    team_close(&team);
}

/* -- kills everywhere -------------------------------------------------------------------------------------------- */

/* What the dead may have been writing: its scratch, and the norms and ranges that it had claimed. */
static void dead_scribble(struct team *team, uint32_t dead)
{
    const struct job *job = &team->job;
    const uint64_t phase = phase_of(job);
    for (uint32_t r = 0; r < JOB_RANGES; r++) {
        const bool norms = phase_kind(phase) == PHASE_NORM;
        const uint64_t word = atomic_load(&(norms ? job->board.norm_tasks : job->board.range_tasks)[r].word);
        if (!task_is(word, phase_step(phase), TASK_CLAIMED) || task_worker(word) != dead)
            continue;
        if (norms) {
            job->board.squares[r] = NAN;
            continue;
        }
        uint8_t *slot;
        uint64_t capacity;
        CHECK(attachment_map(job->publisher, phase_slot(phase), &slot, &capacity) == STATUS_OK);
        const uint64_t nbytes = job->ranges[r].count * kernel_itemsize((enum kernel_dtype)job->ranges[r].dtype);
        for (unsigned part = 0; part < 1 + JOB_STATES; part++)
            memset(slot + job->ranges[r].slot_offset + part * job->config.state_stride, 0xee, nbytes);
        if (r == 0)
            memset(slot, 0xee, sizeof(struct slot_header) + JOB_SCHEMA_NBYTES);
    }
}

/* One turn, killed before its atomic operation number `left`; false if the turn ended before. */
static bool turn_run_and_kill(struct team *team, uint32_t worker, uint64_t left)
{
    fate.left = left;
    fate.spent = 0;
    if (setjmp(fate.end) != 0)
        return true;
    fate.armed = true;
    turn_run(team, worker);
    fate.armed = false;
    return false;
}

/* Recovery, killed before its operation number `left`, and then done again by the next server. */
static void recover_twice(struct team *team, uint32_t dead, uint64_t left)
{
    fate.left = left;
    fate.spent = 0;
    if (setjmp(fate.end) == 0) {
        fate.armed = true;
        board_recover(&team->job.board, dead);
        fate.armed = false;
    }
    board_recover(&team->job.board, dead);
    CHECK(intent_of(&team->job, dead) == BOARD_NO_INTENT && job_buffers_are_owned_once(&team->job));
    memset(board_buffer_at(&team->job.board, (uint32_t)scratch_of(&team->job, dead)), 0xee,
           sizeof(struct board_buffer) + team->job.config.buffer_nbytes);
}

/* Worker 0 is killed before its operation number `left`, counted over all its turns; false if it never was. */
static bool job_with_one_kill(struct team *team, unsigned first, uint64_t left)
{
    for (unsigned turns = first; board_step(&team->job.board) < team->job.config.steps; turns++) {
        if (!CHECK(turns < 10000, "they come to a stop"))
            return false;
        if (turns % WORKERS == 0) {
            if (turn_run_and_kill(team, 0, left)) {
                dead_scribble(team, 0);
                return true;
            }
            left -= fate.spent;
        } else {
            turn_run(team, turns % WORKERS);
        }
        slots_grow(team);
    }
    return false;
}

/* How many of the kills came in each phase. `first`: who begins. */
static void test_kill_before_every_operation(uint64_t seed, uint32_t shards, unsigned first, uint64_t in_phases[3])
{
    struct job_reference reference = {0};
    uint64_t kills = 0, stream = check_stream(1);
    for (bool killed = true; killed; kills += killed) {
        struct team team = team_open(seed, shards, 3);
        if (kills == 0)
            reference = reference_run(&team.job);
        killed = job_with_one_kill(&team, first, kills);
        in_phases[phase_kind(phase_of(&team.job))] += killed;
        for (unsigned i = 0; killed && kills % 2 != 0 && i < 20; i++) { /* the other goes on as far as it can alone */
            turn_run(&team, 1);
            slots_grow(&team);
        }
        if (killed)
            recover_twice(&team, 0, check_random(&stream) % 24);
        team_finish(&team);
        if (!job_equals(&team.job, &reference))
            printf("killed before operation %" PRIu64 "\n", kills);
        team_close(&team);
    }
    CHECK(kills > 40, "%" PRIu64, kills);
    reference_free(&reference);
}

/* Not killed but stopped, before every single operation, while the other goes on as far as it can, often by several
 * steps; then it is continued with what it had loaded before. */
static struct team *stopped_team;
static void others_go_on(void)
{
    for (unsigned i = 0; i < 20; i++) {
        turn_run(stopped_team, 1);
        slots_grow(stopped_team);
        CHECK(version_of(&stopped_team->job) - JOB_BASE_VERSION - board_step(&stopped_team->job.board) <= 1);
    }
}

static void test_stop_before_every_operation(uint64_t seed, uint32_t shards, unsigned first)
{
    struct job_reference reference = {0};
    fate.stopped = others_go_on;
    bool stopped = true;
    for (uint64_t stops = 0; stopped; stops++) {
        struct team team = team_open(seed, shards, 4);
        uint64_t version = 0;
        stopped_team = &team;
        if (stops == 0)
            reference = reference_run(&team.job);
        fate.left = stops;
        for (unsigned turns = first; board_step(&team.job.board) < team.job.config.steps && turns < 1000; turns++) {
            fate.armed = turns % WORKERS == 0 && fate.left != UINT64_MAX;
            turn_run(&team, turns % WORKERS);
            fate.armed = false;
            slots_grow(&team);
            CHECK(version_of(&team.job) >= version, "versions only grow");
            version = version_of(&team.job);
        }
        stopped = fate.left == UINT64_MAX;
        if (!job_equals(&team.job, &reference))
            printf("stopped before operation %" PRIu64 "\n", stops);
        team_close(&team);
    }
    fate.stopped = NULL;
    reference_free(&reference);
}

/* Any number of kills of both, at random. */
static void test_kills_at_random(void)
{
    uint64_t stream = check_stream(2);
    for (int round = 0; round < (SANITIZED ? 60 : 300); round++) {
        const uint32_t shards = 1 + (uint32_t)(check_random(&stream) % 4);
        struct team team = team_open(check_random(&stream), shards, 4);
        struct job_reference reference = reference_run(&team.job);
        unsigned turns = 0;
        for (; board_step(&team.job.board) < 4; turns++) {
            const uint32_t worker = (uint32_t)(check_random(&stream) % WORKERS);
            if (!CHECK(turns < 10000, "they come to a stop"))
                break;
            if (turn_run_and_kill(&team, worker, check_random(&stream) % 64)) {
                dead_scribble(&team, worker);
                recover_twice(&team, worker, check_random(&stream) % 24);
            }
            slots_grow(&team);
        }
        if (!job_equals(&team.job, &reference))
            printf("round %d, %u shards, %u turns\n", round, shards, turns);
        reference_free(&reference);
        team_close(&team);
    }
}

int main(void)
{
    check_begin("test_board");
    test_words();
    test_layout();
    test_claim_and_commit();
    test_step_by_hand();
    test_clipped_step_by_hand();
    test_limit();
    test_no_examples();
    test_need_slot();
    test_recover_claim();
    test_recover_commit();
    test_published_and_not_moved_on();
    uint64_t in_phases[3] = {0};
    for (uint32_t shards = 1; shards <= 4; shards++)
        for (unsigned first = 0; first < WORKERS; first++)
            for (uint64_t seed = 10; seed < 12; seed++) { /* without clipping, and with */
                test_kill_before_every_operation(seed, shards, first, in_phases);
                test_stop_before_every_operation(seed + 2, shards, first);
            }
    for (unsigned kind = 0; kind < 3; kind++)
        CHECK(in_phases[kind] > 100, "phase %u: %" PRIu64, kind, in_phases[kind]);
    test_kills_at_random();
    return check_end();
}

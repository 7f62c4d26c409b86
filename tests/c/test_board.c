/* The board, one worker at a time: its words, what each crash leaves in them and what recovery makes of it; workers who
 * are stopped, and those who come and go; then faults before every single atomic operation, of workers and of the
 * server's recovery, after each of which the others must arrive at the reference's bits.
 */
#include "hooks.h"

#include "board.c"
#include "board_layout.c"
#include "board_tasks.c"
#include "board_update.c"

#include "board_team.h"

static uint64_t phase_of(const struct job *job) { return atomic_load(&job->board.header->phase); }

static struct team sync_team(uint64_t seed, uint32_t shards, uint64_t steps)
{
    return team_open(seed, shards, steps, false);
}

/* One of them continues by itself as far as it can. */
static void turns_take(struct team *team, uint32_t worker)
{
    for (unsigned i = 0; i < 20; i++) {
        turn_run(team, worker);
        slots_grow(team);
    }
}

/* Both take turns until nothing is left; the result is right, and every gradient counted once. `killed`: whose commits
 * may have been counted no more. */
static bool team_finish(struct team *team, const struct job_reference *reference, bool killed)
{
    const struct job *job = &team->job;
    for (unsigned turns = 0; board_step(&job->board) < job->config.steps; turns++) {
        if (!CHECK(turns < 10000, "they come to a stop in phase %" PRIx64, phase_of(job)))
            return false;
        turn_run(team, turns % WORKERS);
        slots_grow(team);
    }
    const uint64_t commits = commits_of(job), all = job->config.steps * job->config.shards;
    return job_equals(job, reference) & CHECK(job_buffers_are_owned_once(job)) &
           CHECK(commits == all || (killed && commits + 1 == all), "%" PRIu64 " commits", commits);
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
    const uint32_t last = BOARD_MAX_SHARDS + BOARD_MAX_WORKERS - 1;
    const uint64_t most = task_make(UINT32_MAX, TASK_DONE, BOARD_MAX_WORKERS - 1, last);
    CHECK(task_step(most) == UINT32_MAX && task_worker(most) == BOARD_MAX_WORKERS - 1 && task_buffer(most) == last);
    const uint64_t record = record_intent(UINT32_MAX, BOARD_MAX_SHARDS - 1, last, last - 1);
    CHECK(record >> 32 == UINT32_MAX && record_shard(record) == BOARD_MAX_SHARDS - 1);
    CHECK(record_scratch(record) == last && record_other(record) == last - 1);
    CHECK(record_scratch(record_settled(last)) == last && record_other(record_settled(last)) == last);
}

/* Every word of the header that says how large something is, or where it lies, with numbers that are none. */
static void check_damaged_headers(struct job *job, uint64_t nbytes)
{
    static const uint64_t values[] = {0, UINT64_C(1) << 20, UINT32_MAX, UINT64_C(1) << 60, INT64_MAX, UINT64_MAX};
    struct board_header *header = job->board.header;
    uint64_t *sections = &header->workers_at;
    uint64_t *words[] = {&header->nbytes, &header->steps, &header->examples, &header->buffer_nbytes,
                         &sections[0],    &sections[1],   &sections[6],      &sections[9],
                         &sections[10],   &sections[11],  &sections[12],     &sections[13]};
    uint32_t *counts[] = {&header->shards, &header->ranges, &header->workers};
    struct board other;
    for (unsigned v = 0; v < sizeof values / sizeof *values; v++) {
        for (unsigned i = 0; i < sizeof words / sizeof *words; i++) {
            const uint64_t before = *words[i];
            if (values[v] == 0 && words[i] == &header->buffer_nbytes)
                continue; /* less than there is: in the same pages, and so inside */
            *words[i] = values[v];
            CHECK(board_attach(&other, job->memory, nbytes) == STATUS_FORMAT, "word %u, value %u", i, v);
            *words[i] = before;
        }
        for (unsigned i = 0; i < sizeof counts / sizeof *counts; i++) {
            const uint32_t before = *counts[i];
            *counts[i] = (uint32_t)values[v];
            CHECK(board_attach(&other, job->memory, nbytes) == STATUS_FORMAT, "count %u, value %u", i, v);
            *counts[i] = before;
        }
    }
    CHECK(board_attach(&other, job->memory, nbytes) == STATUS_OK);
}

static void test_layout(void)
{
    struct job job = job_open(1, 3, WORKERS, 4, 8, false);
    struct board other;
    const struct board_header *header = job.board.header;
    const uint64_t nbytes = board_nbytes(&job.config);
    CHECK(board_attach(&other, job.memory, nbytes) == STATUS_OK && memcmp(&other, &job.board, sizeof other) == 0);
    CHECK(board_attach(&other, job.memory, nbytes - 1) == STATUS_FORMAT);
    CHECK(board_attach(&other, job.memory, 0) == STATUS_FORMAT);
    check_damaged_headers(&job, nbytes);
    job.board.header->magic[0] ^= 1;
    CHECK(board_attach(&other, job.memory, nbytes) == STATUS_FORMAT);
    const uint8_t *last = (const uint8_t *)board_buffer_at(&job.board, 3 + WORKERS - 1);
    const uint64_t end = (uint64_t)(last - (const uint8_t *)job.memory) + header->buffer_stride;
    CHECK((uintptr_t)last % 4096 == 0 && job_buffers_are_owned_once(&job));
    CHECK(board_nbytes_used(header, WORKERS) == end, "all buffers, and no more");
    CHECK(board_nbytes_used(header, 1) == end - header->buffer_stride, "not that of a worker who may come later");
    CHECK(board_nbytes_needed(&job.config) == end && header->active == WORKERS);
    CHECK(header->errors_at == end && nbytes == end + WORKERS * BOARD_ERROR_NBYTES, "nor the texts of errors");
    job_close(&job);
}

/* -- a step by hand ------------------------------------------------------------------------------------------------ */

static void test_claim_and_commit(void)
{
    struct team team = sync_team(2, 3, 1);
    struct job *job = &team.job;
    struct board_run first = turn_take(&team, 0), second = turn_take(&team, 1);
    CHECK(first.kind == RUN_GRADIENT && first.shard == 0 && first.buffer == 3 && first.step == 0);
    CHECK(second.kind == RUN_GRADIENT && second.shard == 1 && second.buffer == 4);
    CHECK(shard_word(job, 0) == first.claim && task_is(first.claim, 0, TASK_CLAIMED) && task_worker(first.claim) == 0);
    turn_compute(&team, 0, &first);
    CHECK(board_commit(&job->board, 0, &first));
    CHECK(shard_word(job, 0) == task_make(0, TASK_DONE, 0, 3) && scratch_of(job, 0) == 0, "the buffers were swapped");
    CHECK(record_of(job, 0) == record_intent(0, 0, 3, 0), "what it was about to do, and did");
    CHECK(commits_of(job) == 1 && job_buffers_are_owned_once(job));
    CHECK(!board_commit(&job->board, 0, &first), "it counts once");
    CHECK(scratch_of(job, 0) == 0 && job_buffers_are_owned_once(job));
    team_close(&team);
}

static void test_step_by_hand(void)
{
    struct team team = sync_team(14, 2, 1);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    struct board_run turns[2] = {turn_take(&team, 0), turn_take(&team, 1)};
    for (uint32_t w = 0; w < 2; w++)
        turn_compute(&team, w, &turns[w]);
    CHECK(board_commit(&job->board, 1, &turns[1]));
    CHECK(turn_take(&team, 1).kind == RUN_IDLE && phase_of(job) == phase_make(0, PHASE_GRADIENT, 0), "one is missing");
    CHECK(board_commit(&job->board, 0, &turns[0]));
    CHECK(turn_take(&team, 1).kind == RUN_NEED_SLOT, "there is one slot, and it is the latest");
    CHECK(atomic_load(&job->board.header->need_slot) == 1 && phase_of(job) == phase_make(0, PHASE_GRADIENT, 0));
    slots_grow(&team);
    const uint32_t bell = atomic_load(&job->board.header->server_bell);
    CHECK(turn_take(&team, 1).kind == RUN_IDLE, "sum, step, publish, and then the limit");
    CHECK(phase_of(job) == phase_make(1, PHASE_GRADIENT, 0) && version_of(job) == JOB_BASE_VERSION + 1);
    CHECK(atomic_load(&job->board.header->server_bell) != bell, "the server hears of the limit");
    CHECK(job_equals(job, &reference));
    board_stop(&job->board);
    CHECK(turn_take(&team, 0).kind == RUN_STOP);
    reference_free(&reference);
    team_close(&team);
}

/* The same with a norm task per range in between; the batch's gradient is longer than clip_norm. */
static void test_clipped_step_by_hand(void)
{
    struct team team = sync_team(3 + 2 * 7, 2, 1);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    CHECK(reference.norms[0] > job->config.clip_norm, "%g", reference.norms[0]);
    CHECK(turn_run(&team, 0) == RUN_GRADIENT && turn_run(&team, 1) == RUN_GRADIENT);
    CHECK(turn_take(&team, 0).kind == RUN_NEED_SLOT, "the norms are done, and there is no slot");
    CHECK(phase_of(job) == phase_make(0, PHASE_NORM, 0));
    for (uint32_t r = 0; r < JOB_RANGES; r++)
        CHECK(atomic_load(&job->board.norm_tasks[r].word) == task_make(0, TASK_DONE, 0, 0));
    CHECK(turn_take(&team, 1).kind == RUN_NEED_SLOT, "the other one finds them done");
    atomic_store(&job->board.norm_tasks[1].word, task_make(0, TASK_CLAIMED, 1, 0));
    job->board.squares[1] = NAN;
    CHECK(turn_take(&team, 0).kind == RUN_IDLE, "one is missing");
    CHECK(board_recover(&job->board, 1) == -1, "a norm is no shard's gradient");
    slots_grow(&team);
    team_finish(&team, &reference, false);
    reference_free(&reference);
    team_close(&team);
}

static void test_limit(void)
{
    struct team team = sync_team(4, 1, 3);
    atomic_store(&team.job.board.header->limit, 0);
    CHECK(turn_take(&team, 0).kind == RUN_IDLE);
    for (uint64_t limit = 1; limit <= 3; limit++) {
        board_set_limit(&team.job.board, limit);
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
    struct team team = sync_team(5, 2, 1);
    for (uint32_t w = 0; w < WORKERS; w++) {
        struct board_run run = turn_take(&team, w);
        turn_compute(&team, w, &run);
        board_buffer_at(&team.job.board, run.buffer)->examples = 0;
        CHECK(board_commit(&team.job.board, w, &run));
    }
    for (unsigned turns = 0; turns < 4; turns++) {
        turn_run(&team, 0);
        slots_grow(&team);
    }
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

/* Every slot is held: the workers ask, and continue when some are released. */
static void test_need_slot(void)
{
    struct team team = sync_team(6, 1, 20);
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
    CHECK(turn_run(&team, 0) == RUN_NEED_SLOT);
    CHECK(attachment_grow(team.job.publisher, team.job.slot_nbytes) == STATUS_NO_SLOT);
    CHECK(turn_run(&team, 1) == RUN_NEED_SLOT && version_of(&team.job) == pins[7].version);
    for (unsigned i = 3; i < 5; i++) /* one for the latest, one for the next */
        attachment_unpin(reader, pins[i].slot, pins[i].generation);
    atomic_store(&team.job.board.header->need_slot, 0);
    struct job_reference reference = reference_run(&team.job, NULL);
    team_finish(&team, &reference, false);
    reference_free(&reference);
    attachment_close(reader);
    team_close(&team);
}

/* -- what a crash leaves, and recovery --------------------------------------------------------------------------- */

static void test_recover_claim(void)
{
    struct team team = sync_team(7, 2, 1);
    struct job *job = &team.job;
    CHECK(board_recover(&job->board, 0) == -1, "it had nothing");
    struct board_run lost = turn_take(&team, 0);
    const uint64_t other = shard_word(job, 1);
    CHECK(board_recover(&job->board, 1) == -1 && shard_word(job, 0) == lost.claim, "only the dead worker's");
    CHECK(board_recover(&job->board, 0) == 0);
    CHECK(shard_word(job, 0) == task_make(0, TASK_FREE, 0, 0) && shard_word(job, 1) == other);
    CHECK(board_recover(&job->board, 0) == -1, "a second time there is nothing to do");
    struct board_run again = turn_take(&team, 1);
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

/* board_commit, cut before each of its operations: recovered at once; or after the others went on as far as they could,
 * so that a claim of the next step has overwritten the commit; or after the task was given up as well. */
static bool commit_cut(uint64_t cut, bool others, bool given_up)
{
    enum { SWAP = 1 }; /* the second operation */
    struct team team = sync_team(8, 2, 3);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    const struct board_run run = turn_take(&team, 0);
    const uint64_t scratch = scratch_of(job, 0), old = task_buffer(run.claim);
    turn_compute(&team, 0, &run);
    fate_set(cut, NULL, true);
    volatile bool killed = true;
    if (setjmp(fate.end) == 0) {
        fate.armed = true;
        board_commit(&job->board, 0, &run);
        fate.armed = false;
        killed = false;
    }
    CHECK(board_still_claimed(&job->board, &run) == (cut <= SWAP), "cut %" PRIu64, cut);
    if (given_up)
        CHECK((board_give_up(&job->board, 0) == run.shard) == (cut <= SWAP));
    if (others) {
        turns_take(&team, 1);
        CHECK(board_step(&job->board) == (given_up || cut > SWAP ? 3 : 0), "cut %" PRIu64, cut);
        CHECK(cut <= SWAP || record_of(job, 0) == record_settled((uint32_t)old), "the next claim settled it");
    }
    const bool stands = cut <= SWAP && !given_up;
    CHECK(board_recover(&job->board, 0) == (stands ? (int64_t)run.shard : -1), "cut %" PRIu64, cut);
    CHECK(scratch_of(job, 0) == (cut <= SWAP ? scratch : old) && job_buffers_are_owned_once(job), "cut %" PRIu64, cut);
    team_finish(&team, &reference, true);
    reference_free(&reference);
    team_close(&team);
    return killed;
}

static void test_recover_commit(void)
{
    for (unsigned how = 0; how < 4; how++) {
        uint64_t cuts = 0;
        while (commit_cut(cuts, how & 1, how & 2))
            cuts++;
        CHECK(cuts == 5, "%" PRIu64 ": record, swap, scratch, commits loaded and stored", cuts);
    }
}

/* The same, and the others continue in the middle of the recovery, before each of its operations: the record that the
 * server has loaded may be overwritten before it swaps. */
static bool recovery_interrupted(uint64_t cut, uint64_t before)
{
    struct team team = sync_team(9, 1, 4);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    const struct board_run run = turn_take(&team, 0);
    turn_compute(&team, 0, &run);
    fate_set(cut, NULL, true);
    if (setjmp(fate.end) == 0) {
        fate.armed = true;
        board_commit(&job->board, 0, &run);
    }
    stopped_team = &team;
    fate_set(before, others_go_on, false);
    fate.armed = true;
    board_recover(&job->board, 0);
    const bool interrupted = !fate.armed;
    fate.armed = false;
    CHECK(job_buffers_are_owned_once(job), "cut %" PRIu64 ", others before %" PRIu64, cut, before);
    team_finish(&team, &reference, true);
    reference_free(&reference);
    team_close(&team);
    return interrupted;
}

static void test_recover_while_others_go_on(void)
{
    for (uint64_t cut = 0; cut < 5; cut++) {
        uint64_t before = 0;
        while (recovery_interrupted(cut, before))
            before++;
        CHECK(before > 10, "%" PRIu64, before);
    }
}

/* The update is published, and the worker that did it was killed before the phase advanced. */
static void test_published_and_not_moved_on(void)
{
    struct team team = sync_team(9, 2, 2);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    CHECK(attachment_grow(job->publisher, job->slot_nbytes) == STATUS_OK);
    board_set_limit(&job->board, 1);
    while (version_of(job) == JOB_BASE_VERSION)
        turn_run(&team, 0);
    const uint64_t latest = channel_latest(&job->publisher->channel);
    atomic_store(&job->board.header->phase, phase_make(0, PHASE_UPDATE, latest_slot(latest)));
    board_set_limit(&job->board, 2);
    const struct board_run run = turn_take(&team, 1);
    CHECK(run.kind == RUN_GRADIENT && run.step == 1 && phase_of(job) == phase_make(1, PHASE_GRADIENT, 0));
    CHECK(channel_latest(&job->publisher->channel) == latest, "it is not published twice");
    CHECK(board_recover(&job->board, 1) == run.shard);
    team_finish(&team, &reference, false);
    reference_free(&reference);
    team_close(&team);
}

/* -- workers who are stopped, who come and who go ------------------------------------------------------------------ */

static void test_give_up(void)
{
    struct team team = sync_team(15, 2, 3);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    CHECK(board_give_up(&job->board, 0) == -1, "it has nothing");
    const struct board_run late = turn_take(&team, 0);
    CHECK(board_give_up(&job->board, 1) == -1 && board_still_claimed(&job->board, &late), "only the stopped worker's");
    CHECK(board_give_up(&job->board, 0) == late.shard && !board_still_claimed(&job->board, &late));
    turns_take(&team, 1);
    CHECK(board_step(&job->board) == 3 && commits_of(job) == 6, "the others need it no more");
    turn_compute(&team, 0, &late);
    CHECK(!board_commit(&job->board, 0, &late), "it counts nothing");
    CHECK(commits_of(job) == 6 && scratch_of(job, 0) == late.buffer && job_buffers_are_owned_once(job));
    CHECK(board_recover(&job->board, 0) == -1 && scratch_of(job, 0) == late.buffer, "its intent came to nothing");
    team_finish(&team, &reference, false);
    reference_free(&reference);
    team_close(&team);
}

/* Given up, continued, and at the same shard of the same step again: with the same words as before. */
static void test_give_up_and_claim_again(void)
{
    struct team team = sync_team(16, 1, 2);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    const struct board_run late = turn_take(&team, 0);
    CHECK(board_give_up(&job->board, 0) == 0 && !board_commit(&job->board, 0, &late));
    const struct board_run again = turn_take(&team, 0);
    CHECK(again.claim == late.claim && again.buffer == late.buffer && board_still_claimed(&job->board, &again));
    CHECK(board_recover(&job->board, 0) == 0 && scratch_of(job, 0) == late.buffer, "the record is of the first time");
    team_finish(&team, &reference, false);
    reference_free(&reference);
    team_close(&team);
}

/* Norms and updates have one writer: their claims are not given up. */
static void test_holds_range(void)
{
    struct team team = sync_team(17, 2, 1);
    const struct board *board = &team.job.board;
    struct board_task *tasks[] = {board->norm_tasks, board->range_tasks};
    CHECK(turn_take(&team, 1).kind == RUN_GRADIENT && !board_holds_range(board, 1), "a gradient is no range");
    for (unsigned kind = 0; kind < 2; kind++) {
        const uint64_t claim = task_make(0, TASK_CLAIMED, 1, 0);
        atomic_store(&tasks[kind][2].word, claim);
        CHECK(board_holds_range(board, 1) && !board_holds_range(board, 0));
        board_give_up(board, 1);
        CHECK(atomic_load(&tasks[kind][2].word) == claim);
        board_recover(board, 1);
        CHECK(!board_holds_range(board, 1) && atomic_load(&tasks[kind][2].word) == task_make(0, TASK_FREE, 0, 0));
    }
    team_close(&team);
}

static void test_team(void)
{
    struct team team = sync_team(18, 3, 4);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    const struct board_run last = turn_take(&team, 1);
    const uint32_t bell = atomic_load(&job->board.header->bell);
    board_set_workers(&job->board, 1, 1000);
    CHECK(atomic_load(&job->board.header->bell) != bell && atomic_load(&job->board.header->spin_ns) == 1000);
    turn_compute(&team, 1, &last);
    CHECK(board_commit(&job->board, 1, &last), "what it has begun it may end");
    CHECK(turn_take(&team, 1).kind == RUN_LEAVE && board_recover(&job->board, 1) == -1);
    while (board_step(&job->board) < 2) {
        turn_run(&team, 0);
        slots_grow(&team);
    }
    CHECK(turn_take(&team, 1).kind == RUN_LEAVE);
    board_set_workers(&job->board, 2, 0);
    CHECK(turn_take(&team, 1).kind == RUN_GRADIENT && board_recover(&job->board, 1) >= 0);
    team_finish(&team, &reference, false);
    board_stop(&job->board);
    board_set_workers(&job->board, 0, 0);
    CHECK(turn_take(&team, 1).kind == RUN_STOP, "a worker that must stop stays for the next job");
    reference_free(&reference);
    team_close(&team);
}

/* -- faults everywhere --------------------------------------------------------------------------------------------- */

/* The claimed norms and ranges, to which the dead worker may have been writing. Its scratch: see recover_twice. */
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
        const uint64_t nbytes = job->ranges[r].count * kernel_itemsize(range_dtype(&job->ranges[r]));
        for (unsigned part = 0; part < 1 + JOB_STATES; part++)
            memset(slot + job->ranges[r].slot_offset + part * job->config.state_stride, 0xee, nbytes);
        if (r == 0)
            memset(slot, 0xee, sizeof(struct slot_header) + JOB_SCHEMA_NBYTES);
    }
}

/* Often by several steps. */
static void others_go_on(void)
{
    turns_take(stopped_team, 1);
    CHECK(version_of(&stopped_team->job) - JOB_BASE_VERSION - board_step(&stopped_team->job.board) <= 1);
}

/* Worker 0 has this fault before its operation number `left`, counted over all its turns; false if it never had.
 * `first`: the worker that begins. */
static bool job_with_one_fault(struct team *team, const struct fault *fault, unsigned first, uint64_t left)
{
    stopped_team = team;
    for (unsigned turns = first; board_step(&team->job.board) < team->job.config.steps; turns++) {
        if (!CHECK(turns < 10000, "they come to a stop"))
            return false;
        if (turns % WORKERS == 0) {
            fate_set(left, fault->stopped, fault->killed);
            if (turn_run_into_fate(team, 0) || fate.left == UINT64_MAX)
                return true;
            left -= fate.spent;
        } else {
            turn_run(team, turns % WORKERS);
        }
        slots_grow(team);
    }
    return false;
}

/* How many of the faults left the board in each phase. */
static void test_fault_before_every_operation(const struct fault *fault, uint64_t seed, uint32_t shards,
                                              uint64_t in_phases[3])
{
    struct job_reference reference = {0};
    uint64_t faults = 0, stream = check_stream(1);
    for (bool had = true; had; faults += had) {
        struct team team = sync_team(seed, shards, 3);
        if (faults == 0)
            reference = reference_run(&team.job, NULL);
        had = job_with_one_fault(&team, fault, (unsigned)(shards + seed) / 2 % WORKERS, faults);
        in_phases[phase_kind(phase_of(&team.job))] += had;
        if (had && fault->killed) {
            dead_scribble(&team, 0);
            recover_twice(&team, 0, check_random(&stream) % 24);
        }
        if (!team_finish(&team, &reference, had && fault->killed))
            printf("%s before operation %" PRIu64 "; %u shards, job %" PRIu64 "\n", fault->name, faults, shards, seed);
        team_close(&team);
    }
    CHECK(faults > 40, "%" PRIu64, faults);
    reference_free(&reference);
}

/* Any number of faults of worker 0, at random, and kills of worker 1. */
static void test_faults_at_random(void)
{
    uint64_t stream = check_stream(2);
    for (int round = 0; round < (SANITIZED ? 60 : 300); round++) {
        const uint32_t shards = 1 + (uint32_t)(check_random(&stream) % 4);
        struct team team = sync_team(check_random(&stream), shards, 4);
        struct job_reference reference = reference_run(&team.job, NULL);
        unsigned turns = 0;
        stopped_team = &team;
        for (; board_step(&team.job.board) < 4; turns++) {
            const uint32_t worker = (uint32_t)(check_random(&stream) % WORKERS);
            const struct fault *fault = &FAULTS[worker == 0 ? check_random(&stream) % FAULT_COUNT : 0];
            fate_set(check_random(&stream) % 64, fault->stopped, fault->killed);
            if (!CHECK(turns < 10000, "they come to a stop"))
                break;
            if (turn_run_into_fate(&team, worker)) {
                dead_scribble(&team, worker);
                recover_twice(&team, worker, check_random(&stream) % 24);
            }
            slots_grow(&team);
        }
        if (!job_equals(&team.job, &reference) || !CHECK(job_buffers_are_owned_once(&team.job)))
            printf("round %d, %u shards, %u turns\n", round, shards, turns);
        reference_free(&reference);
        team_close(&team);
    }
}

/* -- shards of other boards ---------------------------------------------------------------------------------------- */

/* The link as the tests have it: it computes the remote gradients itself. It waits until the own shards are done. */
static void link_turn(struct team *team)
{
    struct job *job = &team->job;
    const struct board *board = &job->board;
    const uint64_t step = board_step(board), own = atomic_load(&board->header->own);
    const uint32_t shards = job->config.shards, first = own_first(own), end = own_end(own);
    if (board_incomplete_step(board) != step || !shards_done(board, step, first, end) || (first == 0 && end == shards))
        return;
    const uint64_t stride = sizeof(struct board_buffer) + job->config.buffer_nbytes;
    uint8_t *buffers = malloc(shards * stride), *slot;
    const void *grads[BOARD_MAX_SHARDS];
    double weights[BOARD_MAX_SHARDS], total = 0;
    uint64_t capacity;
    CHECK(attachment_map(job->publisher, latest_slot(channel_latest(&job->publisher->channel)), &slot, &capacity) ==
          STATUS_OK);
    for (uint32_t s = 0; s < shards; s++)
        total += (double)job_examples(job, step, s);
    for (uint32_t s = 0; s < shards; s++) {
        weights[s] = (double)job_examples(job, step, s) / total;
        job_gradient(job, step, s, slot, (struct board_buffer *)(buffers + s * stride));
    }
    for (unsigned r = 0; r < JOB_RANGES; r++) {
        for (uint32_t s = 0; s < shards; s++)
            grads[s] = buffers + s * stride + sizeof(struct board_buffer) + job->ranges[r].grad_offset;
        const struct kernel_range range = {
            .count = job->ranges[r].count, .shards = shards, .grads = grads, .weights = weights};
        kernel_sum(range_dtype(&job->ranges[r]), &range, board->sum + job->ranges[r].grad_offset);
    }
    board_set_summed(board, step);
    for (uint32_t s = 0; s < shards; s++) {
        const uint64_t claim = remote_claim(board, s, step);
        CHECK(s < first || s >= end || task_state(claim) == TASK_DONE);
        if (task_state(claim) == TASK_DONE)
            continue;
        CHECK(task_worker(claim) == TASK_LINK && task_step(claim) == step);
        memcpy(board_buffer_at(board, task_buffer(claim)), buffers + s * stride, sizeof(struct board_buffer));
        remote_commit(board, s, claim);
    }
    board_ring(board);
    free(buffers);
}

/* Both workers and the link take turns. */
static void shared_job_finish(struct team *team)
{
    for (unsigned turns = 0; board_step(&team->job.board) < team->job.config.steps; turns++) {
        if (!CHECK(turns < 10000, "they come to a stop in phase %" PRIx64, phase_of(&team->job)))
            return;
        turn_run(team, turns % WORKERS);
        if (turns % 3 == 0)
            link_turn(team);
        slots_grow(team);
    }
}

static void test_own_shards(void)
{
    struct team team = team_open(21, 4, 3, JOB_EXCHANGE);
    struct job *job = &team.job;
    const struct board *board = &job->board;
    struct job_reference reference = reference_run(job, NULL);
    board_set_own(board, 1, 3);
    const uint32_t bell = atomic_load(&board->header->link_bell);
    const struct board_run first = turn_take(&team, 0), second = turn_take(&team, 1);
    CHECK(first.shard + second.shard == 3 && first.shard != second.shard, "1 and 2");
    CHECK(turn_take(&team, 0).kind == RUN_IDLE && board_incomplete_step(board) == 0);
    turn_compute(&team, 0, &first);
    CHECK(board_commit(board, 0, &first) && atomic_load(&board->header->link_bell) == bell, "there is another");
    turn_compute(&team, 1, &second);
    CHECK(board_commit(board, 1, &second) && atomic_load(&board->header->link_bell) == bell + 1);
    CHECK(turn_take(&team, 0).kind == RUN_IDLE && board_step(board) == 0, "remote shards are missing");
    link_turn(&team);
    CHECK(board_incomplete_step(board) == 1 && board_step(board) == 0);
    CHECK(job_buffers_are_owned_once(job));
    turns_take(&team, 0);
    CHECK(board_step(board) == 1);
    board_set_own(board, 2, 2); /* none */
    CHECK(turn_take(&team, 0).kind == RUN_IDLE);
    link_turn(&team);
    turns_take(&team, 1);
    CHECK(board_step(board) == 2);
    board_set_own(board, 0, 4); /* all: no link is needed */
    turns_take(&team, 0);
    job_equals(job, &reference);
    reference_free(&reference);
    team_close(&team);
}

/* The sum is part of a step, unless all shards are own: shards that workers did before they became remote are not
 * enough. */
static void test_remote_shards_without_a_sum(void)
{
    struct team team = team_open(22, 2, 2, JOB_EXCHANGE);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    const struct board_run runs[] = {turn_take(&team, 0), turn_take(&team, 1)};
    for (uint32_t w = 0; w < 2; w++) {
        turn_compute(&team, w, &runs[w]);
        board_set_own(&job->board, 0, 1);
        CHECK(board_commit(&job->board, w, &runs[w]));
    }
    CHECK(turn_take(&team, 0).kind == RUN_IDLE && board_incomplete_step(&job->board) == 0);
    link_turn(&team);
    CHECK(board_incomplete_step(&job->board) == 1);
    shared_job_finish(&team);
    job_equals(job, &reference);
    reference_free(&reference);
    team_close(&team);
}

static void limit_and_all_shards_set(void)
{
    board_set_limit(&stopped_team->job.board, board_step(&stopped_team->job.board));
    board_set_own(&stopped_team->job.board, 0, stopped_team->job.config.shards);
}

/* A link's session ends on the board that has all shards, and all are done: the step waits. Then the server lowers the
 * limit and makes the board complete by itself, while a worker is in the middle of looking. */
static void test_a_lower_limit_holds(void)
{
    bool stopped = true;
    for (uint64_t left = 0; stopped; left++) {
        struct team team = team_open(26, 2, 2, JOB_EXCHANGE);
        struct job *job = &team.job;
        struct job_reference reference = reference_run(job, NULL);
        board_set_linked(&job->board);
        turns_take(&team, 0);
        CHECK(board_step(&job->board) == 0 && shards_done(&job->board, 0, 0, 2) &&
              board_incomplete_step(&job->board) == 0);
        stopped_team = &team;
        fate_set(left, limit_and_all_shards_set, false);
        fate.armed = true;
        turn_take(&team, 1);
        stopped = fate.left == UINT64_MAX;
        fate.armed = false;
        CHECK(board_step(&job->board) == 0 && phase_kind(phase_of(job)) == PHASE_GRADIENT, "before %" PRIu64, left);
        board_set_own(&job->board, 0, 2);
        board_set_limit(&job->board, 2);
        shared_job_finish(&team);
        job_equals(job, &reference);
        reference_free(&reference);
        team_close(&team);
    }
}

/* A shard that went to another board while a worker here computes it. */
static void test_a_remote_shard_is_taken_from_its_worker(void)
{
    struct team team = team_open(23, 2, 2, JOB_EXCHANGE);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    const struct board_run kept = turn_take(&team, 0), lost = turn_take(&team, 1);
    board_set_own(&job->board, kept.shard, kept.shard + 1);
    turn_compute(&team, 0, &kept);
    CHECK(board_commit(&job->board, 0, &kept));
    link_turn(&team);
    CHECK(!board_still_claimed(&job->board, &lost));
    turn_compute(&team, 1, &lost);
    CHECK(!board_commit(&job->board, 1, &lost), "it counts nothing");
    CHECK(board_recover(&job->board, 1) == -1 && scratch_of(job, 1) == lost.buffer && job_buffers_are_owned_once(job));
    shared_job_finish(&team);
    job_equals(job, &reference);
    reference_free(&reference);
    team_close(&team);
}

/* The link overwrites the word that tells of a worker's last commit, so it settles that worker's record before. */
static bool commit_cut_before_a_remote_step(uint64_t cut)
{
    struct team team = team_open(24, 2, 4, JOB_EXCHANGE);
    struct job *job = &team.job;
    struct job_reference reference = reference_run(job, NULL);
    const struct board_run run = turn_take(&team, 0);
    turn_compute(&team, 0, &run);
    fate_set(cut, NULL, true);
    bool killed = true;
    if (setjmp(fate.end) == 0) {
        fate.armed = true;
        board_commit(&job->board, 0, &run);
        fate.armed = false;
        killed = false;
    }
    const bool done = task_is(shard_word(job, run.shard), 0, TASK_DONE);
    if (done) { /* the other worker goes on, to where the link overwrites the shard */
        turns_take(&team, 1);
        board_set_own(&job->board, 1 - run.shard, 2 - run.shard);
        for (unsigned i = 0; i < 4; i++) {
            turns_take(&team, 1);
            link_turn(&team);
        }
        CHECK(board_step(&job->board) > 1);
    }
    board_recover(&job->board, 0);
    CHECK(job_buffers_are_owned_once(job), "cut %" PRIu64, cut);
    shared_job_finish(&team);
    job_equals(job, &reference);
    reference_free(&reference);
    team_close(&team);
    return killed;
}

static void test_record_before_a_remote_step(void)
{
    uint64_t cuts = 0;
    while (commit_cut_before_a_remote_step(cuts))
        cuts++;
    CHECK(cuts > 5, "%" PRIu64, cuts);
}

static void others_and_the_link_go_on(void)
{
    for (unsigned i = 0; i < 3; i++) {
        turns_take(stopped_team, 1);
        link_turn(stopped_team);
    }
}

/* The same, and a link takes turns, and the range of own shards changes. */
static void test_faults_beside_a_link(void)
{
    uint64_t stream = check_stream(3);
    for (int round = 0; round < (SANITIZED ? 60 : 300); round++) {
        const uint32_t shards = 1 + (uint32_t)(check_random(&stream) % 4);
        struct team team = team_open(check_random(&stream), shards, 4, JOB_EXCHANGE);
        struct job_reference reference = reference_run(&team.job, NULL);
        unsigned turns = 0;
        stopped_team = &team;
        team.given_up = true; /* the link takes shards as the server does */
        for (; board_step(&team.job.board) < 4; turns++) {
            const uint64_t dice = check_random(&stream);
            const uint32_t worker = (uint32_t)(dice % WORKERS);
            if (!CHECK(turns < 10000, "they come to a stop"))
                break;
            if (dice >> 8 & 1)
                link_turn(&team);
            if ((dice >> 9) % 16 == 0) {
                const uint32_t first = (uint32_t)((dice >> 16) % (shards + 1));
                board_set_own(&team.job.board, first, first + (uint32_t)((dice >> 32) % (shards + 1 - first)));
            }
            const bool stopped = worker == 0 && dice >> 10 & 1;
            fate_set(dice >> 40 & 63, stopped ? others_and_the_link_go_on : NULL, !stopped || dice >> 11 & 1);
            if (turn_run_into_fate(&team, worker)) {
                dead_scribble(&team, worker);
                recover_twice(&team, worker, check_random(&stream) % 24);
            }
            slots_grow(&team);
        }
        if (!job_equals(&team.job, &reference) || !CHECK(job_buffers_are_owned_once(&team.job)))
            printf("round %d, %u shards, %u turns\n", round, shards, turns);
        reference_free(&reference);
        team_close(&team);
    }
}

int main(void)
{
    check_begin("test_board");
    test_own_shards();
    test_remote_shards_without_a_sum();
    test_a_lower_limit_holds();
    test_a_remote_shard_is_taken_from_its_worker();
    test_record_before_a_remote_step();
    test_faults_beside_a_link();
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
    test_recover_while_others_go_on();
    test_published_and_not_moved_on();
    test_give_up();
    test_give_up_and_claim_again();
    test_holds_range();
    test_team();
    uint64_t in_phases[3] = {0};
    for (unsigned fault = 0; fault < FAULT_COUNT; fault++)
        for (uint32_t shards = 1; shards <= MOST_SHARDS; shards++)
            for (uint64_t seed = 10; seed < 12; seed++) /* without clipping, and with */
                test_fault_before_every_operation(&FAULTS[fault], seed + 2 * fault, shards, in_phases);
    for (unsigned kind = 0; kind < 3; kind++)
        CHECK(in_phases[kind] > 25 * MOST_SHARDS, "phase %u: %" PRIu64, kind, in_phases[kind]);
    test_faults_at_random();
    return check_end();
}

/* Bytes of peers of a link: every frame is taken, forgotten, parked or refused, nothing is written outside the places
 * that an exchange has for it, and what was taken is counted once.
 *
 *     input:  u8 way | operations: u8 what, u8 length, and the bytes
 *
 * `way`: bits 0 and 1 the number of peers less 1, bit 2 a payload that is scattered, bits 3 and up how the shards are
 * cut. `what`: bits 0 to 1 the peer; then 0 the bytes as they are; 4 a frame whose header these bytes change, and as
 * many zeros as it says; 8 the own shards are done; 12 a piece of work; other values are as 0.
 */
#include <stdlib.h>
#include <string.h>

#include "board.h"
#include "exchange.h"
#include "fuzz.h"

enum { SHARDS = 6, STEPS = 4, MAX_NODES = 5, MAX_OPERATIONS = 400, SMALL = 40, LARGE = 18000 };

struct fixture {
    struct board board;
    void *memory;
    struct exchange exchange;
    struct frame_input *inputs[MAX_NODES];
    uint64_t taken;
};

static void sink_ignore(void *self, uint32_t peer, struct frame frame, const uint8_t *bytes)
{
    FUZZ_CHECK(frame_error(&frame) == NULL);
    (void)peer;
    if (frame.nbytes > 0)
        *(volatile uint8_t *)self = bytes[frame.nbytes - 1];
}

static enum frame_verdict fixture_accept(void *self, uint32_t peer, const struct frame *frame, uint8_t **into,
                                         const char **error)
{
    struct fixture *fixture = self;
    if (frame->kind == FRAME_ALIVE || frame->session < 7)
        return FRAME_DROP;
    if (frame->session > 7)
        return FRAME_PARK;
    const enum frame_verdict verdict = exchange_accept(&fixture->exchange, peer, frame, into, error);
    FUZZ_CHECK((verdict == FRAME_REFUSE) == (*error != NULL));
    if (verdict == FRAME_TAKE)
        memset(*into, 0, frame->nbytes); /* all of the place is there */
    return verdict;
}

static void fixture_arrived(void *self, uint32_t peer, const struct frame *frame)
{
    struct fixture *fixture = self;
    FUZZ_CHECK(fixture->exchange.still > 0);
    exchange_arrived(&fixture->exchange, peer, frame);
    fixture->taken++;
}

static void fixture_make(struct fixture *fixture, uint8_t way)
{
    const uint32_t nodes = 2 + way % 4;
    const uint64_t numbers = way & 4 ? LARGE : SMALL;
    const struct board_range ranges[] = {{0, 0, 5, KERNEL_F64 | MERGE_MEAN << 8, 0, 0},
                                         {0, 64, numbers, KERNEL_F32, 0, 0},
                                         {0, 64 + (numbers * 4 + 63) / 64 * 64, 9, KERNEL_F64, 0, 0}};
    const struct board_config config = {.shards = SHARDS,
                                        .ranges = 3,
                                        .groups = 1,
                                        .workers = 1,
                                        .active = 1,
                                        .exchange = true,
                                        .steps = STEPS,
                                        .buffer_nbytes = ranges[2].grad_offset + 128};
    uint64_t counts[2 * SHARDS];
    uint32_t cuts[MAX_NODES + 1] = {0};
    for (uint32_t i = 0; i < 2 * SHARDS; i++)
        counts[i] = (i * 5 + way) % 3;
    for (uint32_t k = 1; k < nodes; k++)
        cuts[k] = cuts[k - 1] + (way >> 3) * k % (SHARDS + 1 - cuts[k - 1]);
    cuts[nodes] = SHARDS;
    const uint64_t nbytes = board_nbytes(&config);
    fixture->memory = aligned_alloc(4096, (nbytes + 4095) / 4096 * 4096);
    FUZZ_CHECK(fixture->memory != NULL);
    memset(fixture->memory, 0, nbytes);
    board_format(&fixture->board, fixture->memory, &config, ranges, &(struct board_group){0}, NULL);
    board_set_own(&fixture->board, cuts[0], cuts[1]);
    board_set_linked(&fixture->board);
    board_set_limit(&fixture->board, STEPS);
    const struct exchange_shape shape = {nodes, 0, SHARDS, cuts, counts, ranges, 3, config.buffer_nbytes};
    struct exchange_plan plan;
    FUZZ_CHECK(exchange_shape_error(&shape) == NULL && exchange_plan_make(&plan, &shape));
    FUZZ_CHECK(exchange_make(&fixture->exchange, &fixture->board, &plan, 7) == STATUS_OK);
    for (uint32_t peer = 1; peer < nodes; peer++) {
        fixture->inputs[peer] = calloc(1, sizeof *fixture->inputs[peer]);
        FUZZ_CHECK(fixture->inputs[peer] != NULL);
    }
}

static void fixture_free(struct fixture *fixture)
{
    for (uint32_t peer = 0; peer < MAX_NODES; peer++)
        free(fixture->inputs[peer]);
    exchange_free(&fixture->exchange);
    free(fixture->memory);
}

static void bytes_put(struct fixture *fixture, uint32_t peer, const uint8_t *bytes, size_t nbytes)
{
    const struct frame_user user = {fixture_accept, fixture_arrived, fixture, peer};
    struct frame_input *input = fixture->inputs[peer];
    while (nbytes > 0) {
        const struct iovec room = frame_input_room(input);
        const size_t some = room.iov_len < nbytes ? room.iov_len : nbytes;
        if (some == 0)
            return; /* parked or refused */
        memcpy(room.iov_base, bytes, some);
        bytes += some;
        nbytes -= some;
        FUZZ_CHECK(frame_input_took(input, some, &user) == (input->error == NULL));
    }
}

/* A frame that the peer might send; `changes` are pairs of a place and what is added there. */
static void frame_put(struct fixture *fixture, uint32_t peer, const uint8_t *changes, size_t count)
{
    static const uint8_t zeros[FRAME_MAX_NBYTES];
    const struct exchange_plan *plan = &fixture->exchange.plan;
    const enum frame_kind kind = count > 0 ? (enum frame_kind)(1 + changes[0] % 5) : FRAME_META;
    const uint32_t number = count > 1 ? changes[1] : 0;
    struct frame frame = frame_make(kind, 7, fixture->exchange.step, 0, 0, 0);
    if (kind == FRAME_META) {
        frame.nbytes = (plan->cuts[peer + 1] - plan->cuts[peer]) * 8;
    } else if (kind == FRAME_RAW) {
        frame.index = plan->cuts[peer] + number % SHARDS;
        frame.nbytes = (uint32_t)plan->raw_nbytes;
    } else if (kind != FRAME_ALIVE) {
        const struct exchange_chunk *chunk = &plan->chunks[number % plan->chunk_count];
        frame.index = kind == FRAME_ROOT ? plan->root_cuts[peer] + number / 128 : 0;
        frame.offset = chunk->at;
        frame.nbytes = chunk->nbytes;
    } else {
        frame.session = frame.step = 0;
    }
    for (size_t i = 2; i + 1 < count; i += 2)
        ((uint8_t *)&frame)[changes[i] % sizeof frame] += changes[i + 1];
    bytes_put(fixture, peer, (const uint8_t *)&frame, sizeof frame);
    bytes_put(fixture, peer, zeros, frame.nbytes < sizeof zeros ? frame.nbytes : sizeof zeros);
}

static void inputs_resume(struct fixture *fixture)
{
    for (uint32_t peer = 1; peer < fixture->exchange.plan.nodes; peer++) {
        const struct frame_user user = {fixture_accept, fixture_arrived, fixture, peer};
        struct frame_input *input = fixture->inputs[peer];
        FUZZ_CHECK(frame_input_resume(input, &user) == (input->error == NULL));
    }
}

static void own_do(struct fixture *fixture)
{
    static uint8_t last;
    struct exchange *exchange = &fixture->exchange;
    const struct exchange_sink sink = {sink_ignore, &last};
    const uint64_t step = exchange->step, *counts = exchange->plan.counts[step % STEPS == STEPS - 1];
    for (uint32_t s = 0; s < exchange->plan.cuts[1] && step < STEPS; s++) {
        const uint64_t task = shared_load_relaxed(&fixture->board.shard_tasks[s].word);
        board_buffer_at(&fixture->board, task_buffer(task))->examples = counts[s];
        shared_store_relaxed(&fixture->board.shard_tasks[s].word, task_make(step, TASK_DONE, 0, task_buffer(task)));
    }
    if (exchange_is_due(exchange)) {
        FUZZ_CHECK(exchange_start(exchange, &sink) == -1);
        inputs_resume(fixture);
    }
}

static void work_do(struct fixture *fixture)
{
    static uint8_t last;
    struct exchange *exchange = &fixture->exchange;
    const struct exchange_sink sink = {sink_ignore, &last};
    const uint64_t step = exchange->step;
    while (exchange_work(exchange, &sink)) {
    }
    if (!exchange_is_complete(exchange))
        return;
    exchange_finish(exchange);
    FUZZ_CHECK(board_incomplete_step(&fixture->board) == step + 1 && exchange->step == step + 1);
    shared_store_relaxed(&fixture->board.header->phase, phase_make(step + 1, PHASE_GRADIENT, 0));
    inputs_resume(fixture);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    struct fixture fixture = {0};
    if (nbytes == 0)
        return 0;
    fixture_make(&fixture, data[0]);
    size_t at = 1;
    for (unsigned i = 0; i < MAX_OPERATIONS && at + 2 <= nbytes; i++) {
        const uint32_t peer = 1 + (data[at] & 3u) % (fixture.exchange.plan.nodes - 1);
        const uint8_t what = data[at] & 0x1c;
        size_t length = data[at + 1];
        at += 2;
        length = length < nbytes - at ? length : nbytes - at;
        if (what == 4)
            frame_put(&fixture, peer, data + at, length);
        else if (what == 8)
            own_do(&fixture);
        else if (what == 12)
            work_do(&fixture);
        else
            bytes_put(&fixture, peer, data + at, length);
        at += length;
    }
    fixture_free(&fixture);
    return 0;
}

/* Updates of tables by rows: any rows, slots of any age, and a worker killed at any store.
 *
 * A kill leaves the words before some word as they are after the update, those behind it as they were before, and of
 * its own numbers any. The update is then made again.
 */
#include "board_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { ROWS = 150, ROW = 3, COUNT = ROWS * ROW, WORDS = 3, SLOTS = 5, SHARDS = 3, ARRAYS = 3, STEPS = 400 };
/* in a gradient's payload */
enum { SETS_AT = 1856, SETS_NBYTES = 64, PAYLOAD = SETS_AT + SETS_NBYTES };

/* A slot: parameters, and two buffers of state. */
struct values {
    float array[ARRAYS][COUNT];
};

/* What an update reads and writes. */
struct memory {
    struct values slots[SLOTS];
    uint64_t changes[BOARD_ROW_STEPS][SETS_NBYTES / 8];
    uint64_t contents[SLOTS];
};

struct bench {
    struct board board;
    struct values expected;
    float grads[SHARDS][COUNT];
    uint64_t sets[SHARDS][WORDS];
    struct memory memory;
};

static const struct kernel_hyper HYPER = {
    .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .rates = {.lr = 0.1, .shrink = 1, .root_scale = 1}};
static const double WEIGHTS[SHARDS] = {0.5, 0, 0.5};

static uint64_t stream;

static uint64_t random_below(uint64_t end) { return check_random(&stream) % end; }

static void memory_take(struct bench *bench)
{
    memcpy(bench->memory.changes, bench->board.changes, sizeof bench->memory.changes);
    for (unsigned slot = 0; slot < SLOTS; slot++)
        bench->memory.contents[slot] = shared_load_relaxed(&bench->board.contents[slot]);
}

static void memory_put(struct bench *bench)
{
    memcpy(bench->board.changes, bench->memory.changes, sizeof bench->memory.changes);
    for (unsigned slot = 0; slot < SLOTS; slot++)
        shared_store_relaxed(&bench->board.contents[slot], bench->memory.contents[slot]);
}

/* Point a range at values, from row `first` on. */
static void range_point(struct kernel_range *range, uint64_t first, const struct values *from, struct values *to,
                        const void **state_in, void **state_out, const void **grads, struct bench *bench)
{
    for (unsigned k = 0; k + 1 < ARRAYS; k++) {
        state_in[k] = &from->array[k + 1][first * ROW];
        state_out[k] = &to->array[k + 1][first * ROW];
    }
    for (unsigned i = 0; i < SHARDS; i++)
        grads[i] = &bench->grads[i][first * ROW];
    *range = (struct kernel_range){.shards = SHARDS,
                                   .grads = grads,
                                   .weights = WEIGHTS,
                                   .grad_scale = 1,
                                   .params_in = &from->array[0][first * ROW],
                                   .params_out = &to->array[0][first * ROW],
                                   .state_in = state_in,
                                   .state_out = state_out};
}

static void update(struct bench *bench, uint64_t version, unsigned from, unsigned to, bool skips)
{
    const void *state_in[ARRAYS], *grads[SHARDS];
    void *state_out[ARRAYS];
    const uint64_t *sets[SHARDS] = {bench->sets[0], bench->sets[1], bench->sets[2]};
    struct rows_step step = {
        .sets = sets, .states = ARRAYS - 1, .skips = skips, .optimizer = KERNEL_ADAM, .hyper = &HYPER};
    range_point(&step.range, 0, &bench->memory.slots[from], &bench->memory.slots[to], state_in, state_out, grads,
                bench);
    memory_put(bench);
    rows_update(&bench->board, 0, version, to, &step);
    memory_take(bench);
}

/* Draw gradients, with numbers only in the rows of the sets. Shard 1 has no examples: its set does not count. */
static void gradients_draw(struct bench *bench)
{
    const uint64_t rate = 1 + random_below(60);
    memset(bench->grads, 0, sizeof bench->grads);
    memset(bench->sets, 0, sizeof bench->sets);
    for (unsigned i = 0; i < SHARDS; i++)
        for (unsigned row = 0; row < ROWS; row++)
            if (random_below(rate) == 0) {
                bench->sets[i][row / SPARSE_ROWS] |= UINT64_C(1) << row % SPARSE_ROWS;
                for (unsigned k = 0; k < ROW; k++)
                    bench->grads[i][row * ROW + k] = (float)random_below(7) - 3; /* zeros count, too */
            }
    for (unsigned i = 0; i < SHARDS; i++)
        bench->sets[i][WORDS - 1] |= ~sparse_whole(ROWS, WORDS - 1); /* bits of no row */
}

static void expected_step(struct bench *bench)
{
    const struct values before = bench->expected;
    for (unsigned row = 0; row < ROWS; row++) {
        const uint64_t both = bench->sets[0][row / SPARSE_ROWS] | bench->sets[2][row / SPARSE_ROWS];
        const void *state_in[ARRAYS], *grads[SHARDS];
        void *state_out[ARRAYS];
        struct kernel_range range;
        if ((both >> row % SPARSE_ROWS & 1) == 0)
            continue;
        range_point(&range, row, &before, &bench->expected, state_in, state_out, grads, bench);
        range.count = ROW;
        kernel_step(KERNEL_ADAM, KERNEL_F32, &HYPER, &range);
    }
}

/* Make of the memory before and after an update what a kill in the middle leaves. */
static void kill_in_the_middle(struct bench *bench, const struct memory *before, uint64_t version, unsigned to)
{
    const unsigned word = (unsigned)random_below(WORDS + 1);
    struct memory *now = &bench->memory;
    uint64_t *changes = now->changes[version % BOARD_ROW_STEPS];
    for (unsigned k = 0; k < ARRAYS; k++)
        for (unsigned i = 0; i < COUNT; i++) {
            const unsigned at = i / ROW / SPARSE_ROWS;
            if (at > word || (at == word && random_below(2) == 0))
                now->slots[to].array[k][i] = before->slots[to].array[k][i];
        }
    for (unsigned at = word; at < WORDS; at++)
        changes[at] = before->changes[version % BOARD_ROW_STEPS][at];
    if (word < WORDS || random_below(2) == 0)
        now->contents[to] = before->contents[to];
}

static void test_slots_of_any_age(void)
{
    static struct bench bench;
    const struct board_range range = {
        .count = COUNT, .dtype = KERNEL_F32 | MERGE_ROWS << 8, .row = ROW, .set_offset = SETS_AT};
    const struct board_config config = {.shards = SHARDS,
                                        .ranges = 1,
                                        .groups = 1,
                                        .workers = 1,
                                        .steps = 1,
                                        .buffer_nbytes = PAYLOAD,
                                        .sets_at = SETS_AT,
                                        .sets_nbytes = SETS_NBYTES};
    void *memory = calloc(1, board_nbytes(&config));
    board_format(&bench.board, memory, &config, &range, &(struct board_group){.optimizer = KERNEL_ADAM}, NULL);
    unsigned latest = 0;
    memset(bench.memory.slots, 0x55, sizeof bench.memory.slots);
    for (unsigned i = 0; i < COUNT; i++)
        bench.expected.array[0][i] = (float)i;
    bench.memory.slots[0] = bench.expected;
    for (uint64_t version = 8; version < 8 + STEPS; version++) {
        static struct memory before;
        /* now and then a slot is held for long, by a reader */
        const unsigned slots = version / 40 % 2 ? 2 : SLOTS;
        const unsigned to = (latest + 1 + (unsigned)random_below(slots - 1)) % slots;
        const unsigned from = latest;
        const bool skips = random_below(9) == 0;
        if (from == to)
            continue;
        gradients_draw(&bench);
        before = bench.memory;
        update(&bench, version, from, to, skips);
        for (uint64_t kills = random_below(4); kills > 0; kills--) {
            kill_in_the_middle(&bench, &before, version, to);
            update(&bench, version, from, to, skips);
        }
        if (!skips)
            expected_step(&bench);
        latest = to;
        CHECK(memcmp(&bench.memory.slots[to], &bench.expected, sizeof bench.expected) == 0, "version %llu",
              (unsigned long long)version);
        CHECK(bench.memory.contents[to] == version);
    }
    free(memory);
}

/* -- gradients ----------------------------------------------------------------------------------------------------- */

static void test_rows_add_up(void)
{
    static double values[ROWS][2], added[4][2] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
    uint64_t set[WORDS] = {0};
    const int64_t indices[] = {149, 3, 149, 64};
    const struct sparse_table table = {KERNEL_F64, ROWS, 2, values, set};
    CHECK(sparse_add(&table, 4, indices, added));
    CHECK(values[149][0] == 6 && values[149][1] == 8 && values[3][1] == 4 && values[64][0] == 7 && values[4][0] == 0);
    CHECK(set[0] == 8 && set[1] == 1 && set[2] == UINT64_C(1) << 21);
    added[0][1] = INFINITY;
    CHECK(!sparse_add(&table, 1, indices, added));
    memset(set, 0xff, sizeof set);
    sparse_clear(&table);
    for (unsigned row = 0; row < ROWS; row++)
        CHECK(values[row][0] == 0 && values[row][1] == 0);
    CHECK(set[0] == 0 && set[1] == 0 && set[2] == 0);
}

int main(void)
{
    check_begin("test_board_rows");
    stream = check_stream(0);
    test_slots_of_any_age();
    test_rows_add_up();
    return check_end();
}

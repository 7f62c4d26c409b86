/* The queue's protocol, with kills and with other processes' steps between any two atomic steps.
 *
 * A process is a row. hook() counts the atomic steps of the operation under test; at the chosen one it either ends the
 * operation for ever (a kill), or lets another process make a whole operation. Afterwards the dead are reaped, also by
 * processes that are killed at each of their steps, and what is left in the queue must be what the operations allow.
 */
#include "hooks.h"

#include <setjmp.h>

#include "../../csrc/queue.c"
#include "../../csrc/queue_space.c"

#include "queue_memory.h"

enum { ME = 1, OTHER = 2, REAPER = 3, CAPACITY = 3, STEPS_MAX = 4000 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { KIND_STEP = 3 };
#else
enum { KIND_STEP = 1 };
#endif

static unsigned steps, stop_at;
static bool hooked;
static jmp_buf killed;
static void (*meanwhile)(void); /* NULL: a kill */

static void hook(void)
{
    if (!hooked || steps++ != stop_at)
        return;
    hooked = false;
    if (meanwhile == NULL)
        longjmp(killed, 1);
    meanwhile();
    hooked = true;
    stop_at = STEPS_MAX;
}

/* -- operations -------------------------------------------------------------------------------------------------- */

/* What a test knows: which items must come, may come, and what happened to them. */
enum { ITEM_MAX = 256, OTHERS_FIRST = 20 };
static bool put_began[ITEM_MAX], put_returned[ITEM_MAX];
static unsigned finish_began[ITEM_MAX], finish_returned[ITEM_MAX];

static enum status item_put(uint32_t row, uint64_t item)
{
    uint32_t slot;
    enum status status = queue_claim(&queue, row, item % 3, &slot);
    if (status != STATUS_OK)
        return status;
    if (!space_change(&queue, slot, item % 3)) {
        CHECK(queue_release(&queue, row, slot) == STATUS_OK);
        return STATUS_NO_ROOM;
    }
    payload_write(slot, item);
    put_began[item] = true;
    status = queue_insert(&queue, row, slot);
    if (status == STATUS_OK)
        put_returned[item] = true;
    else
        CHECK(queue_release(&queue, row, slot) == STATUS_OK);
    return status;
}

static enum status item_get(uint32_t row, uint64_t *item)
{
    uint32_t slot;
    enum status status = queue_take(&queue, row, &slot);
    if (status != STATUS_OK)
        return status;
    *item = payload_read(slot);
    finish_began[*item]++;
    CHECK(queue_finish(&queue, row, slot) == STATUS_OK);
    finish_returned[*item]++;
    CHECK(payload_read(slot) == *item);
    CHECK(queue_release(&queue, row, slot) == STATUS_OK);
    return STATUS_OK;
}

static void me_put(void) { (void)item_put(ME, 10); }
static void me_put_two(void)
{
    (void)item_put(ME, 10);
    (void)item_put(ME, 11);
}
static void me_get(void)
{
    uint64_t item;
    (void)item_get(ME, &item);
}
static void me_give_back(void)
{
    uint32_t slot;
    if (queue_take(&queue, ME, &slot) == STATUS_OK)
        CHECK(queue_give_back(&queue, ME, slot) == STATUS_OK);
}
static void me_get_all(void)
{
    uint64_t item;
    while (item_get(ME, &item) == STATUS_OK) {
    }
}
static void me_close(void) { CHECK(queue_close(&queue) == STATUS_OK); }
static void me_look(void)
{
    uint64_t waiting;
    bool closed;
    CHECK(queue_look(&queue, &waiting, &closed) == STATUS_OK);
}

static uint64_t others_next; /* the number of the next item that the other process puts */
static void other_put(void) { (void)item_put(OTHER, others_next++); }
static void other_put_many(void)
{
    for (unsigned n = 0; n < 2 * CAPACITY; n++)
        other_put();
}
static void other_get(void)
{
    uint64_t item;
    (void)item_get(OTHER, &item);
}
static void other_get_all(void)
{
    uint64_t item;
    while (item_get(OTHER, &item) == STATUS_OK) {
    }
}
/* Goes round the ring, so that each slot and cell is used again. */
static void other_turns(void)
{
    uint64_t item;
    for (uint64_t turn = 0; turn < MEMORY_CELLS + 8; turn++) {
        (void)item_get(OTHER, &item);
        other_put();
    }
}
static void other_give_back(void)
{
    uint32_t slot;
    if (queue_take(&queue, OTHER, &slot) == STATUS_OK)
        CHECK(queue_give_back(&queue, OTHER, slot) == STATUS_OK);
}
static void other_close(void) { CHECK(queue_close(&queue) == STATUS_OK); }

struct operation {
    const char *name;
    void (*run)(void);
};
#define OPERATION(name) {#name, name}
static const struct operation MINE[] = {
    OPERATION(me_put),     OPERATION(me_put_two), OPERATION(me_get),  OPERATION(me_give_back),
    OPERATION(me_get_all), OPERATION(me_close),   OPERATION(me_look),
};
static const struct operation OTHERS[] = {
    OPERATION(other_put),   OPERATION(other_put_many),  OPERATION(other_get),   OPERATION(other_get_all),
    OPERATION(other_turns), OPERATION(other_give_back), OPERATION(other_close),
};

/* -- scenes ------------------------------------------------------------------------------------------------------ */

/* Items 1 .. n wait; with `returned`, the first was given back, and the queue is in the middle of its ring. */
static void scene(unsigned items, bool returned, uint64_t first)
{
    memset(put_began, 0, sizeof put_began);
    memset(put_returned, 0, sizeof put_returned);
    memset(finish_began, 0, sizeof finish_began);
    memset(finish_returned, 0, sizeof finish_returned);
    others_next = OTHERS_FIRST;
    queue_begin(CAPACITY, first, 2 * CAPACITY + 2);
    for (uint64_t item = 1; item <= items; item++)
        CHECK(item_put(OTHER, item) == STATUS_OK);
    if (returned && items != 0)
        other_give_back();
}

/* After everybody is dead or done: all slots are free, each item that was put is finished once or waits, in order. */
static void scene_check(const char *mine, const char *other, unsigned step)
{
    uint64_t last = 0, item, sum = 0;
    unsigned waits[ITEM_MAX] = {0}, waiting = 0;
    bool closed;
    uint64_t told;
    CHECK(queue_look(&queue, &told, &closed) == STATUS_OK);
    for (;;) {
        uint32_t slot;
        enum status status = queue_take(&queue, REAPER, &slot);
        if (status != STATUS_OK) {
            CHECK(status == (closed ? STATUS_ENDED : STATUS_EMPTY), "status %d", (int)status);
            break;
        }
        item = payload_read(slot);
        waits[item]++;
        waiting++;
        if (item < 10) { /* those of the scene keep their order, before all that came later */
            CHECK(item > last, "%s, %s at %u: item %" PRIu64 " behind %" PRIu64, mine, other, step, item, last);
            last = item;
        }
        CHECK(queue_finish(&queue, REAPER, slot) == STATUS_OK);
        CHECK(queue_release(&queue, REAPER, slot) == STATUS_OK);
    }
    CHECK(told == waiting, "%s, %s at %u: %" PRIu64 " were told, %u waited", mine, other, step, told, waiting);
    for (item = 1; item < ITEM_MAX; item++) {
        const unsigned most = finish_began[item] + waits[item], least = finish_returned[item] + waits[item];
        const bool once = put_returned[item] ? least <= 1 && most >= 1 : least <= (unsigned)put_began[item];
        if (!once)
            CHECK(once, "%s, %s at %u: item %" PRIu64 " was finished %u to %u times, and waits %u times", mine, other,
                  step, item, finish_returned[item], finish_began[item], waits[item]);
    }
    for (unsigned slot = 0; slot < MEMORY_SLOTS; slot++) {
        const unsigned state = word_state(atomic_load(&queue.slots[slot].word));
        const bool known = (atomic_load(&queue.map[slot / 64]) >> slot % 64 & 1) != 0;
        if (state != QUEUE_FREE || !known)
            CHECK(false, "%s, %s at %u: slot %u has state %u", mine, other, step, slot, state);
        sum += slot_pages(&queue, slot);
    }
    CHECK(sum <= queue.limit_pages);
}

/* Run; at the step `at` the process is killed (NULL), or the other one runs. Return whether there was such a step. */
static bool run_until(void (*run)(void), void (*other)(void), unsigned at)
{
    steps = 0;
    stop_at = at;
    meanwhile = other;
    if (setjmp(killed) != 0)
        return true;
    hooked = true;
    run();
    hooked = false;
    return other != NULL && stop_at == STEPS_MAX;
}

static uint32_t dead_row;
static void dead_reap(void)
{
    struct queue_reaped reaped = {0};
    CHECK(queue_reap(&queue, dead_row, &reaped) == STATUS_OK && reaped.returned + reaped.freed <= queue.slot_count);
}

/* Reap a row; the process that does is killed at each of its steps, and the next one goes on. */
static void reap(uint32_t row, bool kills)
{
    dead_row = row;
    for (unsigned at = 0; kills && run_until(dead_reap, NULL, at); at++) {
    }
    if (!kills)
        dead_reap();
    CHECK(atomic_load(&queue.rows[row].attached) == 0);
}

static unsigned test_kills(void)
{
    unsigned kills = 0;
    for (size_t m = 0; m < sizeof MINE / sizeof MINE[0]; m++)
        for (unsigned kind = 0; kind < 2 * (CAPACITY + 1); kind += KIND_STEP)
            for (unsigned at = 0;; at++) {
                scene(kind / 2, kind % 2, kind % 2 ? MEMORY_CELLS : 3 * MEMORY_CELLS - 1);
                if (!run_until(MINE[m].run, NULL, at))
                    break;
                kills++;
                reap(ME, at % 5 == 0);
                other_put();
                scene_check(MINE[m].name, "kill", at);
            }
    return kills;
}

static unsigned test_interleavings(void)
{
    unsigned count = 0;
    for (size_t m = 0; m < sizeof MINE / sizeof MINE[0]; m++)
        for (size_t o = 0; o < sizeof OTHERS / sizeof OTHERS[0]; o++)
            for (unsigned kind = 0; kind < 2 * (CAPACITY + 1); kind += KIND_STEP)
                for (unsigned at = 0;; at++) {
                    scene(kind / 2, kind % 2, MEMORY_CELLS);
                    if (!run_until(MINE[m].run, OTHERS[o].run, at))
                        break;
                    count++;
                    reap(ME, false);
                    reap(OTHER, false);
                    scene_check(MINE[m].name, OTHERS[o].name, at);
                }
    return count;
}

/* I am killed at each step, and before anybody notices another process goes on. */
static unsigned test_kills_and_others(void)
{
    unsigned kills = 0;
    for (size_t m = 0; m < sizeof MINE / sizeof MINE[0]; m++)
        for (size_t o = 0; o < sizeof OTHERS / sizeof OTHERS[0]; o++)
            for (unsigned kind = 0; kind < 2 * (CAPACITY + 1); kind += KIND_STEP)
                for (unsigned at = 0;; at++) {
                    scene(kind / 2, kind % 2, MEMORY_CELLS);
                    if (!run_until(MINE[m].run, NULL, at))
                        break;
                    kills++;
                    OTHERS[o].run();
                    reap(ME, false);
                    OTHERS[o].run();
                    reap(OTHER, false);
                    scene_check(MINE[m].name, OTHERS[o].name, at);
                }
    return kills;
}

/* -- single promises --------------------------------------------------------------------------------------------- */

static void test_order_and_bound(void)
{
    uint64_t item;
    scene(0, false, MEMORY_CELLS);
    for (uint64_t round = 0; round < 1000; round++) {
        for (uint64_t n = 0; n < CAPACITY; n++)
            CHECK(item_put(ME, 1 + n) == STATUS_OK);
        CHECK(item_put(ME, 9) == STATUS_FULL);
        for (uint64_t n = 0; n < CAPACITY; n++) {
            CHECK(item_get(OTHER, &item) == STATUS_OK);
            CHECK(item == 1 + n);
        }
        CHECK(item_get(OTHER, &item) == STATUS_EMPTY);
    }
}

static void test_owners(void)
{
    uint32_t slot, taken;
    scene(1, false, MEMORY_CELLS);
    CHECK(queue_claim(&queue, ME, 0, &slot) == STATUS_OK);
    CHECK(queue_insert(&queue, OTHER, slot) == STATUS_NOT_OWNED);
    CHECK(queue_release(&queue, OTHER, slot) == STATUS_NOT_OWNED);
    CHECK(queue_finish(&queue, ME, slot) == STATUS_NOT_OWNED);
    CHECK(queue_release(&queue, ME, slot) == STATUS_OK);
    CHECK(queue_release(&queue, ME, slot) == STATUS_NOT_OWNED);
    CHECK(queue_take(&queue, ME, &taken) == STATUS_OK);
    CHECK(queue_give_back(&queue, OTHER, taken) == STATUS_NOT_OWNED);
    CHECK(queue_finish(&queue, ME, taken) == STATUS_OK);
    CHECK(queue_give_back(&queue, ME, taken) == STATUS_NOT_OWNED); /* what is finished does not come back */
    CHECK(queue_release(&queue, ME, taken) == STATUS_OK);
}

static void test_end(void)
{
    uint32_t slot, other;
    uint64_t item;
    scene(2, false, MEMORY_CELLS);
    CHECK(queue_take(&queue, OTHER, &other) == STATUS_OK);
    CHECK(queue_close(&queue) == STATUS_OK);
    CHECK(queue_close(&queue) == STATUS_OK);
    CHECK(item_put(ME, 5) == STATUS_ENDED);
    CHECK(item_get(ME, &item) == STATUS_OK);
    CHECK(item_get(ME, &item) == STATUS_EMPTY);              /* the other process may give its item back */
    CHECK(queue_take(&queue, OTHER, &slot) == STATUS_ENDED); /* it knows what it has itself */
    CHECK(queue_give_back(&queue, OTHER, other) == STATUS_OK);
    CHECK(item_get(ME, &item) == STATUS_OK);
    CHECK(item_get(ME, &item) == STATUS_ENDED);
}

static void test_damage(void)
{
    uint32_t slot;
    uint64_t item;
    scene(1, false, MEMORY_CELLS);
    atomic_store(&queue.ring[0], cell_make(&queue, MEMORY_CELLS, MEMORY_SLOTS + 1));
    CHECK(queue_take(&queue, ME, &slot) == STATUS_FORMAT);
    scene(1, false, MEMORY_CELLS);
    atomic_store(&queue.ring[0], 0);
    CHECK(queue_take(&queue, ME, &slot) == STATUS_FORMAT);
    scene(0, false, MEMORY_CELLS);
    atomic_store(&queue.ring[0], cell_make(&queue, MEMORY_CELLS, 3)); /* at the tail, and not offered */
    CHECK(item_put(ME, 1) == STATUS_FORMAT);
    CHECK(item_get(ME, &item) == STATUS_FORMAT);
    scene(0, false, QUEUE_MAX_POSITION);
    CHECK(item_put(ME, 1) == STATUS_FORMAT);
}

static uint32_t slot_one;
static void pages_change(void)
{
    CHECK(space_change(&queue, slot_one, 3));
    CHECK(!space_change(&queue, slot_one, 4));
    CHECK(space_change(&queue, slot_one, 1));
}

/* Slots take pages from one another, and all together never have more than the limit, nor fewer. */
static unsigned test_space(void)
{
    for (unsigned at = 0;; at++) {
        scene(0, false, MEMORY_CELLS);
        uint32_t two;
        uint64_t most = 5;
        CHECK(queue_claim(&queue, ME, 0, &slot_one) == STATUS_OK);
        CHECK(queue_claim(&queue, OTHER, 0, &two) == STATUS_OK);
        CHECK(space_change(&queue, two, most));
        const bool was_killed = run_until(pages_change, NULL, at);
        while (space_change(&queue, two, most + 1))
            most++;
        CHECK(most + slot_pages(&queue, slot_one) == queue.limit_pages, "killed at %u: %" PRIu64, at, most);
        CHECK(was_killed || slot_pages(&queue, slot_one) == 1);
        if (!was_killed)
            return at;
    }
}

int main(void)
{
    check_begin("test_queue");
    test_order_and_bound();
    test_owners();
    test_end();
    test_damage();
    const unsigned space = test_space(), kills = test_kills(), orders = test_interleavings();
    const unsigned both = test_kills_and_others();
    printf("test_queue: killed at %u steps, at %u with others going on, at %u steps of changing pages; %u "
           "interleavings\n",
           kills, both, space, orders);
    return check_end();
}

/* The channel's protocol on plain memory: the functions one by one, and pinning with the publisher let loose between
 * any two of its atomic operations.
 */
#include "hooks.h"

#include "channel.c"
#include "check.h"

#include <string.h>

enum { READERS = 3, SLOTS = 5 };

static struct control control;
static struct reader_row rows[READERS + 1];
static struct channel channel = {&control, (struct shared_row *)rows, rows, READERS, SLOTS};

static void channel_reset(uint32_t max_slots)
{
    memset(&control, 0, sizeof control);
    memset(rows, 0, sizeof rows);
    channel.max_slots = max_slots;
    atomic_store(&channel.shared->high_water, READERS);
}

/* -- the publisher, in steps ------------------------------------------------------------------------------------ */

/* A slot is two halves that both equal its version: unequal halves are a torn read. */
static uint64_t halves[CHANNEL_MAX_SLOTS][2];

static struct {
    unsigned step, slot;
    uint64_t version;
} publisher;

/* Scan and choose; write one half; write the other; publish. Waits where there is no slot. */
static void publisher_step(void)
{
    switch (publisher.step) {
    case 0: {
        const uint64_t free = ~channel_taken(&channel);
        if (free == 0)
            return;
        publisher.slot = (unsigned)__builtin_ctzll(free); /* the lowest: the one that is used again soonest */
        break;
    }
    case 1: halves[publisher.slot][1] = publisher.version + 1; break;
    case 2: halves[publisher.slot][0] = publisher.version + 1; break;
    default: channel_publish(&channel, ++publisher.version, publisher.slot);
    }
    publisher.step = (publisher.step + 1) % 4;
}

static void publisher_reset(void)
{
    memset(halves, 0, sizeof halves);
    memset(&publisher, 0, sizeof publisher);
    for (int i = 0; i < 4; i++)
        publisher_step();
}

static bool latest_is_whole(uint64_t latest)
{
    const uint64_t *half = halves[latest_slot(latest)];
    return half[0] == latest_version(latest) && half[1] == latest_version(latest);
}

/* -- the schedule: how many steps the publisher takes before each atomic operation -------------------------------- */

static struct {
    bool on, entered;
    unsigned operations; /* of the reader, so far */
    unsigned most;       /* steps of the publisher before one of them */
    uint64_t pattern;    /* bit i: a whole publication before operation i */
    uint64_t *stream;    /* instead of the pattern: at random */
    bool handoff;        /* instead of publishing: row 3 hands its slot over to row 1 */
    unsigned handoff_at;
} schedule;

static void handoff_hook(void)
{
    if (schedule.operations++ != schedule.handoff_at)
        return;
    atomic_store(&rows[1].held, atomic_load(&rows[3].held));
    atomic_fetch_add(&channel.shared->handoffs, 1);
    atomic_store(&rows[3].held, 0);
}

static void hook(void)
{
    if (schedule.handoff)
        handoff_hook();
    if (!schedule.on || schedule.entered)
        return;
    schedule.entered = true;
    const unsigned at = schedule.operations++;
    const unsigned steps = schedule.stream != NULL ? (unsigned)(check_random(schedule.stream) % (schedule.most + 1))
                           : (schedule.pattern >> at & 1) != 0 ? schedule.most
                                                               : 0;
    for (unsigned i = 0; i < steps; i++)
        publisher_step();
    schedule.entered = false;
}

static uint64_t pin_scheduled(struct reader_row *row)
{
    schedule.operations = 0;
    schedule.on = true;
    const uint64_t latest = channel_pin(&channel, row);
    schedule.on = false;
    return latest;
}

/* -- tests ------------------------------------------------------------------------------------------------------ */

static void test_latest_word(void)
{
    uint64_t stream = check_stream(0);
    for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
        const uint64_t version = check_random(&stream) >> LATEST_SLOT_BITS;
        const uint64_t latest = latest_make(version, slot);
        CHECK(latest_version(latest) == version && latest_slot(latest) == slot);
        CHECK(slot_bit(slot) == UINT64_C(1) << slot && slot_bit(slot) != 0);
        CHECK((uint32_t)latest_make(version + 1, slot) != (uint32_t)latest,
              "the futex word changes with every version");
    }
    CHECK(latest_version(0) == 0 && latest_slot(0) == 0);
}

static void test_pin_and_unpin(void)
{
    channel_reset(SLOTS);
    channel_publish(&channel, 1, 2);
    CHECK(channel_pin(&channel, &rows[1]) == latest_make(1, 2));
    CHECK(channel_held(&channel) == slot_bit(2));
    CHECK(channel_pin(&channel, &rows[3]) == latest_make(1, 2));
    channel_publish(&channel, 2, 0);
    CHECK(channel_pin(&channel, &rows[1]) == latest_make(2, 0));
    CHECK(channel_held(&channel) == (slot_bit(2) | slot_bit(0)));
    channel_unpin(&rows[1], 2);
    CHECK(channel_held(&channel) == (slot_bit(2) | slot_bit(0)), "row 3 holds it too");
    channel_unpin(&rows[3], 2);
    CHECK(channel_held(&channel) == slot_bit(0));
    channel_unpin(&rows[1], 0);
    CHECK(channel_held(&channel) == 0);
}

static void test_taken(void)
{
    for (uint32_t max_slots = 2; max_slots <= CHANNEL_MAX_SLOTS; max_slots++) {
        const uint64_t beyond = max_slots == CHANNEL_MAX_SLOTS ? 0 : UINT64_MAX << max_slots;
        channel_reset(max_slots);
        channel_publish(&channel, 9, max_slots - 1);
        CHECK(channel_taken(&channel) == (beyond | slot_bit(max_slots - 1)), "%u slots", max_slots);
        atomic_store(&rows[2].held, slot_bit(0));
        CHECK(channel_taken(&channel) == (beyond | slot_bit(max_slots - 1) | slot_bit(0)), "%u slots", max_slots);
    }
}

/* Any reader can write the shared row, so what it says may cost time and nothing else. */
static void test_shared_row_is_not_trusted(void)
{
    channel_reset(SLOTS);
    atomic_store(&channel.shared->high_water, UINT32_MAX);
    atomic_store(&rows[READERS].held, slot_bit(1));
    CHECK(channel_held(&channel) == slot_bit(1), "and nothing beyond the rows was read");
    atomic_store(&channel.shared->high_water, READERS - 1);
    CHECK(channel_held(&channel) == 0, "rows that were never taken are not read");
}

static void test_publish_if(void)
{
    channel_reset(SLOTS);
    channel_publish(&channel, 1, 0);
    CHECK(channel_publish_if(&channel, latest_make(1, 0), 2, 3));
    CHECK(!channel_publish_if(&channel, latest_make(1, 0), 2, 4), "only the first succeeds");
    CHECK(channel_latest(&channel) == latest_make(2, 3));
    atomic_store(&channel.shared->sleepers, 1);
    CHECK(channel_publish_if(&channel, latest_make(2, 3), 3, 0));
    CHECK(atomic_load(&channel.shared->sleepers) == 2, "sleepers were woken");
}

static void extent_set(unsigned slot, uint64_t offset, uint64_t capacity)
{
    atomic_store(&control.slots[slot].offset, offset);
    atomic_store(&control.slots[slot].capacity, capacity);
}

static void test_find_gap(void)
{
    channel_reset(SLOTS);
    CHECK(channel_find_gap(&control, 0, 4096, 1) == 0, "of nothing");
    extent_set(7, 0, 100);
    CHECK(channel_find_gap(&control, 0, 1, 1) == 100, "behind the only one");
    extent_set(7, 50, 100);
    CHECK(channel_find_gap(&control, 0, 50, 1) == 0, "before it, just");
    CHECK(channel_find_gap(&control, 0, 51, 1) == 150);
    extent_set(3, 200, 10);
    CHECK(channel_find_gap(&control, 0, 51, 1) == 210 && channel_find_gap(&control, 0, 50, 1) == 0);
    extent_set(0, 0, 50);
    CHECK(channel_find_gap(&control, 0, 50, 1) == 150 && channel_find_gap(&control, 0, 51, 1) == 210);
    extent_set(5, 10, 0);
    CHECK(channel_find_gap(&control, 0, 50, 1) == 150, "an empty extent blocks no gap");
    CHECK(channel_find_gap(&control, 0, 50, 64) == 256, "on a page");
    CHECK(channel_find_gap(&control, 160, 10, 1) == 160 && channel_find_gap(&control, 205, 10, 1) == 210);
    extent_set(0, 0, 0);
    CHECK(channel_find_gap(&control, 0, 10, 1) == 0 && channel_find_gap(&control, 40, 10, 1) == 40,
          "not before the start");
    CHECK(channel_find_gap(&control, 41, 10, 1) == 150 && channel_find_gap(&control, 300, 10, 1) == 300);
    extent_set(0, 0, UINT64_MAX);
    CHECK(channel_find_gap(&control, 0, 50, 4096) >= (uint64_t)INT64_MAX - 4095, "where no file has room");
    extent_set(0, 4096, UINT64_MAX - 4096);
    CHECK(channel_find_gap(&control, 0, 5000, 4096) >= (uint64_t)INT64_MAX - 4095);
}

/* Against the definition: the lowest of all offsets at which it fits. */
static void test_find_gap_at_random(void)
{
    uint64_t stream = check_stream(1);
    for (int round = 0; round < 300; round++) {
        bool used[64 * 8 + 64] = {false};
        channel_reset(SLOTS);
        for (unsigned slot = 0; slot < CHANNEL_MAX_SLOTS; slot++) {
            const uint64_t nbytes = check_random(&stream) % 8;
            const uint64_t offset = channel_find_gap(&control, 0, nbytes, 1);
            for (uint64_t i = offset; i < offset + nbytes; i++) {
                CHECK(!used[i]);
                used[i] = true;
            }
            extent_set(slot, offset, nbytes);
            if (check_random(&stream) % 3 == 0) {
                const unsigned other = (unsigned)(check_random(&stream) % (slot + 1));
                for (uint64_t i = 0; i < atomic_load(&control.slots[other].capacity); i++)
                    used[atomic_load(&control.slots[other].offset) + i] = false;
                extent_set(other, 0, 0);
            }
        }
        const uint64_t nbytes = 1 + check_random(&stream) % 16;
        uint64_t lowest = 0;
        for (uint64_t i = 0; i < lowest + nbytes; i++)
            if (used[i])
                lowest = i + 1;
        CHECK(channel_find_gap(&control, 0, nbytes, 1) == lowest);
    }
}

/* A version between every two loads: validation can never succeed, and pinning still ends. */
static void test_last_resort(void)
{
    channel_reset(SLOTS);
    publisher_reset();
    atomic_store(&rows[1].held, slot_bit(4)); /* an older snapshot, kept all the while */
    schedule.pattern = UINT64_MAX;
    schedule.most = 4;
    const uint64_t latest = pin_scheduled(&rows[1]);
    CHECK(schedule.operations > 4 * PIN_TRIES, "it gave up validating");
    CHECK(latest_is_whole(latest));
    CHECK(atomic_load(&rows[1].held) == (slot_bit(4) | slot_bit(latest_slot(latest))), "one bit more than before");
    CHECK(publisher.version > PIN_TRIES, "the publisher went on meanwhile");
}

/* Pin under one schedule, beside another reader's hold, then let the publisher continue: no held slot is touched. */
static void pin_and_outlast(uint64_t number)
{
    channel_reset(SLOTS);
    publisher_reset();
    uint64_t held[4];
    unsigned count = 0;
    held[count++] = channel_pin(&channel, &rows[2]);
    for (int i = 0; i < 4; i++)
        publisher_step();
    for (; count < 4; count++) {
        held[count] = pin_scheduled(&rows[1]);
        CHECK(latest_version(held[count]) >= latest_version(held[count - 1]), "schedule %" PRIu64, number);
        for (unsigned i = 0; i < 3; i++)
            publisher_step();
        for (unsigned i = 0; i <= count; i++)
            CHECK(latest_is_whole(held[i]), "hold %u of schedule %" PRIu64, i, number);
    }
    for (unsigned i = 0; i < 24; i++)
        publisher_step();
    for (unsigned i = 0; i < count; i++)
        CHECK(latest_is_whole(held[i]), "hold %u of schedule %" PRIu64 " outlasts", i, number);
    uint64_t expected = 0;
    for (unsigned i = 1; i < count; i++)
        expected |= slot_bit(latest_slot(held[i]));
    CHECK(atomic_load(&rows[1].held) == expected, "schedule %" PRIu64, number);
}

/* Whole publications before any of the first 13 operations (three tries and a bit), then before all or none. */
static void test_every_schedule_of_publications(void)
{
    schedule.stream = NULL;
    schedule.most = 4;
    for (uint64_t number = 0; number < 1u << 13; number++) {
        schedule.pattern = number;
        pin_and_outlast(number);
        schedule.pattern = number | UINT64_MAX << 13;
        pin_and_outlast(schedule.pattern);
    }
}

static void test_schedules_at_random(void)
{
    uint64_t stream = check_stream(2);
    schedule.stream = &stream;
    for (uint64_t number = 0; number < 20000; number++) {
        schedule.most = 1 + (unsigned)(number % 9);
        pin_and_outlast(number);
    }
    schedule.stream = NULL;
}

/* A fork's hand-off at any point of a scan: the child's row may be behind the scan already when it gets the bit, and
 * the parent may have let go before the scan gets there. One of the two must be seen. */
static void test_handoff(void)
{
    unsigned at = 0, operations;
    do {
        channel_reset(SLOTS);
        atomic_store(&rows[3].held, slot_bit(1));
        schedule.handoff_at = at;
        schedule.operations = 0;
        schedule.handoff = true;
        CHECK(channel_held(&channel) == slot_bit(1), "handed over before operation %u", at);
        schedule.handoff = false;
        operations = schedule.operations;
    } while (at++ < operations);
    CHECK(at > READERS + 3);
}

int main(void)
{
    check_begin("test_channel");
    test_latest_word();
    test_pin_and_unpin();
    test_taken();
    test_shared_row_is_not_trusted();
    test_publish_if();
    test_find_gap();
    test_find_gap_at_random();
    test_last_resort();
    test_every_schedule_of_publications();
    test_schedules_at_random();
    test_handoff();
    return check_end();
}

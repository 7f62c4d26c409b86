/* A queue on plain memory, without files: for the tests of the protocol alone. The test includes queue.c before.
 *
 * An item is a number, in `payload` of its slot, as often as it has words: a torn item has unequal words.
 */
#ifndef UNTORN_TESTS_QUEUE_MEMORY_H
#define UNTORN_TESTS_QUEUE_MEMORY_H

#include <string.h>

#include "check.h"
#include "queue.h"

enum { MEMORY_ROWS = 15, MEMORY_SLOTS = 64, MEMORY_CELLS = 64, MEMORY_WORDS = 5 };

static struct {
    struct queue_head head;
    struct queue_row rows[MEMORY_ROWS + 1];
    struct queue_slot slots[MEMORY_SLOTS];
    shared_u64 ring[MEMORY_CELLS];
    shared_u64 map[MEMORY_SLOTS / 64];
} queue_memory;
static uint64_t payload[MEMORY_SLOTS][MEMORY_WORDS];
static struct queue queue;

/* An empty queue of this capacity, whose next position is `first`. */
static void queue_begin(uint32_t capacity, uint64_t first, uint64_t limit_pages)
{
    memset(&queue_memory, 0, sizeof queue_memory);
    memset(payload, 0, sizeof payload);
    queue = (struct queue){
        .head = &queue_memory.head,
        .rows = queue_memory.rows,
        .slots = queue_memory.slots,
        .ring = queue_memory.ring,
        .map = queue_memory.map,
        .max_processes = MEMORY_ROWS,
        .capacity = capacity,
        .slot_count = MEMORY_SLOTS,
        .cells = MEMORY_CELLS,
        .limit_pages = limit_pages,
    };
    atomic_store(&queue.head->tail, first);
    atomic_store(&queue.head->head, first);
    atomic_store(&queue.head->space, QUEUE_NO_SLOT);
    atomic_store(&queue.head->high_water, MEMORY_ROWS);
    for (unsigned at = 0; at < MEMORY_SLOTS / 64; at++)
        atomic_store(&queue.map[at], UINT64_MAX);
    for (unsigned row = 1; row <= MEMORY_ROWS; row++)
        atomic_store(&queue.rows[row].attached, 1);
}

static void payload_write(uint32_t slot, uint64_t item)
{
    for (unsigned i = 0; i < MEMORY_WORDS; i++)
        payload[slot][i] = item;
}

static uint64_t payload_read(uint32_t slot)
{
    for (unsigned i = 1; i < MEMORY_WORDS; i++)
        CHECK(payload[slot][i] == payload[slot][0], "item %" PRIu64 " is torn", payload[slot][0]);
    return payload[slot][0];
}

#endif

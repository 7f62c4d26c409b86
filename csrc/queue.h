/* A queue: many producers, many consumers, bounded, whole items. This is the protocol on the shared words.
 *
 * Guarantees: an item is in the queue whole or not at all; each is taken by one consumer at a time, and again only if
 * that one died or gave it back; items come out in the order in which they came in; a process may be killed between any
 * two instructions, and nothing that it leaves keeps another one waiting.
 *
 * How the parts fit, in one file:
 *
 *     +-- head ------------------------------------------+
 *     | identity | tail | head | returned | space        |
 *     +-- rows: a line per process ----------------------+   ring: position -> slot
 *     +-- slots: a line each ----------------------------+     positions head .. tail - 1 are the items that wait
 *     | who has it, for what | its pages                 |
 *     +-- ring | free map -------------------------------+   small: the bytes of items that fit there
 *     +-- small: a few bytes per slot -------------------+
 *     +-- windows: a window per slot, mostly holes ------+   window: the bytes of a larger item
 *
 * A slot is a place for one item. Its word says in which state it is, and which process (row) it belongs to:
 *
 *     FREE --claim--> WRITING --offer--> OFFERED --insert--> READY --take--> TAKEN --finish--> HELD --release--> FREE
 *                                                              RETURNED <--give back--'
 *                                                                  '------take--> TAKEN
 *
 * queue.c has these steps and their proof, queue_space.c who has how much of the memory for windows. queue_side.c is
 * one process's side, with the file in queue_file.c, the windows in queue_window.c, and fork in queue_fork.c. The byte
 * layout is public: docs/format.md. tests/model/queue_model.py explores the protocol exhaustively.
 */
#ifndef UNTORN_QUEUE_H
#define UNTORN_QUEUE_H

#include <stddef.h>

#include "atomics.h"
#include "status.h"

#define QUEUE_MAGIC "utqueue\n"
#define QUEUE_LAYOUT 1u
#define QUEUE_BYTE_ORDER 0x01020304u
#define QUEUE_ID_NBYTES 16
#define QUEUE_LINE 64u
#define QUEUE_MAX_PROCESSES 8191u /* 13 bits of a slot's word; row 0 is nobody */
#define QUEUE_MAX_CAPACITY 100000u
#define QUEUE_SLOT_BITS 18
#define QUEUE_NO_SLOT ((1u << QUEUE_SLOT_BITS) - 1) /* in the ring: the queue ends here; in `space`: no change */
#define QUEUE_DIRTY (UINT64_C(1) << 63)
#define QUEUE_MAX_POSITION (UINT64_C(1) << 48)

enum queue_state {
    QUEUE_FREE = 0,
    QUEUE_WRITING = 1,  /* its owner writes an item, or changes its pages */
    QUEUE_OFFERED = 2,  /* the item is whole; its owner puts it into the ring */
    QUEUE_READY = 3,    /* in the queue */
    QUEUE_TAKEN = 4,    /* its owner has it and did not finish */
    QUEUE_HELD = 5,     /* its owner finished, and still looks at the bytes */
    QUEUE_RETURNED = 6, /* in the queue again, before all that are READY */
};

/* word = position << 16 | state << 13 | row. The position is that of the slot's last item; it grows with each item, so
 * a word that was replaced never comes back while a process that read it could mistake it. */
static inline uint64_t word_make(uint64_t position, enum queue_state state, uint32_t row)
{
    return position << 16 | (uint64_t)state << 13 | row;
}
static inline uint64_t word_position(uint64_t word) { return word >> 16; }
static inline enum queue_state word_state(uint64_t word) { return (enum queue_state)(word >> 13 & 7); }
static inline uint32_t word_row(uint64_t word) { return (uint32_t)(word & QUEUE_MAX_PROCESSES); }

/* A thing that processes wait for: more items, or more room. See futex.h for `sleepers`. */
struct queue_gate {
    shared_u64 events; /* grows with every change that a waiting process may want to see */
    shared_u32 sleepers;
    shared_u32 eager; /* of `room`; 1: one that waits needs a slot or pages, and not only a place in the ring */
};

struct queue_head {
    /* identity: written once, before the file has a name */
    char magic[8];
    uint32_t layout;
    uint32_t byte_order;
    uint8_t id[QUEUE_ID_NBYTES];
    uint8_t boot[16]; /* of the kernel that runs: words of another one's file may be from several moments */
    uint32_t max_processes;
    uint32_t capacity;     /* items that may wait */
    uint32_t slots;        /* items that may exist: waiting, being written, and held */
    uint32_t cells;        /* of the ring: a power of two above the capacity */
    uint32_t small_nbytes; /* of each slot's small place */
    uint32_t page_nbytes;
    uint64_t limit_pages;   /* of all windows together */
    uint64_t window_nbytes; /* of address space for each slot: as large as the largest item */
    uint64_t rows_offset, slots_offset, ring_offset, map_offset, small_offset, windows_offset;
    int64_t created_ns; /* wall clock */
    uint8_t pad0[48];
    /* producers' line */
    shared_u64 tail; /* all positions below it have, or had, an item; grows only, by shared_swap_if */
    struct queue_gate items;
    uint8_t pad1[40];
    /* consumers' line */
    shared_u64 head; /* all positions below it were taken; grows only, by shared_swap_if */
    struct queue_gate room;
    uint8_t pad2[40];
    /* rarely used */
    shared_u64 returned;   /* odd: a slot may be RETURNED. It changes when one becomes so */
    shared_u64 space;      /* number of the last change << 18 | the slot whose pages it changes; see queue_space.c */
    shared_u32 high_water; /* no row above this one was ever taken; grows only */
    shared_u32 closed;     /* 1: it is closed; for those who look from outside. The ring is what counts */
    shared_u64 looked_ns;  /* when a process last looked for dead ones, by the monotonic clock; any may write it */
    uint8_t pad4[32];
};
_Static_assert(offsetof(struct queue_head, tail) == 192, "docs/format.md says so");
_Static_assert(offsetof(struct queue_head, head) == 256, "docs/format.md says so");
_Static_assert(sizeof(struct queue_head) == 384, "docs/format.md says so");

/* Line i of the rows, i >= 1: process i's. Taken by an open-file-description lock on byte i of the file. */
struct queue_row {
    shared_u32 attached; /* 1: slots may name this row; cleared last by its owner, or by the process that reaps it */
    shared_u32 pid;      /* for messages only, as all below */
    shared_i64 attached_ns;
    shared_u32 waits; /* 1: for an item; 2: for room */
    uint8_t pad[44];
};
_Static_assert(sizeof(struct queue_row) == QUEUE_LINE, "one line");

struct queue_slot {
    shared_u64 word;
    shared_u64 pages; /* number of the change << 32 | pages that this slot has of the limit; see queue_space.c */
    shared_u64 want;  /* the pages after the change that its owner makes; writer: the owner */
    /* the first pages of the window that are reserved in the file; QUEUE_DIRTY: perhaps others, too. writer: the
     * owner */
    shared_u64 backed;
    uint8_t pad[32];
};
_Static_assert(sizeof(struct queue_slot) == QUEUE_LINE, "one slot, one line");

/* The shared part of one queue, mapped. The numbers are copies that were checked. */
struct queue {
    struct queue_head *head;
    struct queue_row *rows; /* rows[0] is not used */
    struct queue_slot *slots;
    shared_u64 *ring, *map;
    uint8_t *small;
    uint32_t max_processes, capacity, slot_count, cells, small_nbytes;
    uint64_t limit_pages, page_nbytes, window_nbytes, windows_offset;
};

/* Each returns STATUS_FORMAT if a word is found that no process of this protocol stores. */

/* Claim a free slot for the owner of `row`: the one whose pages are nearest to `pages`. STATUS_NO_SLOT. */
enum status queue_claim(const struct queue *queue, uint32_t row, uint64_t pages, uint32_t *slot);
/* Put the item that was written into a slot into the queue. STATUS_FULL and STATUS_ENDED leave it with its owner, who
 * may try again. STATUS_NOT_OWNED. */
enum status queue_insert(const struct queue *queue, uint32_t row, uint32_t slot);
/* Take the next item: the oldest that was given back, or else the first that waits. STATUS_EMPTY; STATUS_ENDED: also
 * closed, and no other row than this has an item that it could give back. */
enum status queue_take(const struct queue *queue, uint32_t row, uint32_t *slot);
/* The owner needs the item no more, but still looks at its bytes. */
enum status queue_finish(const struct queue *queue, uint32_t row, uint32_t slot);
/* Let another process take the item. Nobody here looks at its bytes any more. */
enum status queue_give_back(const struct queue *queue, uint32_t row, uint32_t slot);
/* The slot, in any of its owner's states, becomes free. */
enum status queue_release(const struct queue *queue, uint32_t row, uint32_t slot);
/* A slot that was claimed, and not used, becomes free again: nobody waits for that. */
enum status queue_unclaim(const struct queue *queue, uint32_t row, uint32_t slot);
/* The caller lacks a slot or pages, and will look once more before it waits: let the next slot that becomes free be
 * announced. */
void queue_want_slot(const struct queue *queue);
/* No item comes behind those that are in the queue. Idempotent. */
enum status queue_close(const struct queue *queue);
/* What a dead process left: items that it had taken, which are in the queue again, and slots that are free now. */
struct queue_reaped {
    uint64_t returned, freed;
};
/* Undo or finish what a dead process left; add to `reaped`. The caller has the lock of its row. */
enum status queue_reap(const struct queue *queue, uint32_t row, struct queue_reaped *reaped);

/* The number of items that wait, and whether the queue is closed; a moment's answer. */
enum status queue_look(const struct queue *queue, uint64_t *waiting, bool *closed);

/* Something happened that all who wait at a gate must know. */
void gate_announce(struct queue_gate *gate);
/* Something came that one process can use: wake one. */
void gate_announce_one(struct queue_gate *gate);
/* The caller was woken, and does not use what came: wake another one. */
void gate_pass_on(struct queue_gate *gate);

/* Change the number of pages that a slot, which the caller owns, has of the limit. False: they are more than are left
 * now. */
bool space_change(const struct queue *queue, uint32_t slot, uint64_t pages);
static inline uint64_t slot_pages(const struct queue *queue, uint32_t slot)
{
    return shared_load_acquire(&queue->slots[slot].pages) & UINT32_MAX;
}

#endif

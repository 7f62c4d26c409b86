/* A channel: one publisher, many readers, whole versions. This is the protocol on the shared words.
 *
 * Guarantees: a pinned slot is exactly one published version, and nobody writes it until it is unpinned; pinning takes
 * a bounded number of steps, whatever the writer does; a process may be killed between any two instructions.
 *
 * How the parts fit:
 *
 *     control file                                        data file
 *     +-- page 0: the publisher writes -----------+       +-----------------------------------+
 *     | identity | latest | slot table[64] -------+-----> | id | slot | slot |  hole  | slot | |
 *     +-- row pages: each line has one writer ----+       +-----------------------------------+
 *     | line 0: sleepers, high_water, handoffs    |       a slot: header, schema, payload
 *     | line i: reader i: which slots it holds    |
 *     +-------------------------------------------+
 *
 * attachment.c has the files and mappings, picking.c the space, rows.c the locks; nothing here makes a system call
 * except the wake. The byte layout is public: docs/format.md. tests/model/ explores this protocol exhaustively, with
 * kills and store buffers.
 */
#ifndef UNTORN_CHANNEL_H
#define UNTORN_CHANNEL_H

#include <stddef.h>

#include "atomics.h"

#define CHANNEL_MAGIC "untorn\r\n" /* a text-mode copy breaks it */
#define CHANNEL_DATA_MAGIC "utdata\r\n"
#define CHANNEL_LAYOUT 2u
#define CHANNEL_BYTE_ORDER 0x01020304u
#define CHANNEL_MAX_SLOTS 64u /* one bit each in a 64-bit word */
#define CHANNEL_MAX_READERS 65535u
#define CHANNEL_LINE 64u
#define CHANNEL_ID_NBYTES 16

/* latest = version << 6 | slot. Its low half changes with every version, so waiters look only at that. */
#define LATEST_SLOT_BITS 6
static inline uint64_t latest_make(uint64_t version, unsigned slot) { return version << LATEST_SLOT_BITS | slot; }
static inline uint64_t latest_version(uint64_t latest) { return latest >> LATEST_SLOT_BITS; }
static inline unsigned latest_slot(uint64_t latest) { return (unsigned)(latest & (CHANNEL_MAX_SLOTS - 1)); }
static inline uint64_t slot_bit(unsigned slot) { return UINT64_C(1) << slot; }

/* The place of a slot's bytes in the data file. The publisher writes it, and only while nobody holds the slot and it is
 * not the latest; capacity 0 means no space. Readers load it only while they hold the slot. */
struct slot_extent {
    shared_u64 offset;
    shared_u64 capacity;
};

/* NAMING: its two names are being given, so a data file of its name may still be one that was left over. */
enum channel_state { CHANNEL_OPEN = 0, CHANNEL_CLOSED = 1, CHANNEL_NAMING = 2 };

/* Page 0. Readers map it read-only. */
struct control {
    /* identity: written once, before the file has a name */
    char magic[8];
    uint32_t layout;
    uint32_t byte_order;
    uint8_t id[16];
    uint32_t max_readers;
    uint32_t max_slots;
    uint64_t rows_offset;     /* of line 0 in the control file */
    int64_t created_ns;       /* wall clock */
    uint32_t keep_slots;      /* further slots give their space back when nobody holds them */
    shared_u32 reserve_slots; /* free slots that readers with many slots leave alone; writer: the publisher */
    /* the publisher's line */
    shared_u64 latest;        /* writer: the publisher (train: the worker that ends an update, by shared_swap_if) */
    shared_u32 state;         /* enum channel_state; writer: the publisher */
    shared_u32 publisher_pid; /* for messages only; never a proof of life */
    uint8_t pad[48];
    struct slot_extent slots[CHANNEL_MAX_SLOTS];
};
_Static_assert(offsetof(struct control, latest) == 64, "the hot word has a line of its own");
_Static_assert(offsetof(struct control, slots) == 128, "docs/format.md says so");
_Static_assert(sizeof(struct control) == 1152, "fits the smallest page");

/* The data file begins with this; slots come from the next page on. Written once, before the file has a name. Two files
 * belong together if and only if they have one id: opening two names takes two steps, and in between another channel
 * may have taken the names over. */
struct data_header {
    char magic[8];
    uint32_t layout;
    uint32_t byte_order;
    uint8_t id[16]; /* that of the control file */
};
_Static_assert(sizeof(struct data_header) == 32, "docs/format.md says so");

/* Line i of the row pages, i >= 1: reader i's. Taken by an open-file-description lock on byte i of the control file. */
struct reader_row {
    /* a bit per slot. writer: the reader that has the lock; a process that wins the lock of a dead reader clears it */
    shared_u64 held;
    shared_u32 pid; /* for messages only */
    uint32_t pad0;
    shared_i64 attached_ns; /* wall clock, for messages only */
    uint8_t pad[40];
};
/* Line 0 of the row pages: written by all readers, never trusted. */
struct shared_row {
    shared_u32 sleepers;   /* see futex.h */
    shared_u32 high_water; /* no row above this one was ever taken; grows only */
    shared_u64 handoffs;   /* forks that copied a row to a child, see channel_held */
    uint8_t pad[48];
};
_Static_assert(sizeof(struct reader_row) == CHANNEL_LINE, "one writer per line");
_Static_assert(sizeof(struct shared_row) == CHANNEL_LINE, "one line");

/* The first bytes of a slot. Written before the slot becomes the latest; constant while it is held. */
struct slot_header {
    uint64_t version;
    int64_t published_ns;   /* wall clock */
    uint64_t nbytes;        /* of the slot in use: header, schema and payload */
    uint64_t schema_nbytes; /* JSON in UTF-8, right behind the header */
    uint64_t schema_id;     /* the version that first had exactly this schema */
    uint64_t base;          /* the latest word of the version that this one changes, which is kept as long; 0: none */
    uint64_t reserved[2];
};
_Static_assert(sizeof(struct slot_header) == 64, "the schema begins on a line");

/* Both mappings of one control file, and the number of rows it has. */
struct channel {
    struct control *control;
    struct shared_row *shared;
    struct reader_row *rows; /* rows[i] is line i; rows[0] is the shared row's line and is not used as a row */
    uint32_t max_readers;
    uint32_t max_slots;
};

/* Pin the newest version for the reader of this row, in addition to those that it holds. Return the latest word, whose
 * version is now pinned. A lock serialises the threads of one process (attachment.c). */
uint64_t channel_pin(const struct channel *channel, struct reader_row *row);
void channel_unpin(struct reader_row *row, unsigned slot);
/* Hold a slot that a slot held by this reader holds already, as its base. */
void channel_hold(struct reader_row *row, unsigned slot);

/* Return every slot that a reader holds. A slot that is neither among them nor the latest stays free until the caller
 * publishes. */
uint64_t channel_held(const struct channel *channel);
/* Return the slots that may not be written: those held by readers, the latest, and those beyond max_slots. */
uint64_t channel_taken(const struct channel *channel);

/* Make a slot the latest and wake the waiting processes. The caller is the publisher and has written the slot. */
void channel_publish(const struct channel *channel, uint64_t version, unsigned slot);
/* The same where several processes may try: only the first succeeds. */
bool channel_publish_if(const struct channel *channel, uint64_t expected, uint64_t version, unsigned slot);

/* Wake the processes that wait for a version; no system call when there are none. */
void channel_wake(const struct channel *channel);

static inline uint64_t channel_latest(const struct channel *channel)
{
    return shared_load_acquire(&channel->control->latest);
}
static inline const shared_u32 *channel_low(const struct channel *channel)
{
    return (const shared_u32 *)&channel->control->latest; /* the low half: both architectures are little-endian */
}
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "channel_low is the low half of `latest`");

/* The lowest gap of at least `nbytes` between the extents, at or behind `start`, as an offset that is a multiple of
 * `page`, as `start` is; pure. */
uint64_t channel_find_gap(const struct control *control, uint64_t start, uint64_t nbytes, uint64_t page);

#endif

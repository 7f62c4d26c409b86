/* What a side of a channel or queue did beside what it was asked for, until Python reads it and logs it.
 *
 * It is memory of one process. It is written where a system call was made already, so it costs nothing elsewhere, and
 * looking whether there is anything to read is one load.
 */
#ifndef UNTORN_JOURNAL_H
#define UNTORN_JOURNAL_H

#include "atomics.h"

enum { JOURNAL_MAX = 32 };

enum journal_kind {
    JOURNAL_GREW = 0,      /* a channel: more slots, or larger ones */
    JOURNAL_RECLAIMED = 1, /* a channel: the slots that a dead reader held */
    JOURNAL_REAPED = 2,    /* a queue: the slots of a dead process */
};

/* JOURNAL_GREW: the slots that have space, and their bytes. JOURNAL_RECLAIMED: the slots that the reader held, and
 * their bytes. JOURNAL_REAPED: `slots` became free, and the items in `returned` others are in the queue again. */
struct journal_entry {
    enum journal_kind kind;
    uint32_t pid; /* of the dead process, as it wrote it down */
    uint64_t slots, nbytes, returned;
};

/* Guarded by the lock of the side that has it; `unread` is read without it. */
struct journal {
    struct journal_entry entries[JOURNAL_MAX];
    shared_u32 unread; /* may be larger than JOURNAL_MAX: then the last ones were not kept */
};

static inline void journal_add(struct journal *journal, struct journal_entry entry)
{
    const uint32_t unread = shared_load_relaxed(&journal->unread);
    if (unread < JOURNAL_MAX)
        journal->entries[unread] = entry;
    shared_store_relaxed(&journal->unread, unread + 1); /* relaxed: the entries are read with the lock */
}

/* A hint without the lock. */
static inline bool journal_has_news(const struct journal *journal)
{
    return shared_load_relaxed(&journal->unread) != 0;
}

/* In a forked child: what the parent did is the parent's to tell. */
static inline void journal_clear(struct journal *journal) { shared_store_relaxed(&journal->unread, 0); }

#endif

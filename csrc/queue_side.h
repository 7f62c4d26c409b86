/* One process's side of a queue: its descriptor, its mappings, its row and fork.
 *
 * Guarantees: the bytes of a slot that this process owns are mapped, and no other process writes them; space is
 * reserved before it is written; only the kernel declares a process dead, by releasing its lock.
 *
 * A process has one side per queue, and so one row. Byte i of the file is the lock of row i. It is an
 * open-file-description lock, as a channel's (rows.h): it vanishes with the last descriptor and the last mapping.
 *
 * fork: a child would share its parent's lock, and keep a dead parent's slots alive. So before a fork each side opens
 * the file again and takes a row for the child, which goes over to that description. Slots stay the parent's. Where the
 * child has views of them, it gets copies at the same addresses.
 */
#ifndef UNTORN_QUEUE_SIDE_H
#define UNTORN_QUEUE_SIDE_H

#include <pthread.h>

#include "descriptors.h"
#include "journal.h"
#include "queue_file.h"

struct queue_window {
    uint8_t *base; /* NULL: not mapped */
    uint64_t length;
};

struct queue_side {
    int fd;
    struct descriptor_file file;
    struct queue queue;
    uint64_t shared_nbytes; /* of the mapping that `queue` points into */
    pthread_mutex_t lock;   /* guards all that follows */
    uint32_t row;           /* 0: none */
    uint32_t generation;    /* grows in a forked child: what was owned before is the parent's */
    uint64_t used_ns;       /* when it last took, or waited, by the monotonic clock */
    struct journal journal;
    struct queue_window *windows;
    bool *used; /* per slot: an item or a draft of this process points to its bytes */
    /* fork, between its prepare and its child or parent handler */
    int fork_fd;
    uint32_t fork_row;
    uint8_t *fork_small;
    uint8_t **fork_copies;
    struct queue_side *next, *previous; /* all sides of this process, guarded by the registry's lock */
};

/* A slot of this process, and its bytes. */
struct queue_place {
    uint32_t slot, generation;
    uint8_t *address;
    uint64_t nbytes; /* that can be used */
    bool orphaned;   /* the mapping belongs to this place alone */
};

/* Attach. Takes the descriptor over, also when it fails. `id`: of the expected queue, or NULL. */
enum status queue_side_open(int fd, const uint8_t *id, struct queue_side **result);
void queue_side_close(struct queue_side *side);
bool queue_side_has_file(const struct queue_side *side);

/* Claim a slot with room for `nbytes`, in its window if `windowed` is set. STATUS_NO_SLOT, STATUS_NO_ROOM,
 * STATUS_TOO_LARGE, STATUS_NO_SPACE. */
enum status queue_side_begin(struct queue_side *side, uint64_t nbytes, bool windowed, struct queue_place *place);
/* Put what was written there into the queue: STATUS_FULL, STATUS_ENDED. Afterwards the place is not this process's. */
enum status queue_side_put(struct queue_side *side, const struct queue_place *place);
/* Let later writes through a windowed place go to a private copy. The caller is about to put it. */
enum status queue_side_seal(struct queue_side *side, struct queue_place *place);
/* Take an item: its bytes and their number. Looks for dead processes now and then (queue_side_look), so that what they
 * had taken comes back although other items wait. STATUS_EMPTY, STATUS_ENDED. */
enum status queue_side_take(struct queue_side *side, struct queue_place *place);
enum status queue_side_finish(struct queue_side *side, const struct queue_place *place);
/* What becomes of a slot: it is not this process's any more; it is free; its item goes back into the queue. */
enum queue_end { QUEUE_END_GONE, QUEUE_END_FREE, QUEUE_END_BACK };
/* The process looks at the bytes no more. */
void queue_side_end(struct queue_side *side, const struct queue_place *place, enum queue_end end);
/* Map an item once more: writes go to private copies of the pages. munmap ends the mapping. */
enum status queue_side_map_private(struct queue_side *side, const struct queue_place *place, uint8_t **base);

/* Undo what dead processes left; returns how many were found. `all`: also those that own no slot. */
unsigned queue_side_reap(struct queue_side *side, bool all);
/* The same for all, unless any process did it a moment ago: it costs a system call for each that has the queue, and so
 * if each of them did it, their number squared. But a process that comes back after a pause does it itself, so that it
 * takes what the dead had before the rest. */
unsigned queue_side_look(struct queue_side *side);
/* Find out whether a living process has this row. */
enum status queue_side_row_alive(struct queue_side *side, uint32_t row, bool *alive);
/* Sleep until the gate's events are no more `seen`, at most `timeout_ns`; spins first. STATUS_TIMEOUT,
 * STATUS_INTERRUPTED. */
enum status queue_side_wait(struct queue_side *side, bool for_room, uint64_t seen, int64_t timeout_ns);

#endif

/* One process's side of a channel: its two descriptors, its mappings, its reader row, its locks, and fork.
 *
 * Guarantees: a slot stays pinned while this process has any use for it, also across fork; the publisher is one
 * process; space is reserved before it is written; only the kernel declares a process dead, by releasing its lock.
 *
 *     role        control descriptor   control page   rows   data     lock it holds while it lives
 *     READER      O_RDWR               read           write  read     byte i of the control file: row i
 *     WRITER      O_RDWR               write          write  write    byte i: a training worker reads and writes
 *     PUBLISHER   O_RDWR               write          write  write    byte 0: the one publisher
 *
 * Locks are open-file-description locks: they belong to the descriptor that took them, so a publisher and a reader in
 * one process are two owners, and they vanish with the last descriptor and the last mapping of it, however the process
 * ends.
 */
#ifndef UNTORN_ATTACHMENT_H
#define UNTORN_ATTACHMENT_H

#include <pthread.h>

#include "channel.h"
#include "descriptors.h"
#include "futex.h"
#include "journal.h"
#include "status.h"

enum attachment_role { ROLE_READER = 0, ROLE_WRITER = 1, ROLE_PUBLISHER = 2 };

struct slot_mapping {
    uint8_t *base;
    uint64_t offset, length;
};

/* A mapping that belongs to no slot any more, but that drafts still point into. */
struct orphan {
    struct slot_mapping map;
    uint32_t loans;
    struct orphan *next;
};

struct attachment {
    enum attachment_role role;
    int control_fd, data_fd;
    /* the files that the two lead to, unless other code closed the descriptors */
    struct descriptor_file control_file, data_file;
    struct channel channel;
    size_t control_nbytes, rows_nbytes;
    uint32_t row;                     /* 0: none */
    bool forked;                      /* a writer's copy in a child, or retired: it may write nothing */
    pthread_mutex_t lock;             /* guards all that follows and this process's row */
    uint32_t generation;              /* see attachment_unpin */
    uint32_t pins[CHANNEL_MAX_SLOTS]; /* number of users in this process; the row has the bit while > 0 */
    struct slot_mapping maps[CHANNEL_MAX_SLOTS];
    uint32_t loans[CHANNEL_MAX_SLOTS]; /* writers: how many drafts point into maps[slot] */
    struct orphan *orphans;
    /* publisher: slots whose extents it did not write, see inherited_drop */
    uint64_t inherited;
    /* publisher: the slot that the version in each slot changes, as a bit; 0: none */
    uint64_t bases[CHANNEL_MAX_SLOTS];
    /* publisher: slots that are being written beside the versions, see attachment_reserve */
    uint64_t reserved;
    uint64_t spare; /* of these, the slots whose space is to be given back */
    /* publisher: the data file has at least this size, unless another process shortens it */
    uint64_t reserved_nbytes;
    /* publisher: the most slots and bytes of the channel when its growth was noted last; see growth_note */
    uint64_t told_slots, told_nbytes;
    struct journal journal;
    struct futex_manner manner; /* of attachment_wait, and of waits at a board that writes here */
    bool named;                 /* publisher: its files should have names, see attachment_pick */
    /* fork, between its prepare and its child or parent handler */
    int fork_fd;
    uint32_t fork_row;
    uint8_t *fork_copies[CHANNEL_MAX_SLOTS];
    struct attachment *next, *previous; /* all attachments of this process, guarded by the registry's lock */
};

struct pin {
    uint64_t version;
    unsigned slot;
    uint32_t generation;
    uint8_t *address;               /* of the slot's header */
    uint64_t nbytes, schema_nbytes; /* as they were when they were checked */
    uint64_t schema_id;
    int64_t published_ns;
    uint64_t base; /* the latest word of the version that it changes; 0: none */
};

/* Lay out a new, empty, already reserved control file. Its name must not exist yet. */
enum status attachment_format(int control_fd, const uint8_t id[16], uint32_t max_readers, uint32_t max_slots,
                              uint32_t keep_slots);
/* Write the header of a data file that begins with zeros, or was cut off within it; STATUS_DATA if it has other
 * bytes. */
enum status attachment_format_data(int data_fd, const uint8_t id[16]);
uint64_t attachment_control_nbytes(uint32_t max_readers);

/* Attach in a role. Takes both descriptors over, also when it fails. The result never moves.
 * The two files are proved to be one channel's, by the id that is in both; and that channel, unless `id` is NULL.
 * A publisher may come without a data file (-1): it has the lock then, and so may decide what becomes of the two names,
 * but changes nothing until it adopts one. */
enum status attachment_open(int control_fd, int data_fd, enum attachment_role role, const uint8_t *id,
                            struct attachment **result);
/* Takes the descriptor over, also when it fails. */
enum status attachment_adopt(struct attachment *attachment, int data_fd);
/* Publishers: state that the names are being given, or that they have been given. See enum channel_state. */
void attachment_set_naming(struct attachment *attachment, bool naming);
void attachment_close(struct attachment *attachment);

/* Return whether the descriptor still leads to the channel's file. If not, errno is EBADF. */
bool attachment_has_control(const struct attachment *attachment);
bool attachment_has_data(const struct attachment *attachment);

/* Readers. Pin the newest version; the slot's header has been checked against the mapping. */
enum status attachment_pin(struct attachment *attachment, struct pin *pin);
void attachment_unpin(struct attachment *attachment, unsigned slot, uint32_t generation);
/* Pin the base of a pinned version. STATUS_FORMAT if it has none. */
enum status attachment_pin_base(struct attachment *attachment, const struct pin *pin, struct pin *base);
/* Map a pinned version once more: writes go to private copies of the pages. munmap ends the mapping. */
enum status attachment_map_private(struct attachment *attachment, const struct pin *pin, uint8_t **base);
/* Wait until the version is newer than `seen`: spins, then sleeps at most `timeout_ns`. */
enum status attachment_wait(struct attachment *attachment, uint64_t seen, int64_t timeout_ns);
/* Find out whether there is a living publisher. STATUS_OS if the kernel does not say, which is no proof of death. */
enum status attachment_publisher_alive(struct attachment *attachment, bool *alive);

/* Writers. Pick a slot with room for `nbytes` that nobody can read until it is published, growing the data file if need
 * be. STATUS_NO_SLOT if all are held; the rows of dead readers were cleared by then. A publisher picks no space that it
 * did not reserve itself: it gives the space that it found back to the file system, as soon as that is neither the
 * latest nor held.
 *
 * A publisher is told, once per call and changing nothing, that its data file has lost its name (STATUS_UNLINKED, while
 * `named` is set), and, once, that it was shortened and the latest version is lost (STATUS_TRUNCATED). Space behind the
 * end of a shortened file is not used again. */
enum status attachment_pick(struct attachment *attachment, uint64_t nbytes, unsigned *slot);
/* The same among the slots that exist and have the room, without a system call. */
enum status attachment_pick_ready(struct attachment *attachment, uint64_t nbytes, unsigned *slot);
/* Publishers. Give space to a slot that has none, and leave it alone until it is given back: another thread writes a
 * base for later versions there. Other threads may pick meanwhile. If this is killed, nothing refers to the slot, and
 * the next publisher gives its space back. */
enum status attachment_reserve(struct attachment *attachment, uint64_t nbytes, unsigned *slot);
void attachment_unreserve(struct attachment *attachment, unsigned slot);
/* Publishers. Leave free slots alone that are larger than this, until their space has been given back to the file
 * system; returns them as bits, and how much that is. Not between a pick and the publication: a slot that was picked is
 * free. Another thread may give the space back, and others pick meanwhile. */
uint64_t attachment_claim_spare(struct attachment *attachment, uint64_t most, uint64_t *nbytes);
void attachment_release_spare(struct attachment *attachment, uint64_t claimed);
/* Give space to one slot that has none; touches no other, so it may run while others pick. */
enum status attachment_grow(struct attachment *attachment, uint64_t nbytes);
/* Map the slot; return its address in this process and its size. */
enum status attachment_map(struct attachment *attachment, unsigned slot, uint8_t **address, uint64_t *capacity);
/* The same, and the mapping stays in place until the loan is returned. */
enum status attachment_lend(struct attachment *attachment, unsigned slot, uint8_t **address, uint64_t *capacity);
/* Let later writes to a lent mapping go to a private copy: the slot is about to be published. */
enum status attachment_seal(struct attachment *attachment, unsigned slot, const uint8_t *address);
/* Publishers: write the header of a slot that is otherwise complete. */
enum status attachment_finish(struct attachment *attachment, unsigned slot, const struct slot_header *header);
void attachment_return(struct attachment *attachment, unsigned slot, const uint8_t *address);
/* End the publisher without marking the channel closed, as if it had been killed. */
void attachment_abandon(struct attachment *attachment);
/* End the publisher: readers see `state`, and another publisher may take over the channel. The mappings stay. */
void attachment_retire(struct attachment *attachment);
/* Leave the slots to another process: later writes through mappings and drafts of this process go to private copies. A
 * publisher may end, or a fork may come, in the middle of a version: inside edit(), or from a signal handler inside
 * update(). The caller has the lock. */
void attachment_disown(struct attachment *attachment);
/* Find out whether a living process has this row: false for a row of this very attachment; STATUS_OS as above. */
enum status attachment_row_alive(struct attachment *attachment, uint32_t row, bool *alive);
/* Clear the rows of dead readers; returns how many held something. The caller has the lock. */
unsigned attachment_reclaim(struct attachment *attachment);

#endif

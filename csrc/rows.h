/* Locks on the bytes of a control file, and reader rows. A row belongs to the process that has the lock on its byte.
 *
 * Byte 0 is the publisher's, byte i that of row i. A lock belongs to the open file description that took it, and the
 * kernel drops it with the last descriptor and the last mapping of that, however its process ends.
 */
#ifndef UNTORN_ROWS_H
#define UNTORN_ROWS_H

#include "channel.h"
#include "journal.h"
#include "status.h"

/* Ask the kernel for byte `byte` of the control file. STATUS_BUSY: a living process has it. STATUS_OS: the kernel did
 * not answer (no locks on this file system, none left), so it is unknown whether the owner is alive. */
enum status lock_take(int fd, uint32_t byte);
void lock_drop(int fd, uint32_t byte);
/* Find out the same, as another description than `fd`'s would, without taking the lock. */
enum status lock_look(int fd, uint32_t byte);
/* Take a row whose lock is free, as the owner of `fd`; STATUS_NO_ROW if there is none. Under the lock, `held` replaces
 * what a dead reader left in the row. */
enum status row_take(const struct channel *channel, int fd, uint64_t held, struct journal *journal, uint32_t *row);
/* Note in the journal which slots a row holds, whose owner is dead and whose lock the caller has. */
void row_note_dead(const struct channel *channel, uint32_t row, struct journal *journal);

#endif

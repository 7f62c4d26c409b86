/* Locks on the bytes of a control file, and reader rows, each of which belongs to whoever has its byte.
 *
 * Byte 0 is the publisher's, byte i that of row i. A lock belongs to the open file description that took it, and the
 * kernel drops it with the last descriptor and the last mapping of that, however its process ends.
 */
#ifndef UNTORN_ROWS_H
#define UNTORN_ROWS_H

#include "channel.h"
#include "status.h"

/* Ask the kernel for byte `byte` of the control file. STATUS_BUSY: a living process has it. STATUS_OS: the kernel did
 * not answer (no locks on this file system, none left), so nobody knows whether its owner lives. */
enum status lock_take(int fd, uint32_t byte);
void lock_drop(int fd, uint32_t byte);
/* The same question, by another description than `fd`'s, without taking it. */
enum status lock_look(int fd, uint32_t byte);
/* Take a row whose lock is free, as the owner of `fd`; STATUS_NO_ROW if there is none. What a dead reader left in it is
 * replaced by `held` under the lock. */
enum status row_take(const struct channel *channel, int fd, uint64_t held, uint32_t *row);

#endif

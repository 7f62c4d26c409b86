/* Locks on the bytes of a control file, and reader rows, each of which belongs to whoever has its byte.
 *
 * Byte 0 is the publisher's, byte i that of row i. A lock belongs to the open file description that took it, and the
 * kernel drops it with the last descriptor and the last mapping of that, however its process ends.
 */
#ifndef UNTORN_ROWS_H
#define UNTORN_ROWS_H

#include "channel.h"

/* Ask the kernel for byte `byte` of the control file; false if a living process has it. */
bool lock_take(int fd, uint32_t byte);
void lock_drop(int fd, uint32_t byte);
/* By another description than `fd`'s. */
bool lock_is_held_elsewhere(int fd, uint32_t byte);
/* Take a row whose lock is free, as the owner of `fd`; 0 if there is none. What a dead reader left in it is replaced
 * by `held` under the lock. */
uint32_t row_take(const struct channel *channel, int fd, uint64_t held);

#endif

/* Room in a file, reserved before it is written: reserved space can be written without a signal.
 *
 * Guarantees: STATUS_NO_SPACE means that there is no room (no disk, quota or memory left, or a limit on the size of
 * files), and errno says which; every other failure is STATUS_OS with its true cause; a signal is not a failure. A call
 * that fails gives back the space that it had reserved.
 */
#ifndef UNTORN_SPACE_H
#define UNTORN_SPACE_H

#include <stdint.h>

#include "status.h"

/* STATUS_INTERRUPTED: signals keep coming; handle them, and call again. */
enum status space_reserve(int fd, uint64_t offset, uint64_t nbytes);
/* Give space back; the file keeps its size. A file system without holes keeps the space. */
void space_release(int fd, uint64_t offset, uint64_t nbytes);
/* STATUS_NO_SPACE or STATUS_OS, by errno. */
enum status space_status(void);

#endif

/* Copying large memory without going through the cache.
 *
 * An ordinary store to a line that is not in the cache reads it first, so a copy moves three bytes of memory for each
 * byte. A streaming store of a whole line reads nothing, and leaves the cache to others. That gains a fifth of the time
 * as soon as the copy would not fit the last-level cache; below, readers would miss the version there. glibc's memcpy
 * streams too, but on processors with many caches of the last level only from hundreds of megabytes on.
 *
 * On x86-64 with AVX2; elsewhere this is memcpy. Processors of aarch64 find out by themselves that lines are
 * overwritten.
 */
#ifndef UNTORN_COPYING_H
#define UNTORN_COPYING_H

#include <stddef.h>
#include <stdint.h>

/* Copy bytes that do not overlap. `together`: the size of all that is copied at a time, of which this is a part. */
void copy_bytes(void *to, const void *from, size_t nbytes, uint64_t together);

/* Copy them past the cache, whatever their number. A process that sees a later store with release sees the copy. */
void copy_streaming(void *to, const void *from, size_t nbytes);

#endif

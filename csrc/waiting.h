/* Sleeping until any of several shared words changes: one thread for all the channels that a process waits for.
 *
 * futex_waitv (Linux 5.16) sleeps on up to 128 words at once. One of them is the watch's own bell, with which other
 * threads of this process wake the sleeper. Where the kernel or a container's filter refuses the call, or the words are
 * more, the thread sleeps only on its bell and looks at the words every few milliseconds.
 *
 *     word        in shared memory, may be read-only here: the low half of a channel's `latest`
 *     sleepers    beside it: what to sleep on, and what tells its writer to wake; see futex.h
 *     bell        in this process only
 */
#ifndef UNTORN_WAITING_H
#define UNTORN_WAITING_H

#include <stddef.h>

#include "atomics.h"
#include "futex.h"

struct watched {
    const shared_u32 *word;
    shared_u32 *sleepers;
    uint32_t seen; /* the word as its owner knows it */
    bool ready;    /* in: do not sleep for it. out: it changed, or its waiters were woken */
};

enum { WATCH_WORDS = 127 }; /* the most that the kernel sleeps on beside the bell */

/* One thread sleeps on a watch at a time. */
struct watch {
    shared_u32 bell;  /* 1: rung and not heard. writers: any thread; cleared by the one that sleeps */
    shared_u32 polls; /* 1: this kernel has no futex_waitv. writer: the thread that sleeps */
};

/* Make the sleeper return, or the next one not sleep. From any thread. */
void watch_ring(struct watch *watch);

/* Sleep until one of `words` differs from what was seen or is woken for, the bell rings, or `timeout_ns` passes; may
 * return early with nothing ready. The bell is quiet afterwards: what was done before ringing it can be seen now. */
enum futex_result watch_sleep(struct watch *watch, struct watched *words, size_t count, int64_t timeout_ns);

#endif

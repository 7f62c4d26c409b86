/* Sleeping until a shared 32-bit word changes, and waking those who sleep: spin first, sleep after.
 *
 * Waking a sleeping process costs a hundred microseconds on a virtual machine, so a waiter looks at the word for a
 * bounded time before it sleeps. A waker that finds no sleeper makes no system call: sleepers announce themselves in
 * a flag of their own, which is a hint that survives its owner's death (one useless wake, never a lost one).
 *
 * The word may lie in a read-only mapping: FUTEX_WAIT only reads it. The flag must be writable for waiters.
 */
#ifndef UNTORN_FUTEX_H
#define UNTORN_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomics.h"

enum futex_result { FUTEX_CHANGED = 0, FUTEX_TIMEOUT = 1, FUTEX_INTERRUPTED = 2 };

static inline int64_t clock_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline int64_t clock_wall_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

enum { SPIN_POLITE_NS = 20000 };

/* True as soon as *word differs from `seen`; false after `spin_ns`. */
static inline bool futex_spin(const shared_u32 *word, uint32_t seen, int64_t spin_ns)
{
    if (load_acquire((shared_u32 *)word) != seen)
        return true;
    if (spin_ns <= 0)
        return false;
    int64_t start = clock_monotonic_ns(), now = start;
    do {
        for (int i = 0; i < 32; i++) {
            if (load_acquire((shared_u32 *)word) != seen)
                return true;
            spin_hint();
        }
        if (now - start > SPIN_POLITE_NS)
            sched_yield(); /* whoever is to change the word may be waiting for this very processor */
        now = clock_monotonic_ns();
    } while (now - start < spin_ns);
    return false;
}

/* Sleep until *word differs from `seen`, a signal arrives, or `timeout_ns` passes. `sleepers` pairs with futex_wake:
 * here store, fence, load the word (in the kernel); there store the word, fence, load the flag. */
static inline enum futex_result futex_sleep(const shared_u32 *word, uint32_t seen, shared_u32 *sleepers,
                                            int64_t timeout_ns)
{
    store_relaxed(sleepers, 1);
    fence_full();
    if (load_acquire((shared_u32 *)word) != seen)
        return FUTEX_CHANGED;
    struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (syscall(SYS_futex, word, FUTEX_WAIT, seen, &timeout, NULL, 0) == 0 || errno == EAGAIN)
        return FUTEX_CHANGED;
    return errno == EINTR ? FUTEX_INTERRUPTED : FUTEX_TIMEOUT;
}

/* After the word was stored: wake every sleeper, without a system call when there is none. */
static inline void futex_wake(const shared_u32 *word, shared_u32 *sleepers)
{
    fence_full();
    if (load_relaxed(sleepers) != 0 && swap(sleepers, 0) != 0)
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

#endif

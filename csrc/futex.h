/* Sleeping until a shared 32-bit word changes, and waking the sleepers: spin first, then sleep.
 *
 * Waking a sleeping process costs a hundred microseconds on a virtual machine, so a waiter looks at the word for a
 * bounded time before it sleeps. A waker that finds no sleeper makes no system call.
 *
 * Sleepers sleep on a word of their own, `sleepers`, which must be writable for them; the word that they wait for may
 * lie in a read-only mapping. If it is odd, somebody may be asleep. A sleeper makes it odd, fences, looks at the word
 * once more, and sleeps while `sleepers` is what it was; a waker stores the word, fences, and if `sleepers` is odd,
 * adds 1 and wakes all.
 *
 * No wake is lost. One of the two fences comes first (Dekker). If it is the sleeper's, the waker finds an odd number.
 * Either it is the sleeper's number: then the sleeper is woken, or the number has changed before it sleeps, and the
 * kernel sends it back to look again. Or it is a later number: then another waker had changed it. If it is the waker's
 * fence, the sleeper sees the new word. A flag that wakers clear would not work: a late waker, whose word is known
 * already, could clear the flag that a sleeper has just set, wake before it sleeps, and so the next waker would find
 * nobody. tests/model/test_waking_model.py checks both.
 *
 * A sleeper that is killed leaves an odd number: one useless wake. The number comes round after 2^31 wakes, and a
 * sleeper would have to stay between its look and its sleep for all of them.
 *
 * Where one sleeper is enough for what was stored, futex_wake_one wakes one. It adds 2: the number stays odd for those
 * who sleep on, and who is about to sleep looks again, since the one that is woken may want something else. If nobody
 * was asleep it adds 1 more, so that the next waker makes no system call, and wakes all who fell asleep meanwhile.
 * tests/model/queue_waking_model.py checks it.
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

/* Return true as soon as *word differs from `seen`; false after `spin_ns`. */
static inline bool futex_spin(const shared_u32 *word, uint32_t seen, int64_t spin_ns)
{
    if (shared_load_acquire(word) != seen)
        return true;
    if (spin_ns <= 0)
        return false;
    int64_t start = clock_monotonic_ns(), now = start;
    do {
        for (int i = 0; i < 32; i++) {
            if (shared_load_acquire(word) != seen)
                return true;
            spin_hint();
        }
        if (now - start > SPIN_POLITE_NS)
            sched_yield(); /* the process that will change the word may be waiting for this processor */
        now = clock_monotonic_ns();
    } while (now - start < spin_ns);
    return false;
}

/* How a process waits at one word, from one wait to the next. Its threads write it, in any order: a lost update changes
 * only how long the next waits spin. */
struct futex_manner {
    shared_u32 skips;   /* waits that are still to come and go to sleep at once */
    shared_u32 penalty; /* how many the next crowded wait adds */
};

enum {
    SPIN_ALONE_NS = 2000,
    YIELD_SHORT_NS = 4000,
    YIELD_LONG_NS = 100000,
    SPIN_PENALTY_MIN = 32,
    SPIN_PENALTY_MAX = 4096
};

/* Learn from a wait whether others compete for the processors. A yield to one of them costs milliseconds, a thousand
 * times what a yield to the right process saves: so each time more waits go to sleep at once, and it takes many waits
 * without competition to forget that. */
static inline void futex_learn(struct futex_manner *manner, bool crowded)
{
    const uint32_t known = shared_load_relaxed(&manner->penalty);
    const uint32_t penalty = known < SPIN_PENALTY_MIN ? SPIN_PENALTY_MIN : known;
    if (crowded)
        shared_store_relaxed(&manner->skips, penalty);
    const uint32_t next = crowded ? penalty * 2 : penalty - penalty / 16;
    shared_store_relaxed(&manner->penalty, next < SPIN_PENALTY_MAX ? next : SPIN_PENALTY_MAX);
}

/* Return whether this wait is one of those that go to sleep at once. */
static inline bool futex_skips(struct futex_manner *manner)
{
    const uint32_t skips = shared_load_relaxed(&manner->skips);
    if (skips != 0)
        shared_store_relaxed(&manner->skips, skips - 1);
    return skips != 0;
}

/* Spin as futex_spin does, but only if that helps. If the process that will change the word shares this processor, it
 * cannot run while this one spins. So after a moment this yields the processor once. If nobody else wants it, the spin
 * goes on. If somebody ran who did not change the word, or for long, others compete for the processors: spinning would
 * only delay them, and a process that sleeps is preferred when it is woken. Then the next waits sleep at once. */
static inline bool futex_spin_politely(struct futex_manner *manner, const shared_u32 *word, uint32_t seen,
                                       int64_t spin_ns)
{
    if (futex_skips(manner))
        return shared_load_acquire(word) != seen;
    if (futex_spin(word, seen, spin_ns < SPIN_ALONE_NS ? spin_ns : SPIN_ALONE_NS))
        return true;
    if (spin_ns <= SPIN_ALONE_NS)
        return false;
    const int64_t before = clock_monotonic_ns();
    sched_yield();
    const int64_t away_ns = clock_monotonic_ns() - before;
    const bool changed = shared_load_acquire(word) != seen;
    const bool alone = away_ns <= YIELD_SHORT_NS;
    if (alone || !changed || away_ns > spin_ns * 4)
        futex_learn(manner, !alone);
    return changed || (alone && futex_spin(word, seen, spin_ns - SPIN_ALONE_NS));
}

/* Spin as futex_spin does for a change that takes long, such as the end of another process's task, and measure the
 * yields. If one takes long, others compete for the processors, which get a turn of milliseconds at each yield: then
 * stop, and the next waits sleep at once, since a process that sleeps is preferred when it is woken. */
static inline bool futex_spin_watchfully(struct futex_manner *manner, const shared_u32 *word, uint32_t seen,
                                         int64_t spin_ns)
{
    if (shared_load_acquire(word) != seen)
        return true;
    if (spin_ns <= 0 || futex_skips(manner))
        return false;
    if (futex_spin(word, seen, spin_ns < SPIN_POLITE_NS ? spin_ns : SPIN_POLITE_NS))
        return true;
    bool crowded = false, changed = false;
    for (int64_t left = spin_ns - SPIN_POLITE_NS; left > 0 && !crowded && !changed;) {
        const int64_t before = clock_monotonic_ns();
        sched_yield();
        const int64_t away_ns = clock_monotonic_ns() - before;
        crowded = away_ns > YIELD_LONG_NS;
        changed = futex_spin(word, seen, crowded ? 0 : 1);
        left -= clock_monotonic_ns() - before;
    }
    futex_learn(manner, crowded);
    return changed;
}

/* Announce a sleeper; return the value to sleep on. The fence pairs with futex_wake's: look at the word after it. */
static inline uint32_t futex_announce(shared_u32 *sleepers)
{
    uint32_t ticket = shared_load_relaxed(sleepers);
    while (ticket % 2 == 0 && !shared_swap_if_u32(sleepers, ticket, ticket + 1))
        ticket = shared_load_relaxed(sleepers);
    fence_full();
    return ticket | 1;
}

/* Sleep until *word differs from `seen`, a signal arrives, or `timeout_ns` passes; FUTEX_CHANGED may come early. */
static inline enum futex_result futex_sleep(const shared_u32 *word, uint32_t seen, shared_u32 *sleepers,
                                            int64_t timeout_ns)
{
    uint32_t ticket = futex_announce(sleepers);
    if (shared_load_acquire(word) != seen)
        return FUTEX_CHANGED;
    struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (syscall(SYS_futex, sleepers, FUTEX_WAIT, ticket, &timeout, NULL, 0) == 0 || errno == EAGAIN)
        return FUTEX_CHANGED;
    return errno == EINTR ? FUTEX_INTERRUPTED : FUTEX_TIMEOUT;
}

/* After the word was stored: wake every sleeper, without a system call when there is none. */
static inline void futex_wake(shared_u32 *sleepers)
{
    fence_full(); /* pairs with futex_announce's */
    uint32_t ticket = shared_load_relaxed(sleepers);
    while (ticket % 2 == 1 && !shared_swap_if_u32(sleepers, ticket, ticket + 1))
        ticket = shared_load_relaxed(sleepers);
    if (ticket % 2 == 1)
        syscall(SYS_futex, sleepers, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* After the word was stored: wake the sleeper that has slept longest, without a system call when there is none. */
static inline void futex_wake_one(shared_u32 *sleepers)
{
    fence_full(); /* pairs with futex_announce's */
    uint32_t ticket = shared_load_relaxed(sleepers);
    while (ticket % 2 == 1 && !shared_swap_if_u32(sleepers, ticket, ticket + 2))
        ticket = shared_load_relaxed(sleepers);
    if (ticket % 2 == 0 || syscall(SYS_futex, sleepers, FUTEX_WAKE, 1, NULL, NULL, 0) != 0)
        return;
    if (shared_swap_if_u32(sleepers, ticket + 2, ticket + 3)) /* otherwise another waker did, and wakes all */
        syscall(SYS_futex, sleepers, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

#endif

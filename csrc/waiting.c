/* Sleeping on several words: see waiting.h. */
#include "waiting.h"

/* As in <linux/futex.h>, which is older than the call on some machines that build this. */
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

enum { WAITV_U32 = 2 };
static const int64_t LOOK_NS = 5000000;

struct waitv_word {
    uint64_t seen, address;
    uint32_t flags, reserved;
};
_Static_assert(sizeof(struct waitv_word) == 24, "the kernel's layout");

static struct timespec timespec_of(int64_t ns) { return (struct timespec){ns / 1000000000, ns % 1000000000}; }

void watch_ring(struct watch *watch)
{
    if (shared_swap(&watch->bell, 1) == 0) /* pairs with watch_sleep's swap */
        syscall(SYS_futex, &watch->bell, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Sleep on the bell only. */
static enum futex_result bell_sleep(struct watch *watch, int64_t timeout_ns)
{
    struct timespec timeout = timespec_of(timeout_ns);
    long failed = syscall(SYS_futex, &watch->bell, FUTEX_WAIT_PRIVATE, 0, &timeout, NULL, 0);
    return failed != 0 && errno == EINTR ? FUTEX_INTERRUPTED : FUTEX_TIMEOUT; /* the caller looks at the bell */
}

static bool words_look(struct watched *words, size_t count)
{
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        if (shared_load_acquire(words[i].word) != words[i].seen)
            words[i].ready = true;
        any |= words[i].ready;
    }
    return any;
}

/* Sleep on the bell and up to WATCH_WORDS words, each as futex_sleep does. */
static enum futex_result words_sleep(struct watch *watch, struct watched *words, size_t count, int64_t until_ns)
{
    struct waitv_word group[WATCH_WORDS + 1];
    group[0] = (struct waitv_word){0, (uintptr_t)&watch->bell, WAITV_U32 | FUTEX_PRIVATE_FLAG, 0};
    for (size_t i = 0; i < count; i++)
        group[i + 1] =
            (struct waitv_word){futex_announce(words[i].sleepers), (uintptr_t)words[i].sleepers, WAITV_U32, 0};
    if (words_look(words, count))
        return FUTEX_CHANGED;
    struct timespec until = timespec_of(until_ns);
    long woken = syscall(SYS_futex_waitv, group, count + 1, 0, &until, CLOCK_MONOTONIC);
    if (woken >= 0 || errno == EAGAIN) {
        for (size_t i = 0; i < count; i++) /* perhaps with the word as it was: its publisher closed the channel */
            words[i].ready |= shared_load_relaxed(words[i].sleepers) != (uint32_t)group[i + 1].seen;
        return FUTEX_CHANGED;
    }
    if (errno == EINTR)
        return FUTEX_INTERRUPTED;
    if (errno != ETIMEDOUT) /* ENOSYS from an older kernel, EPERM from a filter; nothing else is worth a second try */
        shared_store_relaxed(&watch->polls, 1);
    return FUTEX_TIMEOUT;
}

/* One sleep, at most until `until_ns`; FUTEX_TIMEOUT also when it is time to look again. */
static enum futex_result once_sleep(struct watch *watch, struct watched *words, size_t count, int64_t now_ns,
                                    int64_t until_ns)
{
    int64_t left_ns = until_ns - now_ns;
    if (count == 0)
        return bell_sleep(watch, left_ns);
    if (shared_load_relaxed(&watch->polls) != 0 || count > WATCH_WORDS)
        return bell_sleep(watch, left_ns < LOOK_NS ? left_ns : LOOK_NS);
    return words_sleep(watch, words, count, until_ns);
}

enum futex_result watch_sleep(struct watch *watch, struct watched *words, size_t count, int64_t timeout_ns)
{
    int64_t now_ns = clock_monotonic_ns(), until_ns = now_ns + timeout_ns;
    enum futex_result result = FUTEX_TIMEOUT;
    while (result == FUTEX_TIMEOUT) {
        if (words_look(words, count) || shared_load_acquire(&watch->bell) != 0)
            result = FUTEX_CHANGED;
        else if (now_ns >= until_ns)
            break;
        else
            result = once_sleep(watch, words, count, now_ns, until_ns);
        now_ns = clock_monotonic_ns();
    }
    words_look(words, count);
    shared_swap(&watch->bell, 0); /* pairs with watch_ring's swap */
    return result;
}

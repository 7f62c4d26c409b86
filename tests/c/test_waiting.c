/* Sleeping on several words: changes that wake and changes that do not, more words than one system call takes, a kernel
 * that refuses the call, and that no wake is lost between a waker and a sleeper that keep pace.
 *
 * A sleep of a minute that times out is a lost wake. A waker that must find a sleeper waits for its flag.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "check.h"
#include "waiting.h"

enum { WORDS_MAX = 600, ROUNDS = 2000 };
static const int64_t MINUTE_NS = INT64_C(60) * 1000000000;
static const size_t COUNTS[] = {1, 2, 127, 128, 254, 600};
enum { COUNTS_LENGTH = sizeof COUNTS / sizeof COUNTS[0] };

struct line {
    shared_u32 word, sleepers;
};

/* Shared memory, and what one sleeper knows of it. */
struct bench {
    struct line *lines;
    shared_u32 *heard; /* stored by the sleeper */
    shared_u32 rung;   /* stored before the bell of that round rings */
    struct watched words[WORDS_MAX];
    size_t count;
    struct watch watch;
};

static struct bench *bench_make(size_t count, bool polls)
{
    struct bench *bench = calloc(1, sizeof *bench);
    size_t nbytes = (WORDS_MAX + 1) * sizeof *bench->lines;
    bench->lines = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(bench->lines != MAP_FAILED);
    bench->heard = &bench->lines[WORDS_MAX].word;
    bench->count = count;
    bench->watch.polls = polls;
    for (size_t i = 0; i < count; i++)
        bench->words[i] = (struct watched){.word = &bench->lines[i].word, .sleepers = &bench->lines[i].sleepers};
    return bench;
}

static void bench_free(struct bench *bench)
{
    munmap(bench->lines, (WORDS_MAX + 1) * sizeof *bench->lines);
    free(bench);
}

static enum futex_result bench_sleep(struct bench *bench, int64_t timeout_ns)
{
    return watch_sleep(&bench->watch, bench->words, bench->count, timeout_ns);
}

/* Sleep until a word is ready; return its index, or -1 after a minute. A ready word is taken as seen. */
static ptrdiff_t bench_await(struct bench *bench)
{
    int64_t start = clock_monotonic_ns();
    while (clock_monotonic_ns() - start < MINUTE_NS) {
        if (bench_sleep(bench, MINUTE_NS) == FUTEX_TIMEOUT || clock_monotonic_ns() - start >= MINUTE_NS)
            return -1; /* a word that is found after the timeout caused no wake */
        for (size_t i = 0; i < bench->count; i++) {
            if (!bench->words[i].ready)
                continue;
            bench->words[i].ready = false;
            bench->words[i].seen = shared_load_acquire(&bench->lines[i].word);
            return (ptrdiff_t)i;
        }
    }
    return -1;
}

static bool kernel_sleeps_on_several(void)
{
    struct bench *bench = bench_make(1, false);
    bench_sleep(bench, 1000);
    bool does = shared_load_relaxed(&bench->watch.polls) == 0;
    bench_free(bench);
    return does;
}

static void line_store(struct line *line, uint32_t value)
{
    shared_store_release(&line->word, value);
    futex_wake(&line->sleepers);
}

static void sleeper_await(shared_u32 *sleepers)
{
    while (shared_load_acquire(sleepers) % 2 == 0)
        sched_yield();
}

/* -- one thread ------------------------------------------------------------------------------------------------- */

static void test_what_is_there_already(size_t count, bool polls)
{
    struct bench *bench = bench_make(count, polls);
    CHECK(bench_sleep(bench, 1000) == FUTEX_TIMEOUT);
    shared_store_release(&bench->lines[count - 1].word, 7);
    CHECK(bench_await(bench) == (ptrdiff_t)count - 1);
    CHECK(bench->words[count - 1].seen == 7);
    CHECK(bench_sleep(bench, 1000) == FUTEX_TIMEOUT);

    bench->words[0].ready = true; /* its owner knows better than the word */
    CHECK(bench_sleep(bench, MINUTE_NS) == FUTEX_CHANGED && bench->words[0].ready);
    bench_free(bench);
}

static void test_a_bell_is_heard_once(size_t count, bool polls)
{
    struct bench *bench = bench_make(count, polls);
    watch_ring(&bench->watch);
    watch_ring(&bench->watch);
    CHECK(bench_sleep(bench, MINUTE_NS) == FUTEX_CHANGED);
    for (size_t i = 0; i < count; i++)
        CHECK(!bench->words[i].ready);
    CHECK(bench_sleep(bench, 1000) == FUTEX_TIMEOUT);
    bench_free(bench);
}

static void test_a_timeout_is_not_early(size_t count, bool polls)
{
    struct bench *bench = bench_make(count, polls);
    int64_t start = clock_monotonic_ns();
    enum futex_result result = bench_sleep(bench, 20000000);
    CHECK(result == FUTEX_TIMEOUT && clock_monotonic_ns() - start >= 20000000, "result %d", (int)result);
    bench_free(bench);
}

static void test_nothing_but_the_bell(void)
{
    struct bench *bench = bench_make(0, false);
    CHECK(bench_sleep(bench, 1000) == FUTEX_TIMEOUT);
    watch_ring(&bench->watch);
    CHECK(bench_sleep(bench, MINUTE_NS) == FUTEX_CHANGED);
    bench_free(bench);
}

/* -- two processes ---------------------------------------------------------------------------------------------- */

static pid_t process_start(void)
{
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0)
        atomic_store(&check_state.failures, 0);
    return pid;
}

static void process_exit(void) { _exit(atomic_load(&check_state.failures) != 0); }

static void process_join(pid_t pid)
{
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "status %x", status);
}

static void test_another_process_wakes(size_t count, bool polls)
{
    struct bench *bench = bench_make(count, polls);
    pid_t pid = process_start();
    if (pid == 0) {
        for (uint32_t round = 1; round <= 20; round++) {
            size_t i = round * 37 % count;
            if (count <= WATCH_WORDS && !polls && kernel_sleeps_on_several())
                sleeper_await(&bench->lines[i].sleepers); /* it sleeps on all of them */
            line_store(&bench->lines[i], round);
            while (shared_load_acquire(bench->heard) != round)
                sched_yield();
        }
        process_exit();
    }
    for (uint32_t round = 1; round <= 20; round++) {
        ptrdiff_t woken = bench_await(bench);
        CHECK(woken == (ptrdiff_t)(round * 37 % count), "round %u: %td", round, woken);
        shared_store_release(bench->heard, round);
    }
    process_join(pid);
    bench_free(bench);
}

/* A publisher that closes its channel wakes those who wait, and leaves the word as it is. */
static void test_a_wake_without_a_change(void)
{
    struct bench *bench = bench_make(5, false);
    pid_t pid = process_start();
    if (pid == 0) {
        sleeper_await(&bench->lines[3].sleepers);
        futex_wake(&bench->lines[3].sleepers);
        process_exit();
    }
    CHECK(bench_await(bench) == 3);
    CHECK(bench->words[3].seen == 0);
    shared_store_release(bench->heard, 1);
    process_join(pid);
    bench_free(bench);
}

/* In a child, since a filter stays for good. False where there are no filters, as under an emulator. */
static bool syscall_refuse(uint32_t number, uint32_t cause)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | cause),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    bool refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
    CHECK(refused || errno == EINVAL || errno == ENOSYS);
    return refused;
}

static void test_a_kernel_that_refuses(uint32_t cause)
{
    pid_t pid = process_start();
    if (pid != 0) {
        process_join(pid);
        return;
    }
    if (!syscall_refuse(449, cause)) {
        printf("no system call can be refused here: this case is not tested\n");
        fflush(stdout);
        process_exit();
    }
    struct bench *bench = bench_make(3, false);
    CHECK(bench_sleep(bench, 1000000) == FUTEX_TIMEOUT);
    CHECK(shared_load_relaxed(&bench->watch.polls) == 1);
    bench_free(bench);
    test_what_is_there_already(200, false);
    test_a_timeout_is_not_early(3, false);
    test_another_process_wakes(200, false);
    process_exit();
}

/* -- no wake is lost -------------------------------------------------------------------------------------------- */

static void *pace_wakes(void *argument)
{
    struct bench *bench = argument;
    uint64_t stream = check_stream(bench->count);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        if (round % 8 == 0)
            watch_ring(&bench->watch);
        line_store(&bench->lines[check_random(&stream) % bench->count], round);
        while (shared_load_acquire(bench->heard) != round)
            sched_yield();
    }
    return NULL;
}

static void test_pace(size_t count, bool polls)
{
    struct bench *bench = bench_make(count, polls);
    pthread_t waker;
    CHECK(pthread_create(&waker, NULL, pace_wakes, bench) == 0);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        ptrdiff_t woken;
        do /* a wake may come late, when the word it was for was seen before the sleep */
            woken = bench_await(bench);
        while (woken >= 0 && bench->words[woken].seen != round);
        if (!CHECK(woken >= 0, "a wake was lost in round %u", round))
            exit(1);
        shared_store_release(bench->heard, round);
    }
    pthread_join(waker, NULL);
    bench_free(bench);
}

static void *bell_rings(void *argument)
{
    struct bench *bench = argument;
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        shared_store_release(&bench->rung, round);
        watch_ring(&bench->watch);
        while (shared_load_acquire(bench->heard) != round)
            sched_yield();
    }
    return NULL;
}

/* A ring that was seen before its sleeper slept may still wake the next sleep, in vain: so what rang is looked at. */
static void test_every_bell_is_heard(size_t count)
{
    struct bench *bench = bench_make(count, false);
    pthread_t ringer;
    CHECK(pthread_create(&ringer, NULL, bell_rings, bench) == 0);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        int64_t start = clock_monotonic_ns();
        do
            if (!CHECK(bench_sleep(bench, MINUTE_NS) == FUTEX_CHANGED && clock_monotonic_ns() - start < MINUTE_NS,
                       "a bell was lost in round %u", round))
                exit(1);
        while (shared_load_acquire(&bench->rung) != round);
        shared_store_release(bench->heard, round);
    }
    pthread_join(ringer, NULL);
    bench_free(bench);
}

/* In this thread alone, whose word nobody changes. */
static void test_waits_that_learn(void)
{
    struct futex_manner manner = {0};
    shared_u32 word;
    shared_store_relaxed(&word, 7);
    for (uint32_t expected = SPIN_PENALTY_MIN; expected < 4 * SPIN_PENALTY_MAX; expected *= 2) {
        uint32_t skips = expected < SPIN_PENALTY_MAX ? expected : SPIN_PENALTY_MAX;
        futex_learn(&manner, true);
        CHECK(shared_load_relaxed(&manner.skips) == skips);
        for (; skips != 0; skips--) {
            const int64_t hour_ns = 60 * MINUTE_NS; /* a wait that is skipped does not take it */
            bool (*const spin)(struct futex_manner *, const shared_u32 *, uint32_t, int64_t) =
                skips % 2 == 0 ? futex_spin_politely : futex_spin_watchfully;
            CHECK(!spin(&manner, &word, 7, hour_ns));
            CHECK(shared_load_relaxed(&manner.skips) == skips - 1);
        }
    }
    futex_learn(&manner, true);
    CHECK(futex_spin_politely(&manner, &word, 8, MINUTE_NS)); /* it looks all the same */
    for (int i = 0; i < 1000; i++)
        futex_learn(&manner, false);
    futex_learn(&manner, true);
    CHECK(shared_load_relaxed(&manner.skips) == SPIN_PENALTY_MIN);
    manner = (struct futex_manner){0};
    CHECK(futex_spin_politely(&manner, &word, 8, MINUTE_NS));
    CHECK(!futex_spin_politely(&manner, &word, 7, 1000));
    CHECK(shared_load_relaxed(&manner.skips) == 0);
    CHECK(futex_spin_watchfully(&manner, &word, 8, MINUTE_NS));
    CHECK(!futex_spin_watchfully(&manner, &word, 7, 0));
    CHECK(shared_load_relaxed(&manner.penalty) == 0); /* no yield, so nothing was learned */
    CHECK(!futex_spin_watchfully(&manner, &word, 7, 2 * SPIN_POLITE_NS));
    CHECK(shared_load_relaxed(&manner.penalty) != 0);
}

int main(void)
{
    check_begin("test_waiting");
    for (int i = 0; i < COUNTS_LENGTH; i++) {
        for (int polls = 0; polls <= 1; polls++) {
            test_what_is_there_already(COUNTS[i], polls);
            test_a_bell_is_heard_once(COUNTS[i], polls);
            test_a_timeout_is_not_early(COUNTS[i], polls);
            test_another_process_wakes(COUNTS[i], polls);
        }
    }
    test_nothing_but_the_bell();
    test_waits_that_learn();
    if (kernel_sleeps_on_several())
        test_a_wake_without_a_change();
    test_a_kernel_that_refuses(ENOSYS);
    test_a_kernel_that_refuses(EPERM);
    test_pace(1, false);
    test_pace(127, false);
    test_every_bell_is_heard(0);
    test_every_bell_is_heard(1);
    test_every_bell_is_heard(127);
    return check_end();
}

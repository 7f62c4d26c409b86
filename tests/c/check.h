/* A test harness in one header: checks that count, random numbers that can be had again, one line at the end.
 *
 *     int main(void)
 *     {
 *         check_begin("test_thing");                    // the seed: UNTORN_SEED, or the clock's
 *         uint64_t stream = check_stream(0);            // random numbers; give each thread its own stream
 *         uint64_t index = check_random(&stream) % 10;
 *         CHECK(thing_count() == 3);
 *         CHECK(total == 7, "index %d of %d", index, 10);
 *         return check_end();                           // prints "test_thing: seed 1, 2 checks, 0 failed"
 *     }
 *
 * Checks may run in any number of threads. A failed check is printed and counted and the program continues, so one run
 * shows all failures; CHECK's value is the condition's, for where nothing sensible can follow. Only a process
 * that called check_begin counts: a forked child reports through its exit status.
 */
#ifndef UNTORN_TESTS_CHECK_H
#define UNTORN_TESTS_CHECK_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHECK_PRINTED_MAX 20u /* later failures are only counted */

static struct {
    const char *name;
    uint64_t seed;
    atomic_uint_fast64_t checks;
    atomic_uint_fast64_t failures;
} check_state;

/* CHECK(condition) or CHECK(condition, "format", ...) */
#define CHECK(condition, ...) check_that((condition), #condition, __FILE__, __LINE__, " " __VA_ARGS__)

__attribute__((format(printf, 5, 6))) static inline bool check_that(bool holds, const char *condition, const char *file,
                                                                    int line, const char *format, ...)
{
    atomic_fetch_add_explicit(&check_state.checks, 1, memory_order_relaxed);
    if (holds)
        return true;
    if (atomic_fetch_add_explicit(&check_state.failures, 1, memory_order_relaxed) < CHECK_PRINTED_MAX) {
        char note[512];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(note, sizeof note, format, arguments);
        va_end(arguments);
        printf("%s:%d: not true: %s%s (UNTORN_SEED=%" PRIu64 ")\n", file, line, condition, note, check_state.seed);
    }
    return false;
}

static inline void check_begin(const char *name)
{
    const char *given = getenv("UNTORN_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    check_state.name = name;
    check_state.seed = given ? strtoull(given, NULL, 10) : (uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec;
    setvbuf(stdout, NULL, _IOLBF, 0); /* a program that crashes has printed what it found */
}

/* The exit status. */
static inline int check_end(void)
{
    const uint64_t checks = atomic_load(&check_state.checks), failures = atomic_load(&check_state.failures);
    printf("%s: seed %" PRIu64 ", %" PRIu64 " checks, %" PRIu64 " failed\n", check_state.name, check_state.seed, checks,
           failures);
    return failures != 0 || checks == 0;
}

/* splitmix64 (Steele, Lea and Flood, 2014). */
static inline uint64_t check_random(uint64_t *stream)
{
    uint64_t bits = *stream += UINT64_C(0x9e3779b97f4a7c15);
    bits = (bits ^ bits >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ bits >> 27) * UINT64_C(0x94d049bb133111eb);
    return bits ^ bits >> 31;
}

/* Random numbers of stream `index` of this run. */
static inline uint64_t check_stream(uint64_t index)
{
    uint64_t start = check_state.seed;
    return check_random(&start) ^ check_random(&index);
}

#endif

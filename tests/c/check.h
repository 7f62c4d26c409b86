/* A test harness in one header: checks that count, random numbers that can be had again, one line at the end.
 *
 *     int main(void)
 *     {
 *         check_begin("test_thing");              // the seed: UNTORN_SEED, or the clock
 *         uint64_t state = check_random_start(0); // a stream; give each thread its own
 *         CHECK(thing_count() == 3);
 *         CHECK(total == 7, "step %d of %d", step, steps);
 *         return check_end();                     // prints "test_thing seed=... checks=... failures=..."
 *     }
 *
 * Checks may run in any number of threads. A failed check is printed and counted and the program goes on, so that one
 * run shows all that is wrong; CHECK_OR_STOP is for what nothing sensible can follow.
 */
#ifndef UNTORN_TESTS_CHECK_H
#define UNTORN_TESTS_CHECK_H

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHECK_PRINTED_MAX 20u /* further failures are only counted */

static struct {
    const char *name;
    uint64_t seed;
    atomic_uint_fast64_t checks;
    atomic_uint_fast64_t failures;
} check_state;

#define CHECK(...) CHECK_PICK(__VA_ARGS__, CHECK_WITH_NOTE, CHECK_ALONE, )(__VA_ARGS__)
#define CHECK_OR_STOP(...)                                                                                           \
    do {                                                                                                             \
        if (!CHECK(__VA_ARGS__))                                                                                     \
            exit(check_end());                                                                                       \
    } while (0)

#define CHECK_PICK(_1, _2, _3, _4, _5, _6, _7, _8, _9, picked, ...) \
    CHECK_PICK_UNUSED
#undef CHECK_PICK
#undef CHECK
/* CHECK(condition) or CHECK(condition, format, ...): the value is the condition's. */
#define CHECK(...) check_that(CHECK_FIRST(__VA_ARGS__, ), CHECK_TEXT(__VA_ARGS__), __FILE__, __LINE__, CHECK_NOTE(__VA_ARGS__))

#endif

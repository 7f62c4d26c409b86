/* Run a fuzz target over files, each unchanged and with a number of seeded mutations, as libFuzzer does, but without
 * clang, and the same in every run.
 *
 *     replay CHANGES FILE...
 *
 * Prints which input it is at when the target stops the program, and otherwise one line.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"

enum { MAX_NBYTES = 1 << 16, WATCHDOG_S = 60 };

static const char *at_file = "";
static unsigned long at_change;

static uint64_t random_next(uint64_t *state) /* splitmix64, by Sebastiano Vigna, public domain */
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static size_t change(uint8_t *data, size_t nbytes, uint64_t *state)
{
    static const uint64_t values[] = {0, 1, 7, 8, 63, 64, 4095, 4096, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX};
    const uint64_t which = random_next(state) % 8, at = random_next(state) % (nbytes + 1), value = random_next(state);
    const uint64_t known = values[value % (sizeof values / sizeof *values)] << (value >> 32) % 2;
    const size_t room = nbytes - at < 8 ? nbytes - at : 8;
    switch (which) {
    case 0: return at; /* cut short */
    case 1: memcpy(data + at, &known, room); return nbytes;
    case 2: memcpy(data + at, &value, room); return nbytes;
    case 3: memmove(data, data + at, nbytes - at); return nbytes - at;
    case 4: /* a part of it once more */
        if (nbytes + room > MAX_NBYTES)
            return nbytes;
        memmove(data + at + room, data + at, nbytes - at);
        return nbytes + room;
    default:
        if (at < nbytes)
            data[at] ^= (uint8_t)(1u << value % 8);
        return nbytes;
    }
}

/* The sanitizers' own: called when one of them ends the program. */
extern void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static void say_where(void) { fprintf(stderr, "replay: %s, change %lu\n", at_file, at_change); }

/* An input takes milliseconds: this turns a hang into a failure. */
static void too_long(int number)
{
    say_where();
    fprintf(stderr, "replay: it does not end\n");
    _exit(1);
}

int main(int count, char **names)
{
    static uint8_t whole[MAX_NBYTES], data[MAX_NBYTES];
    const unsigned long changes = count > 1 ? strtoul(names[1], NULL, 10) : 0;
    unsigned long runs = 0;
    const char *wanted = getenv("UNTORN_SEED");
    const uint64_t seed = wanted ? strtoull(wanted, NULL, 10) : 1;
    if (__sanitizer_set_death_callback != NULL)
        __sanitizer_set_death_callback(say_where);
    signal(SIGALRM, too_long);
    for (int i = 2; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        if (file == NULL)
            return perror(names[i]), 2;
        const size_t nbytes = fread(whole, 1, sizeof whole, file);
        fclose(file);
        at_file = names[i];
        for (at_change = 0; at_change <= changes; at_change++, runs++) {
            uint64_t state = seed ^ at_change << 16 ^ (uint64_t)i << 48;
            size_t left = nbytes;
            memcpy(data, whole, nbytes);
            for (uint64_t n = at_change == 0 ? 0 : 1 + random_next(&state) % 4; n > 0; n--)
                left = change(data, left, &state);
            alarm(WATCHDOG_S);
            LLVMFuzzerTestOneInput(data, left);
        }
    }
    printf("replay: %d files, %lu inputs, seed %llu\n", count - 2, runs, (unsigned long long)seed);
    return 0;
}

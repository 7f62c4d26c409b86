/* A fuzz target: libFuzzer calls it (clang, -fsanitize=fuzzer), or replay.c does, with any compiler. */
#ifndef UNTORN_TESTS_FUZZ_H
#define UNTORN_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes);

/* A promise that was broken. */
#define FUZZ_CHECK(condition)                                                         \
    do {                                                                              \
        if (!(condition)) {                                                           \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            __builtin_trap();                                                         \
        }                                                                             \
    } while (0)

#endif

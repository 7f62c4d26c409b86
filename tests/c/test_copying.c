/* copying: every size and alignment, with nothing written beside the copy. */
#include "copying.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"

enum { ROOM = 5000, MAX_SHIFT = 70 };

static uint64_t seed;

static void check_copy(size_t nbytes, size_t to_shift, size_t from_shift, bool streams)
{
    uint8_t *from = malloc(ROOM + MAX_SHIFT), *to = malloc(ROOM + 2 * MAX_SHIFT);
    for (size_t i = 0; i < ROOM + MAX_SHIFT; i++)
        from[i] = (uint8_t)check_random(&seed);
    memset(to, 0x5a, ROOM + 2 * MAX_SHIFT);
    if (streams)
        copy_streaming(to + to_shift, from + from_shift, nbytes);
    else
        copy_bytes(to + to_shift, from + from_shift, nbytes, UINT64_MAX);
    CHECK(memcmp(to + to_shift, from + from_shift, nbytes) == 0);
    for (size_t i = 0; i < to_shift; i++)
        CHECK(to[i] == 0x5a);
    for (size_t i = to_shift + nbytes; i < ROOM + 2 * MAX_SHIFT; i++)
        CHECK(to[i] == 0x5a);
    free(from);
    free(to);
}

int main(void)
{
    check_begin("test_copying");
    seed = check_stream(0);
    for (size_t nbytes = 0; nbytes < 300; nbytes++)
        check_copy(nbytes, nbytes % MAX_SHIFT, check_random(&seed) % MAX_SHIFT, true);
    for (int round = 0; round < 300; round++)
        check_copy(check_random(&seed) % ROOM, check_random(&seed) % MAX_SHIFT, check_random(&seed) % MAX_SHIFT,
                   round % 2);
    return check_end();
}

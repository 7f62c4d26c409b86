/* Copying large memory. See copying.h. */
#include "copying.h"

#include <stdio.h>
#include <string.h>

#include "atomics.h"

#ifdef __x86_64__
#include <immintrin.h>

enum { LINE_NBYTES = 64 };

/* Streaming stores are not ordered with other stores, not even with one with release: hence the fence. */
__attribute__((target("avx2"))) static void lines_stream(uint8_t *to, const uint8_t *from, size_t lines)
{
    for (size_t i = 0; i < lines; i++, to += LINE_NBYTES, from += LINE_NBYTES) {
        const __m256i first = _mm256_loadu_si256((const __m256i *)from);
        const __m256i second = _mm256_loadu_si256((const __m256i *)(from + LINE_NBYTES / 2));
        _mm256_stream_si256((__m256i *)to, first);
        _mm256_stream_si256((__m256i *)(to + LINE_NBYTES / 2), second);
    }
    _mm_sfence();
}

void copy_streaming(void *to, const void *from, size_t nbytes)
{
    size_t head = (uintptr_t)to % LINE_NBYTES;
    head = head == 0 ? 0 : LINE_NBYTES - head;
    if (nbytes < head + LINE_NBYTES || !__builtin_cpu_supports("avx2")) {
        memcpy(to, from, nbytes);
        return;
    }
    const size_t lines = (nbytes - head) / LINE_NBYTES, tail = head + lines * LINE_NBYTES;
    memcpy(to, from, head);
    lines_stream((uint8_t *)to + head, (const uint8_t *)from + head, lines);
    memcpy((uint8_t *)to + tail, (const uint8_t *)from + tail, nbytes - tail);
}

#else

void copy_streaming(void *to, const void *from, size_t nbytes) { memcpy(to, from, nbytes); }

#endif

/* The size of the last-level cache where the kernel does not tell. */
static const uint64_t CACHE_NBYTES = UINT64_C(32) << 20;

/* Return the size of the last-level cache that a processor shares with its neighbours, which may be one of many. */
static uint64_t cache_read(void)
{
    unsigned long long kilobytes = 0;
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "re");
    const bool found = file != NULL && fscanf(file, "%lluK", &kilobytes) == 1 && kilobytes != 0;
    if (file != NULL)
        fclose(file);
    return found ? kilobytes * 1024 : CACHE_NBYTES;
}

static uint64_t cache_nbytes(void)
{
    static shared_u64 known; /* 0: not read yet; threads that read it at a time find the same */
    uint64_t nbytes = shared_load_relaxed(&known);
    if (nbytes == 0) {
        nbytes = cache_read();
        shared_store_relaxed(&known, nbytes);
    }
    return nbytes;
}

void copy_bytes(void *to, const void *from, size_t nbytes, uint64_t together)
{
    /* small copies are not worth reading the size of the cache, once per process */
    if (together >= (UINT64_C(1) << 20) && together > cache_nbytes())
        copy_streaming(to, from, nbytes);
    else
        memcpy(to, from, nbytes);
}

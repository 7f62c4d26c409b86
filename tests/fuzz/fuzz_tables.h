/* Reading frozen tables of any bytes, for the fuzz targets. Tables lie in memory of exactly their size, so that
 * AddressSanitizer sees the first byte behind them. */
#ifndef UNTORN_TESTS_FUZZ_TABLES_H
#define UNTORN_TESTS_FUZZ_TABLES_H

#include <stdlib.h>
#include <string.h>

#include "frozen.h"
#include "fuzz.h"

enum { MAX_DEPTH = 8 };

static volatile uint64_t sink; /* so that every byte is really read */

static inline void bytes_read(const uint8_t *bytes, uint64_t nbytes)
{
    for (uint64_t i = 0; i < nbytes; i++)
        sink += bytes[i];
}

/* Read a record as module_frozen_read.c does: its key, its content, and the nodes of a container. */
static inline void record_read(const struct frozen_record *record, unsigned depth)
{
    uint64_t count, offset = sizeof count;
    struct frozen_record node;
    bytes_read(record->key.bytes, record->key.nbytes);
    bytes_read(record->content, record->content_nbytes);
    if (record->kind < FROZEN_LIST || record->kind > FROZEN_DICT || depth == MAX_DEPTH ||
        record->content_nbytes < sizeof count)
        return;
    memcpy(&count, record->content, sizeof count);
    if (count > record->content_nbytes / 16)
        return;
    for (uint64_t i = 0; i < count && frozen_read(record->content, record->content_nbytes, &offset, &node); i++)
        record_read(&node, depth + 1);
}

static inline void table_read(const struct frozen *table)
{
    static const struct frozen_key absent = {(const uint8_t *)"absent", 6, FROZEN_STR};
    struct frozen_record record, found;
    uint64_t offset = 0;
    for (uint64_t i = 0; i < table->count && frozen_read(table->entries, table->entries_nbytes, &offset, &record);
         i++) {
        record_read(&record, 0);
        if (frozen_find(table, &record.key, &found) == FROZEN_FOUND)
            record_read(&found, 0);
    }
    frozen_find(table, &absent, &found);
}

/* Move `nbytes` of the input, or what is left of it and zeros, to memory of that size. */
static inline uint8_t *bytes_take(const uint8_t **data, size_t *left, uint64_t nbytes)
{
    const size_t taken = *left < nbytes ? *left : nbytes;
    uint8_t *bytes = calloc(nbytes ? nbytes : 1, 1);
    memcpy(bytes, *data, taken);
    *data += taken;
    *left -= taken;
    return bytes;
}

#endif

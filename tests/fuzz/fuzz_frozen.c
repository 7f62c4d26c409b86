/* A frozen table of any bytes: finding and walking read nothing outside it, and end.
 *
 *     input:  u8 seed | u8 log2 of the buckets | u16 bytes of entries | index | entries
 *
 * Index and entries lie in memory of exactly their size, so that AddressSanitizer sees the first byte behind them.
 */
#include <stdlib.h>
#include <string.h>

#include "frozen.h"
#include "fuzz.h"

enum { HEAD_NBYTES = 4, MAX_DEPTH = 8 };

static volatile uint64_t sink; /* so that every byte is really read */

static void bytes_read(const uint8_t *bytes, uint64_t nbytes)
{
    for (uint64_t i = 0; i < nbytes; i++)
        sink += bytes[i];
}

/* Read a record as module_frozen_read.c does: its key, its content, and the nodes of a container. */
static void record_read(const struct frozen_record *record, unsigned depth)
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

static void table_read(const struct frozen *table)
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    if (nbytes < HEAD_NBYTES)
        return 0;
    const uint64_t index_nbytes = (uint64_t)FROZEN_BUCKET * FROZEN_SLOT_NBYTES << (data[1] & 3);
    const uint64_t entries_nbytes = data[2] | (uint64_t)data[3] << 8;
    uint8_t *index = calloc(index_nbytes, 1), *entries = calloc(entries_nbytes + 1, 1);
    uint8_t *exact = realloc(entries, entries_nbytes ? entries_nbytes : 1);
    const uint64_t left = nbytes - HEAD_NBYTES, of_index = left < index_nbytes ? left : index_nbytes;
    const uint64_t of_entries = left - of_index < entries_nbytes ? left - of_index : entries_nbytes;
    memcpy(index, data + HEAD_NBYTES, of_index);
    memcpy(exact, data + HEAD_NBYTES + of_index, of_entries);
    for (uint64_t count = 0; count <= entries_nbytes / 16; count += 1 + count / 2) {
        const struct frozen table = {index, exact, index_nbytes / FROZEN_SLOT_NBYTES, entries_nbytes, count, data[0]};
        if (frozen_fits(&table, index_nbytes))
            table_read(&table);
    }
    free(index);
    free(exact);
    return 0;
}

/* A frozen table of any bytes: finding and walking read nothing outside it, and end.
 *
 *     input:  u8 seed | u8 log2 of the buckets | u16 bytes of entries | index | entries
 */
#include "fuzz_tables.h"

enum { HEAD_NBYTES = 4 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    if (nbytes < HEAD_NBYTES)
        return 0;
    const uint64_t index_nbytes = (uint64_t)FROZEN_BUCKET * FROZEN_SLOT_NBYTES << (data[1] & 3);
    const uint64_t entries_nbytes = data[2] | (uint64_t)data[3] << 8;
    const uint8_t *rest = data + HEAD_NBYTES;
    size_t left = nbytes - HEAD_NBYTES;
    uint8_t *index = bytes_take(&rest, &left, index_nbytes), *entries = bytes_take(&rest, &left, entries_nbytes);
    for (uint64_t count = 0; count <= entries_nbytes / 16; count += 1 + count / 2) {
        const struct frozen table = {index, entries, index_nbytes / FROZEN_SLOT_NBYTES, entries_nbytes, count, data[0]};
        if (frozen_fits(&table, index_nbytes))
            table_read(&table);
    }
    free(index);
    free(entries);
    return 0;
}

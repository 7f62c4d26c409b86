/* A frozen table and changes of it, of any bytes: looking up in both, adding changes and merging them read nothing
 * outside of the two, and what comes out is whole: every entry is found, and refers to the new blob only.
 *
 *     input:  for the base, then for the changes: u8 seed | u8 log2 of the buckets | u16 bytes of entries
 *             then of both: index | entries; the rest is the blob of both
 */
#include "fuzz_tables.h"

enum { HEAD_NBYTES = 4, SOURCES = 2, DESCRIPTIONS = 4 };

static const uint64_t OF_BASE[DESCRIPTIONS] = {0, 1, 2, 3}, OF_CHANGES[DESCRIPTIONS] = {2, 3, 4, 5};

/* The table as it says of itself how many entries it has: what a reader gets from its documents is any number. */
static void source_take(struct frozen_source *source, const uint8_t *head, const uint8_t **data, size_t *left)
{
    const uint64_t index_nbytes = (uint64_t)FROZEN_BUCKET * FROZEN_SLOT_NBYTES << (head[1] & 3);
    const uint64_t entries_nbytes = (head[2] | (uint64_t)head[3] << 8) & ~UINT64_C(7);
    struct frozen *table = &source->table;
    table->index = bytes_take(data, left, index_nbytes);
    table->entries = bytes_take(data, left, entries_nbytes);
    table->slots = index_nbytes / FROZEN_SLOT_NBYTES;
    table->entries_nbytes = entries_nbytes;
    table->seed = head[0] & 1;
    struct frozen_record record;
    for (uint64_t offset = 0; frozen_read(table->entries, entries_nbytes, &offset, &record);)
        table->count += !record.replaced && table->count + 1 < table->slots;
    source->dtype_count = source->schema_count = DESCRIPTIONS;
}

/* A reference to a blob lies inside it, and its description is known. */
static void references_check(const struct frozen_record *record, const struct frozen_builder *made, uint64_t known,
                             unsigned depth)
{
    uint64_t count, offset = sizeof count, words[3];
    struct frozen_record node;
    if (record->kind >= FROZEN_ARRAY && record->kind <= FROZEN_OTHER) {
        memcpy(words, record->content, sizeof words);
        FUZZ_CHECK(words[0] < known && words[1] <= made->blob.nbytes && words[2] <= made->blob.nbytes - words[1]);
        bytes_read(made->blob.bytes + words[1], words[2]);
    }
    if (record->kind < FROZEN_LIST || record->kind > FROZEN_DICT || depth == MAX_DEPTH)
        return;
    memcpy(&count, record->content, sizeof count);
    for (uint64_t i = 0; i < (record->kind == FROZEN_DICT ? 2 * count : count); i++) {
        FUZZ_CHECK(frozen_read(record->content, record->content_nbytes, &offset, &node));
        references_check(&node, made, known, depth + 1);
    }
}

static void made_check(const struct frozen_builder *made, uint64_t known)
{
    const struct frozen table = {made->index.bytes,    made->entries.bytes, made->index.nbytes / FROZEN_SLOT_NBYTES,
                                 made->entries.nbytes, made->count,         made->seed};
    struct frozen_record record, found;
    uint64_t count = 0;
    FUZZ_CHECK(frozen_fits(&table, made->index.nbytes));
    for (uint64_t offset = 0; offset < table.entries_nbytes; count++) {
        FUZZ_CHECK(frozen_read(table.entries, table.entries_nbytes, &offset, &record) && !record.replaced);
        FUZZ_CHECK(frozen_find(&table, &record.key, &found) == FROZEN_FOUND);
        references_check(&record, made, known, 0);
    }
    FUZZ_CHECK(count == made->count);
}

static void merge(struct frozen_source *base, struct frozen_source *changes, uint64_t expected)
{
    uint64_t kept[SOURCES][DESCRIPTIONS + 2];
    memset(kept, 0xff, sizeof kept);
    struct frozen_numbers dtypes = {.kept = kept[0], .count = DESCRIPTIONS + 2}, schemas = dtypes;
    shared_u32 stop = 0;
    schemas.kept = kept[1];
    struct frozen_builder made = {0};
    if (frozen_merge(&made, base, changes, &dtypes, &schemas, expected, 1, &stop) == FROZEN_MERGED)
        made_check(&made, DESCRIPTIONS + 2);
    else
        FUZZ_CHECK(made.damaged);
    frozen_builder_free(&made);
}

/* Go on with the changes, as the next publisher does. */
static void continue_changes(const struct frozen_source *changes)
{
    const uint64_t blob_nbytes = changes->blob_nbytes & ~UINT64_C(7);
    struct frozen_builder builder = {0};
    bool added = frozen_builder_continue(&builder, &changes->table, changes->blob, blob_nbytes, 1);
    for (uint64_t key = 0; added && key < 40; key++) {
        const uint64_t number = key % 20;
        const uint64_t place =
            frozen_entry_begin(&builder, &(struct frozen_key){(const uint8_t *)&number, sizeof number, FROZEN_INT});
        added = place != FROZEN_NO_PLACE && frozen_entry_end(&builder, place);
    }
    added = added && frozen_builder_end_changes(&builder);
    FUZZ_CHECK(added || builder.damaged);
    frozen_builder_free(&builder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t nbytes)
{
    struct frozen_source sources[SOURCES] = {{.dtypes = OF_BASE, .schemas = OF_BASE},
                                             {.dtypes = OF_CHANGES, .schemas = OF_CHANGES}};
    if (nbytes < (size_t)HEAD_NBYTES * SOURCES)
        return 0;
    const uint8_t *rest = data + (size_t)HEAD_NBYTES * SOURCES;
    size_t left = nbytes - (size_t)HEAD_NBYTES * SOURCES;
    bool fit = true;
    for (unsigned i = 0; i < SOURCES; i++) {
        source_take(&sources[i], data + (size_t)HEAD_NBYTES * i, &rest, &left);
        fit = fit && frozen_fits(&sources[i].table, sources[i].table.slots * FROZEN_SLOT_NBYTES);
    }
    const uint64_t blob_nbytes = left;
    uint8_t *blob = bytes_take(&rest, &left, blob_nbytes);
    for (unsigned i = 0; i < SOURCES; i++) {
        sources[i].blob = blob;
        sources[i].blob_nbytes = blob_nbytes;
    }
    if (fit) {
        table_read(&sources[1].table);
        merge(&sources[0], &sources[1], sources[0].table.count);
        continue_changes(&sources[1]);
    }
    for (unsigned i = 0; i < SOURCES; i++) {
        free((void *)sources[i].table.index);
        free((void *)sources[i].table.entries);
    }
    free(blob);
    return 0;
}

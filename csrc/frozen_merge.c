/* Merging a frozen table and its changes into one table: see frozen.h.
 *
 * Both are read from the front to the back, a few records at a time: their hashes first, and what these lead to in the
 * indexes is fetched meanwhile, so that the processor seldom waits for memory. A record is copied before its content is
 * looked at, and what it says is checked against the copy.
 */
#include <string.h>

#include "frozen.h"

enum { RECORDS_AT_ONCE = 16, HEADER_NBYTES = 16 };

/* A reference to the blob: the words in front of an array's axes. */
enum { WORD_DESCRIPTION, WORD_OFFSET, WORD_NBYTES, WORDS };

struct merge {
    struct frozen_builder *builder;
    const struct frozen_source *base, *changes;
    struct frozen_numbers *dtypes, *schemas;
};

struct item {
    struct frozen_record record;
    uint64_t start, end, hash; /* under the seed of the other source */
};

static bool merge_damaged(struct merge *merge)
{
    merge->builder->damaged = true;
    return false;
}

/* Give a description its number in the new table. */
static bool description_move(struct merge *merge, const struct frozen_source *source, bool schema, uint64_t *number)
{
    struct frozen_numbers *numbers = schema ? merge->schemas : merge->dtypes;
    const uint64_t *indices = schema ? source->schemas : source->dtypes;
    if (indices == NULL)
        return true;
    if (*number >= (schema ? source->schema_count : source->dtype_count) || indices[*number] >= numbers->count)
        return merge_damaged(merge);
    uint64_t *kept = &numbers->kept[indices[*number]];
    if (*kept == FROZEN_UNUSED)
        *kept = numbers->used++;
    *number = *kept;
    return true;
}

/* Copy what a value refers to into the new blob, and let it refer to that. `at` is the place of its words. */
static bool reference_move(struct merge *merge, const struct frozen_source *source, uint8_t kind, uint64_t at,
                           uint64_t nbytes)
{
    const bool other = kind == FROZEN_OTHER;
    uint64_t words[WORDS];
    if (nbytes < sizeof words)
        return merge_damaged(merge);
    memcpy(words, merge->builder->entries.bytes + at, sizeof words);
    if (words[WORD_OFFSET] > source->blob_nbytes || words[WORD_NBYTES] > source->blob_nbytes - words[WORD_OFFSET])
        return merge_damaged(merge);
    if (!description_move(merge, source, other, &words[WORD_DESCRIPTION]))
        return false;
    const uint64_t alignment = other || words[WORD_NBYTES] >= FROZEN_LARGE ? 64 : 16;
    const uint64_t offset =
        frozen_blob_put(merge->builder, source->blob + words[WORD_OFFSET], words[WORD_NBYTES], alignment);
    if (offset == FROZEN_NO_PLACE)
        return false;
    words[WORD_OFFSET] = offset;
    memcpy(merge->builder->entries.bytes + at, words, sizeof words);
    return true;
}

/* Do this for a record or node of the new table, and for the nodes inside it. */
static bool references_move(struct merge *merge, const struct frozen_source *source, uint64_t place, unsigned depth)
{
    const uint8_t *entries = merge->builder->entries.bytes;
    uint64_t end = place, count;
    struct frozen_record record;
    if (!frozen_read(entries, merge->builder->entries.nbytes, &end, &record))
        return merge_damaged(merge);
    const uint64_t content = (uint64_t)(record.content - entries);
    if (record.kind >= FROZEN_ARRAY && record.kind <= FROZEN_OTHER)
        return reference_move(merge, source, record.kind, content, record.content_nbytes);
    if (record.kind < FROZEN_LIST || record.kind > FROZEN_DICT)
        return true;
    if (record.content_nbytes < sizeof count || depth >= FROZEN_MAX_DEPTH)
        return merge_damaged(merge);
    memcpy(&count, record.content, sizeof count);
    if (count > record.content_nbytes / HEADER_NBYTES)
        return merge_damaged(merge);
    const uint64_t content_end = content + record.content_nbytes;
    uint64_t at = content + sizeof count;
    for (uint64_t nodes = record.kind == FROZEN_DICT ? 2 * count : count; nodes > 0; nodes--) {
        uint64_t next = at; /* moving references changes no sizes */
        if (!frozen_read(merge->builder->entries.bytes, content_end, &next, &record))
            return merge_damaged(merge);
        if (!references_move(merge, source, at, depth + 1))
            return false;
        at = next;
    }
    return true;
}

/* Add an entry as it is in a source. */
static bool item_put(struct merge *merge, const struct frozen_source *source, const struct frozen_record *record,
                     const uint8_t *bytes, uint64_t nbytes, uint64_t hash)
{
    struct frozen_builder *builder = merge->builder;
    const uint64_t place = frozen_entry_copy(builder, bytes, nbytes);
    if (place == FROZEN_NO_PLACE || place > FROZEN_MAX_PLACE)
        return false;
    if (record->kind >= FROZEN_LIST && !references_move(merge, source, place, 0))
        return false;
    return frozen_entry_end_hashed(builder, place, &record->key, hash);
}

/* Read the next records that are in use, and fetch what `other` and the new index have for them. */
static bool items_read(struct merge *merge, const struct frozen *table, const struct frozen *other, uint64_t *offset,
                       struct item *items, unsigned *count)
{
    const struct frozen_builder *builder = merge->builder;
    const struct frozen made = {.index = builder->index.bytes, .slots = builder->index.nbytes / FROZEN_SLOT_NBYTES};
    *count = 0;
    while (*count < RECORDS_AT_ONCE && *offset < table->entries_nbytes) {
        struct item *item = &items[*count];
        item->start = *offset;
        if (!frozen_read(table->entries, table->entries_nbytes, offset, &item->record) ||
            *offset > table->entries_nbytes)
            return merge_damaged(merge);
        if (item->record.replaced)
            continue;
        item->end = *offset;
        item->hash = frozen_hash(other->seed, &item->record.key);
        frozen_prefetch(other, item->hash);
        if (other->seed == builder->seed)
            frozen_prefetch(&made, item->hash);
        ++*count;
    }
    return true;
}

static uint64_t hash_for(const struct merge *merge, const struct item *item, const struct frozen *other)
{
    const uint64_t seed = merge->builder->seed;
    return seed == other->seed ? item->hash : frozen_hash(seed, &item->record.key);
}

/* An entry of the base: as it is, or with its last value. */
static bool base_put(struct merge *merge, const struct item *item)
{
    const struct frozen *changes = &merge->changes->table;
    struct frozen_record last;
    switch (frozen_find_hashed(changes, &item->record.key, item->hash, &last)) {
    case FROZEN_MISSING:
        return item_put(merge, merge->base, &item->record, merge->base->table.entries + item->start,
                        item->end - item->start, hash_for(merge, item, changes));
    case FROZEN_FOUND:
        if (last.kind == FROZEN_NO_KEY)
            return true;
        const uint8_t *start = last.key.bytes - HEADER_NBYTES;
        const uint64_t content_nbytes = (last.content_nbytes + 7) & ~UINT64_C(7);
        if (content_nbytes > (uint64_t)(changes->entries + changes->entries_nbytes - last.content))
            return merge_damaged(merge);
        return item_put(merge, merge->changes, &last, start, (uint64_t)(last.content - start) + content_nbytes,
                        hash_for(merge, item, changes));
    default: return merge_damaged(merge);
    }
}

/* An entry of the changes: if it is new. */
static bool change_put(struct merge *merge, const struct item *item)
{
    const struct frozen *base = &merge->base->table;
    struct frozen_record before;
    if (item->record.kind == FROZEN_NO_KEY)
        return true;
    switch (frozen_find_hashed(base, &item->record.key, item->hash, &before)) {
    case FROZEN_MISSING:
        return item_put(merge, merge->changes, &item->record, merge->changes->table.entries + item->start,
                        item->end - item->start, hash_for(merge, item, base));
    case FROZEN_FOUND: return true;
    default: return merge_damaged(merge);
    }
}

static enum frozen_merged merge_half(struct merge *merge, bool of_changes, const shared_u32 *stop)
{
    const struct frozen *table = of_changes ? &merge->changes->table : &merge->base->table;
    const struct frozen *other = of_changes ? &merge->base->table : &merge->changes->table;
    struct item items[RECORDS_AT_ONCE];
    unsigned count = 1;
    for (uint64_t offset = 0; count != 0;) {
        if (shared_load_relaxed(stop) != 0) /* nothing else is told by it */
            return FROZEN_STOPPED;
        if (!items_read(merge, table, other, &offset, items, &count))
            return FROZEN_MERGE_FAILED;
        for (unsigned i = 0; i < count; i++)
            if (!(of_changes ? change_put(merge, &items[i]) : base_put(merge, &items[i])))
                return FROZEN_MERGE_FAILED;
    }
    return FROZEN_MERGED;
}

enum frozen_merged frozen_merge(struct frozen_builder *builder, const struct frozen_source *base,
                                const struct frozen_source *changes, struct frozen_numbers *dtypes,
                                struct frozen_numbers *schemas, uint64_t expected, uint64_t spare_seed,
                                const shared_u32 *stop)
{
    struct merge merge = {builder, base, changes, dtypes, schemas};
    const uint64_t most = base->table.count + changes->table.count;
    if (!frozen_builder_begin(builder, expected < most ? expected : most, spare_seed) ||
        !frozen_builder_reserve(builder, base->table.entries_nbytes + changes->table.entries_nbytes, 0))
        return FROZEN_MERGE_FAILED;
    enum frozen_merged merged = merge_half(&merge, false, stop);
    if (merged == FROZEN_MERGED)
        merged = merge_half(&merge, true, stop);
    if (merged == FROZEN_MERGED && !frozen_builder_end(builder))
        merged = FROZEN_MERGE_FAILED;
    return merged;
}

/* -- Changes alone ------------------------------------------------------------------------------------------------ */

/* Keep the last record of each key, also of one that is removed, at the place of that record. */
static bool changes_rewrite(struct frozen_builder *builder, struct frozen_builder *made)
{
    const struct frozen_source source = {
        .table = {.entries = builder->entries.bytes, .entries_nbytes = builder->entries.nbytes, .seed = builder->seed},
        .blob = builder->blob.bytes,
        .blob_nbytes = builder->blob.nbytes};
    struct merge merge = {.builder = made};
    struct frozen_record record;
    if (!frozen_builder_begin(made, builder->count, builder->spare_seed))
        return false;
    for (uint64_t offset = 0, start = 0; offset < source.table.entries_nbytes; start = offset) {
        if (!frozen_read(source.table.entries, source.table.entries_nbytes, &offset, &record))
            return merge_damaged(&merge);
        if (!record.replaced && !item_put(&merge, &source, &record, source.table.entries + start, offset - start,
                                          frozen_hash(made->seed, &record.key)))
            return false;
    }
    return true;
}

bool frozen_builder_end_changes(struct frozen_builder *builder)
{
    struct frozen_builder made = {0};
    if (builder->replaced <= builder->count && builder->wasted <= builder->blob.nbytes / 2)
        return true;
    const bool rewritten = changes_rewrite(builder, &made);
    builder->damaged |= made.damaged;
    if (rewritten) {
        frozen_builder_free(builder);
        *builder = made;
    } else {
        frozen_builder_free(&made);
    }
    return rewritten;
}

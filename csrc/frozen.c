/* Frozen tables: see frozen.h. Little-endian only, as all of untorn. */
#include "frozen.h"

#include <stdlib.h>
#include <string.h>

enum { HEADER_NBYTES = FROZEN_NODE_NBYTES, CACHE_LINE = 64, MAX_RESEEDS = 4 };

/* While building, in a record's reserved field. */
enum { FLAG_REPLACED = 1, FLAG_KEPT = 2 };

struct header {
    uint8_t key_kind;
    uint8_t kind;
    uint16_t flags;
    uint32_t key_nbytes;
    uint64_t word;
};
_Static_assert(sizeof(struct header) == HEADER_NBYTES, "the header is part of the format");

static uint64_t nbytes_padded(uint64_t nbytes) { return (nbytes + 7) & ~UINT64_C(7); }

/* -- Hash ------------------------------------------------------------------------------------------------------- */

static uint64_t load_u64(const uint8_t *bytes)
{
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static uint64_t load_u32(const uint8_t *bytes)
{
    uint32_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static uint64_t hash_mix(uint64_t a, uint64_t b)
{
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static const uint64_t SECRET[2] = {UINT64_C(0x2d358dccaa6c78a5), UINT64_C(0x8bb84b93962eacc9)};

uint64_t frozen_hash(uint64_t seed, const struct frozen_key *key)
{
    const uint8_t *bytes = key->bytes;
    uint64_t left = key->nbytes, a = 0, b = 0;
    seed ^= hash_mix(seed ^ SECRET[0], SECRET[1] ^ key->kind);
    if (left > 16) {
        for (; left > 16; left -= 16, bytes += 16)
            seed = hash_mix(load_u64(bytes) ^ SECRET[1], load_u64(bytes + 8) ^ seed);
        a = load_u64(bytes + left - 16); /* the last 16 bytes, some of them for the second time */
        b = load_u64(bytes + left - 8);
    } else if (left >= 4) {
        const uint64_t middle = left >> 3 << 2;
        a = load_u32(bytes) << 32 | load_u32(bytes + middle);
        b = load_u32(bytes + left - 4) << 32 | load_u32(bytes + left - 4 - middle);
    } else if (left > 0) {
        a = (uint64_t)bytes[0] << 16 | (uint64_t)bytes[left >> 1] << 8 | bytes[left - 1];
    }
    return hash_mix(SECRET[1] ^ key->nbytes, hash_mix(a ^ SECRET[1], b ^ seed));
}

/* -- Looking up --------------------------------------------------------------------------------------------------- */

bool frozen_fits(const struct frozen *table, uint64_t index_nbytes)
{
    const uint64_t slots = table->slots;
    return index_nbytes == slots * FROZEN_SLOT_NBYTES && slots >= FROZEN_BUCKET && (slots & (slots - 1)) == 0 &&
           table->count < slots && table->entries_nbytes % 8 == 0 &&
           table->count <= table->entries_nbytes / HEADER_NBYTES;
}

bool frozen_read(const uint8_t *bytes, uint64_t nbytes, uint64_t *offset, struct frozen_record *found)
{
    struct header header;
    uint64_t at = *offset;
    if (at > nbytes || nbytes - at < HEADER_NBYTES)
        return false;
    memcpy(&header, bytes + at, sizeof header);
    at += HEADER_NBYTES;
    if (nbytes_padded(header.key_nbytes) > nbytes - at)
        return false;
    found->key = (struct frozen_key){bytes + at, header.key_nbytes, header.key_kind};
    at += nbytes_padded(header.key_nbytes);
    found->kind = header.kind;
    found->replaced = (header.flags & FLAG_REPLACED) != 0;
    found->word = header.word;
    found->content = bytes + at;
    found->content_nbytes = header.kind > FROZEN_FLOAT ? header.word : 0;
    if (found->content_nbytes > nbytes - at)
        return false;
    *offset =
        at + nbytes_padded(found->content_nbytes); /* may be behind the end by less than 8: the next read sees it */
    return true;
}

static bool key_equal(const struct frozen_key *one, const struct frozen_key *other)
{
    return one->kind == other->kind && one->nbytes == other->nbytes &&
           memcmp(one->bytes, other->bytes, one->nbytes) == 0;
}

/* The end of a search: the slot of the key, or the first bucket with room. */
struct probe {
    uint64_t bucket, slot, offset; /* slot and offset: of the key and its record, if it was found */
    uint64_t full;                 /* buckets that were passed */
};

static inline uint64_t hash_tag(uint64_t hash) { return (hash >> 56) + (hash >> 56 == 0); }

/* The upper bit of each byte that has the tag: eight slots at once, so that the processor need not guess where the key
 * is, and a lookup that misses the cache overlaps with the next (zero bytes: Warren, Hacker's Delight, 6-1). */
static inline uint64_t tags_match(const uint8_t *tags, uint64_t tag)
{
    const uint64_t low = UINT64_C(0x7f7f7f7f7f7f7f7f), differ = load_u64(tags) ^ tag * UINT64_C(0x0101010101010101);
    return ~(((differ & low) + low) | differ | low);
}

static inline enum frozen_answer index_search(const struct frozen *table, const struct frozen_key *key, uint64_t hash,
                                              struct probe *probe, struct frozen_record *found)
{
    const uint64_t mask = table->slots / FROZEN_BUCKET - 1, tag = hash_tag(hash);
    const uint8_t *places = table->index + table->slots;
    for (uint64_t full = 0; full <= mask; full++) {
        const uint64_t first = ((hash + full) & mask) * FROZEN_BUCKET;
        __builtin_prefetch(places + first * 4);
        for (uint64_t half = first; half < first + FROZEN_BUCKET; half += 8) {
            for (uint64_t match = tags_match(table->index + half, tag); match != 0; match &= match - 1) {
                const uint64_t slot = half + (unsigned)__builtin_ctzll(match) / 8;
                uint64_t end = load_u32(places + slot * 4) * 8;
                *probe = (struct probe){first, slot, end, full};
                if (!frozen_read(table->entries, table->entries_nbytes, &end, found))
                    return FROZEN_DAMAGED;
                if (key_equal(key, &found->key))
                    return FROZEN_FOUND;
            }
        }
        *probe = (struct probe){first, 0, 0, full};
        if (table->index[first + FROZEN_BUCKET - 1] == 0)
            return FROZEN_MISSING;
    }
    return FROZEN_DAMAGED; /* some bucket always has room */
}

enum frozen_answer frozen_find_hashed(const struct frozen *table, const struct frozen_key *key, uint64_t hash,
                                      struct frozen_record *found)
{
    struct probe probe;
    return index_search(table, key, hash, &probe, found);
}

enum frozen_answer frozen_find(const struct frozen *table, const struct frozen_key *key, struct frozen_record *found)
{
    return frozen_find_hashed(table, key, frozen_hash(table->seed, key), found);
}

void frozen_prefetch(const struct frozen *table, uint64_t hash)
{
    const uint64_t first = (hash & (table->slots / FROZEN_BUCKET - 1)) * FROZEN_BUCKET;
    __builtin_prefetch(table->index + first);
    __builtin_prefetch(table->index + table->slots + first * 4);
}

/* -- Buffers ------------------------------------------------------------------------------------------------------ */

static bool buffer_resize(struct frozen_buffer *buffer, uint64_t capacity)
{
    uint8_t *allocated = realloc(buffer->allocated, capacity + CACHE_LINE);
    if (allocated == NULL)
        return false;
    const uint64_t shift = -(uintptr_t)allocated & (CACHE_LINE - 1);
    const uint64_t kept = buffer->nbytes < capacity ? buffer->nbytes : capacity;
    if (shift != buffer->shift && kept != 0)
        memmove(allocated + shift, allocated + buffer->shift, kept); /* rare: large blocks move by whole pages */
    *buffer = (struct frozen_buffer){allocated + shift, buffer->nbytes, capacity, allocated, shift};
    return true;
}

/* Room for as many bytes at the end, followed by zeros up to a multiple of 8; NULL without memory. */
static uint8_t *buffer_extend(struct frozen_buffer *buffer, uint64_t nbytes)
{
    const uint64_t start = buffer->nbytes, room = nbytes_padded(nbytes);
    if (room < nbytes || room > UINT64_MAX / 4 - start)
        return NULL;
    if (start + room > buffer->capacity && !buffer_resize(buffer, (start + room) * 2))
        return NULL;
    if (room != nbytes)
        memset(buffer->bytes + start + room - 8, 0, 8);
    buffer->nbytes = start + room;
    return buffer->bytes + start;
}

void frozen_buffer_free(struct frozen_buffer *buffer)
{
    free(buffer->allocated);
    *buffer = (struct frozen_buffer){0};
}

/* -- The index while it is built -------------------------------------------------------------------------------- */

static struct frozen builder_table(const struct frozen_builder *builder)
{
    return (struct frozen){builder->index.bytes,    builder->entries.bytes, builder->index.nbytes / FROZEN_SLOT_NBYTES,
                           builder->entries.nbytes, builder->count,         builder->seed};
}

static bool index_clear(struct frozen_builder *builder, uint64_t slots)
{
    const uint64_t nbytes = slots * FROZEN_SLOT_NBYTES;
    builder->index.nbytes = 0;
    if (nbytes > builder->index.capacity && !buffer_resize(&builder->index, nbytes))
        return false;
    memset(builder->index.bytes, 0, nbytes);
    builder->index.nbytes = nbytes;
    return true;
}

static struct header *header_at(const struct frozen_builder *builder, uint64_t place)
{
    return (struct header *)(builder->entries.bytes + place); /* aligned: the buffer to 64, a place to 8 */
}

static bool index_rebuild(struct frozen_builder *builder, uint64_t slots);

/* The bytes in the blob that belong to a record's value, those of nodes inside it not counted. */
static uint64_t blob_nbytes_of(const struct frozen_record *record)
{
    const bool refers = record->kind >= FROZEN_ARRAY && record->kind <= FROZEN_OTHER;
    return refers && record->content_nbytes >= 24 ? load_u64(record->content + 16) : 0;
}

/* Let the index lead to the record at `place`. */
static bool index_insert(struct frozen_builder *builder, uint64_t place, const struct frozen_key *key, uint64_t hash)
{
    const struct frozen table = builder_table(builder);
    struct frozen_record before;
    struct probe probe;
    const enum frozen_answer answer = index_search(&table, key, hash, &probe, &before);
    if (answer == FROZEN_DAMAGED) {
        builder->damaged = true;
        return false;
    }
    const bool repeated = answer == FROZEN_FOUND;
    if (repeated) {
        header_at(builder, probe.offset)->flags |= FLAG_REPLACED;
        builder->replaced++;
        builder->wasted += blob_nbytes_of(&before);
    } else {
        for (probe.slot = probe.bucket; table.index[probe.slot] != 0;)
            probe.slot++;
        builder->count++;
    }
    const uint32_t unit = (uint32_t)(place / 8);
    builder->index.bytes[probe.slot] = (uint8_t)hash_tag(hash);
    memcpy(builder->index.bytes + table.slots + probe.slot * 4, &unit, sizeof unit);
    bool inserted = true;
    if (probe.full >= FROZEN_MAX_FULL && builder->reseeds != MAX_RESEEDS) {
        builder->seed = hash_mix(builder->spare_seed + ++builder->reseeds, SECRET[0]);
        inserted = index_rebuild(builder, table.slots);
    }
    builder->repeated = repeated;
    builder->repeated_kind = repeated ? before.kind : FROZEN_NO_KEY;
    return inserted;
}

/* Start the index again, from the records. Those that were replaced stay so. */
static bool index_rebuild(struct frozen_builder *builder, uint64_t slots)
{
    const uint64_t seed = builder->seed;
    struct frozen_record record;
    if (!index_clear(builder, slots))
        return false;
    builder->count = 0;
    for (uint64_t offset = 0, place = 0; offset < builder->entries.nbytes && builder->seed == seed; place = offset) {
        frozen_read(builder->entries.bytes, builder->entries.nbytes, &offset, &record);
        if (!(header_at(builder, place)->flags & FLAG_REPLACED) &&
            !index_insert(builder, place, &record.key, frozen_hash(seed, &record.key)))
            return false;
    }
    return true; /* with a changed seed: index_insert has done it all again */
}

/* -- Building ----------------------------------------------------------------------------------------------------- */

static uint64_t slots_for(uint64_t count)
{
    uint64_t slots = FROZEN_BUCKET;
    while (count * 3 > slots * 2)
        slots *= 2;
    return slots;
}

/* Whether another key needs a larger index. */
static bool index_is_full(const struct frozen_builder *builder)
{
    return (builder->count + 1) * 3 > builder->index.nbytes / FROZEN_SLOT_NBYTES * 2;
}

bool frozen_builder_begin(struct frozen_builder *builder, uint64_t expected, uint64_t spare_seed)
{
    builder->seed = FROZEN_SEED;
    builder->spare_seed = spare_seed;
    return index_clear(builder, slots_for(expected)) && buffer_resize(&builder->entries, expected * 32) &&
           buffer_resize(&builder->blob, 0);
}

bool frozen_builder_reserve(struct frozen_builder *builder, uint64_t entries_nbytes, uint64_t blob_nbytes)
{
    return (entries_nbytes <= builder->entries.capacity || buffer_resize(&builder->entries, entries_nbytes)) &&
           (blob_nbytes <= builder->blob.capacity || buffer_resize(&builder->blob, blob_nbytes));
}

static bool buffer_copy(struct frozen_buffer *buffer, const void *bytes, uint64_t nbytes)
{
    if (!buffer_resize(buffer, nbytes + nbytes / 8 + CACHE_LINE))
        return false;
    if (nbytes != 0)
        memcpy(buffer->bytes, bytes, nbytes);
    buffer->nbytes = nbytes;
    return true;
}

/* The records lie one behind the other up to the end, and as many as the table counts are in use: what index_rebuild()
 * and entries_compact() rely on. Counts the others. */
static bool entries_check(struct frozen_builder *builder)
{
    struct frozen_record record;
    uint64_t used = 0;
    for (uint64_t offset = 0; offset < builder->entries.nbytes;) {
        if (!frozen_read(builder->entries.bytes, builder->entries.nbytes, &offset, &record) ||
            offset > builder->entries.nbytes)
            return false;
        used += !record.replaced;
        builder->replaced += record.replaced;
    }
    return used == builder->count;
}

bool frozen_builder_continue(struct frozen_builder *builder, const struct frozen *table, const void *blob,
                             uint64_t blob_nbytes, uint64_t spare_seed)
{
    builder->seed = table->seed;
    builder->spare_seed = spare_seed;
    builder->count = table->count;
    if (!buffer_copy(&builder->entries, table->entries, table->entries_nbytes) ||
        !buffer_copy(&builder->blob, blob, blob_nbytes) ||
        !buffer_copy(&builder->index, table->index, table->slots * FROZEN_SLOT_NBYTES))
        return false;
    builder->damaged = !entries_check(builder);
    return !builder->damaged;
}

void frozen_builder_free(struct frozen_builder *builder)
{
    frozen_buffer_free(&builder->index);
    frozen_buffer_free(&builder->entries);
    frozen_buffer_free(&builder->blob);
}

uint64_t frozen_entry_begin(struct frozen_builder *builder, const struct frozen_key *key)
{
    const uint64_t place = builder->entries.nbytes;
    uint8_t *bytes = buffer_extend(&builder->entries, HEADER_NBYTES + key->nbytes);
    if (bytes == NULL)
        return FROZEN_NO_PLACE;
    memcpy(bytes, &(struct header){.key_kind = key->kind, .key_nbytes = (uint32_t)key->nbytes}, HEADER_NBYTES);
    if (key->nbytes != 0)
        memcpy(bytes + HEADER_NBYTES, key->bytes, key->nbytes);
    return place;
}

uint64_t frozen_node_begin(struct frozen_builder *builder)
{
    return frozen_entry_begin(builder, &(struct frozen_key){NULL, 0, FROZEN_NO_KEY});
}

bool frozen_node_word(struct frozen_builder *builder, uint8_t kind, uint64_t word)
{
    uint8_t *bytes = buffer_extend(&builder->entries, HEADER_NBYTES);
    if (bytes != NULL)
        *(struct header *)bytes = (struct header){.key_kind = FROZEN_NO_KEY, .kind = kind, .word = word};
    return bytes != NULL;
}

uint64_t frozen_entry_copy(struct frozen_builder *builder, const uint8_t *record, uint64_t nbytes)
{
    const uint64_t place = builder->entries.nbytes;
    uint8_t *bytes = buffer_extend(&builder->entries, nbytes);
    if (bytes == NULL)
        return FROZEN_NO_PLACE;
    memcpy(bytes, record, nbytes);
    ((struct header *)bytes)->flags = 0;
    return place;
}

bool frozen_entry_end_hashed(struct frozen_builder *builder, uint64_t place, const struct frozen_key *key,
                             uint64_t hash)
{
    if (index_is_full(builder)) /* this record is among them, as the last */
        return index_rebuild(builder, slots_for(builder->count + 1));
    return index_insert(builder, place, key, hash);
}

bool frozen_entry_end(struct frozen_builder *builder, uint64_t place)
{
    const struct header *header = header_at(builder, place);
    const struct frozen_key key = {(const uint8_t *)(header + 1), header->key_nbytes, header->key_kind};
    return frozen_entry_end_hashed(builder, place, &key, frozen_hash(builder->seed, &key));
}

void frozen_put_word(struct frozen_builder *builder, uint64_t place, uint8_t kind, uint64_t word)
{
    header_at(builder, place)->kind = kind;
    header_at(builder, place)->word = word;
}

bool frozen_put_bytes(struct frozen_builder *builder, uint64_t place, uint8_t kind, const void *bytes, uint64_t nbytes)
{
    uint8_t *content = buffer_extend(&builder->entries, nbytes);
    if (content == NULL)
        return false;
    if (nbytes != 0)
        memcpy(content, bytes, nbytes);
    frozen_put_word(builder, place, kind, nbytes);
    return true;
}

uint64_t frozen_content_begin(const struct frozen_builder *builder) { return builder->entries.nbytes; }

bool frozen_content_word(struct frozen_builder *builder, uint64_t word)
{
    uint8_t *bytes = buffer_extend(&builder->entries, sizeof word);
    if (bytes != NULL)
        memcpy(bytes, &word, sizeof word);
    return bytes != NULL;
}

void frozen_content_end(struct frozen_builder *builder, uint64_t place, uint8_t kind, uint64_t start)
{
    frozen_put_word(builder, place, kind, builder->entries.nbytes - start);
}

uint64_t frozen_blob_put(struct frozen_builder *builder, const void *bytes, uint64_t nbytes, uint64_t alignment)
{
    const uint64_t gap = -builder->blob.nbytes & (alignment - 1);
    uint8_t *place = buffer_extend(&builder->blob, gap);
    if (place == NULL)
        return FROZEN_NO_PLACE;
    memset(place, 0, gap);
    const uint64_t offset = builder->blob.nbytes;
    place = buffer_extend(&builder->blob, nbytes);
    if (place == NULL)
        return FROZEN_NO_PLACE;
    if (nbytes != 0)
        memcpy(place, bytes, nbytes);
    return offset;
}

/* Keep the last record of each key, at the place of the first. */
static bool entries_compact(struct frozen_builder *builder)
{
    const struct frozen table = builder_table(builder);
    struct frozen_buffer packed = {0};
    struct frozen_record record, last;
    struct probe probe;
    bool room = buffer_resize(&packed, table.entries_nbytes);
    for (uint64_t offset = 0, place = 0; room && offset < table.entries_nbytes; place = offset) {
        uint64_t first = place, end;
        frozen_read(table.entries, table.entries_nbytes, &offset, &record);
        if (record.replaced) { /* the search ends at the last record */
            if (index_search(&table, &record.key, frozen_hash(table.seed, &record.key), &probe, &last) != FROZEN_FOUND)
                continue; /* of a damaged table */
            first = probe.offset;
        }
        struct header *header = header_at(builder, first);
        if (header->flags & FLAG_KEPT)
            continue;
        header->flags |= FLAG_KEPT;
        end = first;
        frozen_read(table.entries, table.entries_nbytes, &end, &last);
        uint8_t *bytes = buffer_extend(&packed, end - first);
        room = bytes != NULL;
        if (room) {
            memcpy(bytes, header, end - first);
            ((struct header *)bytes)->flags = 0;
        }
    }
    if (!room) {
        frozen_buffer_free(&packed);
        return false;
    }
    frozen_buffer_free(&builder->entries);
    builder->entries = packed;
    builder->replaced = 0;
    return index_rebuild(builder, slots_for(builder->count));
}

static bool builder_trim(struct frozen_builder *builder)
{
    return buffer_resize(&builder->index, builder->index.nbytes) &&
           buffer_resize(&builder->entries, builder->entries.nbytes) &&
           buffer_resize(&builder->blob, builder->blob.nbytes);
}

bool frozen_builder_end(struct frozen_builder *builder)
{
    return (builder->replaced == 0 || entries_compact(builder)) && builder_trim(builder);
}

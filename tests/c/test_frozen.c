/* Frozen tables: entries are found, in order; colliding keys; damaged bytes are an error and no crash. */
#include <string.h>

#include "check.h"
#include "frozen.h"

static struct frozen_key key_of(const void *bytes, uint64_t nbytes, uint8_t kind)
{
    return (struct frozen_key){bytes, nbytes, kind};
}

static void table_put(struct frozen_builder *builder, struct frozen_key key, uint64_t word)
{
    const uint64_t place = frozen_entry_begin(builder, &key);
    if (!CHECK(place != FROZEN_NO_PLACE))
        return;
    frozen_put_word(builder, place, FROZEN_INT, word);
    CHECK(frozen_entry_end(builder, place));
}

static struct frozen table_of(const struct frozen_builder *builder)
{
    return (struct frozen){builder->index.bytes,    builder->entries.bytes, builder->index.nbytes / FROZEN_SLOT_NBYTES,
                           builder->entries.nbytes, builder->count,         builder->seed};
}

static void table_expect(const struct frozen *table, struct frozen_key key, uint64_t word)
{
    struct frozen_record found;
    if (CHECK(frozen_find(table, &key, &found) == FROZEN_FOUND))
        CHECK(found.kind == FROZEN_INT && found.word == word, "word %" PRIu64 " of %" PRIu64, found.word, word);
}

static bool table_misses(const struct frozen *table, struct frozen_key key)
{
    struct frozen_record found;
    return frozen_find(table, &key, &found) == FROZEN_MISSING;
}

/* Ints as people use them: in a row, multiples of powers of two; each hash must spread over the buckets. */
static void test_ints(unsigned shift)
{
    enum { COUNT = 20000 };
    struct frozen_builder builder = {0};
    CHECK(frozen_builder_begin(&builder, 0, 1));
    for (uint64_t i = 0; i < COUNT; i++)
        table_put(&builder, key_of(&(uint64_t){i << shift}, 8, FROZEN_INT), i);
    CHECK(frozen_builder_end(&builder));
    const struct frozen table = table_of(&builder);
    CHECK(frozen_fits(&table, builder.index.nbytes) && table.count == COUNT && builder.reseeds == 0);
    for (uint64_t i = 0; i < COUNT; i++) {
        const uint64_t number = i << shift;
        table_expect(&table, key_of(&number, 8, FROZEN_INT), i);
        CHECK(table_misses(&table, key_of(&number, 8, FROZEN_BYTES)));
        CHECK(table_misses(&table, key_of(&(uint64_t){number | UINT64_C(1) << 63}, 8, FROZEN_INT)));
    }
    struct frozen_record record;
    uint64_t offset = 0;
    for (uint64_t i = 0; i < COUNT; i++)
        CHECK(frozen_read(table.entries, table.entries_nbytes, &offset, &record) && record.word == i);
    CHECK(offset == table.entries_nbytes);
    frozen_builder_free(&builder);
}

/* Keys of every length, each ending where its allocation ends. */
static void test_lengths(uint64_t *stream)
{
    enum { COUNT = 200 };
    struct frozen_builder builder = {0};
    uint8_t *keys[COUNT];
    CHECK(frozen_builder_begin(&builder, COUNT, 1));
    for (uint64_t length = 0; length < COUNT; length++) {
        keys[length] = malloc(length + (length == 0));
        for (uint64_t i = 0; i < length; i++)
            keys[length][i] = (uint8_t)check_random(stream);
        table_put(&builder, key_of(keys[length], length, FROZEN_STR), length);
    }
    CHECK(frozen_builder_end(&builder));
    const struct frozen table = table_of(&builder);
    for (uint64_t length = 0; length < COUNT; length++) {
        table_expect(&table, key_of(keys[length], length, FROZEN_STR), length);
        for (uint64_t i = 0; i < length; i++) { /* every byte counts */
            keys[length][i] ^= 0x10;
            CHECK(table_misses(&table, key_of(keys[length], length, FROZEN_STR)));
            keys[length][i] ^= 0x10;
        }
        free(keys[length]);
    }
    frozen_builder_free(&builder);
}

/* Pairs with the same tag and the same bucket of a table of 64 slots, found by trying. */
static void test_collisions(void)
{
    enum { TRIED = 1 << 17, HOMES = 1 << 10, WANTED = 20 };
    static uint64_t last[HOMES];
    struct frozen_builder builder = {0};
    uint64_t pairs[WANTED][2];
    unsigned found = 0;
    CHECK(frozen_builder_begin(&builder, WANTED, 1));
    memset(last, 0, sizeof last);
    for (uint64_t i = 1; i <= TRIED && found < WANTED; i++) {
        struct frozen_key key = key_of(&i, 8, FROZEN_INT);
        const uint64_t hash = frozen_hash(FROZEN_SEED, &key), home = hash >> 56 << 2 | (hash & 3);
        const uint64_t other = last[home];
        if (other != 0) {
            pairs[found][0] = other;
            pairs[found++][1] = i;
        }
        last[home] = other != 0 ? 0 : i;
    }
    CHECK(found > 0, "no pair among %d", TRIED);
    for (unsigned i = 0; i < found; i++)
        table_put(&builder, key_of(&pairs[i][0], 8, FROZEN_INT), pairs[i][0]);
    struct frozen table = table_of(&builder);
    for (unsigned i = 0; i < found; i++) {
        table_expect(&table, key_of(&pairs[i][0], 8, FROZEN_INT), pairs[i][0]);
        CHECK(table_misses(&table, key_of(&pairs[i][1], 8, FROZEN_INT)));
    }
    for (unsigned i = 0; i < found; i++)
        table_put(&builder, key_of(&pairs[i][1], 8, FROZEN_INT), pairs[i][1]);
    table = table_of(&builder);
    for (unsigned i = 0; i < 2 * found; i++)
        table_expect(&table, key_of(&pairs[i / 2][i % 2], 8, FROZEN_INT), pairs[i / 2][i % 2]);
    frozen_builder_free(&builder);
}

/* Keys that all want the first bucket: the builder takes another seed, and loses none. */
static void test_flood(void)
{
    enum { COUNT = 4000, SLOTS_BITS = 13 };
    struct frozen_builder builder = {0};
    static uint64_t keys[COUNT];
    uint64_t number = 0;
    for (unsigned i = 0; i < COUNT; number++) {
        struct frozen_key key = key_of(&number, 8, FROZEN_INT);
        if ((frozen_hash(FROZEN_SEED, &key) & ((1u << (SLOTS_BITS - 4)) - 1)) < 8)
            keys[i++] = number;
    }
    CHECK(frozen_builder_begin(&builder, COUNT, 12345));
    for (unsigned i = 0; i < COUNT; i++)
        table_put(&builder, key_of(&keys[i], 8, FROZEN_INT), i);
    CHECK(frozen_builder_end(&builder));
    CHECK(builder.reseeds > 0 && builder.seed != FROZEN_SEED && builder.count == COUNT);
    const struct frozen table = table_of(&builder);
    for (unsigned i = 0; i < COUNT; i++)
        table_expect(&table, key_of(&keys[i], 8, FROZEN_INT), i);
    frozen_builder_free(&builder);
}

/* Later values win, at the place of the first. */
static void test_replaced(uint64_t *stream)
{
    enum { KEYS = 100, PUTS = 5000 };
    uint64_t expected[KEYS], order[KEYS], seen = 0;
    bool known[KEYS] = {false};
    struct frozen_builder builder = {0};
    CHECK(frozen_builder_begin(&builder, 0, 1));
    for (uint64_t put = 0; put < PUTS; put++) {
        const uint64_t key = check_random(stream) % KEYS;
        if (!known[key])
            order[seen++] = key;
        known[key] = true;
        expected[key] = put;
        table_put(&builder, key_of(&key, 8, FROZEN_INT), put);
    }
    CHECK(frozen_builder_end(&builder));
    const struct frozen table = table_of(&builder);
    CHECK(table.count == seen);
    struct frozen_record record;
    uint64_t offset = 0;
    for (uint64_t i = 0; i < seen; i++) {
        table_expect(&table, key_of(&order[i], 8, FROZEN_INT), expected[order[i]]);
        CHECK(frozen_read(table.entries, table.entries_nbytes, &offset, &record));
        CHECK(memcmp(record.key.bytes, &order[i], 8) == 0 && record.word == expected[order[i]]);
    }
    CHECK(offset == table.entries_nbytes);
    frozen_builder_free(&builder);
}

static uint8_t *bytes_copy(const uint8_t *bytes, uint64_t nbytes)
{
    uint8_t *copy = malloc(nbytes); /* exactly: AddressSanitizer sees one byte too many */
    memcpy(copy, bytes, nbytes);
    return copy;
}

/* Bytes changed at random in copies: every lookup and every walk ends, inside. */
static void test_damage(uint64_t *stream)
{
    enum { COUNT = 50, VARIANTS = 2000 };
    struct frozen_builder builder = {0};
    CHECK(frozen_builder_begin(&builder, 0, 1));
    for (uint64_t i = 0; i < COUNT; i++)
        table_put(&builder, key_of("a key of the length that it needs", i % 30, FROZEN_STR), i);
    for (uint64_t i = 0; i < COUNT; i++)
        table_put(&builder, key_of(&i, 8, FROZEN_INT), i);
    CHECK(frozen_builder_end(&builder));
    for (unsigned variant = 0; variant < VARIANTS; variant++) {
        uint8_t *index = bytes_copy(builder.index.bytes, builder.index.nbytes);
        uint8_t *entries = bytes_copy(builder.entries.bytes, builder.entries.nbytes);
        for (unsigned i = 0; i < 1 + variant % 8; i++) {
            index[check_random(stream) % builder.index.nbytes] ^= (uint8_t)check_random(stream);
            entries[check_random(stream) % builder.entries.nbytes] ^= (uint8_t)check_random(stream);
        }
        struct frozen table = table_of(&builder);
        table.index = index;
        table.entries = entries;
        struct frozen_record record;
        for (uint64_t i = 0; i < COUNT; i++) {
            struct frozen_key key = key_of(&i, 8, FROZEN_INT);
            if (frozen_find(&table, &key, &record) == FROZEN_FOUND && record.content_nbytes != 0)
                CHECK(record.content + record.content_nbytes <= entries + builder.entries.nbytes);
        }
        uint64_t offset = 0, read = 0;
        while (frozen_read(entries, builder.entries.nbytes, &offset, &record))
            read += 1 + (record.key.nbytes != 0 ? record.key.bytes[record.key.nbytes - 1] & 0u : 0u);
        CHECK(read <= builder.entries.nbytes / 16);
        free(index);
        free(entries);
    }
    frozen_builder_free(&builder);
}

static void test_sizes(void)
{
    uint8_t bytes[512] = {0};
    CHECK(frozen_fits(&(struct frozen){bytes, bytes, 16, 64, 4, 0}, 80));
    CHECK(!frozen_fits(&(struct frozen){bytes, bytes, 16, 64, 4, 0}, 81), "an index with a rest");
    CHECK(!frozen_fits(&(struct frozen){bytes, bytes, 0, 0, 0, 0}, 0), "no index");
    CHECK(!frozen_fits(&(struct frozen){bytes, bytes, 48, 64, 4, 0}, 240), "no power of two");
    CHECK(!frozen_fits(&(struct frozen){bytes, bytes, 16, 256, 16, 0}, 80), "no empty slot");
    CHECK(!frozen_fits(&(struct frozen){bytes, bytes, 16, 64, 5, 0}, 80), "more entries than fit");
    CHECK(!frozen_fits(&(struct frozen){bytes, bytes, 16, 65, 4, 0}, 80), "entries with a rest");
    memset(bytes, 0xff, 80); /* a full index: the search ends all the same */
    struct frozen_record found;
    struct frozen_key key = key_of("x", 1, FROZEN_STR);
    CHECK(frozen_find(&(struct frozen){bytes, bytes + 80, 16, 64, 4, 0}, &key, &found) == FROZEN_DAMAGED);
}

static void test_blob(uint64_t *stream)
{
    struct frozen_builder builder = {0};
    uint8_t data[100];
    uint64_t offsets[50];
    for (unsigned i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i + 1);
    CHECK(frozen_builder_begin(&builder, 0, 1));
    for (unsigned i = 0; i < 50; i++) {
        const uint64_t alignment = check_random(stream) % 2 ? 16 : 64;
        offsets[i] = frozen_blob_put(&builder, data, i, alignment);
        CHECK(offsets[i] % alignment == 0);
    }
    CHECK((uintptr_t)builder.blob.bytes % 64 == 0);
    for (unsigned i = 0; i < 50; i++)
        CHECK(memcmp(builder.blob.bytes + offsets[i], data, i) == 0);
    frozen_builder_free(&builder);
}

enum { MERGED_KEYS = 400, NO_VALUE = -1 };

/* Put the array of one number, or remove the key. */
static void array_put(struct frozen_builder *builder, uint64_t key, int64_t number)
{
    const struct frozen_key as_key = key_of(&key, 8, FROZEN_INT);
    const uint64_t place = frozen_entry_begin(builder, &as_key);
    if (number != NO_VALUE) {
        const uint64_t list = frozen_content_begin(builder); /* [the array] */
        CHECK(frozen_content_word(builder, 1));
        const uint64_t node = frozen_node_begin(builder), start = frozen_content_begin(builder);
        const uint64_t offset = frozen_blob_put(builder, &number, sizeof number, 16);
        CHECK(frozen_content_word(builder, (uint64_t)number % 3) && frozen_content_word(builder, offset));
        CHECK(frozen_content_word(builder, sizeof number) && frozen_content_word(builder, 1));
        frozen_content_end(builder, node, FROZEN_ARRAY, start);
        frozen_content_end(builder, place, FROZEN_LIST, list);
    }
    CHECK(frozen_entry_end(builder, place));
}

/* The words of the array in that list: description, offset, nbytes. */
static bool array_words(const struct frozen_record *record, uint64_t words[3])
{
    struct frozen_record node;
    uint64_t offset = 8;
    if (record->kind != FROZEN_LIST || !frozen_read(record->content, record->content_nbytes, &offset, &node))
        return false;
    memcpy(words, node.content, 24);
    return true;
}

static struct frozen_source source_of(const struct frozen_builder *builder, const uint64_t *dtypes, uint64_t count)
{
    return (struct frozen_source){.table = table_of(builder),
                                  .blob = builder->blob.bytes,
                                  .blob_nbytes = builder->blob.nbytes,
                                  .dtypes = dtypes,
                                  .schemas = dtypes,
                                  .dtype_count = count};
}

/* A table and its changes are one table, which has the last value of each key and no others; also while they are
 * stopped, damaged, or changed again. */
static void test_merge(uint64_t *stream)
{
    static const uint64_t of_base[3] = {0, 1, 2}, of_changes[3] = {3, 4, 5};
    int64_t model[MERGED_KEYS];
    uint64_t kept[6], none[1], length = 0;
    struct frozen_builder base = {0}, changes = {0}, made = {0}, other = {0};
    CHECK(frozen_builder_begin(&base, 0, 1) && frozen_builder_begin(&changes, 0, 1));
    for (uint64_t key = 0; key < MERGED_KEYS; key++) {
        model[key] = key % 2 ? (int64_t)key : NO_VALUE;
        if (key % 2)
            array_put(&base, key, model[key]);
    }
    CHECK(frozen_builder_end(&base));
    for (unsigned round = 0; round < 40; round++) {
        for (unsigned i = 0; i < 20; i++) {
            const uint64_t key = check_random(stream) % MERGED_KEYS;
            model[key] = check_random(stream) % 4 ? (int64_t)(check_random(stream) % 100000) : NO_VALUE;
            array_put(&changes, key, model[key]);
        }
        CHECK(frozen_builder_end_changes(&changes) && changes.wasted <= changes.blob.nbytes);
    }
    for (uint64_t key = 0; key < MERGED_KEYS; key++)
        length += model[key] != NO_VALUE;
    shared_u32 stop = 0;
    for (uint64_t i = 0; i < 6; i++)
        kept[i] = FROZEN_UNUSED;
    struct frozen_numbers dtypes = {.kept = kept, .count = 6}, schemas = {.kept = none};
    struct frozen_source of[2] = {source_of(&base, of_base, 3), source_of(&changes, of_changes, 3)};
    CHECK(frozen_merge(&made, &of[0], &of[1], &dtypes, &schemas, length, 1, &stop) == FROZEN_MERGED);
    const struct frozen table = table_of(&made);
    CHECK(table.count == length && frozen_fits(&table, made.index.nbytes) && dtypes.used <= 6);
    CHECK(made.blob.nbytes <= length * 16, "nothing that was replaced is left");
    for (uint64_t key = 0; key < MERGED_KEYS; key++) {
        const struct frozen_key as_key = key_of(&key, 8, FROZEN_INT);
        struct frozen_record found;
        uint64_t words[3];
        int64_t number;
        if (model[key] == NO_VALUE) {
            CHECK(table_misses(&table, as_key));
        } else if (CHECK(frozen_find(&table, &as_key, &found) == FROZEN_FOUND && array_words(&found, words))) {
            const bool changed = frozen_find(&of[1].table, &as_key, &found) == FROZEN_FOUND;
            memcpy(&number, made.blob.bytes + words[1], sizeof number);
            CHECK(number == model[key] && words[0] == kept[(uint64_t)number % 3 + (changed ? 3 : 0)]);
        }
    }
    stop = 1;
    CHECK(frozen_merge(&other, &of[0], &of[1], &dtypes, &schemas, length, 1, &stop) == FROZEN_STOPPED);
    frozen_builder_free(&other);
    stop = 0;
    of[1].dtype_count = 1;
    other = (struct frozen_builder){0};
    CHECK(frozen_merge(&other, &of[0], &of[1], &dtypes, &schemas, length, 1, &stop) == FROZEN_MERGE_FAILED);
    CHECK(other.damaged, "a dtype that is not there");
    frozen_builder_free(&other);
    frozen_builder_free(&made);
    frozen_builder_free(&changes);
    frozen_builder_free(&base);
}

int main(void)
{
    check_begin("test_frozen");
    uint64_t stream = check_stream(0);
    test_sizes();
    test_ints(0);
    test_ints(16);
    test_ints(48);
    test_lengths(&stream);
    test_collisions();
    test_flood();
    test_replaced(&stream);
    test_damage(&stream);
    test_blob(&stream);
    test_merge(&stream);
    return check_end();
}

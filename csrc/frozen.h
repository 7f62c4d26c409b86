/* A read-only table in flat bytes: keys to values, looked up in place by any process that has the bytes.
 *
 * Guarantees: a lookup costs about two cache misses, whatever the size; the bytes mean the same in every process;
 * nothing outside the bytes is ever read, even if they are damaged.
 *
 *     index      tag, tag, ...  place, place, ...         as many places as tags
 *                                 |
 *                                 v
 *     entries    record, record, ...                      in the order of insertion, nothing between them
 *                          |
 *                          v
 *     blob       data, data, ...                          of arrays, and of values that only Python can read
 *
 * index: slots, a power of two of them, at least FROZEN_BUCKET and more than there are records. First a byte for each,
 * its tag: 0 if it is empty, else the upper 8 bits of the key's hash, or 1 where those are 0. Then a u32 for each, its
 * place: the record's offset in entries / 8; 0 if it is empty. FROZEN_BUCKET slots are a bucket, filled from its front:
 * tags that are compared at once, places that are one cache line. The search for a key begins in bucket
 * hash & (buckets - 1), and goes on to the next, and from the last to the first, as long as buckets are full. The tags
 * of a million keys are 2 MiB, so most searches for a missing key end in the processor's cache.
 *
 * A record, at a multiple of 8 bytes, little-endian:
 *
 *     0    u8     kind of the key: FROZEN_INT, _BIGINT, _STR or _BYTES
 *     1    u8     kind of the value
 *     2    u16    0; 1 in a table of changes: replaced by a later record of the key
 *     4    u32    size of the key in bytes
 *     8    u64    the value's word
 *     16          the key, padded with zeros to a multiple of 8
 *                 the value's content, padded with zeros to a multiple of 8
 *
 *     kind            word                content
 *     0  NO_KEY       0                   -                               in a table of changes: the key is removed
 *     1  NONE         0                   -
 *     2  BOOL         0 or 1              -
 *     3  INT          i64                 -                               as a key: 8 bytes, i64
 *     4  FLOAT        8 bytes, IEEE 754   -
 *     5  COMPLEX      size: 16            real, imaginary
 *     6  STR          size                UTF-8; lone surrogates as three bytes each
 *     7  BYTES        size                the bytes
 *     8  BIGINT       size                two's complement; an int that is not an i64
 *     9  LIST         size                u64 length, then as many nodes
 *     10 TUPLE        size                likewise
 *     11 DICT         size                u64 length, then as many pairs of nodes: key, value
 *     12 ARRAY        size                u64 description, u64 offset in blob, u64 nbytes, u64 lengths of the axes
 *     13 SCALAR       size                likewise, without axes
 *     14 OTHER        size                u64 description, u64 offset in blob, u64 nbytes
 *
 * `size` is the content's, without padding. A node is a record without a key: kind and size of the key are 0. The
 * nbytes of an ARRAY are exactly the size that follows from its dtype and its axes, 64 at most. Array data is in C
 * order, aligned in blob to 16, from FROZEN_LARGE bytes on to 64; that of OTHER to 64. Python keeps the meaning of the
 * numbers of descriptions, the number of entries and the seed (frozen_dict.py).
 *
 * The hash (frozen_hash) is wyhash's construction, by Wang Yi (public domain, github.com/wangyi-fudan/wyhash, final
 * version 4, its default secret): multiply 64 by 64 bits to 128, fold the halves together. Every key is hashed as
 * bytes, an int as its 8, so that runs of ints and multiples of powers of two spread as well as text does.
 *
 * A builder begins with FROZEN_SEED, so that equal data has equal bytes. Picking keys that collide under that seed is
 * no attack: when a key finds FROZEN_MAX_FULL buckets full, the builder starts its index again with a seed that nobody
 * can know.
 */
#ifndef UNTORN_FROZEN_H
#define UNTORN_FROZEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "atomics.h"

enum frozen_kind {
    FROZEN_NO_KEY = 0,
    FROZEN_NONE,
    FROZEN_BOOL,
    FROZEN_INT,
    FROZEN_FLOAT,
    FROZEN_COMPLEX,
    FROZEN_STR,
    FROZEN_BYTES,
    FROZEN_BIGINT,
    FROZEN_LIST,
    FROZEN_TUPLE,
    FROZEN_DICT,
    FROZEN_ARRAY,
    FROZEN_SCALAR,
    FROZEN_OTHER,
};

enum {
    FROZEN_BUCKET = 16,
    FROZEN_SLOT_NBYTES = 5,
    FROZEN_MAX_FULL = 16,
    FROZEN_LARGE = 1024,
    FROZEN_MAX_DEPTH = 200,
    FROZEN_MAX_AXES = 64
};
#define FROZEN_SEED UINT64_C(0)
#define FROZEN_MAX_KEY_NBYTES (UINT32_MAX - 7u)
#define FROZEN_MAX_PLACE (UINT64_C(8) * UINT32_MAX) /* the last record begins here at most */

enum frozen_answer { FROZEN_FOUND, FROZEN_MISSING, FROZEN_DAMAGED };

struct frozen_key {
    const uint8_t *bytes;
    uint64_t nbytes;
    uint8_t kind;
};

/* A record or node as it was read, once: `content` and the key lie inside the table. */
struct frozen_record {
    struct frozen_key key;
    uint8_t kind;
    bool replaced; /* by a later record of the same key: in a table of changes */
    uint64_t word;
    const uint8_t *content;
    uint64_t content_nbytes;
};

/* A table to look up in. The memory is the caller's. */
struct frozen {
    const uint8_t *index;
    const uint8_t *entries;
    uint64_t slots, entries_nbytes, count, seed;
};

uint64_t frozen_hash(uint64_t seed, const struct frozen_key *key);

/* Return whether the sizes fit together. The content is checked when it is read. */
bool frozen_fits(const struct frozen *table, uint64_t index_nbytes);
enum frozen_answer frozen_find(const struct frozen *table, const struct frozen_key *key, struct frozen_record *found);
/* The same with the key's hash under the table's seed; prefetching it some searches ahead hides most cache misses. */
enum frozen_answer frozen_find_hashed(const struct frozen *table, const struct frozen_key *key, uint64_t hash,
                                      struct frozen_record *found);
void frozen_prefetch(const struct frozen *table, uint64_t hash);
/* Read the record or node at `offset` of `nbytes` bytes; move `offset` behind it. False if it does not lie inside. */
bool frozen_read(const uint8_t *bytes, uint64_t nbytes, uint64_t *offset, struct frozen_record *found);

/* -- Building ----------------------------------------------------------------------------------------------------- */

/* Memory that grows. `bytes` is aligned to 64. */
struct frozen_buffer {
    uint8_t *bytes;
    uint64_t nbytes, capacity;
    uint8_t *allocated; /* `shift` bytes before `bytes` */
    uint64_t shift;
};

void frozen_buffer_free(struct frozen_buffer *buffer);

/* Zero the builder first. Every function that returns bool returns false when there is no memory; then free the
 * builder. */
struct frozen_builder {
    struct frozen_buffer index, entries, blob;
    uint64_t count, seed;
    uint64_t spare_seed; /* used when the first seed meets collisions */
    uint64_t replaced;   /* records that a later one with the same key replaced */
    uint64_t wasted;     /* bytes of the blob of values that were replaced */
    unsigned reseeds;
    bool damaged;          /* the table that it continues is: then functions return false although there is memory */
    bool repeated;         /* the entry that was ended last replaced another one, */
    uint8_t repeated_kind; /* whose value was of this kind */
};

/* The size of a node without a key and without content. */
enum { FROZEN_NODE_NBYTES = 16 };

bool frozen_builder_begin(struct frozen_builder *builder, uint64_t expected, uint64_t spare_seed);
/* Begin with the entries of a table and its blob, whose sizes are multiples of 8. Those of a whole table, which has no
 * replaced records, or of one that frozen_builder_end_changes() made. */
bool frozen_builder_continue(struct frozen_builder *builder, const struct frozen *table, const void *blob,
                             uint64_t blob_nbytes, uint64_t spare_seed);
void frozen_builder_free(struct frozen_builder *builder);

/* Add one entry: begin it, put its value at the place that is returned, end it. In a table of changes, no value is put
 * for a key that is removed. FROZEN_NO_PLACE: no memory. */
#define FROZEN_NO_PLACE UINT64_MAX
uint64_t frozen_entry_begin(struct frozen_builder *builder, const struct frozen_key *key);
bool frozen_entry_end(struct frozen_builder *builder, uint64_t place);
/* Add an entry: a record of this table's memory, as it is. Returns its place. */
uint64_t frozen_entry_copy(struct frozen_builder *builder, const uint8_t *record, uint64_t nbytes);
/* frozen_entry_end() with the key and its hash under the builder's seed. */
bool frozen_entry_end_hashed(struct frozen_builder *builder, uint64_t place, const struct frozen_key *key,
                             uint64_t hash);
/* Have room for entries and a blob of this size. */
bool frozen_builder_reserve(struct frozen_builder *builder, uint64_t entries_nbytes, uint64_t blob_nbytes);
/* Begin a node inside a container's content; return its place. */
uint64_t frozen_node_begin(struct frozen_builder *builder);
/* Put a whole node whose value has no content. */
bool frozen_node_word(struct frozen_builder *builder, uint8_t kind, uint64_t word);

/* Put a value without content, or with this content. */
void frozen_put_word(struct frozen_builder *builder, uint64_t place, uint8_t kind, uint64_t word);
bool frozen_put_bytes(struct frozen_builder *builder, uint64_t place, uint8_t kind, const void *bytes, uint64_t nbytes);
/* Put a value whose content is written step by step: begin returns its start; then come words and nodes; then end. */
uint64_t frozen_content_begin(const struct frozen_builder *builder);
bool frozen_content_word(struct frozen_builder *builder, uint64_t word);
void frozen_content_end(struct frozen_builder *builder, uint64_t place, uint8_t kind, uint64_t start);
/* Copy into the blob; returns the offset, or FROZEN_NO_PLACE. */
uint64_t frozen_blob_put(struct frozen_builder *builder, const void *bytes, uint64_t nbytes, uint64_t alignment);

/* Drop replaced records, keys whose last record is of the kind NO_KEY, and spare capacity; a key that was added twice
 * keeps its first place and its last value. */
bool frozen_builder_end(struct frozen_builder *builder);
/* End a table of changes: removed keys stay, and so does what was replaced, unless it is more than the rest. Spare
 * capacity stays, and more entries may be added. */
bool frozen_builder_end_changes(struct frozen_builder *builder);

/* -- Merging (frozen_merge.c) -------------------------------------------------------------------------------------- */

/* Descriptions that records refer to by number. `kept` has for each the number in the merged table, FROZEN_UNUSED if no
 * value needs it; these numbers begin with 0. */
#define FROZEN_UNUSED UINT64_MAX
struct frozen_numbers {
    uint64_t *kept;
    uint64_t count, used;
};

/* A table, its blob, and for each dtype and each schema that its records may refer to, its index in the numbers of the
 * merge, which knows each description once. NULL: all references stay as they are. */
struct frozen_source {
    struct frozen table;
    const uint8_t *blob;
    uint64_t blob_nbytes;
    const uint64_t *dtypes, *schemas;
    uint64_t dtype_count, schema_count;
};

enum frozen_merged { FROZEN_MERGED, FROZEN_STOPPED, FROZEN_MERGE_FAILED };

/* Build one table of a whole table and its changes: each key of the base at its place, unless it is removed, with its
 * last value; then the new keys. Of the blobs only what these values refer to is copied. `expected` entries come out.
 * Looks at `stop` now and then, which another thread may set to end this early. If it fails, the builder's `damaged`
 * says whether one of the tables is damaged, or there is no memory. Free the builder, whatever comes out. */
enum frozen_merged frozen_merge(struct frozen_builder *builder, const struct frozen_source *base,
                                const struct frozen_source *changes, struct frozen_numbers *dtypes,
                                struct frozen_numbers *schemas, uint64_t expected, uint64_t spare_seed,
                                const shared_u32 *stop);

#endif

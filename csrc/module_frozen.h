/* A frozen table (frozen.h) as a Python object: declarations that the files module_frozen*.c share.
 *
 *     module_frozen.c         FrozenTable      looks up in place; keeps the memory alive by the buffer protocol
 *                             FrozenIterator   keys, values or items, in the order of insertion
 *     module_frozen_read.c    objects as keys to look up; keys and values as objects
 *     module_frozen_build.c   frozen_build     a dict, or pairs, as new parts
 *                             plain_pack       a container of plain values as one node, which plain_unpack reads
 *                             FrozenMemory     one such part; exports its bytes, read-only
 *     module_frozen_changes.c FrozenBuilder    a table of changes that grows from version to version
 *                             frozen_merge     a table and its changes as one table, without the GIL
 */
#ifndef UNTORN_MODULE_FROZEN_H
#define UNTORN_MODULE_FROZEN_H

#include "frozen.h"
#include "module.h"

enum { PART_INDEX, PART_ENTRIES, PART_BLOB, PARTS };

typedef struct {
    PyObject_HEAD
    struct frozen table;      /* points into the buffers; to nothing when they are released */
    Py_buffer buffers[PARTS]; /* they keep what exports the memory alive */
    PyObject *parts;          /* the tuple that this was made of: index, entries, blob, and more for Python */
    PyObject *dtypes;         /* tuple of (dtype, itemsize): what ARRAY and SCALAR refer to */
    PyObject *array;          /* numpy.ndarray */
    PyObject *base;           /* the table that this one changes, with no base of its own; NULL: none */
    uint64_t length;          /* of the two together */
    PyObject *other;          /* (number, blob, offset, nbytes) -> the value of an OTHER */
} FrozenTableObject;

/* Raise FormatError; returns NULL. */
PyObject *frozen_damaged(const char *found);

/* A Python object as a key. `key` points into the object, into `number`, or into `owner`. */
struct key_hold {
    struct frozen_key key;
    int64_t number;
    PyObject *owner;
};

/* Return 1 if the object is a key, which key_close() ends; 0 if it is hashable, but equal to no key that a table can
 * have; -1 if an exception is set. */
int key_open(PyObject *object, struct key_hold *hold);

/* Whether the object is a bool of NumPy, which equals an int and is none. */
bool key_is_numpy_bool(PyObject *object);

static inline void key_close(struct key_hold *hold) { Py_XDECREF(hold->owner); }

/* Return new objects, or NULL with an exception: FormatError if the bytes are not valid. Without a table (NULL), there
 * must be plain values only. */
PyObject *key_make(const struct frozen_key *key);
PyObject *value_make(FrozenTableObject *self, const struct frozen_record *record, unsigned depth);

/* -- Building ----------------------------------------------------------------------------------------------------- */

enum { BUILD_WAITING = 32 };

struct build {
    struct frozen_builder builder;
    PyObject *pack;    /* (value) -> (kind, description, alignment, payload, shape); NULL: take plain values only */
    PyObject *removed; /* the value of a key that is removed; NULL: there is none */
    PyObject *refuse;  /* (path, problem) raises; problem: text, or what pack() raised; NULL: refuse without an error */
    /* of a table of changes: what it changes, and by how much the entries make that longer; NULL: it is not counted.
     * The records at the first `waiting` of `places` are counted as if they were not in the base */
    const FrozenTableObject *base;
    int64_t length;
    unsigned waiting;
    uint64_t places[BUILD_WAITING];
};

/* Put the entries of a dict, or pairs. */
bool entries_put(struct build *build, PyObject *data);
/* Raise the error of the builder; always false. */
bool build_failed(const struct build *build);
/* The builder's table as (index, entries, blob, count, seed); takes its memory over. */
PyObject *parts_make(const struct core *core, struct frozen_builder *builder);
/* Takes the buffer over. */
PyObject *memory_make(const struct core *core, struct frozen_buffer *buffer);

bool module_add_frozen_build(PyObject *module);
bool module_add_frozen_changes(PyObject *module);

#endif

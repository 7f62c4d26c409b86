/* Building a frozen table in private memory, in one pass over a dict or over pairs: see module_frozen.h. */
#include "module_frozen.h"

#include <string.h>

enum { ENTRIES_PER_SIGNAL_CHECK = 1 << 16 };

/* -- FrozenMemory ----------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    struct frozen_buffer buffer;
} FrozenMemoryObject;

PyObject *memory_make(const struct core *core, struct frozen_buffer *buffer)
{
    FrozenMemoryObject *memory = PyObject_New(FrozenMemoryObject, core->frozen_memory_type);
    if (memory != NULL) {
        memory->buffer = *buffer;
        *buffer = (struct frozen_buffer){0};
    }
    return (PyObject *)memory;
}

static void FrozenMemory_dealloc(PyObject *self)
{
    frozen_buffer_free(&((FrozenMemoryObject *)self)->buffer);
    object_free(self);
}

static int FrozenMemory_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const struct frozen_buffer *buffer = &((FrozenMemoryObject *)self)->buffer;
    return PyBuffer_FillInfo(view, self, buffer->bytes, (Py_ssize_t)buffer->nbytes, 1, flags);
}

static PyType_Slot FrozenMemory_slots[] = {
    {Py_tp_doc, "Private memory that is complete; exports its bytes, read-only."},
    {Py_tp_dealloc, FrozenMemory_dealloc},
    {Py_bf_getbuffer, FrozenMemory_getbuffer},
    {0, NULL},
};
static PyType_Spec FrozenMemory_spec = {"untorn._core.FrozenMemory", sizeof(FrozenMemoryObject), 0,
                                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, FrozenMemory_slots};

/* -- Refusing ----------------------------------------------------------------------------------------------------- */

/* The place of a value in the tree: a key, or else an index. */
struct step {
    const struct step *above;
    PyObject *key;
    Py_ssize_t index;
};

static PyObject *path_make(const struct step *step)
{
    PyObject *path = PyList_New(0);
    for (; path != NULL && step != NULL; step = step->above) {
        PyObject *item = step->key != NULL ? Py_NewRef(step->key) : PyLong_FromSsize_t(step->index);
        if (!list_append_new(path, item))
            Py_CLEAR(path);
    }
    if (path != NULL)
        PyList_Reverse(path);
    return path;
}

/* Raise UnsupportedTypeError with the path in front; always false. */
static bool value_refuse(struct build *build, const struct step *step, PyObject *problem)
{
    if (build->refuse == NULL) {
        Py_XDECREF(problem);
        return false;
    }
    PyObject *path = problem == NULL ? NULL : path_make(step);
    PyObject *returned = path == NULL ? NULL : PyObject_CallFunctionObjArgs(build->refuse, path, problem, NULL);
    if (returned != NULL)
        PyErr_SetString(PyExc_SystemError, "refuse() returned");
    Py_XDECREF(returned);
    Py_XDECREF(path);
    Py_XDECREF(problem);
    return false;
}

/* The same with the error of pack(). An error that is not an Exception (Ctrl-C) passes unchanged. */
static bool value_refuse_packed(struct build *build, const struct step *step)
{
    PyObject *type, *value, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return false;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value_refuse(build, step, value);
}

static bool no_memory(void)
{
    PyErr_NoMemory();
    return false;
}

/* -- Values ------------------------------------------------------------------------------------------------------- */

static bool value_put(struct build *build, PyObject *value, uint64_t place, const struct step *step, unsigned depth);

/* Get the kind and the word of a value that has no content; false for all others. */
static bool word_of(PyObject *value, uint8_t *kind, uint64_t *word)
{
    int overflow = 0;
    if (PyFloat_CheckExact(value)) {
        const double number = PyFloat_AsDouble(value);
        memcpy(word, &number, sizeof number);
        *kind = FROZEN_FLOAT;
        return true;
    }
    if (PyLong_CheckExact(value)) {
        *word = (uint64_t)PyLong_AsLongLongAndOverflow(value, &overflow);
        *kind = FROZEN_INT;
        return overflow == 0;
    }
    *word = value == Py_True;
    *kind = value == Py_None ? FROZEN_NONE : FROZEN_BOOL;
    return value == Py_None || PyBool_Check(value);
}

static bool node_put(struct build *build, PyObject *value, const struct step *step, unsigned depth)
{
    uint8_t kind;
    uint64_t word;
    if (word_of(value, &kind, &word))
        return frozen_node_word(&build->builder, kind, word) || no_memory();
    const uint64_t place = frozen_node_begin(&build->builder);
    if (place == FROZEN_NO_PLACE)
        return no_memory();
    Py_INCREF(value); /* code that pack() runs may remove it from its container */
    const bool put = value_put(build, value, place, step, depth);
    Py_DECREF(value);
    return put;
}

static bool size_changed(void)
{
    PyErr_SetString(PyExc_RuntimeError, "a container changed its size while a FrozenDict was built from it");
    return false;
}

static bool sequence_put(struct build *build, PyObject *sequence, uint64_t place, const struct step *step,
                         unsigned depth)
{
    const bool list = PyList_CheckExact(sequence);
    const Py_ssize_t count = list ? PyList_Size(sequence) : PyTuple_Size(sequence);
    const uint64_t start = frozen_content_begin(&build->builder);
    if (!frozen_content_word(&build->builder, (uint64_t)count))
        return no_memory();
    for (Py_ssize_t i = 0; i < count; i++) {
        if (list && build->pack != NULL && PyList_Size(sequence) != count) /* pack() runs code of others */
            return size_changed();
        PyObject *item = list ? PyList_GetItem(sequence, i) : PyTuple_GetItem(sequence, i);
        if (!node_put(build, item, &(struct step){step, NULL, i}, depth + 1))
            return false;
    }
    frozen_content_end(&build->builder, place, list ? FROZEN_LIST : FROZEN_TUPLE, start);
    return true;
}

/* A key that comes back as the same key: of a dict inside a value. */
static bool key_is_plain(PyObject *key)
{
    if (PyTuple_CheckExact(key)) {
        for (Py_ssize_t i = 0; i < PyTuple_Size(key); i++)
            if (PyTuple_CheckExact(PyTuple_GetItem(key, i)) || !key_is_plain(PyTuple_GetItem(key, i)))
                return false;
        return true;
    }
    return key == Py_None || PyBool_Check(key) || PyUnicode_CheckExact(key) || PyLong_CheckExact(key) ||
           PyFloat_CheckExact(key) || PyBytes_CheckExact(key);
}

static bool dict_put(struct build *build, PyObject *dict, uint64_t place, const struct step *step, unsigned depth)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    const Py_ssize_t count = PyDict_Size(dict);
    const uint64_t start = frozen_content_begin(&build->builder);
    if (!frozen_content_word(&build->builder, (uint64_t)count))
        return no_memory();
    while (PyDict_Next(dict, &position, &key, &value)) {
        if (!key_is_plain(key))
            return value_refuse(build, step,
                                PyUnicode_FromFormat("a dict key of type %R; expected str, int, float, bool, "
                                                     "bytes, None or a tuple of these",
                                                     Py_TYPE(key)));
        Py_INCREF(key);
        Py_INCREF(value);
        const struct step below = {step, key, 0};
        const bool put = node_put(build, key, &below, depth + 1) && node_put(build, value, &below, depth + 1);
        Py_DECREF(key);
        Py_DECREF(value);
        if (!put)
            return false;
        if (PyDict_Size(dict) != count)
            return size_changed();
    }
    frozen_content_end(&build->builder, place, FROZEN_DICT, start);
    return true;
}

/* Whether the core can write the dict; if not, share may know its keys (src/untorn/share/described.py). */
static bool dict_has_plain_keys(PyObject *dict)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    bool plain = true;
    OBJECT_LOCK(dict);
    while (plain && PyDict_Next(dict, &position, &key, &value))
        plain = key_is_plain(key);
    OBJECT_UNLOCK();
    return plain;
}

static bool container_put(struct build *build, PyObject *value, uint64_t place, const struct step *step, unsigned depth)
{
    if (depth >= FROZEN_MAX_DEPTH)
        return value_refuse(
            build, step,
            PyUnicode_FromFormat("nested too deep: more than %d levels, or it contains itself", FROZEN_MAX_DEPTH));
    bool put;
    OBJECT_LOCK(value);
    put = PyDict_CheckExact(value) ? dict_put(build, value, place, step, depth)
                                   : sequence_put(build, value, place, step, depth);
    OBJECT_UNLOCK();
    return put;
}

/* A str, bytes or large int: what can be a key is the same as a value. */
static bool plain_put(struct build *build, PyObject *value, uint64_t place)
{
    struct key_hold hold;
    if (key_open(value, &hold) != 1)
        return false;
    const bool put =
        frozen_put_bytes(&build->builder, place, hold.key.kind, hold.key.bytes, hold.key.nbytes) || no_memory();
    key_close(&hold);
    return put;
}

static bool complex_put(struct build *build, PyObject *value, uint64_t place)
{
    const double parts[2] = {PyComplex_RealAsDouble(value), PyComplex_ImagAsDouble(value)};
    return frozen_put_bytes(&build->builder, place, FROZEN_COMPLEX, parts, sizeof parts) || no_memory();
}

static bool blob_put(struct build *build, PyObject *packed, uint64_t place)
{
    int kind;
    unsigned long long description, alignment;
    Py_buffer payload;
    PyObject *shape;
    if (!PyArg_ParseTuple(packed, "iKKy*O!", &kind, &description, &alignment, &payload, &PyTuple_Type, &shape))
        return false;
    struct frozen_builder *builder = &build->builder;
    const uint64_t start = frozen_content_begin(builder);
    const uint64_t offset = frozen_blob_put(builder, payload.buf, (uint64_t)payload.len, alignment);
    bool put = offset != FROZEN_NO_PLACE && frozen_content_word(builder, description) &&
               frozen_content_word(builder, offset) && frozen_content_word(builder, (uint64_t)payload.len);
    for (Py_ssize_t axis = 0; put && axis < PyTuple_Size(shape); axis++)
        put = frozen_content_word(builder, PyLong_AsUnsignedLongLong(PyTuple_GetItem(shape, axis)));
    frozen_content_end(builder, place, (uint8_t)kind, start);
    PyBuffer_Release(&payload);
    return put || no_memory();
}

static bool value_put(struct build *build, PyObject *value, uint64_t place, const struct step *step, unsigned depth)
{
    uint8_t kind;
    uint64_t word;
    if (word_of(value, &kind, &word)) {
        frozen_put_word(&build->builder, place, kind, word);
        return true;
    }
    if (PyUnicode_CheckExact(value) || PyLong_CheckExact(value) || PyBytes_CheckExact(value))
        return plain_put(build, value, place);
    if (PyComplex_CheckExact(value))
        return complex_put(build, value, place);
    if (PyList_CheckExact(value) || PyTuple_CheckExact(value) ||
        (PyDict_CheckExact(value) && (build->pack == NULL || dict_has_plain_keys(value))))
        return container_put(build, value, place, step, depth);
    if (build->pack == NULL)
        return false;
    PyObject *packed = PyObject_CallFunctionObjArgs(build->pack, value, NULL);
    if (packed == NULL)
        return value_refuse_packed(build, step);
    const bool put = blob_put(build, packed, place);
    Py_DECREF(packed);
    return put;
}

bool build_failed(const struct build *build)
{
    return build->builder.damaged ? frozen_damaged("its records do not fit together") != NULL : no_memory();
}

/* -- Entries ------------------------------------------------------------------------------------------------------ */

/* Count which of the entries that wait are in the base. All are fetched first, as most lie in no cache. */
static bool length_settle(struct build *build)
{
    const struct frozen *base = &build->base->table;
    uint64_t hashes[BUILD_WAITING];
    struct frozen_record records[BUILD_WAITING], found;
    for (unsigned i = 0; i < build->waiting; i++) {
        uint64_t offset = build->places[i];
        if (!frozen_read(build->builder.entries.bytes, build->builder.entries.nbytes, &offset, &records[i]))
            return frozen_damaged("its records do not fit together") != NULL;
        hashes[i] = frozen_hash(base->seed, &records[i].key);
        frozen_prefetch(base, hashes[i]);
    }
    for (unsigned i = 0; i < build->waiting; i++) {
        const enum frozen_answer answer = frozen_find_hashed(base, &records[i].key, hashes[i], &found);
        if (answer == FROZEN_DAMAGED)
            return frozen_damaged("its index leads outside the table") != NULL;
        build->length -= answer == FROZEN_FOUND;
    }
    build->waiting = 0;
    return true;
}

/* Count an entry that was put: it adds a key or not, or removes one or not. */
static bool length_count(struct build *build, uint64_t place)
{
    const struct frozen_builder *builder = &build->builder;
    struct frozen_record record;
    uint64_t offset = place;
    if (!frozen_read(builder->entries.bytes, builder->entries.nbytes, &offset, &record))
        return frozen_damaged("its records do not fit together") != NULL;
    build->length += record.kind != FROZEN_NO_KEY;
    if (builder->repeated) {
        build->length -= builder->repeated_kind != FROZEN_NO_KEY;
        return true;
    }
    build->places[build->waiting++] = place;
    return build->waiting < BUILD_WAITING || length_settle(build);
}

static bool entry_put(struct build *build, PyObject *key, PyObject *value)
{
    struct key_hold hold;
    const struct step step = {NULL, key, 0};
    /* A bool or a float would be found, as the int that it equals, but would come back as an int. */
    const bool comes_back = !PyBool_Check(key) && !PyFloat_Check(key) && !key_is_numpy_bool(key);
    const int opened = comes_back ? key_open(key, &hold) : 0;
    if (opened < 0)
        return false;
    if (opened == 0)
        return value_refuse(
            build, &step,
            PyUnicode_FromFormat("a key of type %R; expected str, bytes or int; convert it, for example with "
                                 "str(key), key.isoformat() or key.name",
                                 Py_TYPE(key)));
    uint64_t place = FROZEN_NO_PLACE;
    const bool fits = hold.key.nbytes <= FROZEN_MAX_KEY_NBYTES && build->builder.entries.nbytes <= FROZEN_MAX_PLACE;
    if (fits)
        place = frozen_entry_begin(&build->builder, &hold.key);
    key_close(&hold);
    if (!fits)
        return value_refuse(build, &step,
                            PyUnicode_FromString("too large: a key has at most 4 GiB, and all entries without "
                                                 "their arrays 32 GiB; make several of them"));
    if (place == FROZEN_NO_PLACE)
        return no_memory();
    const bool removed = build->removed != NULL && value == build->removed;
    if (!removed && !value_put(build, value, place, &step, 0))
        return false;
    if (!frozen_entry_end(&build->builder, place))
        return build_failed(build);
    if (build->base != NULL && !length_count(build, place))
        return false;
    return build->builder.count % ENTRIES_PER_SIGNAL_CHECK != 0 || PyErr_CheckSignals() == 0;
}

static bool entries_of_dict(struct build *build, PyObject *dict)
{
    PyObject *key, *value;
    Py_ssize_t position = 0;
    const Py_ssize_t count = PyDict_Size(dict);
    while (PyDict_Next(dict, &position, &key, &value)) {
        Py_INCREF(key);
        Py_INCREF(value);
        const bool put = entry_put(build, key, value);
        Py_DECREF(key);
        Py_DECREF(value);
        if (!put)
            return false;
        if (PyDict_Size(dict) != count)
            return size_changed();
    }
    return true;
}

static bool entry_of_pair(struct build *build, PyObject *item, Py_ssize_t number)
{
    PyObject *pair = PyTuple_CheckExact(item) ? Py_NewRef(item) : PySequence_Tuple(item);
    bool put = false;
    if (pair == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "item %zd: expected a pair of key and value, found %R", number,
                         Py_TYPE(item));
    } else if (PyTuple_Size(pair) != 2) {
        PyErr_Format(PyExc_ValueError, "item %zd: expected a pair of key and value, found a sequence of length %zd",
                     number, PyTuple_Size(pair));
    } else {
        put = entry_put(build, PyTuple_GetItem(pair, 0), PyTuple_GetItem(pair, 1));
    }
    Py_XDECREF(pair);
    return put;
}

static bool entries_of_pairs(struct build *build, PyObject *pairs)
{
    PyObject *item, *iterator = PyObject_GetIter(pairs);
    bool put = iterator != NULL;
    for (Py_ssize_t number = 0; put && (item = PyIter_Next(iterator)) != NULL; number++) {
        put = entry_of_pair(build, item, number);
        Py_DECREF(item);
    }
    Py_XDECREF(iterator);
    return put && !PyErr_Occurred();
}

bool entries_put(struct build *build, PyObject *data)
{
    bool put;
    if (PyDict_CheckExact(data)) {
        OBJECT_LOCK(data);
        put = entries_of_dict(build, data);
        OBJECT_UNLOCK();
    } else {
        put = entries_of_pairs(build, data);
    }
    return put && (build->waiting == 0 || length_settle(build));
}

/* The bytes that a container takes at least: a number's node for each of its members. */
static uint64_t container_least(PyObject *value)
{
    const Py_ssize_t count = PyDict_CheckExact(value)    ? 2 * PyDict_Size(value)
                             : PyList_CheckExact(value)  ? PyList_Size(value)
                             : PyTuple_CheckExact(value) ? PyTuple_Size(value)
                                                         : 0;
    return ((uint64_t)count + 2) * FROZEN_NODE_NBYTES;
}

/* Without pack(), no code of others runs, so the containers do not change meanwhile. */
static PyObject *core_plain_pack(PyObject *module, PyObject *value)
{
    struct build build = {0};
    struct frozen_builder *builder = &build.builder;
    PyObject *packed = NULL;
    if (!frozen_builder_begin(builder, 0, 0) || !frozen_builder_reserve(builder, container_least(value), 0)) {
        PyErr_NoMemory();
    } else if (node_put(&build, value, NULL, 0)) {
        packed = memory_make(core_of_module(module), &builder->entries);
    } else if (!PyErr_Occurred()) {
        packed = Py_NewRef(Py_None);
    }
    frozen_builder_free(builder);
    return packed;
}

static PyObject *core_plain_unpack(PyObject *module, PyObject *args)
{
    unsigned long long offset, nbytes;
    PyObject *exporter, *value = NULL;
    Py_buffer view;
    struct frozen_record record;
    if (!PyArg_ParseTuple(args, "OKK", &exporter, &offset, &nbytes) ||
        PyObject_GetBuffer(exporter, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    uint64_t at = 0;
    if (offset > (uint64_t)view.len || nbytes > (uint64_t)view.len - offset)
        PyErr_SetString(PyExc_ValueError, "plain_unpack: the place lies outside the memory");
    else if (!frozen_read((const uint8_t *)view.buf + offset, nbytes, &at, &record))
        frozen_damaged("a value that ends outside its place");
    else
        value = value_make(NULL, &record, 0);
    PyBuffer_Release(&view);
    return value;
}

PyObject *parts_make(const struct core *core, struct frozen_builder *builder)
{
    PyObject *result = NULL, *index = memory_make(core, &builder->index),
             *entries = index == NULL ? NULL : memory_make(core, &builder->entries),
             *blob = entries == NULL ? NULL : memory_make(core, &builder->blob);
    if (blob != NULL)
        result = Py_BuildValue("(OOOKK)", index, entries, blob, (unsigned long long)builder->count,
                               (unsigned long long)builder->seed);
    Py_XDECREF(index);
    Py_XDECREF(entries);
    Py_XDECREF(blob);
    return result;
}

static PyObject *core_frozen_build(PyObject *module, PyObject *args)
{
    PyObject *data, *result = NULL;
    unsigned long long spare_seed;
    struct build build = {0};
    if (!PyArg_ParseTuple(args, "OKOO", &data, &spare_seed, &build.pack, &build.refuse))
        return NULL;
    struct frozen_builder *builder = &build.builder;
    const uint64_t expected = PyDict_CheckExact(data) ? (uint64_t)PyDict_Size(data) : 0;
    if ((frozen_builder_begin(builder, expected, spare_seed) || build_failed(&build)) && entries_put(&build, data) &&
        (frozen_builder_end(builder) || build_failed(&build)))
        result = parts_make(core_of_module(module), builder);
    frozen_builder_free(builder);
    return result;
}

static PyMethodDef build_functions[] = {
    {"frozen_build", core_frozen_build, METH_VARARGS,
     "frozen_build($module, data, spare_seed, pack, refuse, /)\n--\n\n"
     "Return (index, entries, blob, count, seed) of a new table: see frozen_dict.py."},
    {"plain_pack", core_plain_pack, METH_O,
     "plain_pack($module, value, /)\n--\n\n"
     "Return the bytes of a FrozenDict's node with this value; None if it contains other than plain values, or is "
     "nested "
     "too deep."},
    {"plain_unpack", core_plain_unpack, METH_VARARGS,
     "plain_unpack($module, exporter, offset, nbytes, /)\n--\n\n"
     "Return the value of such a node."},
    {NULL, NULL, 0, NULL},
};

static const struct core_constant frozen_constants[] = {
    CORE_CONSTANT(FROZEN_ARRAY),
    CORE_CONSTANT(FROZEN_SCALAR),
    CORE_CONSTANT(FROZEN_OTHER),
    CORE_CONSTANT(FROZEN_LARGE),
    {NULL, 0},
};

bool module_add_frozen_build(PyObject *module)
{
    return type_add(module, &FrozenMemory_spec, &core_of_module(module)->frozen_memory_type) &&
           module_add_frozen_changes(module) && PyModule_AddFunctions(module, build_functions) == 0 &&
           constants_add(module, frozen_constants);
}

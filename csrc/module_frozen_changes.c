/* Tables of changes, and merging them with their base: see module_frozen.h. */
#include "module_frozen.h"

#include <stdlib.h>

/* -- FrozenBuilder ------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    struct frozen_builder builder;
    Py_ssize_t exports; /* views of its memory, which may not move meanwhile */
    bool failed;        /* an add() put only some of its entries */
} FrozenBuilderObject;

/* One part of a builder's table. */
typedef struct {
    PyObject_HEAD
    FrozenBuilderObject *owner;
    unsigned part;
} FrozenPartObject;

static PyObject *FrozenBuilder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    unsigned long long spare_seed;
    PyObject *under = Py_None;
    const struct core *core = core_of_class(type);
    if (core == NULL || !PyArg_ParseTuple(args, "K|O", &spare_seed, &under))
        return NULL;
    if (under != Py_None && !PyObject_TypeCheck(under, core->frozen_table_type))
        return PyErr_Format(PyExc_TypeError, "under: expected a FrozenTable, found %R", Py_TYPE(under));
    FrozenBuilderObject *self = (FrozenBuilderObject *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL)
        return NULL;
    struct build build = {0};
    bool begun;
    if (under == Py_None) {
        begun = frozen_builder_begin(&build.builder, 0, spare_seed);
    } else {
        const FrozenTableObject *table = (FrozenTableObject *)under;
        begun = frozen_builder_continue(&build.builder, &table->table, table->buffers[PART_BLOB].buf,
                                        (uint64_t)table->buffers[PART_BLOB].len, spare_seed);
    }
    self->builder = build.builder;
    if (!begun && !build_failed(&build))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void FrozenBuilder_dealloc(PyObject *self)
{
    frozen_builder_free(&((FrozenBuilderObject *)self)->builder);
    object_free(self);
}

static PyObject *builder_add(FrozenBuilderObject *self, PyObject *data, struct build *build)
{
    if (self->failed || self->exports != 0)
        return PyErr_Format(PyExc_BufferError, "add: %s",
                            self->failed ? "an earlier one failed" : "the parts are in use");
    self->failed = true; /* code that pack() runs may come back to this */
    build->builder = self->builder;
    self->builder = (struct frozen_builder){0};
    bool put = entries_put(build, data);
    put = put && (frozen_builder_end_changes(&build->builder) || build_failed(build));
    self->builder = build->builder;
    self->failed = !put;
    return put ? PyLong_FromLongLong(build->length) : NULL;
}

static PyObject *FrozenBuilder_add(PyObject *object, PyObject *args)
{
    FrozenBuilderObject *self = (FrozenBuilderObject *)object;
    struct build build = {0};
    PyObject *data, *base = Py_None, *added;
    if (!PyArg_ParseTuple(args, "OOOOO", &data, &build.pack, &build.refuse, &build.removed, &base))
        return NULL;
    if (base != Py_None && !PyObject_TypeCheck(base, core_of(object)->frozen_table_type))
        return PyErr_Format(PyExc_TypeError, "base: expected a FrozenTable, found %R", Py_TYPE(base));
    build.base = base == Py_None ? NULL : (FrozenTableObject *)base;
    OBJECT_LOCK(object);
    added = builder_add(self, data, &build);
    OBJECT_UNLOCK();
    return added;
}

static PyObject *part_make(FrozenBuilderObject *self, unsigned part)
{
    FrozenPartObject *made = PyObject_New(FrozenPartObject, core_of((PyObject *)self)->frozen_part_type);
    if (made != NULL) {
        made->owner = (FrozenBuilderObject *)Py_NewRef((PyObject *)self);
        made->part = part;
    }
    return (PyObject *)made;
}

static PyObject *FrozenBuilder_parts(PyObject *object, PyObject *unused)
{
    FrozenBuilderObject *self = (FrozenBuilderObject *)object;
    PyObject *parts = NULL, *index = part_make(self, PART_INDEX),
             *entries = index == NULL ? NULL : part_make(self, PART_ENTRIES),
             *blob = entries == NULL ? NULL : part_make(self, PART_BLOB);
    if (blob != NULL)
        parts = Py_BuildValue("(OOOKK)", index, entries, blob, (unsigned long long)self->builder.count,
                              (unsigned long long)self->builder.seed);
    Py_XDECREF(index);
    Py_XDECREF(entries);
    Py_XDECREF(blob);
    return parts;
}

static PyMethodDef FrozenBuilder_methods[] = {
    {"add", FrozenBuilder_add, METH_VARARGS,
     "add($self, data, pack, refuse, removed, base, /)\n--\n\n"
     "Add entries; the value `removed` removes a key. Return by how much this makes the dictionary longer, of which "
     "`base` is the whole table; without it the number says nothing. After an error no more can be added."},
    {"parts", FrozenBuilder_parts, METH_NOARGS,
     "parts($self, /)\n--\n\n"
     "Return (index, entries, blob, count, seed). Nothing can be added while a view of one exists."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot FrozenBuilder_slots[] = {
    {Py_tp_doc,
     "FrozenBuilder(spare_seed, under=None, /). A table of changes that grows; it begins with the entries of "
     "`under`, without those of its base."},
    {Py_tp_new, FrozenBuilder_new},
    {Py_tp_dealloc, FrozenBuilder_dealloc},
    {Py_tp_methods, FrozenBuilder_methods},
    {0, NULL},
};
static PyType_Spec FrozenBuilder_spec = {"untorn._core.FrozenBuilder", sizeof(FrozenBuilderObject), 0,
                                         Py_TPFLAGS_DEFAULT, FrozenBuilder_slots};

static int FrozenPart_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    FrozenPartObject *self = (FrozenPartObject *)object;
    struct frozen_builder *builder = &self->owner->builder;
    const struct frozen_buffer *buffer = self->part == PART_INDEX     ? &builder->index
                                         : self->part == PART_ENTRIES ? &builder->entries
                                                                      : &builder->blob;
    int filled = -1;
    OBJECT_LOCK(self->owner);
    if (self->owner->failed)
        PyErr_SetString(PyExc_BufferError, "an add() failed, or is not over");
    else
        filled = PyBuffer_FillInfo(view, object, buffer->bytes, (Py_ssize_t)buffer->nbytes, 1, flags);
    self->owner->exports += filled == 0;
    OBJECT_UNLOCK();
    return filled;
}

static void FrozenPart_releasebuffer(PyObject *object, Py_buffer *view)
{
    FrozenBuilderObject *owner = ((FrozenPartObject *)object)->owner;
    OBJECT_LOCK(owner);
    owner->exports--;
    OBJECT_UNLOCK();
}

static void FrozenPart_dealloc(PyObject *self)
{
    Py_DECREF(((FrozenPartObject *)self)->owner);
    object_free(self);
}

static PyType_Slot FrozenPart_slots[] = {
    {Py_tp_doc, "One part of a FrozenBuilder's table; exports its bytes, read-only."},
    {Py_tp_dealloc, FrozenPart_dealloc},
    {Py_bf_getbuffer, FrozenPart_getbuffer},
    {Py_bf_releasebuffer, FrozenPart_releasebuffer},
    {0, NULL},
};
static PyType_Spec FrozenPart_spec = {"untorn._core.FrozenPart", sizeof(FrozenPartObject), 0,
                                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, FrozenPart_slots};

/* -- Merging ------------------------------------------------------------------------------------------------------ */

enum { DTYPES, SCHEMAS, DESCRIPTIONS };

/* Memory for as many numbers; NULL with an exception set. */
static uint64_t *numbers_allocate(uint64_t count)
{
    uint64_t *numbers = malloc((count + 1) * sizeof *numbers);
    if (numbers == NULL)
        PyErr_NoMemory();
    return numbers;
}

/* A tuple of ints as an array, which the caller frees; NULL with an exception set. */
static uint64_t *numbers_make(PyObject *tuple, uint64_t *count)
{
    *count = (uint64_t)PyTuple_Size(tuple);
    uint64_t *numbers = numbers_allocate(*count);
    for (uint64_t i = 0; numbers != NULL && i < *count; i++)
        numbers[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, (Py_ssize_t)i));
    if (!PyErr_Occurred())
        return numbers;
    free(numbers);
    return NULL;
}

static bool source_fill(struct frozen_source *source, const FrozenTableObject *table, PyObject *dtypes,
                        PyObject *schemas)
{
    const Py_buffer *blob = &table->buffers[PART_BLOB];
    *source = (struct frozen_source){.table = table->table, .blob = blob->buf, .blob_nbytes = (uint64_t)blob->len};
    source->dtypes = numbers_make(dtypes, &source->dtype_count);
    source->schemas = source->dtypes == NULL ? NULL : numbers_make(schemas, &source->schema_count);
    return source->schemas != NULL;
}

static bool kept_fill(struct frozen_numbers *numbers, uint64_t count)
{
    *numbers = (struct frozen_numbers){.kept = numbers_allocate(count), .count = count};
    for (uint64_t i = 0; numbers->kept != NULL && i < count; i++)
        numbers->kept[i] = FROZEN_UNUSED;
    return numbers->kept != NULL;
}

/* The indices of the descriptions that are kept, in the order of their new numbers. */
static PyObject *kept_make(const struct frozen_numbers *numbers)
{
    PyObject *kept = PyList_New((Py_ssize_t)numbers->used);
    for (uint64_t i = 0; kept != NULL && i < numbers->count; i++)
        if (numbers->kept[i] != FROZEN_UNUSED) {
            PyObject *index = PyLong_FromUnsignedLongLong(i);
            if (index == NULL)
                Py_CLEAR(kept);
            else
                PyList_SetItem(kept, (Py_ssize_t)numbers->kept[i], index);
        }
    return kept;
}

struct merging {
    struct frozen_source base, changes;
    struct frozen_numbers kept[DESCRIPTIONS];
};

static void merging_free(struct merging *merging)
{
    free((void *)merging->base.dtypes);
    free((void *)merging->base.schemas);
    free((void *)merging->changes.dtypes);
    free((void *)merging->changes.schemas);
    free(merging->kept[DTYPES].kept);
    free(merging->kept[SCHEMAS].kept);
}

static PyObject *merged_make(const struct core *core, struct frozen_builder *builder, const struct merging *merging)
{
    PyObject *dtypes = kept_make(&merging->kept[DTYPES]), *schemas = kept_make(&merging->kept[SCHEMAS]);
    PyObject *parts = dtypes == NULL || schemas == NULL ? NULL : parts_make(core, builder);
    PyObject *made = parts == NULL ? NULL : PyTuple_Pack(3, parts, dtypes, schemas);
    Py_XDECREF(parts);
    Py_XDECREF(dtypes);
    Py_XDECREF(schemas);
    return made;
}

static PyObject *tables_merge(const struct core *core, struct merging *merging, uint64_t length, uint64_t spare_seed,
                              const shared_u32 *stop)
{
    struct build build = {0};
    enum frozen_merged merged;
    PyObject *result = NULL;
    Py_BEGIN_ALLOW_THREADS
    merged = frozen_merge(&build.builder, &merging->base, &merging->changes, &merging->kept[DTYPES],
                          &merging->kept[SCHEMAS], length, spare_seed, stop);
    Py_END_ALLOW_THREADS
    if (merged == FROZEN_MERGED && build.builder.count != length)
        frozen_damaged("its length is not that of its entries");
    else if (merged == FROZEN_MERGED)
        result = merged_make(core, &build.builder, merging);
    else if (merged == FROZEN_STOPPED)
        result = Py_NewRef(Py_None);
    else
        build_failed(&build);
    frozen_builder_free(&build.builder);
    return result;
}

static PyObject *core_frozen_merge(PyObject *module, PyObject *args)
{
    const struct core *core = core_of_module(module);
    PyObject *object, *of_base[DESCRIPTIONS], *of_changes[DESCRIPTIONS], *result = NULL;
    unsigned long long spare_seed, counts[DESCRIPTIONS];
    struct merging merging = {0};
    Py_buffer stop;
    if (!PyArg_ParseTuple(args, "OK(O!O!)(O!O!)(KK)w*", &object, &spare_seed, &PyTuple_Type, &of_base[DTYPES],
                          &PyTuple_Type, &of_base[SCHEMAS], &PyTuple_Type, &of_changes[DTYPES], &PyTuple_Type,
                          &of_changes[SCHEMAS], &counts[DTYPES], &counts[SCHEMAS], &stop))
        return NULL;
    const FrozenTableObject *table = (FrozenTableObject *)object;
    if (!PyObject_TypeCheck(object, core->frozen_table_type) || table->base == NULL)
        PyErr_SetString(PyExc_TypeError, "table: expected a FrozenTable with a base");
    else if (stop.len != sizeof(shared_u32) || (uintptr_t)stop.buf % sizeof(shared_u32) != 0)
        PyErr_SetString(PyExc_ValueError, "stop: expected a bytearray of 4 bytes");
    else if (source_fill(&merging.base, (FrozenTableObject *)table->base, of_base[DTYPES], of_base[SCHEMAS]) &&
             source_fill(&merging.changes, table, of_changes[DTYPES], of_changes[SCHEMAS]) &&
             kept_fill(&merging.kept[DTYPES], counts[DTYPES]) && kept_fill(&merging.kept[SCHEMAS], counts[SCHEMAS]))
        result = tables_merge(core, &merging, table->length, spare_seed, stop.buf);
    merging_free(&merging);
    PyBuffer_Release(&stop);
    return result;
}

static PyMethodDef changes_functions[] = {
    {"frozen_merge", core_frozen_merge, METH_VARARGS,
     "frozen_merge($module, table, spare_seed, of_base, of_changes, counts, stop, /)\n--\n\n"
     "Return ((index, entries, blob, count, seed), dtypes, schemas) of a table with the entries of this one and its "
     "base; None if a byte of `stop` was set meanwhile. `of_base` and `of_changes` give each of their dtypes and "
     "schemas an index less than `counts`; returned are the indices of those that are still needed."},
    {NULL, NULL, 0, NULL},
};

bool module_add_frozen_changes(PyObject *module)
{
    struct core *core = core_of_module(module);
    return type_add(module, &FrozenBuilder_spec, &core->frozen_builder_type) &&
           type_add(module, &FrozenPart_spec, &core->frozen_part_type) &&
           PyModule_AddFunctions(module, changes_functions) == 0;
}

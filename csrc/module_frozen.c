/* FrozenTable and its iterator: see module_frozen.h. */
#include "module_frozen.h"

enum iterated { ITERATE_KEYS, ITERATE_VALUES, ITERATE_ITEMS, ITERATE_CHANGED_KEYS };

typedef struct {
    PyObject_HEAD
    FrozenTableObject *owner;
    uint64_t offset, left;
    bool in_base; /* first the base's entries, then those that are new */
    enum iterated what;
} FrozenIteratorObject;

static const uint8_t NOTHING[FROZEN_BUCKET * FROZEN_SLOT_NBYTES];

/* -- FrozenTable ------------------------------------------------------------------------------------------------ */

static FrozenTableObject *base_of(const FrozenTableObject *self) { return (FrozenTableObject *)self->base; }

/* Find a key in a table, and else in its base; `owner` is the one that has the value. */
static enum frozen_answer key_find(FrozenTableObject *self, const struct frozen_key *key, struct frozen_record *found,
                                   FrozenTableObject **owner)
{
    *owner = self;
    enum frozen_answer answer = frozen_find(&self->table, key, found);
    if (self->base == NULL)
        return answer;
    if (answer == FROZEN_FOUND && found->kind == FROZEN_NO_KEY)
        return FROZEN_MISSING;
    if (answer != FROZEN_MISSING)
        return answer;
    *owner = base_of(self);
    return frozen_find(&base_of(self)->table, key, found);
}

static enum frozen_answer table_find(FrozenTableObject *self, PyObject *object, struct frozen_record *found,
                                     FrozenTableObject **owner)
{
    struct key_hold hold;
    const int opened = key_open(object, &hold);
    if (opened <= 0)
        return opened == 0 ? FROZEN_MISSING : FROZEN_DAMAGED;
    const enum frozen_answer answer = key_find(self, &hold.key, found, owner);
    key_close(&hold);
    if (answer == FROZEN_DAMAGED)
        frozen_damaged("its index leads outside the table");
    return answer; /* DAMAGED: an exception is set */
}

static PyObject *FrozenTable_subscript(PyObject *object, PyObject *key)
{
    FrozenTableObject *owner;
    struct frozen_record found;
    const enum frozen_answer answer = table_find((FrozenTableObject *)object, key, &found, &owner);
    if (answer == FROZEN_FOUND)
        return value_make(owner, &found, 0);
    PyObject *args = answer == FROZEN_MISSING ? PyTuple_Pack(1, key) : NULL;
    if (args != NULL) /* in a tuple: a key that is one is not the arguments */
        PyErr_SetObject(PyExc_KeyError, args);
    Py_XDECREF(args);
    return NULL;
}

static bool name_is_default(PyObject *names)
{
    return PyTuple_Size(names) == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "default") == 0;
}

static PyObject *FrozenTable_get(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    FrozenTableObject *owner;
    struct frozen_record found;
    const bool named = names != NULL && PyTuple_Size(names) != 0;
    if (count < 1 || count + named > 2 || (named && !name_is_default(names)))
        return PyErr_Format(PyExc_TypeError, "get: expected a key and perhaps a default");
    switch (table_find((FrozenTableObject *)object, args[0], &found, &owner)) {
    case FROZEN_FOUND: return value_make(owner, &found, 0);
    case FROZEN_MISSING: return Py_NewRef(count + named == 2 ? args[1] : Py_None);
    default: return NULL;
    }
}

static int FrozenTable_contains(PyObject *self, PyObject *key)
{
    FrozenTableObject *owner;
    struct frozen_record found;
    const enum frozen_answer answer = table_find((FrozenTableObject *)self, key, &found, &owner);
    return answer == FROZEN_DAMAGED ? -1 : answer == FROZEN_FOUND;
}

static Py_ssize_t FrozenTable_length(PyObject *self) { return (Py_ssize_t)((FrozenTableObject *)self)->length; }

/* It asks for the class that defines it, since `self` may be of a derived one, which has no module state. */
static PyObject *FrozenTable_iterate(PyObject *self, PyTypeObject *defining, PyObject *const *args, Py_ssize_t count,
                                     PyObject *names)
{
    if (count != 1 || (names != NULL && PyTuple_Size(names) != 0))
        return PyErr_Format(PyExc_TypeError, "_iterate: expected one number");
    const long what = PyLong_AsLong(args[0]);
    const struct core *core = PyType_GetModuleState(defining);
    FrozenIteratorObject *iterator =
        PyErr_Occurred() ? NULL : PyObject_New(FrozenIteratorObject, core->frozen_iterator_type);
    if (iterator == NULL)
        return NULL;
    iterator->owner = (FrozenTableObject *)Py_NewRef(self);
    iterator->offset = 0;
    iterator->what = (enum iterated)what;
    const bool changed = iterator->what == ITERATE_CHANGED_KEYS;
    iterator->left = changed ? iterator->owner->table.count : iterator->owner->length;
    iterator->in_base = !changed && iterator->owner->base != NULL;
    return (PyObject *)iterator;
}

static PyObject *parts_or_none(PyObject *parts) { return Py_NewRef(parts == NULL ? Py_None : parts); }

#define FROZEN_TABLE_FIELDS(FIELD) FIELD(FrozenTable, _parts, parts_or_none, self->parts)
FROZEN_TABLE_FIELDS(CORE_GETTER)

static int FrozenTable_traverse(PyObject *object, visitproc visit, void *arg)
{
    FrozenTableObject *self = (FrozenTableObject *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->parts);
    Py_VISIT(self->dtypes);
    Py_VISIT(self->array);
    Py_VISIT(self->other);
    Py_VISIT(self->base);
    for (int part = 0; part < PARTS; part++)
        Py_VISIT(self->buffers[part].obj);
    return 0;
}

static int FrozenTable_clear(PyObject *object)
{
    FrozenTableObject *self = (FrozenTableObject *)object;
    self->table = (struct frozen){NOTHING, NOTHING, FROZEN_BUCKET, 0, 0, 0};
    for (int part = 0; part < PARTS; part++)
        if (self->buffers[part].obj != NULL)
            PyBuffer_Release(&self->buffers[part]);
    Py_CLEAR(self->parts);
    Py_CLEAR(self->dtypes);
    Py_CLEAR(self->array);
    Py_CLEAR(self->other);
    Py_CLEAR(self->base);
    self->length = 0;
    return 0;
}

static void FrozenTable_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    FrozenTable_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static bool table_fill(FrozenTableObject *self)
{
    uint64_t count = self->table.count;
    self->table.count = 0;
    for (int part = 0; part < PARTS; part++)
        if (PyObject_GetBuffer(PyTuple_GetItem(self->parts, part), &self->buffers[part], PyBUF_SIMPLE) != 0)
            return false;
    const Py_buffer *index = &self->buffers[PART_INDEX], *entries = &self->buffers[PART_ENTRIES];
    const struct frozen table = {
        index->buf, entries->buf,    (uint64_t)index->len / FROZEN_SLOT_NBYTES, (uint64_t)entries->len,
        count,      self->table.seed};
    if (!frozen_fits(&table, (uint64_t)index->len)) {
        frozen_damaged("the sizes of its parts do not fit together");
        return false;
    }
    self->table = table;
    return true;
}

static PyObject *FrozenTable_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *parts, *dtypes, *array, *other, *base = Py_None;
    unsigned long long count, seed, length = 0;
    if (!PyArg_ParseTuple(args, "O!KKO!OO|OK", &PyTuple_Type, &parts, &count, &seed, &PyTuple_Type, &dtypes, &array,
                          &other, &base, &length))
        return NULL;
    if (base != Py_None && (!PyObject_TypeCheck(base, type) || ((FrozenTableObject *)base)->base != NULL))
        return PyErr_Format(PyExc_TypeError, "base: expected a table of this type that has no base");
    if (base == Py_None)
        length = count;
    else if (length > INT64_MAX)
        return frozen_damaged("a length out of range");
    if (PyTuple_Size(parts) < PARTS)
        return PyErr_Format(PyExc_ValueError, "parts: expected index, entries, blob and whatever else is to be kept");
    FrozenTableObject *self = (FrozenTableObject *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (self == NULL)
        return NULL;
    self->table = (struct frozen){NOTHING, NOTHING, FROZEN_BUCKET, 0, count, seed};
    self->parts = Py_NewRef(parts);
    self->dtypes = Py_NewRef(dtypes);
    self->array = Py_NewRef(array);
    self->other = Py_NewRef(other);
    self->base = base == Py_None ? NULL : Py_NewRef(base);
    self->length = length;
    if (!table_fill(self))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static PyMethodDef FrozenTable_methods[] = {
    {"get", (PyCFunction)(void (*)(void))FrozenTable_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, key, /, default=None)\n--\n\nThe value of the key, or the default."},
    {"_iterate", (PyCFunction)(void (*)(void))FrozenTable_iterate, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "_iterate($self, what, /)\n--\n\n"
     "Return an iterator over the keys (0), the values (1) or the items (2); or over the keys that differ from the "
     "base (3)."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "FrozenTable[K, V], for annotations."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef FrozenTable_getset[] = {FROZEN_TABLE_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot FrozenTable_slots[] = {
    {Py_tp_doc, "FrozenTable((index, entries, blob, ...), count, seed, dtypes, numpy.ndarray, other, base=None, "
                "length=0)."},
    {Py_tp_new, FrozenTable_new},
    {Py_tp_dealloc, FrozenTable_dealloc},
    {Py_tp_traverse, FrozenTable_traverse},
    {Py_tp_clear, FrozenTable_clear},
    {Py_tp_methods, FrozenTable_methods},
    {Py_tp_getset, FrozenTable_getset},
    {Py_mp_subscript, FrozenTable_subscript},
    {Py_mp_length, FrozenTable_length},
    {Py_sq_contains, FrozenTable_contains},
    {0, NULL},
};
static PyType_Spec FrozenTable_spec = {"untorn._core.FrozenTable", sizeof(FrozenTableObject), 0,
                                       Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
                                       FrozenTable_slots};

/* -- Iterating ---------------------------------------------------------------------------------------------------- */

/* Move to the next record, of the base or of the table itself. 1: there is one; 0: there is none; -1: damage. */
static int iterator_step(FrozenIteratorObject *self, struct frozen_record *record)
{
    FrozenTableObject *owner = self->owner;
    for (;;) {
        self->in_base = self->in_base && owner->base != NULL;
        const struct frozen *table = self->in_base ? &base_of(owner)->table : &owner->table;
        if (self->offset < table->entries_nbytes)
            return frozen_read(table->entries, table->entries_nbytes, &self->offset, record) ? 1 : -1;
        if (!self->in_base)
            return 0;
        self->in_base = false;
        self->offset = 0;
    }
}

/* The next entry that is in use, and the table that has its value. A key of the base stands at its place there, with
 * its present value; a new one at the place of its last record. */
static int iterator_find(FrozenIteratorObject *self, struct frozen_record *record, FrozenTableObject **owner)
{
    struct frozen_record other;
    int found;
    *owner = self->owner;
    while ((found = iterator_step(self, record)) > 0 && self->owner->base != NULL) {
        const struct frozen_key key = record->key;
        enum frozen_answer answer;
        if (self->in_base) {
            answer = key_find(self->owner, &key, record, owner);
        } else {
            if (record->replaced || (record->kind == FROZEN_NO_KEY && self->what != ITERATE_CHANGED_KEYS))
                continue;
            if (self->what == ITERATE_CHANGED_KEYS)
                break;
            answer = frozen_find(&base_of(self->owner)->table, &key, &other);
            *owner = self->owner;
        }
        if (answer == FROZEN_DAMAGED)
            return -1;
        if ((answer == FROZEN_FOUND) == self->in_base)
            break;
    }
    return found;
}

static PyObject *FrozenIterator_next(PyObject *object)
{
    FrozenIteratorObject *self = (FrozenIteratorObject *)object;
    FrozenTableObject *owner;
    struct frozen_record record;
    int found;
    OBJECT_LOCK(object);
    found = self->left == 0 ? 0 : iterator_find(self, &record, &owner);
    if (found == 0 && self->left != 0)
        found = -1;
    self->left = found > 0 ? self->left - 1 : 0;
    OBJECT_UNLOCK();
    if (found == 0)
        return NULL;
    if (found < 0)
        return frozen_damaged("an entry that ends outside the table");
    if (self->what == ITERATE_KEYS || self->what == ITERATE_CHANGED_KEYS)
        return key_make(&record.key);
    if (self->what == ITERATE_VALUES)
        return value_make(owner, &record, 0);
    PyObject *item = NULL, *key = key_make(&record.key);
    PyObject *value = key == NULL ? NULL : value_make(owner, &record, 0);
    if (value != NULL)
        item = PyTuple_Pack(2, key, value);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return item;
}

static void FrozenIterator_dealloc(PyObject *self)
{
    Py_DECREF(((FrozenIteratorObject *)self)->owner);
    object_free(self);
}

static PyObject *FrozenIterator_length_hint(PyObject *self, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(((FrozenIteratorObject *)self)->left);
}

static PyMethodDef FrozenIterator_methods[] = {
    {"__length_hint__", FrozenIterator_length_hint, METH_NOARGS,
     "__length_hint__($self, /)\n--\n\n"
     "Return how many are left."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot FrozenIterator_slots[] = {
    {Py_tp_doc, "Iterates over a FrozenTable in the order of insertion."},
    {Py_tp_dealloc, FrozenIterator_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, FrozenIterator_next},
    {Py_tp_methods, FrozenIterator_methods},
    {0, NULL},
};
static PyType_Spec FrozenIterator_spec = {"untorn._core.FrozenIterator", sizeof(FrozenIteratorObject), 0,
                                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, FrozenIterator_slots};

bool module_add_frozen(PyObject *module)
{
    return type_add(module, &FrozenTable_spec, &core_of_module(module)->frozen_table_type) &&
           type_add(module, &FrozenIterator_spec, &core_of_module(module)->frozen_iterator_type) &&
           module_add_frozen_build(module);
}

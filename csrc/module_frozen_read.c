/* Keys and values of a frozen table as Python objects: see module_frozen.h. */
#include "module_frozen.h"

#include <math.h>
#include <string.h>

PyObject *frozen_damaged(const char *found)
{
    PyObject *errors = PyImport_ImportModule("untorn.errors");
    PyObject *type = errors == NULL ? NULL : PyObject_GetAttrString(errors, "FormatError");
    if (type != NULL)
        PyErr_Format(type, "a FrozenDict, or a container of plain values, is damaged (%s); publish it again", found);
    Py_XDECREF(type);
    Py_XDECREF(errors);
    return NULL;
}

/* -- Keys --------------------------------------------------------------------------------------------------------- */

static int key_set(struct key_hold *hold, enum frozen_kind kind, const void *bytes, Py_ssize_t nbytes)
{
    hold->key = (struct frozen_key){bytes, (uint64_t)nbytes, (uint8_t)kind};
    return 1;
}

static int key_owned(struct key_hold *hold, enum frozen_kind kind, PyObject *bytes)
{
    hold->owner = bytes;
    return bytes == NULL ? -1 : key_set(hold, kind, PyBytes_AsString(bytes), PyBytes_Size(bytes));
}

static int key_open_str(PyObject *object, struct key_hold *hold)
{
    Py_ssize_t nbytes;
    const char *bytes = PyUnicode_AsUTF8AndSize(object, &nbytes);
    if (bytes != NULL)
        return key_set(hold, FROZEN_STR, bytes, nbytes);
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        return -1;
    PyErr_Clear(); /* a lone surrogate */
    return key_owned(hold, FROZEN_STR, PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass"));
}

/* The bytes of an int that is no i64: two's complement, little-endian. */
static PyObject *bigint_bytes(PyObject *integer)
{
    PyObject *bytes = NULL, *whole = PyNumber_Index(integer); /* of a subclass: the int itself */
    PyObject *bits = whole == NULL ? NULL : PyObject_CallMethod(whole, "bit_length", NULL);
    PyObject *to_bytes = bits == NULL ? NULL : PyObject_GetAttrString(whole, "to_bytes");
    PyObject *args = to_bytes == NULL ? NULL : Py_BuildValue("(ns)", (PyLong_AsSsize_t(bits) + 8) / 8, "little");
    PyObject *kwargs = args == NULL ? NULL : Py_BuildValue("{sO}", "signed", Py_True);
    if (kwargs != NULL)
        bytes = PyObject_Call(to_bytes, args, kwargs);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(to_bytes);
    Py_XDECREF(bits);
    Py_XDECREF(whole);
    return bytes;
}

static PyObject *bigint_make(const uint8_t *content, uint64_t nbytes)
{
    PyObject *integer = NULL, *from_bytes = PyObject_GetAttrString((PyObject *)&PyLong_Type, "from_bytes");
    PyObject *args = from_bytes == NULL ? NULL : Py_BuildValue("(y#s)", content, (Py_ssize_t)nbytes, "little");
    PyObject *kwargs = args == NULL ? NULL : Py_BuildValue("{sO}", "signed", Py_True);
    if (kwargs != NULL)
        integer = PyObject_Call(from_bytes, args, kwargs);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(from_bytes);
    return integer;
}

static int key_open_int(PyObject *object, struct key_hold *hold)
{
    int overflow;
    hold->number = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow == 0)
        return hold->number == -1 && PyErr_Occurred() ? -1 : key_set(hold, FROZEN_INT, &hold->number, 8);
    return key_owned(hold, FROZEN_BIGINT, bigint_bytes(object));
}

/* 1.0 finds 1, as in a dict. */
static int key_open_float(PyObject *object, struct key_hold *hold)
{
    const double number = PyFloat_AsDouble(object);
    if (!isfinite(number) || floor(number) != number)
        return 0;
    PyObject *integer = PyLong_FromDouble(number);
    int opened = integer == NULL ? -1 : key_open_int(integer, hold);
    Py_XDECREF(integer);
    return opened;
}

static bool names_equal(PyObject *name, const char *expected)
{
    return name != NULL && PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, expected) == 0;
}

/* NumPy 1 calls the type bool_, and gives it an __index__ that warns; NumPy 2 calls it bool. */
bool key_is_numpy_bool(PyObject *object)
{
    if (PyUnicode_Check(object) || PyLong_Check(object) || PyBytes_Check(object))
        return false;
    PyObject *type = (PyObject *)Py_TYPE(object), *module = NULL, *name = PyObject_GetAttrString(type, "__name__");
    bool is = names_equal(name, "bool") || names_equal(name, "bool_");
    if (is) {
        module = PyObject_GetAttrString(type, "__module__");
        is = names_equal(module, "numpy");
    }
    Py_XDECREF(module);
    Py_XDECREF(name);
    PyErr_Clear();
    return is;
}

/* NumPy's bools and integers, and other objects with __index__. */
static int key_open_index(PyObject *object, struct key_hold *hold)
{
    if (PyObject_Hash(object) == -1)
        return -1; /* unhashable: TypeError, as from a dict */
    if (key_is_numpy_bool(object)) {
        hold->number = PyObject_IsTrue(object);
        return key_set(hold, FROZEN_INT, &hold->number, 8);
    }
    if (!PyIndex_Check(object))
        return 0;
    PyObject *integer = PyNumber_Index(object);
    if (integer == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    int opened = key_open_int(integer, hold);
    Py_DECREF(integer);
    return opened;
}

int key_open(PyObject *object, struct key_hold *hold)
{
    hold->owner = NULL;
    if (PyUnicode_Check(object))
        return key_open_str(object, hold);
    if (PyLong_Check(object))
        return key_open_int(object, hold);
    if (PyBytes_Check(object))
        return key_set(hold, FROZEN_BYTES, PyBytes_AsString(object), PyBytes_Size(object));
    return PyFloat_Check(object) ? key_open_float(object, hold) : key_open_index(object, hold);
}

/* -- Records as Python objects ---------------------------------------------------------------------------------- */

static PyObject *str_make(const uint8_t *content, uint64_t nbytes)
{
    PyObject *text = PyUnicode_DecodeUTF8((const char *)content, (Py_ssize_t)nbytes, "surrogatepass");
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        return frozen_damaged("text that is no UTF-8");
    }
    return text;
}

PyObject *key_make(const struct frozen_key *key)
{
    int64_t number;
    switch (key->kind) {
    case FROZEN_STR: return str_make(key->bytes, key->nbytes);
    case FROZEN_BYTES: return PyBytes_FromStringAndSize((const char *)key->bytes, (Py_ssize_t)key->nbytes);
    case FROZEN_BIGINT: return bigint_make(key->bytes, key->nbytes);
    case FROZEN_INT:
        if (key->nbytes != sizeof number)
            break;
        memcpy(&number, key->bytes, sizeof number);
        return PyLong_FromLongLong(number);
    }
    return frozen_damaged("a key of unknown kind");
}

/* The node at `offset` of a container's content. */
static PyObject *node_make(FrozenTableObject *self, const struct frozen_record *container, uint64_t *offset,
                           unsigned depth)
{
    struct frozen_record node;
    if (!frozen_read(container->content, container->content_nbytes, offset, &node))
        return frozen_damaged("a value that ends outside the table");
    return value_make(self, &node, depth);
}

static PyObject *dict_make(FrozenTableObject *self, const struct frozen_record *record, uint64_t count, unsigned depth)
{
    uint64_t offset = 8;
    PyObject *made = PyDict_New();
    for (uint64_t i = 0; made != NULL && i < count; i++) {
        PyObject *key = node_make(self, record, &offset, depth + 1);
        PyObject *value = key == NULL ? NULL : node_make(self, record, &offset, depth + 1);
        if (value == NULL || PyDict_SetItem(made, key, value) != 0)
            Py_CLEAR(made);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    if (made == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        return frozen_damaged("a key that cannot be one");
    }
    return made;
}

static PyObject *container_make(FrozenTableObject *self, const struct frozen_record *record, unsigned depth)
{
    uint64_t count, offset = 8;
    if (depth >= FROZEN_MAX_DEPTH)
        return frozen_damaged("a value nested too deep");
    if (record->content_nbytes < sizeof count)
        return frozen_damaged("a container without a length");
    memcpy(&count, record->content, sizeof count);
    if (count > record->content_nbytes / 16)
        return frozen_damaged("a container longer than its bytes");
    if (record->kind == FROZEN_DICT)
        return dict_make(self, record, count, depth);
    const bool list = record->kind == FROZEN_LIST;
    PyObject *made = list ? PyList_New((Py_ssize_t)count) : PyTuple_New((Py_ssize_t)count);
    for (uint64_t i = 0; made != NULL && i < count; i++) {
        PyObject *item = node_make(self, record, &offset, depth + 1);
        if (item == NULL)
            Py_CLEAR(made);
        else if (list)
            PyList_SetItem(made, (Py_ssize_t)i, item);
        else
            PyTuple_SetItem(made, (Py_ssize_t)i, item);
    }
    return made;
}

/* The lengths of an array's axes, each read once. NULL without an exception: an array of these lengths does not have
 * exactly `nbytes` bytes. Nobody else is asked whether it lies inside: NumPy's own check adds without looking for
 * overflow, and 2^63 - 1 bytes at any offset pass it. */
static PyObject *shape_make(const struct frozen_record *record, uint64_t itemsize, uint64_t nbytes)
{
    const uint64_t axes = record->content_nbytes / 8 - 3;
    uint64_t product = itemsize;
    bool empty = itemsize == 0, fits = axes <= FROZEN_MAX_AXES;
    PyObject *shape = fits ? PyTuple_New((Py_ssize_t)axes) : NULL;
    for (uint64_t axis = 0; shape != NULL && fits && axis < axes; axis++) {
        uint64_t length;
        memcpy(&length, record->content + 24 + axis * 8, sizeof length);
        empty |= length == 0;
        /* the axes beside one of length 0 are bounded as well: compiled code multiplies them */
        fits = length <= INT64_MAX && (length == 0 || !__builtin_mul_overflow(product ? product : 1, length, &product));
        PyObject *item = PyLong_FromUnsignedLongLong(length);
        if (item == NULL)
            Py_CLEAR(shape);
        else
            PyTuple_SetItem(shape, (Py_ssize_t)axis, item);
    }
    if (shape != NULL && (!fits || product > INT64_MAX || (empty ? 0 : product) != nbytes))
        Py_CLEAR(shape);
    return shape;
}

/* A view of the blob, which it keeps alive. `words`: number of the description, offset, nbytes; they lie inside. */
static PyObject *array_make(FrozenTableObject *self, const struct frozen_record *record, const uint64_t words[3])
{
    if (words[0] >= (uint64_t)PyTuple_Size(self->dtypes))
        return frozen_damaged("an array without a dtype");
    PyObject *described = PyTuple_GetItem(self->dtypes, (Py_ssize_t)words[0]); /* (dtype, itemsize) */
    const uint64_t itemsize = PyLong_AsUnsignedLongLong(PyTuple_GetItem(described, 1));
    PyObject *shape = shape_make(record, itemsize, words[2]);
    if (shape == NULL)
        return PyErr_Occurred() ? NULL : frozen_damaged("an array whose shape is not that of its bytes");
    PyObject *made = PyObject_CallFunction(self->array, "OOOK", shape, PyTuple_GetItem(described, 0),
                                           PyTuple_GetItem(self->parts, PART_BLOB), (unsigned long long)words[1]);
    if (made != NULL && record->kind == FROZEN_SCALAR) {
        PyObject *array = made;
        made = PyObject_GetItem(array, shape); /* array[()] */
        Py_DECREF(array);
    }
    Py_DECREF(shape);
    if (made == NULL && (PyErr_ExceptionMatches(PyExc_ValueError) || PyErr_ExceptionMatches(PyExc_TypeError) ||
                         PyErr_ExceptionMatches(PyExc_OverflowError) || PyErr_ExceptionMatches(PyExc_SystemError))) {
        PyErr_Clear(); /* too many axes; SystemError is NumPy's for a str_ that is no text */
        return frozen_damaged("an array of an impossible shape");
    }
    return made;
}

static PyObject *blob_make(FrozenTableObject *self, const struct frozen_record *record)
{
    uint64_t words[3];
    if (self == NULL)
        return frozen_damaged("an array among plain values");
    const uint64_t size = record->content_nbytes, blob = (uint64_t)self->buffers[PART_BLOB].len;
    if (size < sizeof words || size % 8 != 0 || (record->kind != FROZEN_ARRAY && size != sizeof words))
        return frozen_damaged("a reference to the blob of a wrong size");
    memcpy(words, record->content, sizeof words);
    if (words[1] > blob || words[2] > blob - words[1])
        return frozen_damaged("a reference behind the end of the blob");
    if (record->kind != FROZEN_OTHER)
        return array_make(self, record, words);
    return PyObject_CallFunction(self->other, "KOKK", (unsigned long long)words[0],
                                 PyTuple_GetItem(self->parts, PART_BLOB), (unsigned long long)words[1],
                                 (unsigned long long)words[2]);
}

PyObject *value_make(FrozenTableObject *self, const struct frozen_record *record, unsigned depth)
{
    double numbers[2];
    switch (record->kind) {
    case FROZEN_NONE: return Py_NewRef(Py_None);
    case FROZEN_BOOL: return PyBool_FromLong(record->word != 0);
    case FROZEN_INT: return PyLong_FromLongLong((int64_t)record->word);
    case FROZEN_FLOAT: memcpy(numbers, &record->word, 8); return PyFloat_FromDouble(numbers[0]);
    case FROZEN_STR: return str_make(record->content, record->content_nbytes);
    case FROZEN_BYTES:
        return PyBytes_FromStringAndSize((const char *)record->content, (Py_ssize_t)record->content_nbytes);
    case FROZEN_BIGINT: return bigint_make(record->content, record->content_nbytes);
    case FROZEN_COMPLEX:
        if (record->content_nbytes != sizeof numbers)
            break;
        memcpy(numbers, record->content, sizeof numbers);
        return PyComplex_FromDoubles(numbers[0], numbers[1]);
    case FROZEN_LIST:
    case FROZEN_TUPLE:
    case FROZEN_DICT: return container_make(self, record, depth);
    case FROZEN_ARRAY:
    case FROZEN_SCALAR:
    case FROZEN_OTHER: return blob_make(self, record);
    }
    return frozen_damaged("a value of unknown kind");
}

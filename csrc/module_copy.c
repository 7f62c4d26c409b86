/* Copying bytes, and a tree's leaves, into shared memory without the GIL: see module.h. */
#include "module.h"

#include <string.h>

#include "copying.h"
#include "sparse.h"

/* Leaves of at least this size are copied without the GIL. */
enum { COPY_LARGE_NBYTES = 65536 };

static PyObject *core_copy(PyObject *module, PyObject *args)
{
    Py_buffer target, source;
    Py_ssize_t offset;
    unsigned long long together = 0;
    if (!PyArg_ParseTuple(args, "w*ny*|K", &target, &offset, &source, &together))
        return NULL;
    const uint64_t nbytes = (uint64_t)source.len;
    bool fits = offset >= 0 && source.len <= target.len && offset <= target.len - source.len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        copy_bytes((char *)target.buf + offset, source.buf, nbytes, together > nbytes ? together : nbytes);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "copy: the source does not fit into the target");
    }
    PyBuffer_Release(&target);
    PyBuffer_Release(&source);
    if (!fits)
        return NULL;
    Py_RETURN_NONE;
}

enum copied { COPY_FAILED = -1, COPY_MISSED, COPY_DONE, COPY_NOT_FINITE };

/* Copy bytes; of a gradient, look also whether all of its numbers are finite. */
static enum copied numbers_copy(char *target, const void *source, uint64_t nbytes, char format, bool is_gradient)
{
    if (!is_gradient) {
        memcpy(target, source, nbytes);
        return COPY_DONE;
    }
    const enum kernel_dtype dtype = format == 'f' ? KERNEL_F32 : KERNEL_F64;
    const bool finite = kernel_copy_finite(dtype, nbytes / kernel_itemsize(dtype), target, source);
    return finite ? COPY_DONE : COPY_NOT_FINITE;
}

static enum copied bytes_copy(char *target, const void *source, uint64_t nbytes, char format, bool is_gradient)
{
    if (nbytes < COPY_LARGE_NBYTES)
        return numbers_copy(target, source, nbytes, format, is_gradient);
    enum copied copied;
    Py_BEGIN_ALLOW_THREADS
    copied = numbers_copy(target, source, nbytes, format, is_gradient);
    Py_END_ALLOW_THREADS
    return copied;
}

/* Copy one leaf to its place if it is just the bytes that belong there: contiguous, of that format and size. */
static enum copied leaf_copy(const Py_buffer *target, PyObject *place, PyObject *leaf, bool is_gradient,
                             bool is_address)
{
    unsigned long long offset, nbytes;
    const char *format;
    Py_buffer source;
    if (!PyArg_ParseTuple(place, "KKs", &offset, &nbytes, &format))
        return COPY_FAILED;
    if (offset > (uint64_t)target->len || nbytes > (uint64_t)target->len - offset) {
        PyErr_SetString(PyExc_ValueError, "copy_leaves: a place lies outside the target");
        return COPY_FAILED;
    }
    if (is_gradient && strcmp(format, "f") != 0 && strcmp(format, "d") != 0) {
        PyErr_SetString(PyExc_ValueError, "copy_leaves: a gradient's format must be f or d");
        return COPY_FAILED;
    }
    char *to = (char *)target->buf + offset;
    if (is_address) {
        const void *address = PyLong_AsVoidPtr(leaf);
        if (PyErr_Occurred())
            return COPY_FAILED;
        return nbytes == 0 ? COPY_MISSED : bytes_copy(to, address, nbytes, *format, is_gradient);
    }
    if (PyObject_GetBuffer(leaf, &source, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        return COPY_MISSED;
    }
    enum copied copied = COPY_MISSED;
    if ((uint64_t)source.len == nbytes && source.format != NULL && strcmp(source.format, format) == 0)
        copied = bytes_copy(to, source.buf, nbytes, *format, is_gradient);
    PyBuffer_Release(&source);
    return copied;
}

/* Write zeros to the place of a leaf without a gradient: the sum of the shards reads them. */
static enum copied place_clear(const Py_buffer *target, PyObject *place)
{
    unsigned long long offset, nbytes;
    const char *format;
    if (!PyArg_ParseTuple(place, "KKs", &offset, &nbytes, &format))
        return COPY_FAILED;
    if (offset > (uint64_t)target->len || nbytes > (uint64_t)target->len - offset) {
        PyErr_SetString(PyExc_ValueError, "copy_leaves: a place lies outside the target");
        return COPY_FAILED;
    }
    memset((char *)target->buf + offset, 0, nbytes);
    return nbytes == 0 ? COPY_MISSED : COPY_DONE;
}

static PyObject *core_copy_leaves(PyObject *module, PyObject *args)
{
    PyObject *places, *leaves, *missed = NULL;
    Py_buffer target;
    Py_ssize_t first_gradient, buffers, absent_at, bad = -1;
    int are_addresses;
    if (!PyArg_ParseTuple(args, "w*O!O!nnnp", &target, &PyTuple_Type, &places, &PyList_Type, &leaves, &first_gradient,
                          &buffers, &absent_at, &are_addresses))
        return NULL;
    Py_ssize_t count = PyTuple_Size(places);
    if (count != PyList_Size(leaves))
        PyErr_SetString(PyExc_ValueError, "copy_leaves: as many leaves as places are needed");
    else if (buffers < 0 || buffers > count || absent_at < 0 || count - buffers > target.len - absent_at)
        PyErr_SetString(PyExc_ValueError, "copy_leaves: the bytes of the leaves lie outside the target");
    else
        missed = PyList_New(0);
    for (Py_ssize_t i = 0; missed != NULL && i < count; i++) {
        PyObject *leaf = PyList_GetItem(leaves, i), *place = PyTuple_GetItem(places, i);
        if (i >= buffers)
            ((uint8_t *)target.buf)[absent_at + i - buffers] = leaf == Py_None;
        enum copied copied = leaf == Py_None ? place_clear(&target, place)
                                             : leaf_copy(&target, place, leaf, i >= first_gradient, are_addresses != 0);
        if (copied == COPY_NOT_FINITE && bad < 0)
            bad = i;
        if (copied == COPY_FAILED || (copied == COPY_MISSED && !list_append_new(missed, PyLong_FromSsize_t(i))))
            Py_CLEAR(missed);
    }
    PyBuffer_Release(&target);
    return missed == NULL ? NULL : Py_BuildValue("(Nn)", missed, bad);
}

/* Return whether the table lies in the target, aligned. */
static bool table_fits(const Py_buffer *target, uint64_t values_at, uint64_t set_at, const struct sparse_table *table)
{
    const uint64_t length = (uint64_t)target->len, itemsize = kernel_itemsize(table->dtype);
    return table->row != 0 && table->rows <= length / itemsize / table->row && values_at % itemsize == 0 &&
           values_at <= length - table->rows * table->row * itemsize && set_at % sizeof(uint64_t) == 0 &&
           sparse_words(table->rows) <= length / sizeof(uint64_t) &&
           set_at <= length - sparse_words(table->rows) * sizeof(uint64_t);
}

/* Add the values to the rows with these indices. Return 1 if the results are finite, 0 if not, -1 with an error set. */
static int rows_add(const struct sparse_table *table, char format, PyObject *indices, PyObject *values)
{
    Py_buffer rows, numbers;
    int finite = -1;
    if (PyObject_GetBuffer(indices, &rows, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0)
        return -1;
    if (PyObject_GetBuffer(values, &numbers, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyBuffer_Release(&rows);
        return -1;
    }
    const uint64_t count = (uint64_t)rows.len / sizeof(int64_t);
    const int64_t *index = rows.buf;
    bool fits = rows.itemsize == sizeof(int64_t) && (strcmp(rows.format, "l") == 0 || strcmp(rows.format, "q") == 0) &&
                numbers.format[0] == format && numbers.format[1] == 0 &&
                (uint64_t)numbers.len == count * table->row * kernel_itemsize(table->dtype);
    for (uint64_t i = 0; fits && i < count; i++)
        fits = (uint64_t)index[i] < table->rows;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        finite = sparse_add(table, count, index, numbers.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "put_rows: expected int64 indices of rows, and a row of values for each");
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&numbers);
    return finite;
}

static PyObject *core_put_rows(PyObject *module, PyObject *args)
{
    Py_buffer target;
    unsigned long long values_at, set_at, rows, row;
    const char *format;
    PyObject *indices, *values;
    int begins;
    if (!PyArg_ParseTuple(args, "w*(KsKKK)pOO", &target, &values_at, &format, &rows, &row, &set_at, &begins, &indices,
                          &values))
        return NULL;
    struct sparse_table table = {.dtype = *format == 'f' ? KERNEL_F32 : KERNEL_F64, .rows = rows, .row = row};
    int finite = 1;
    if (!table_fits(&target, values_at, set_at, &table)) {
        PyErr_SetString(PyExc_ValueError, "put_rows: the table lies outside the target");
        finite = -1;
    } else {
        table.values = (uint8_t *)target.buf + values_at;
        table.set = (uint64_t *)((uint8_t *)target.buf + set_at);
        if (begins) {
            Py_BEGIN_ALLOW_THREADS
            sparse_clear(&table);
            Py_END_ALLOW_THREADS
        }
        if (indices != Py_None)
            finite = rows_add(&table, *format, indices, values);
    }
    PyBuffer_Release(&target);
    return finite < 0 ? NULL : PyBool_FromLong(finite);
}

static PyMethodDef copy_functions[] = {
    {"put_rows", core_put_rows, METH_VARARGS,
     "put_rows($module, target, table, begins, indices, values, /)\n--\n\n"
     "Add values to rows of a table, (offset, format, rows, elements of a row, offset of its set), in the target; "
     "first "
     "clear the table, if it begins. Without indices, do no more. Return whether the results are finite."},
    {"copy_leaves", core_copy_leaves, METH_VARARGS,
     "copy_leaves($module, target, places, leaves, first_gradient, buffers, absent_at, are_addresses, /)\n--\n\n"
     "Copy each leaf to its place, (offset, nbytes, format), in the target; of None write zeros there. Return the "
     "indices of the leaves that are not such bytes, and the index of a gradient that is not finite, or -1. For each "
     "leaf behind the first `buffers`, write to the bytes from `absent_at` on whether it is None. If `are_addresses`, "
     "the leaves are addresses of such bytes."},
    {"copy", core_copy, METH_VARARGS,
     "copy($module, target, offset, source, together=0, /)\n--\n\n"
     "Copy the source into the target, without the GIL. If it is one of several, `together` is their size: copies that "
     "are larger than the processor's cache do not go through it."},
    {NULL, NULL, 0, NULL},
};

bool module_add_copy(PyObject *module) { return PyModule_AddFunctions(module, copy_functions) == 0; }

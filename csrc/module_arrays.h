/* NumPy's arrays, made and read without its Python interface, which costs half a microsecond for each.
 *
 * What is used here is part of NumPy's binary interface, which no release of NumPy 1 or 2 changes: two entries of the
 * table of functions, and the first fields of an array object. The table comes as the capsule that NumPy gives to
 * extensions. With another interface there is no table, and callers use the class instead.
 */
#ifndef UNTORN_MODULE_ARRAYS_H
#define UNTORN_MODULE_ARRAYS_H

#include "module.h"

/* The beginning of an array object: PyArrayObject_fields of NumPy's headers. */
struct array_fields {
    PyObject_HEAD
    char *data;
    int ndim;
    Py_ssize_t *lengths, *strides;
    PyObject *base, *dtype;
    int flags;
};
enum { ARRAY_C_CONTIGUOUS = 0x1, ARRAY_ALIGNED = 0x100, ARRAY_WRITEABLE = 0x400 };

/* No dtype of plain numbers needs more. */
enum { ARRAY_ALIGNMENT = 16 };

typedef unsigned (*array_version_function)(void);
typedef PyObject *(*array_new_function)(PyTypeObject *, PyObject *, int, Py_ssize_t const *, Py_ssize_t const *, void *,
                                        int, PyObject *);
typedef int (*array_set_base_function)(PyObject *, PyObject *);

/* The functions that are used; `make` is NULL if there is no table. */
struct array_functions {
    array_new_function make;
    array_set_base_function set_base;
};

/* Read the table from its capsule, or from None. */
static inline struct array_functions array_functions_of(PyObject *capsule)
{
    enum { VERSION_AT = 0, NEW_AT = 94, SET_BASE_AT = 282 };
    enum { NUMPY_1 = 0x01000009, NUMPY_2 = 0x02000000 };
    struct array_functions none = {NULL, NULL};
    if (capsule == Py_None)
        return none;
    void **table = PyCapsule_GetPointer(capsule, NULL);
    if (table == NULL)
        return none; /* with an exception set */
    const unsigned version = ((array_version_function)table[VERSION_AT])();
    if (version != NUMPY_1 && version != NUMPY_2)
        return none;
    return (struct array_functions){(array_new_function)table[NEW_AT], (array_set_base_function)table[SET_BASE_AT]};
}

/* Return a view in C order of memory that `base` exports, which stays alive with it. `data` is aligned. */
static inline PyObject *array_over(const struct array_functions *functions, PyTypeObject *type, PyObject *dtype,
                                   int ndim, const Py_ssize_t *lengths, uint8_t *data, bool writable, PyObject *base)
{
    const int flags = ARRAY_C_CONTIGUOUS | ARRAY_ALIGNED | (writable ? ARRAY_WRITEABLE : 0);
    PyObject *array = functions->make(type, Py_NewRef(dtype), ndim, lengths, NULL, data, flags, NULL);
    if (array != NULL && functions->set_base(array, Py_NewRef(base)) != 0)
        Py_CLEAR(array);
    return array;
}

#endif

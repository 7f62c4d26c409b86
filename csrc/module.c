/* The module, its error and its functions: see module.h. */
#include "module.h"

#include "kernels.h"
#include "own.h"

#include <errno.h>
#include <string.h>
#include <sys/vfs.h>

static const long OVERLAYFS_MAGIC = 0x794c7630;

static PyObject *StatusError;

static const char *const STATUS_NAMES[] = {
    [STATUS_OK] = "ok",           [STATUS_OS] = "os",           [STATUS_FORMAT] = "format",
    [STATUS_DATA] = "data",       [STATUS_MIXED] = "mixed",     [STATUS_OTHER] = "other",
    [STATUS_NAMING] = "naming",
    [STATUS_LAYOUT] = "layout",   [STATUS_BUSY] = "busy",       [STATUS_NO_ROW] = "no_row",
    [STATUS_NO_SLOT] = "no_slot", [STATUS_NO_SPACE] = "no_space", [STATUS_FORKED] = "forked",
    [STATUS_UNLINKED] = "unlinked", [STATUS_TRUNCATED] = "truncated",
    [STATUS_TIMEOUT] = "timeout", [STATUS_INTERRUPTED] = "interrupted",
};

PyObject *status_raise(enum status status)
{
    if (status == STATUS_OS)
        return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *args = Py_BuildValue("(si)", STATUS_NAMES[status], errno);
    if (args != NULL) {
        PyErr_SetObject(StatusError, args);
        Py_DECREF(args);
    }
    return NULL;
}

void object_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type); /* an object of a heap type owns a reference to it */
}

bool list_append_new(PyObject *list, PyObject *item)
{
    bool done = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return done;
}

static PyObject *core_format_control(PyObject *module, PyObject *args)
{
    int fd;
    const char *id;
    Py_ssize_t id_nbytes;
    unsigned max_readers, max_slots, keep_slots;
    if (!PyArg_ParseTuple(args, "iy#III", &fd, &id, &id_nbytes, &max_readers, &max_slots, &keep_slots))
        return NULL;
    if (id_nbytes != 16) {
        PyErr_Format(PyExc_ValueError, "channel id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    enum status status = attachment_format(fd, (const uint8_t *)id, max_readers, max_slots, keep_slots);
    if (status != STATUS_OK)
        return status_raise(status);
    Py_RETURN_NONE;
}

static PyObject *core_own_descriptor(PyObject *module, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    return own_descriptor((int)fd) == 0 ? Py_NewRef(Py_None) : PyErr_NoMemory();
}

static PyObject *core_own_descriptor_end(PyObject *module, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    own_descriptor_end((int)fd);
    Py_RETURN_NONE;
}

static PyObject *core_format_data(PyObject *module, PyObject *args)
{
    int fd;
    const char *id;
    Py_ssize_t id_nbytes;
    if (!PyArg_ParseTuple(args, "iy#", &fd, &id, &id_nbytes))
        return NULL;
    if (id_nbytes != CHANNEL_ID_NBYTES) {
        PyErr_Format(PyExc_ValueError, "channel id: expected 16 bytes, found %zd", id_nbytes);
        return NULL;
    }
    enum status status = attachment_format_data(fd, (const uint8_t *)id);
    if (status != STATUS_OK)
        return status_raise(status);
    Py_RETURN_NONE;
}

static PyObject *core_control_nbytes(PyObject *module, PyObject *argument)
{
    unsigned long max_readers = PyLong_AsUnsignedLong(argument);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(attachment_control_nbytes((uint32_t)max_readers));
}

/* What is mapped of a read-only descriptor of overlayfs stays the lower layer's when a writer has the file copied up. */
static PyObject *core_is_overlay(PyObject *module, PyObject *argument)
{
    long fd = PyLong_AsLong(argument);
    struct statfs stat;
    if (PyErr_Occurred())
        return NULL;
    return fstatfs((int)fd, &stat) == 0 ? PyBool_FromLong(stat.f_type == OVERLAYFS_MAGIC) : status_raise(STATUS_OS);
}

static PyObject *core_copy(PyObject *module, PyObject *args)
{
    Py_buffer target, source;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(args, "w*ny*", &target, &offset, &source))
        return NULL;
    bool fits = offset >= 0 && source.len <= target.len && offset <= target.len - source.len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        memcpy((char *)target.buf + offset, source.buf, (size_t)source.len);
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

/* Gradients, of which all numbers have to be finite, or whatever else. */
static enum copied bytes_copy(char *target, const Py_buffer *source, bool is_gradient)
{
    const uint64_t nbytes = (uint64_t)source->len;
    if (!is_gradient) {
        memcpy(target, source->buf, nbytes);
        return COPY_DONE;
    }
    const enum kernel_dtype dtype = *source->format == 'f' ? KERNEL_F32 : KERNEL_F64;
    const bool finite = kernel_copy_finite(dtype, nbytes / kernel_itemsize(dtype), target, source->buf);
    return finite ? COPY_DONE : COPY_NOT_FINITE;
}

/* Copy one leaf to its place if it is just the bytes that belong there: contiguous, of that format and size. */
static enum copied leaf_copy(const Py_buffer *target, PyObject *place, PyObject *leaf, bool is_gradient)
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
    if (PyObject_GetBuffer(leaf, &source, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        return COPY_MISSED;
    }
    enum copied copied = COPY_MISSED;
    if ((uint64_t)source.len == nbytes && source.format != NULL && strcmp(source.format, format) == 0) {
        char *to = (char *)target->buf + offset;
        if (nbytes >= 65536) {
            Py_BEGIN_ALLOW_THREADS
            copied = bytes_copy(to, &source, is_gradient);
            Py_END_ALLOW_THREADS
        } else {
            copied = bytes_copy(to, &source, is_gradient);
        }
    }
    PyBuffer_Release(&source);
    return copied;
}

static PyObject *core_copy_leaves(PyObject *module, PyObject *args)
{
    PyObject *places, *leaves, *missed = NULL;
    Py_buffer target;
    Py_ssize_t first_gradient, bad = -1;
    if (!PyArg_ParseTuple(args, "w*O!O!n", &target, &PyTuple_Type, &places, &PyList_Type, &leaves, &first_gradient))
        return NULL;
    Py_ssize_t count = PyTuple_Size(places);
    if (count == PyList_Size(leaves))
        missed = PyList_New(0);
    else
        PyErr_SetString(PyExc_ValueError, "copy_leaves: as many leaves as places are needed");
    for (Py_ssize_t i = 0; missed != NULL && i < count; i++) {
        enum copied copied =
            leaf_copy(&target, PyTuple_GetItem(places, i), PyList_GetItem(leaves, i), i >= first_gradient);
        if (copied == COPY_NOT_FINITE && bad < 0)
            bad = i;
        if (copied == COPY_FAILED ||
            (copied == COPY_MISSED && !list_append_new(missed, PyLong_FromSsize_t(i))))
            Py_CLEAR(missed);
    }
    PyBuffer_Release(&target);
    return missed == NULL ? NULL : Py_BuildValue("(Nn)", missed, bad);
}

static PyMethodDef core_methods[] = {
    {"format_control", core_format_control, METH_VARARGS,
     "format_control(fd, id, max_readers, max_slots, keep_slots): lay out a new control file."},
    {"own_descriptor", core_own_descriptor, METH_O, "own_descriptor(fd): forked children are to have it closed."},
    {"own_descriptor_end", core_own_descriptor_end, METH_O, "own_descriptor_end(fd): it is about to be closed here."},
    {"format_data", core_format_data, METH_VARARGS,
     "format_data(fd, id): write the header of a data file that begins with zeros, or was cut off within it."},
    {"control_nbytes", core_control_nbytes, METH_O, "control_nbytes(max_readers): size of a control file."},
    {"is_overlay", core_is_overlay, METH_O, "is_overlay(fd): return whether this file is on overlayfs."},
    {"copy_leaves", core_copy_leaves, METH_VARARGS,
     "copy_leaves(target, ((offset, nbytes, format), ...), leaves, first_gradient) -> (indices of leaves that are not "
     "such bytes, index of a gradient that is not finite or -1)."},
    {"copy", core_copy, METH_VARARGS, "copy(target, offset, source): one memcpy, without the GIL."},
    {NULL, NULL, 0, NULL},
};

bool type_add(PyObject *module, PyType_Spec *spec, PyTypeObject **keep)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL || PyModule_AddType(module, (PyTypeObject *)type) != 0)
        return false;
    if (keep != NULL)
        *keep = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return true;
}

static bool module_fill(PyObject *module)
{
    PyObject *errors = PyImport_ImportModule("untorn.errors");
    PyObject *root = errors == NULL ? NULL : PyObject_GetAttrString(errors, "UntornError");
    if (root != NULL)
        StatusError = PyErr_NewExceptionWithDoc("untorn._core.StatusError", "(code, errno) from the core.", root, NULL);
    Py_XDECREF(root);
    Py_XDECREF(errors);
    return StatusError != NULL && PyModule_AddObjectRef(module, "StatusError", StatusError) == 0 &&
           module_add_channel(module) && module_add_board(module) && module_add_waiting(module) &&
           module_add_frozen(module) && module_add_block(module);
}

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT, "untorn._core", "The core of untorn, in C: channels, the board and the kernels.", -1,
    core_methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *module = PyModule_Create(&core_module);
    if (module != NULL && !module_fill(module))
        Py_CLEAR(module);
#ifdef Py_GIL_DISABLED
    if (module != NULL && PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED) != 0)
        Py_CLEAR(module);
#endif
    return module;
}

/* Writing a value by a plan: see module_tree.c. Nothing here runs Python code, so the value does not change meanwhile.
 */
#include "module_tree.h"

#include <string.h>

#include "copying.h"

/* Arrays of at least this size are copied without the GIL. */
enum { TREE_LARGE_NBYTES = 65536 };

/* An array that is copied after the walk. */
struct tree_copy {
    PyObject *source; /* owned: others may drop it meanwhile */
    uint8_t *to;
    const void *from;
    size_t nbytes;
};

/* One walk of a plan along a value. */
struct tree_walk {
    const TreePlanObject *plan;
    const struct tree_node *node;
    uint8_t *base;
    PyObject *originals; /* of an edit: its leaves; arrays among them are in place */
    Py_ssize_t leaf;
    struct tree_copy *large;
    size_t large_count;
};

static bool value_write(struct tree_walk *walk, PyObject *value);

static bool copy_later(struct tree_walk *walk, PyObject *source, uint8_t *to, const void *from, size_t nbytes)
{
    struct tree_copy *grown = PyMem_Realloc(walk->large, (walk->large_count + 1) * sizeof *grown);
    if (grown == NULL)
        return false;
    walk->large = grown;
    grown[walk->large_count++] = (struct tree_copy){Py_NewRef(source), to, from, nbytes};
    return true;
}

/* Copy the large arrays, if the walk came to its end, and let them go. */
static void copies_end(struct tree_walk *walk, bool copy)
{
    if (copy && walk->large_count != 0) {
        Py_BEGIN_ALLOW_THREADS
        for (size_t i = 0; i < walk->large_count; i++)
            copy_bytes(walk->large[i].to, walk->large[i].from, walk->large[i].nbytes, walk->plan->nbytes);
        Py_END_ALLOW_THREADS
    }
    for (size_t i = 0; i < walk->large_count; i++)
        Py_DECREF(walk->large[i].source);
    PyMem_Free(walk->large);
}

static bool bytes_write(struct tree_walk *walk, const struct tree_node *node, PyObject *value, const void *from)
{
    uint8_t *to = walk->base + node->offset;
    if (node->nbytes >= TREE_LARGE_NBYTES)
        return copy_later(walk, value, to, from, node->nbytes);
    if (node->nbytes != 0)
        memcpy(to, from, node->nbytes);
    return true;
}

/* An array that has the very dtype object: the usual case, in which the buffer protocol says nothing new. */
static bool array_matches(const struct tree_node *node, const struct array_fields *array)
{
    if (array->dtype != node->dtype || array->ndim != node->ndim || (array->flags & ARRAY_C_CONTIGUOUS) == 0)
        return false;
    for (int axis = 0; axis < node->ndim; axis++)
        if (array->lengths[axis] != node->lengths[axis])
            return false;
    return true;
}

static bool buffer_write(struct tree_walk *walk, const struct tree_node *node, PyObject *value)
{
    Py_buffer view;
    if ((PyObject *)Py_TYPE(value) != node->type)
        return false;
    const struct array_fields *array = (const struct array_fields *)value;
    const bool matches = walk->plan->arrays.make != NULL && node->kind == NODE_ARRAY && array_matches(node, array);
    if (walk->originals != NULL && node->kind == NODE_ARRAY)
        return matches && PyList_GetItem(walk->originals, walk->leaf) == value &&
               array->data == (char *)walk->base + node->offset;
    if (matches)
        return bytes_write(walk, node, value, array->data);
    if (PyObject_GetBuffer(value, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        return false;
    }
    bool same = (uint64_t)view.len == node->nbytes && view.format != NULL && strcmp(view.format, node->format) == 0 &&
                view.ndim == node->ndim;
    for (int axis = 0; same && axis < view.ndim; axis++)
        same = view.shape[axis] == node->lengths[axis];
    same = same && bytes_write(walk, node, value, view.buf);
    PyBuffer_Release(&view);
    return same;
}

static bool dict_write(struct tree_walk *walk, PyObject *value)
{
    const struct tree_node *self = walk->node++;
    PyObject *key, *member;
    Py_ssize_t position = 0, index = 0;
    if (!PyDict_CheckExact(value) || PyDict_Size(value) != self->count)
        return false;
    for (; PyDict_Next(value, &position, &key, &member); index++) {
        PyObject *expected = PyTuple_GetItem(self->keys, index);
        if (key != expected && (!PyUnicode_CheckExact(key) || PyUnicode_Compare(key, expected) != 0))
            return false;
        if (!value_write(walk, member))
            return false;
    }
    return true;
}

static bool sequence_write(struct tree_walk *walk, PyObject *value)
{
    const struct tree_node *self = walk->node++;
    const bool is_list = self->kind == NODE_LIST;
    if (is_list ? !PyList_CheckExact(value) : !PyTuple_CheckExact(value))
        return false;
    if ((is_list ? PyList_Size(value) : PyTuple_Size(value)) != self->count)
        return false;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (!value_write(walk, is_list ? PyList_GetItem(value, i) : PyTuple_GetItem(value, i)))
            return false;
    return true;
}

static bool text_write(const struct tree_node *node, PyObject *value, uint8_t *base)
{
    Py_ssize_t nbytes = -1;
    const char *text = NULL;
    if (node->kind == NODE_STR && PyUnicode_CheckExact(value))
        text = PyUnicode_AsUTF8AndSize(value, &nbytes);
    else if (node->kind == NODE_BYTES && PyBytes_CheckExact(value) && (nbytes = PyBytes_Size(value)) >= 0)
        text = PyBytes_AsString(value);
    if (text == NULL)
        PyErr_Clear(); /* a lone surrogate, for one */
    if (text == NULL || (uint64_t)nbytes != node->nbytes)
        return false;
    memcpy(base + node->offset, text, (size_t)nbytes);
    return true;
}

static bool number_write(const struct tree_node *node, PyObject *value, uint8_t *base)
{
    int overflow = 0;
    if (node->kind == NODE_NONE)
        return value == Py_None;
    if (node->kind == NODE_BOOL) {
        base[node->offset] = value == Py_True;
        return value == Py_True || value == Py_False;
    }
    if (node->kind == NODE_FLOAT) {
        const double number = PyFloat_CheckExact(value) ? PyFloat_AsDouble(value) : 0;
        memcpy(base + node->offset, &number, sizeof number);
        return PyFloat_CheckExact(value);
    }
    const long long number = PyLong_CheckExact(value) ? PyLong_AsLongLongAndOverflow(value, &overflow) : 0;
    memcpy(base + node->offset, &number, sizeof number);
    return PyLong_CheckExact(value) && overflow == 0;
}

static bool leaf_write(struct tree_walk *walk, const struct tree_node *node, PyObject *value)
{
    switch (node->kind) {
    case NODE_STR:
    case NODE_BYTES: return text_write(node, value, walk->base);
    case NODE_ARRAY:
    case NODE_SCALAR: return buffer_write(walk, node, value);
    default: return number_write(node, value, walk->base);
    }
}

/* Return whether the value has the structure of this node, and was written. Runs no Python code. */
static bool value_write(struct tree_walk *walk, PyObject *value)
{
    if (walk->node->kind == NODE_DICT)
        return dict_write(walk, value);
    if (walk->node->kind == NODE_LIST || walk->node->kind == NODE_TUPLE)
        return sequence_write(walk, value);
    const bool written = leaf_write(walk, walk->node++, value);
    walk->leaf++;
    return written;
}

bool tree_plan_write(PyObject *object, PyObject *value, uint8_t *base)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    struct tree_walk walk = {.plan = plan, .node = plan->nodes, .base = base};
    const bool written = value_write(&walk, value);
    copies_end(&walk, written);
    return written;
}

void tree_plan_copy(PyObject *object, uint8_t *to, const uint8_t *from, bool with_arrays)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    const size_t header = sizeof(struct slot_header), nbytes = plan->nbytes - header;
    if (!with_arrays) {
        for (Py_ssize_t i = 0; i < plan->count; i++) {
            const struct tree_node *node = &plan->nodes[i];
            if (node->kind > NODE_TUPLE && node->kind != NODE_ARRAY)
                memcpy(to + node->offset, from + node->offset, node->nbytes);
        }
    } else if (nbytes < TREE_LARGE_NBYTES) {
        memcpy(to + header, from + header, nbytes);
    } else {
        Py_BEGIN_ALLOW_THREADS
        copy_bytes(to + header, from + header, nbytes, nbytes);
        Py_END_ALLOW_THREADS
    }
}

PyObject *tree_plan_collect_method(PyObject *object, PyObject *args)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    PyObject *exporter, *tree, *originals;
    Py_buffer view;
    if (!PyArg_ParseTuple(args, "OOO!", &exporter, &tree, &PyList_Type, &originals))
        return NULL;
    if (!exporter_look(plan, exporter, PyBUF_WRITABLE, &view))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_False);
    struct tree_walk walk = {.plan = plan, .node = plan->nodes, .base = view.buf, .originals = originals};
    return PyBool_FromLong(PyList_Size(originals) == plan->leaves && value_write(&walk, tree));
}

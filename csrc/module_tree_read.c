/* Making a value by a plan: see module_tree.c. */
#include "module_tree.h"

#include <string.h>

/* One walk that makes a value. */
struct tree_reading {
    const TreePlanObject *plan;
    const struct tree_node *node;
    PyObject *exporter;
    uint8_t *base;
    bool writable;
    PyObject *originals; /* for an edit: gets every leaf that is an array, and None in the place of others */
};

static PyObject *value_read(struct tree_reading *reading);

static PyObject *dict_read(struct tree_reading *reading)
{
    const struct tree_node *self = reading->node++;
    PyObject *made = PyDict_New();
    for (Py_ssize_t i = 0; made != NULL && i < self->count; i++) {
        PyObject *member = value_read(reading);
        if (member == NULL || PyDict_SetItem(made, PyTuple_GetItem(self->keys, i), member) != 0)
            Py_CLEAR(made);
        Py_XDECREF(member);
    }
    return made;
}

static PyObject *sequence_read(struct tree_reading *reading)
{
    const struct tree_node *self = reading->node++;
    const bool is_list = self->kind == NODE_LIST;
    PyObject *made = is_list ? PyList_New(self->count) : PyTuple_New(self->count);
    for (Py_ssize_t i = 0; made != NULL && i < self->count; i++) {
        PyObject *member = value_read(reading);
        if (member == NULL || (is_list ? PyList_SetItem(made, i, member) : PyTuple_SetItem(made, i, member)) != 0)
            Py_CLEAR(made);
    }
    return made;
}

static PyObject *array_read(struct tree_reading *reading, const struct tree_node *node)
{
    const TreePlanObject *plan = reading->plan;
    uint8_t *data = reading->base + node->offset;
    if (plan->arrays.make != NULL && (uintptr_t)data % ARRAY_ALIGNMENT == 0)
        return array_over(&plan->arrays, (PyTypeObject *)plan->array_class, node->dtype, node->ndim, node->lengths,
                          data, reading->writable, reading->exporter);
    return PyObject_CallFunction(plan->array_class, "OOOK", node->shape, node->dtype, reading->exporter,
                                 (unsigned long long)node->offset);
}

static PyObject *buffer_read(struct tree_reading *reading, const struct tree_node *node)
{
    PyObject *array = array_read(reading, node);
    if (array == NULL || node->kind == NODE_ARRAY)
        return array;
    PyObject *scalar = PyObject_GetItem(array, node->shape); /* the empty tuple */
    Py_DECREF(array);
    return scalar;
}

static PyObject *leaf_read(struct tree_reading *reading, const struct tree_node *self)
{
    const uint8_t *base = reading->base;
    long long integer;
    double number;
    switch (self->kind) {
    case NODE_NONE: return Py_NewRef(Py_None);
    case NODE_BOOL: return PyBool_FromLong(base[self->offset]);
    case NODE_INT: memcpy(&integer, base + self->offset, sizeof integer); return PyLong_FromLongLong(integer);
    case NODE_FLOAT: memcpy(&number, base + self->offset, sizeof number); return PyFloat_FromDouble(number);
    case NODE_STR:
        return PyUnicode_DecodeUTF8((const char *)base + self->offset, (Py_ssize_t)self->nbytes, "surrogatepass");
    case NODE_BYTES: return PyBytes_FromStringAndSize((const char *)base + self->offset, (Py_ssize_t)self->nbytes);
    default: return buffer_read(reading, self);
    }
}

static PyObject *value_read(struct tree_reading *reading)
{
    const struct tree_node *self = reading->node;
    if (self->kind == NODE_DICT)
        return dict_read(reading);
    if (self->kind == NODE_LIST || self->kind == NODE_TUPLE)
        return sequence_read(reading);
    reading->node++;
    PyObject *leaf = leaf_read(reading, self);
    if (leaf != NULL && reading->originals != NULL &&
        PyList_Append(reading->originals, self->kind == NODE_ARRAY ? leaf : Py_None) != 0)
        Py_CLEAR(leaf);
    return leaf;
}

PyObject *tree_plan_read(PyObject *object, PyObject *exporter, uint8_t *base)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    struct tree_reading reading = {plan, plan->nodes, exporter, base, false, NULL};
    return value_read(&reading);
}

PyObject *tree_plan_read_method(PyObject *object, PyObject *exporter)
{
    Py_buffer view;
    if (!exporter_look((TreePlanObject *)object, exporter, PyBUF_SIMPLE, &view))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_NotImplemented);
    return tree_plan_read(object, exporter, view.buf);
}

/* In the place of an array that is the whole tree, return a view of it, to which alone the array belongs: then anything
 * else that refers to the array is a slice of the view. */
static PyObject *root_view(PyObject *array, PyObject *originals)
{
    PyObject *view = PyObject_CallMethod(array, "view", NULL);
    Py_DECREF(array);
    if (view != NULL && PyList_SetItem(originals, 0, Py_NewRef(view)) != 0)
        Py_CLEAR(view);
    return view;
}

PyObject *tree_plan_open_method(PyObject *object, PyObject *exporter)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    Py_buffer view;
    if (!exporter_look(plan, exporter, PyBUF_WRITABLE, &view)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "open: the slot is smaller than the plan's versions");
        return NULL;
    }
    struct tree_reading reading = {plan, plan->nodes, exporter, view.buf, true, PyList_New(0)};
    PyObject *value = reading.originals == NULL ? NULL : value_read(&reading);
    if (value != NULL && plan->nodes->kind == NODE_ARRAY)
        value = root_view(value, reading.originals);
    PyObject *pair = value == NULL ? NULL : PyTuple_Pack(2, value, reading.originals);
    Py_XDECREF(value);
    Py_XDECREF(reading.originals);
    return pair;
}

/* Make the arrays of an edit read-only; return whether something else than the tree may refer to one of them. */
PyObject *tree_plan_release_method(PyObject *object, PyObject *originals)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    const bool is_root = plan->nodes->kind == NODE_ARRAY;
    bool spread = false;
    if (!PyList_Check(originals)) {
        PyErr_SetString(PyExc_TypeError, "release: expected the list that open() returned");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_Size(originals); i++) {
        PyObject *leaf = PyList_GetItem(originals, i);
        if ((PyObject *)Py_TYPE(leaf) != plan->array_class)
            continue;
        struct array_fields *array = (struct array_fields *)leaf;
        array->flags &= ~ARRAY_WRITEABLE;
        /* the list and the container; for an array that is the tree, two names: the caller's, and that in the block */
        spread |= Py_REFCNT(leaf) > 2 + is_root || (is_root && Py_REFCNT(array->base) > 1);
    }
    return PyBool_FromLong(spread);
}

/* A plan's inside, for module_tree*.c only: see module_tree.c. */
#ifndef UNTORN_MODULE_TREE_H
#define UNTORN_MODULE_TREE_H

#include "module_arrays.h"
#include "tree_plan.h"

enum node_kind {
    NODE_DICT,
    NODE_LIST,
    NODE_TUPLE,
    NODE_INT,
    NODE_FLOAT,
    NODE_BOOL,
    NODE_NONE,
    NODE_STR,
    NODE_BYTES,
    NODE_ARRAY,
    NODE_SCALAR,
    NODE_KINDS
};

struct tree_node {
    enum node_kind kind;
    Py_ssize_t count; /* of the children, which follow */
    uint64_t offset, nbytes;
    PyObject *keys; /* of a dict: a tuple of str */
    PyObject *type; /* of an array or a scalar: the class of its values */
    PyObject *dtype, *shape;
    PyObject *format_text; /* of its buffer, as bytes */
    const char *format;
    int ndim;
    Py_ssize_t lengths[TREE_PLAN_AXES];
};

typedef struct {
    PyObject_HEAD
    Py_ssize_t count;
    struct tree_node *nodes;
    Py_ssize_t leaves;
    PyObject *schema; /* bytes */
    PyObject *array_class;
    struct array_functions arrays;
    uint64_t nbytes;
} TreePlanObject;

/* Get the memory of an exporter, for a version of this plan, which begins there; false if it is too small, perhaps with
 * an exception. It stays where it is as long as the exporter lives. */
static inline bool exporter_look(const TreePlanObject *plan, PyObject *exporter, int flags, Py_buffer *view)
{
    if (PyObject_GetBuffer(exporter, view, flags) != 0)
        return false;
    PyBuffer_Release(view);
    return (uint64_t)view->len >= plan->nbytes;
}

/* Methods of TreePlan. */
PyObject *tree_plan_read_method(PyObject *plan, PyObject *exporter);
PyObject *tree_plan_open_method(PyObject *plan, PyObject *exporter);
PyObject *tree_plan_collect_method(PyObject *plan, PyObject *args);
PyObject *tree_plan_release_method(PyObject *plan, PyObject *originals);

#endif

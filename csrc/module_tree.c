/* TreePlan: see module.h.
 *
 * A Layout says where the leaves of one structure lie, and a Decoder how to make them a tree again; both are Python. A
 * plan is what the two say of a tree of plain values, as an array of nodes, so that one call of a channel or a queue
 * writes or reads all of it. A value of another structure is a miss, and goes through the Layout; so there is one
 * encoding. module_tree_write.c has the walk along a value, module_tree_read.c the one that makes it.
 */
#include "module_tree.h"

#include <string.h>

static const char *const NODE_NAMES[] = {"dict", "list", "tuple", "int",   "float", "bool",
                                         "none", "str",  "bytes", "array", "numpy"};

static void node_clear(struct tree_node *node)
{
    Py_XDECREF(node->keys);
    Py_XDECREF(node->type);
    Py_XDECREF(node->dtype);
    Py_XDECREF(node->shape);
    Py_XDECREF(node->format_text);
}

static void TreePlan_dealloc(PyObject *object)
{
    TreePlanObject *self = (TreePlanObject *)object;
    for (Py_ssize_t i = 0; i < self->count; i++)
        node_clear(&self->nodes[i]);
    PyMem_Free(self->nodes);
    Py_XDECREF(self->schema);
    Py_XDECREF(self->array_class);
    object_free(object);
}

/* (kind, count of children, offset, nbytes, keys or None, class, dtype, shape, format) */
static bool node_parse(struct tree_node *node, PyObject *text)
{
    const char *kind;
    unsigned long long offset, nbytes;
    if (!PyArg_ParseTuple(text, "snKKOOOOO", &kind, &node->count, &offset, &nbytes, &node->keys, &node->type,
                          &node->dtype, &node->shape, &node->format_text)) {
        *node = (struct tree_node){0};
        return false;
    }
    Py_INCREF(node->keys);
    Py_INCREF(node->type);
    Py_INCREF(node->dtype);
    Py_INCREF(node->shape);
    Py_INCREF(node->format_text);
    node->offset = offset;
    node->nbytes = nbytes;
    node->kind = NODE_KINDS;
    for (unsigned each = 0; each < NODE_KINDS; each++)
        if (strcmp(kind, NODE_NAMES[each]) == 0)
            node->kind = (enum node_kind)each;
    bool valid = node->kind != NODE_KINDS &&
                 (node->kind != NODE_DICT || (PyTuple_Check(node->keys) && PyTuple_Size(node->keys) == node->count));
    if (node->kind == NODE_ARRAY || node->kind == NODE_SCALAR) {
        Py_ssize_t ndim = PyTuple_Check(node->shape) ? PyTuple_Size(node->shape) : -1;
        valid = valid && PyBytes_Check(node->format_text) && ndim >= 0 && ndim <= TREE_PLAN_AXES;
        node->format = valid ? PyBytes_AsString(node->format_text) : NULL;
        node->ndim = (int)ndim;
        for (Py_ssize_t axis = 0; valid && axis < ndim; axis++)
            node->lengths[axis] = PyLong_AsSsize_t(PyTuple_GetItem(node->shape, axis));
    }
    if (!valid && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "TreePlan: a node is of no known kind, or its parts do not fit together");
    return valid && !PyErr_Occurred();
}

static PyObject *TreePlan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"nodes", "schema", "nbytes", "array_class", "array_api", NULL};
    PyObject *nodes, *schema, *array_class, *array_api = Py_None;
    unsigned long long nbytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!KO|O", names, &PyList_Type, &nodes, &PyBytes_Type, &schema,
                                     &nbytes, &array_class, &array_api))
        return NULL;
    const struct array_functions arrays = array_functions_of(array_api);
    if (PyErr_Occurred())
        return NULL;
    TreePlanObject *self = PyObject_New(TreePlanObject, type);
    if (self == NULL)
        return NULL;
    const Py_ssize_t count = PyList_Size(nodes);
    self->count = self->leaves = 0;
    self->arrays = arrays;
    self->schema = Py_NewRef(schema);
    self->array_class = Py_NewRef(array_class);
    self->nbytes = nbytes;
    self->nodes = PyMem_Calloc((size_t)count + 1, sizeof *self->nodes);
    bool done = self->nodes != NULL;
    if (!done)
        PyErr_NoMemory();
    Py_ssize_t open = 1; /* nodes that must still follow */
    for (Py_ssize_t i = 0; done && i < count; i++) {
        done = node_parse(&self->nodes[i], PyList_GetItem(nodes, i));
        self->count = i + 1;
        const struct tree_node *node = &self->nodes[i];
        if (done && (node->offset > nbytes || node->nbytes > nbytes - node->offset)) {
            PyErr_SetString(PyExc_ValueError, "TreePlan: a leaf lies outside the item");
            done = false;
        }
        open += done && node->kind <= NODE_TUPLE ? node->count - 1 : -1;
        self->leaves += node->kind > NODE_TUPLE;
        if (done && (node->count < 0 || (open == 0) != (i + 1 == count))) {
            PyErr_SetString(PyExc_ValueError, "TreePlan: the nodes are not one tree");
            done = false;
        }
    }
    if (done && count == 0) {
        PyErr_SetString(PyExc_ValueError, "TreePlan: no node");
        done = false;
    }
    if (!done)
        Py_CLEAR(self);
    return (PyObject *)self;
}

uint64_t tree_plan_nbytes(PyObject *object) { return ((TreePlanObject *)object)->nbytes; }

uint64_t tree_plan_schema(PyObject *object, const char **schema)
{
    *schema = PyBytes_AsString(((TreePlanObject *)object)->schema);
    return (uint64_t)PyBytes_Size(((TreePlanObject *)object)->schema);
}

#define TREE_PLAN_FIELDS(FIELD)                                        \
    FIELD(TreePlan, nbytes, PyLong_FromUnsignedLongLong, self->nbytes) \
    FIELD(TreePlan, edits, PyBool_FromLong, self->arrays.make != NULL)
TREE_PLAN_FIELDS(CORE_GETTER)

static PyMethodDef TreePlan_methods[] = {
    {"read", tree_plan_read_method, METH_O,
     "read($self, exporter, /)\n--\n\n"
     "Return the value of a version with this structure, whose bytes the exporter has; its arrays are read-only "
     "views. NotImplemented if there are too few bytes."},
    {"open", tree_plan_open_method, METH_O,
     "open($self, exporter, /)\n--\n\n"
     "Return the same for an edit, with writable arrays, and a list of its leaves: the arrays, and None in the place "
     "of other values."},
    {"collect", tree_plan_collect_method, METH_VARARGS,
     "collect($self, exporter, tree, originals, /)\n--\n\n"
     "Write what was changed in an edited tree. Return False, with some written, if it has another structure, or "
     "another array than its own in the place of one."},
    {"release", tree_plan_release_method, METH_O,
     "release($self, originals, /)\n--\n\n"
     "End an edit: make its arrays read-only; return whether something else than the tree may refer to one."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef TreePlan_getset[] = {TREE_PLAN_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

/* -- the type ----------------------------------------------------------------------------------------------------- */

static PyType_Slot TreePlan_slots[] = {
    {Py_tp_doc, "TreePlan(nodes, schema, nbytes, array_class, array_api=None)\n--\n\n"
                "The nodes of a tree, in depth-first order: (kind, number of children, offset, nbytes, keys, class, "
                "dtype, shape, format of its buffer)."},
    {Py_tp_new, TreePlan_new},
    {Py_tp_dealloc, TreePlan_dealloc},
    {Py_tp_methods, TreePlan_methods},
    {Py_tp_getset, TreePlan_getset},
    {0, NULL},
};
static PyType_Spec TreePlan_spec = {"untorn._core.TreePlan", sizeof(TreePlanObject), 0, Py_TPFLAGS_DEFAULT,
                                    TreePlan_slots};

bool module_add_tree(PyObject *module)
{
    return type_add(module, &TreePlan_spec, &core_of_module(module)->tree_plan_type);
}

/* TreePlan: see module.h.
 *
 * A Layout says where the leaves of one structure lie, and a Decoder how to make them a tree again; both are Python. A
 * plan is what the two say of a small tree of plain values, as an array of nodes, so that one call of a queue writes or
 * reads all of it. A value of another structure is a miss, and goes through the Layout; so there is one encoding.
 */
#include "tree_plan.h"

#include <string.h>

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

static const char *const NODE_NAMES[] = {"dict", "list", "tuple", "int",   "float", "bool",
                                         "none", "str",  "bytes", "array", "numpy"};

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
    PyObject *schema; /* bytes */
    PyObject *array_class;
    uint64_t nbytes;
} TreePlanObject;

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
    static char *names[] = {"nodes", "schema", "nbytes", "array_class", NULL};
    PyObject *nodes, *schema, *array_class;
    unsigned long long nbytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!KO", names, &PyList_Type, &nodes, &PyBytes_Type, &schema,
                                     &nbytes, &array_class))
        return NULL;
    TreePlanObject *self = PyObject_New(TreePlanObject, type);
    if (self == NULL)
        return NULL;
    const Py_ssize_t count = PyList_Size(nodes);
    self->count = 0;
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

/* -- writing ------------------------------------------------------------------------------------------------------ */

static bool value_write(const TreePlanObject *plan, const struct tree_node **node, PyObject *value, uint8_t *base);

static bool buffer_write(const struct tree_node *node, PyObject *value, uint8_t *base)
{
    Py_buffer view;
    if ((PyObject *)Py_TYPE(value) != node->type)
        return false;
    if (PyObject_GetBuffer(value, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
        PyErr_Clear();
        return false;
    }
    bool same = (uint64_t)view.len == node->nbytes && view.format != NULL && strcmp(view.format, node->format) == 0 &&
                view.ndim == node->ndim;
    for (int axis = 0; same && axis < view.ndim; axis++)
        same = view.shape[axis] == node->lengths[axis];
    if (same && view.len != 0)
        memcpy(base + node->offset, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return same;
}

static bool dict_write(const TreePlanObject *plan, const struct tree_node **node, PyObject *value, uint8_t *base)
{
    const struct tree_node *self = (*node)++;
    PyObject *key, *member;
    Py_ssize_t position = 0, index = 0;
    if (!PyDict_CheckExact(value) || PyDict_Size(value) != self->count)
        return false;
    for (; PyDict_Next(value, &position, &key, &member); index++) {
        PyObject *expected = PyTuple_GetItem(self->keys, index);
        if (key != expected && (!PyUnicode_CheckExact(key) || PyUnicode_Compare(key, expected) != 0))
            return false;
        if (!value_write(plan, node, member, base))
            return false;
    }
    return true;
}

static bool sequence_write(const TreePlanObject *plan, const struct tree_node **node, PyObject *value, uint8_t *base)
{
    const struct tree_node *self = (*node)++;
    const bool is_list = self->kind == NODE_LIST;
    if (is_list ? !PyList_CheckExact(value) : !PyTuple_CheckExact(value))
        return false;
    if ((is_list ? PyList_Size(value) : PyTuple_Size(value)) != self->count)
        return false;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (!value_write(plan, node, is_list ? PyList_GetItem(value, i) : PyTuple_GetItem(value, i), base))
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

/* Return whether the value has the structure of this node, and was written. Runs no Python code. */
static bool value_write(const TreePlanObject *plan, const struct tree_node **node, PyObject *value, uint8_t *base)
{
    switch ((*node)->kind) {
    case NODE_DICT: return dict_write(plan, node, value, base);
    case NODE_LIST:
    case NODE_TUPLE: return sequence_write(plan, node, value, base);
    case NODE_STR:
    case NODE_BYTES: return text_write((*node)++, value, base);
    case NODE_ARRAY:
    case NODE_SCALAR: return buffer_write((*node)++, value, base);
    default: return number_write((*node)++, value, base);
    }
}

uint64_t tree_plan_nbytes(PyObject *object) { return ((TreePlanObject *)object)->nbytes; }

uint64_t tree_plan_schema(PyObject *object, const char **schema)
{
    *schema = PyBytes_AsString(((TreePlanObject *)object)->schema);
    return (uint64_t)PyBytes_Size(((TreePlanObject *)object)->schema);
}

bool tree_plan_write(PyObject *object, PyObject *value, uint8_t *base)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    const struct tree_node *node = plan->nodes;
    return value_write(plan, &node, value, base);
}

/* -- reading ------------------------------------------------------------------------------------------------------ */

static PyObject *value_read(const TreePlanObject *plan, const struct tree_node **node, PyObject *item,
                            const uint8_t *base);

static PyObject *dict_read(const TreePlanObject *plan, const struct tree_node **node, PyObject *item,
                           const uint8_t *base)
{
    const struct tree_node *self = (*node)++;
    PyObject *made = PyDict_New();
    for (Py_ssize_t i = 0; made != NULL && i < self->count; i++) {
        PyObject *member = value_read(plan, node, item, base);
        if (member == NULL || PyDict_SetItem(made, PyTuple_GetItem(self->keys, i), member) != 0)
            Py_CLEAR(made);
        Py_XDECREF(member);
    }
    return made;
}

static PyObject *sequence_read(const TreePlanObject *plan, const struct tree_node **node, PyObject *item,
                               const uint8_t *base)
{
    const struct tree_node *self = (*node)++;
    const bool is_list = self->kind == NODE_LIST;
    PyObject *made = is_list ? PyList_New(self->count) : PyTuple_New(self->count);
    for (Py_ssize_t i = 0; made != NULL && i < self->count; i++) {
        PyObject *member = value_read(plan, node, item, base);
        if (member == NULL || (is_list ? PyList_SetItem(made, i, member) : PyTuple_SetItem(made, i, member)) != 0)
            Py_CLEAR(made);
    }
    return made;
}

static PyObject *buffer_read(const TreePlanObject *plan, const struct tree_node *node, PyObject *item)
{
    PyObject *array = PyObject_CallFunction(plan->array_class, "OOOK", node->shape, node->dtype, item,
                                            (unsigned long long)node->offset);
    if (array == NULL || node->kind == NODE_ARRAY)
        return array;
    PyObject *scalar = PyObject_GetItem(array, node->shape); /* the empty tuple */
    Py_DECREF(array);
    return scalar;
}

static PyObject *value_read(const TreePlanObject *plan, const struct tree_node **node, PyObject *item,
                            const uint8_t *base)
{
    const struct tree_node *self = *node;
    long long integer;
    double number;
    if (self->kind == NODE_DICT)
        return dict_read(plan, node, item, base);
    if (self->kind == NODE_LIST || self->kind == NODE_TUPLE)
        return sequence_read(plan, node, item, base);
    (*node)++;
    switch (self->kind) {
    case NODE_NONE: return Py_NewRef(Py_None);
    case NODE_BOOL: return PyBool_FromLong(base[self->offset]);
    case NODE_INT: memcpy(&integer, base + self->offset, sizeof integer); return PyLong_FromLongLong(integer);
    case NODE_FLOAT: memcpy(&number, base + self->offset, sizeof number); return PyFloat_FromDouble(number);
    case NODE_STR:
        return PyUnicode_DecodeUTF8((const char *)base + self->offset, (Py_ssize_t)self->nbytes, "surrogatepass");
    case NODE_BYTES: return PyBytes_FromStringAndSize((const char *)base + self->offset, (Py_ssize_t)self->nbytes);
    default: return buffer_read(plan, self, item);
    }
}

PyObject *tree_plan_read(PyObject *object, PyObject *item, const uint8_t *base)
{
    const TreePlanObject *plan = (const TreePlanObject *)object;
    const struct tree_node *node = plan->nodes;
    return value_read(plan, &node, item, base);
}

/* -- the type ----------------------------------------------------------------------------------------------------- */

static PyType_Slot TreePlan_slots[] = {
    {Py_tp_doc, "TreePlan(nodes, schema, nbytes, array_class)\n--\n\n"
                "The nodes of a small tree, in depth-first order: (kind, number of children, offset, nbytes, keys, "
                "class, dtype, shape, format of its buffer)."},
    {Py_tp_new, TreePlan_new},
    {Py_tp_dealloc, TreePlan_dealloc},
    {0, NULL},
};
static PyType_Spec TreePlan_spec = {"untorn._core.TreePlan", sizeof(TreePlanObject), 0, Py_TPFLAGS_DEFAULT,
                                    TreePlan_slots};

bool module_add_tree(PyObject *module)
{
    return type_add(module, &TreePlan_spec, &core_of_module(module)->tree_plan_type);
}

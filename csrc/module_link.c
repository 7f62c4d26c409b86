/* Link: see module.h. */
#include "module.h"

#include <errno.h>
#include <string.h>

#include "link.h"

typedef struct {
    PyObject_HEAD
    struct link *link;
} LinkObject;

static int *sockets_parse(PyObject *sockets, unsigned index, uint32_t *count)
{
    PyObject *items = PySequence_Tuple(sockets);
    const Py_ssize_t size = items == NULL ? 0 : PyTuple_Size(items);
    int *fds = NULL;
    if (items != NULL && (size <= (Py_ssize_t)index || size > EXCHANGE_MAX_NODES))
        PyErr_Format(PyExc_ValueError, "node %u of %zd: expected one of at most %d nodes", index, size,
                     EXCHANGE_MAX_NODES);
    else if (items != NULL && (fds = PyMem_Calloc((size_t)size, sizeof *fds)) == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; fds != NULL && i < size; i++) {
        fds[i] = (int)PyLong_AsLong(PyTuple_GetItem(items, i));
        if (PyErr_Occurred()) {
            PyMem_Free(fds);
            fds = NULL;
        }
    }
    Py_XDECREF(items);
    *count = (uint32_t)size;
    return fds;
}

static PyObject *Link_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "sockets", "timeout_s", NULL};
    unsigned index;
    PyObject *sockets;
    double timeout_s = 3;
    uint32_t count;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IO|d", names, &index, &sockets, &timeout_s))
        return NULL;
    int *fds = sockets_parse(sockets, index, &count);
    if (fds == NULL)
        return NULL;
    struct link *link = link_open(index, fds, count, (int64_t)(timeout_s * 1e9));
    PyMem_Free(fds);
    if (link == NULL)
        return PyErr_SetFromErrno(PyExc_OSError);
    LinkObject *self = PyObject_New(LinkObject, type);
    if (self == NULL)
        link_free(link);
    else
        self->link = link;
    return (PyObject *)self;
}

static void Link_dealloc(PyObject *self)
{
    PyObject *board = link_free(((LinkObject *)self)->link);
    Py_XDECREF(board);
    object_free(self);
}

/* A forked child has the object, but neither the thread nor the connections. */
static bool here_check(const struct link *link)
{
    if (!link_is_forked(link))
        return true;
    PyErr_SetString(PyExc_RuntimeError, "a link that was inherited by fork: only the process that made it can use it");
    return false;
}

static uint32_t *cuts_parse(PyObject *cuts, uint32_t nodes)
{
    PyObject *items = PySequence_Tuple(cuts);
    uint32_t *numbers = items == NULL ? NULL : PyMem_Calloc(nodes + (size_t)1, sizeof *numbers);
    if (items != NULL && numbers == NULL)
        PyErr_NoMemory();
    if (numbers != NULL && PyTuple_Size(items) != (Py_ssize_t)nodes + 1)
        PyErr_Format(PyExc_ValueError, "cuts: expected %u numbers for %u nodes, found %zd", nodes + 1, nodes,
                     PyTuple_Size(items));
    for (uint32_t i = 0; numbers != NULL && !PyErr_Occurred() && i <= nodes; i++) {
        const unsigned long number = PyLong_AsUnsignedLong(PyTuple_GetItem(items, i));
        numbers[i] = number > BOARD_MAX_SHARDS ? UINT32_MAX : (uint32_t)number;
    }
    Py_XDECREF(items);
    if (PyErr_Occurred()) {
        PyMem_Free(numbers);
        return NULL;
    }
    return numbers;
}

static bool shape_check(const struct exchange_shape *shape, const struct board_header *header)
{
    const uint64_t own = shared_load_acquire(&header->own);
    const char *error = exchange_shape_error(shape);
    if (!header->exchange) {
        PyErr_SetString(PyExc_ValueError, "begin: the board was made without exchange");
    } else if (error != NULL) {
        PyErr_Format(PyExc_ValueError, "begin: %s", error);
    } else if (own_first(own) != shape->cuts[shape->index] || own_end(own) != shape->cuts[shape->index + 1]) {
        PyErr_Format(PyExc_ValueError, "begin: node %u has shards %u to %u by the cuts, and %u to %u by its board",
                     shape->index, shape->cuts[shape->index], shape->cuts[shape->index + 1], own_first(own),
                     own_end(own));
    }
    return !PyErr_Occurred();
}

static PyObject *session_begin(LinkObject *self, PyObject *owner, unsigned long long session,
                               const struct exchange_shape *shape)
{
    struct exchange_plan plan;
    uint64_t step = 0;
    enum status status = STATUS_OS;
    errno = ENOMEM;
    Py_BEGIN_ALLOW_THREADS
    if (exchange_plan_make(&plan, shape)) {
        status = link_begin(self->link, board_of(owner), &plan, session, owner, &step);
        exchange_plan_free(&plan); /* empty, if the link took it */
    }
    Py_END_ALLOW_THREADS
    if (status == STATUS_OK) {
        Py_INCREF(owner); /* end() gives it back */
        return PyLong_FromUnsignedLongLong(step);
    }
    if (status == STATUS_BUSY)
        return PyErr_Format(PyExc_RuntimeError, "begin: the session before has not ended: call end() first");
    if (status == STATUS_OTHER)
        return PyErr_Format(PyExc_ValueError, "begin: session %llu: expected a number above that of the session before",
                            session);
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *Link_begin(PyObject *self, PyObject *args)
{
    struct link *link = ((LinkObject *)self)->link;
    PyObject *owner, *cuts_given, *result = NULL;
    unsigned long long session;
    Py_buffer counts;
    if (!PyArg_ParseTuple(args, "O!KOy*", core_of(self)->board_type, &owner, &session, &cuts_given, &counts))
        return NULL;
    uint32_t *cuts = here_check(link) ? cuts_parse(cuts_given, link_nodes(link)) : NULL;
    const struct board *board = board_of(owner);
    const struct board_header *header = board->header;
    const Py_ssize_t expected = (Py_ssize_t)(2 * header->shards * sizeof(uint64_t));
    if (cuts != NULL && counts.len != expected)
        PyErr_Format(PyExc_ValueError, "counts: expected %zd bytes, two rows of %u numbers, found %zd", expected,
                     header->shards, counts.len);
    uint64_t *copy = cuts != NULL && !PyErr_Occurred() ? PyMem_Malloc((size_t)expected + 1) : NULL;
    if (copy != NULL) {
        memcpy(copy, counts.buf, (size_t)expected);
        const struct exchange_shape shape = {
            .nodes = link_nodes(link),
            .index = link_index(link),
            .shards = header->shards,
            .cuts = cuts,
            .counts = copy,
            .ranges = board->ranges,
            .range_count = header->ranges,
            .buffer_nbytes = header->buffer_nbytes,
        };
        if (shape_check(&shape, header))
            result = session_begin((LinkObject *)self, owner, session, &shape);
    } else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    PyMem_Free(copy);
    PyMem_Free(cuts);
    PyBuffer_Release(&counts);
    return result;
}

static PyObject *Link_end(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout_s", NULL};
    struct link *link = ((LinkObject *)self)->link;
    double timeout_s = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|d", names, &timeout_s) || !here_check(link))
        return NULL;
    bool sent;
    void *board;
    Py_BEGIN_ALLOW_THREADS
    sent = link_end(link, (int64_t)(timeout_s * 1e9), &board);
    Py_END_ALLOW_THREADS
    Py_XDECREF((PyObject *)board);
    return PyBool_FromLong(sent);
}

static PyObject *Link_close(PyObject *self, PyObject *unused)
{
    struct link *link = ((LinkObject *)self)->link;
    void *board;
    Py_BEGIN_ALLOW_THREADS
    board = link_stop(link);
    Py_END_ALLOW_THREADS
    Py_XDECREF((PyObject *)board);
    Py_RETURN_NONE;
}

static PyObject *Link_fileno(PyObject *self, PyObject *unused)
{
    const struct link *link = ((LinkObject *)self)->link;
    return here_check(link) ? PyLong_FromLong(link_fileno(link)) : NULL;
}

static PyObject *problem_make(struct link *link)
{
    static const char *const names[] = {
        [LINK_CLOSED] = "closed", [LINK_SILENT] = "silent", [LINK_GARBAGE] = "garbage", [LINK_OS] = "os"};
    if (!here_check(link))
        return NULL;
    const struct link_problem problem = link_problem(link);
    if (problem.trouble == LINK_FINE)
        Py_RETURN_NONE;
    return Py_BuildValue("(Isis)", problem.peer, names[problem.trouble], problem.error, problem.text);
}

static PyObject *counters_make(const struct link *link)
{
    const struct link_totals totals = link_totals(link);
    PyObject *sent = PyList_New(0), *received = PyList_New(0), *result = NULL;
    bool made = sent != NULL && received != NULL;
    for (uint32_t peer = 0; made && peer < link_nodes(link); peer++) {
        const struct link_counters counters = link_counters(link, peer);
        made = list_append_new(sent, PyLong_FromUnsignedLongLong(counters.sent_nbytes)) &&
               list_append_new(received, PyLong_FromUnsignedLongLong(counters.received_nbytes));
    }
    if (made)
        result = Py_BuildValue("{sOsOsKsK}", "sent_bytes", sent, "received_bytes", received, "steps",
                               (unsigned long long)totals.steps, "wait_ns", (unsigned long long)totals.wait_ns);
    Py_XDECREF(sent);
    Py_XDECREF(received);
    return result;
}

#define LINK_FIELDS(FIELD)                         \
    FIELD(Link, problem, problem_make, self->link) \
    FIELD(Link, counters, counters_make, self->link)
LINK_FIELDS(CORE_GETTER)

static PyMethodDef Link_methods[] = {
    {"begin", Link_begin, METH_VARARGS,
     "begin($self, board, session, cuts, counts, /)\n--\n\n"
     "Exchange the board's sums from its first incomplete step on; return that step.\n\n"
     "Node k has the shards from cuts[k] to before cuts[k + 1]; set_own() has said so to the board. A node\n"
     "with all the shards sets its limit after this. `counts` are the examples of each shard, as two rows of 64-bit\n"
     "numbers: of a full batch, and of an epoch's last batch. The boards of all nodes begin at the same step, and the\n"
     "number of a session is higher than that of the one before."},
    {"end", (PyCFunction)(void (*)(void))Link_end, METH_VARARGS | METH_KEYWORDS,
     "end($self, timeout_s=1.0)\n--\n\n"
     "Stop the exchange, and touch the board no more; return whether all was sent to the peers within the time.\n\n"
     "The board's step then waits for another session, or for set_own() with all shards."},
    {"close", Link_close, METH_NOARGS,
     "close($self, /)\n--\n\n"
     "End the session, the thread and the link's copies of the sockets."},
    {"fileno", Link_fileno, METH_NOARGS,
     "fileno($self, /)\n--\n\n"
     "Return a descriptor that is readable once there is a problem."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Link_getset[] = {LINK_FIELDS(CORE_GETSET){NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot Link_slots[] = {
    {Py_tp_doc,
     "Link(index, sockets, timeout_s=3.0)\n--\n\n"
     "Exchanges the sums of a board with other nodes, over sockets that are connected to them: sockets[k] to node k."},
    {Py_tp_new, Link_new},
    {Py_tp_dealloc, Link_dealloc},
    {Py_tp_methods, Link_methods},
    {Py_tp_getset, Link_getset},
    {0, NULL},
};
static PyType_Spec Link_spec = {"untorn._core.Link", sizeof(LinkObject), 0, Py_TPFLAGS_DEFAULT, Link_slots};

bool module_add_link(PyObject *module) { return type_add(module, &Link_spec, NULL); }

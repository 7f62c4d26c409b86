/* Block: see module.h.
 *
 * contextlib.contextmanager runs a generator from Python code, so an interrupt (Ctrl-C, or an exception of a signal
 * handler) can come after the generator has taken a lock and before the block begins, or after the block and before the
 * generator continues. The lock then stays taken as long as the exception is kept. Here each of the two is one call:
 * the interrupt comes inside the generator, whose `with` and `finally` handle it, or inside the block.
 */
#include "module.h"

typedef struct {
    PyObject_HEAD
    PyObject *steps; /* a generator that yields once; NULL when it is over */
} BlockObject;

static PyObject *Block_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"steps", NULL};
    PyObject *steps;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &steps))
        return NULL;
    BlockObject *self = PyObject_GC_New(BlockObject, type);
    if (self == NULL)
        return NULL;
    self->steps = Py_NewRef(steps);
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int Block_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((BlockObject *)self)->steps);
    return 0;
}

static int Block_clear(PyObject *self)
{
    Py_CLEAR(((BlockObject *)self)->steps);
    return 0;
}

static void Block_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Block_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *Block_enter(PyObject *self, PyObject *unused)
{
    PyObject *steps = ((BlockObject *)self)->steps;
    if (steps == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this block is over; ask for a new one");
        return NULL;
    }
    PyObject *value = PyIter_Next(steps);
    if (value == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "the generator of this block did not yield");
    return value;
}

/* Return whether `raised` is the error of the block, or the one that a generator makes of a StopIteration. */
static bool error_is_same(PyObject *error, PyObject *raised)
{
    if (raised == error)
        return true;
    PyObject *cause = PyException_GetCause(raised); /* a new reference, or NULL */
    Py_XDECREF(cause);
    return cause == error && PyErr_GivenExceptionMatches(error, PyExc_StopIteration);
}

/* After throwing: return False if the block's own error came back, True if the generator ended, NULL with any other
 * error. */
static PyObject *Block_thrown(PyObject *error)
{
    PyObject *type, *raised, *trace;
    PyErr_Fetch(&type, &raised, &trace);
    PyErr_NormalizeException(&type, &raised, &trace);
    bool same = error_is_same(error, raised);
    if (!same && !PyErr_GivenExceptionMatches(raised, PyExc_StopIteration)) {
        PyErr_Restore(type, raised, trace);
        return NULL;
    }
    Py_XDECREF(type);
    Py_XDECREF(raised);
    Py_XDECREF(trace);
    return PyBool_FromLong(!same);
}

static PyObject *Block_exit(PyObject *self, PyObject *args)
{
    PyObject *type, *error, *trace;
    if (!PyArg_ParseTuple(args, "OOO", &type, &error, &trace))
        return NULL;
    PyObject *steps = ((BlockObject *)self)->steps;
    ((BlockObject *)self)->steps = NULL;
    if (steps == NULL)
        Py_RETURN_FALSE;
    PyObject *result = NULL;
    PyObject *more = error == Py_None ? PyIter_Next(steps) : PyObject_CallMethod(steps, "throw", "O", error);
    if (more != NULL)
        PyErr_SetString(PyExc_RuntimeError, "the generator of this block yielded twice");
    else if (error != Py_None)
        result = Block_thrown(error);
    else if (!PyErr_Occurred())
        result = Py_NewRef(Py_False);
    Py_XDECREF(more);
    Py_DECREF(steps);
    return result;
}

static PyMethodDef Block_methods[] = {
    {"__enter__", Block_enter, METH_NOARGS,
     "__enter__($self, /)\n--\n\n"
     "Run the generator up to its yield; return what it yields."},
    {"__exit__", Block_exit, METH_VARARGS,
     "__exit__($self, kind, error, trace, /)\n--\n\n"
     "Let the generator go on, or raise the block's error in it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Block_slots[] = {
    {Py_tp_doc,
     "Block(steps)\n--\n\n"
     "A context manager over a generator, as contextlib.contextmanager makes, without a moment at which an interrupt "
     "keeps taken what the generator took."},
    {Py_tp_new, Block_new},
    {Py_tp_dealloc, Block_dealloc},
    {Py_tp_traverse, Block_traverse},
    {Py_tp_clear, Block_clear},
    {Py_tp_methods, Block_methods},
    {0, NULL},
};
static PyType_Spec Block_spec = {"untorn._core.Block", sizeof(BlockObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                 Block_slots};

bool module_add_block(PyObject *module) { return type_add(module, &Block_spec, NULL); }
